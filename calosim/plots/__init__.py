"""Drawing of responses, distributions and tables; every picture is a file that is whole or not there."""

from calosim.plots.models import (
    Curve,
    Panel,
    beeswarm,
    comparison,
    importances,
    predictive_intervals,
    reliability_diagram,
    training_curves,
)
from calosim.plots.responses import channel_histograms, draws, image_rows, spectra

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
