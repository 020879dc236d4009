"""How well generated responses agree with the Monte Carlo: channel metrics, diversity, paired bootstrap, classifier test."""

from calosim.metrics.bootstrap import Bootstrap, contrast, interval, resample, resampled_mean, resampled_wasserstein
from calosim.metrics.c2st import ClassifierResult, ClassifierSettings, classifier_controls, classifier_test
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError, channel_metrics
from calosim.metrics.features import shower_features
from calosim.metrics.wasserstein import CheckerboardWasserstein

# The functions `wasserstein` and `diversity` are imported from their modules, which have the same names.
__all__ = [
    "Bootstrap",
    "CheckerboardWasserstein",
    "ClassifierResult",
    "ClassifierSettings",
    "ConditionalMAE",
    "DispersionRatio",
    "JaccardError",
    "channel_metrics",
    "classifier_controls",
    "classifier_test",
    "contrast",
    "interval",
    "resample",
    "resampled_mean",
    "resampled_wasserstein",
    "shower_features",
]
