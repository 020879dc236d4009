"""How well generated responses agree with the Monte Carlo: channel metrics, diversity, paired bootstrap."""

from calosim.metrics.bootstrap import Bootstrap, contrast, resample, resampled_mean, resampled_wasserstein
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError, channel_metrics
from calosim.metrics.wasserstein import CheckerboardWasserstein

# The functions `wasserstein` and `diversity` are imported from their modules, which have the same names.
__all__ = [
    "Bootstrap",
    "CheckerboardWasserstein",
    "ConditionalMAE",
    "DispersionRatio",
    "JaccardError",
    "channel_metrics",
    "contrast",
    "resample",
    "resampled_mean",
    "resampled_wasserstein",
]
