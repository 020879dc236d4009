r"""Scores of predicted probabilities of yes or no: the Brier score and calibration.

References:
    | Verification of forecasts expressed in terms of probability (Brier, 1950)
    | On Calibration of Modern Neural Networks (Guo et al., 2017), https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["brier_score", "calibration_error", "reliability"]

#: Bins of equal width of the reliability diagram.
BINS = 20


def brier_score(probability: NDArray, happened: NDArray) -> float:
    r"""The mean squared difference :math:`\frac{1}{N} \sum_i (p_i - y_i)^2`, probabilities (N,) and outcomes (N,)."""
    return float(np.square(probability - happened).mean())


def reliability(probability: NDArray, happened: NDArray, bins: int = BINS) -> dict[str, NDArray[Any]]:
    """What happened where it was predicted with what probability.

    Args:
        probability: With shape (N,), from 0 to 1.
        happened: Booleans with shape (N,).
        bins: Bins of equal width.

    Returns:
        ``predicted`` (mean probability), ``observed`` (share that happened) and ``rows`` of the bins that are not empty.
    """
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    rows = np.bincount(index, minlength=bins)
    some = rows > 0
    means = [np.bincount(index, values, bins)[some] / rows[some] for values in (probability, happened.astype(float))]
    return {"predicted": means[0], "observed": means[1], "rows": rows[some]}


def calibration_error(probability: NDArray, happened: NDArray, bins: int = BINS) -> float:
    """The expected calibration error: the mean over rows of how far their bin's share is from its mean probability."""
    curve = reliability(probability, happened, bins)
    return float(np.average(np.abs(curve["predicted"] - curve["observed"]), weights=curve["rows"]))
