"""Drawing of responses, distributions and tables; every picture is a file that is whole or not there."""

from calosim.plots.distributions import channel_histograms, spectra
from calosim.plots.explanations import beeswarm, importances, predictive_intervals, reliability_diagram
from calosim.plots.models import Curve, Panel, comparison, training_curves
from calosim.plots.responses import draws, image_rows

__all__ = [
    "Curve",
    "Panel",
    "beeswarm",
    "channel_histograms",
    "comparison",
    "draws",
    "image_rows",
    "importances",
    "predictive_intervals",
    "reliability_diagram",
    "spectra",
    "training_curves",
]
