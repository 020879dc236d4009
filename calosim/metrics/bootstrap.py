r"""The paired bootstrap over primaries: how sure one is that a model is better than another.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LEAST_PRIMARIES",
    "Bootstrap",
    "Floats",
    "contrast",
    "interval",
    "resample",
    "resampled_mean",
    "resampled_wasserstein",
]

Floats = NDArray[np.float64]

#: With fewer primaries a bootstrap is too sure of itself: of six, it calls one true null in five to seven significant.
LEAST_PRIMARIES = 10


class Bootstrap(NamedTuple):
    """A paired comparison of two models, lower being better.

    Attributes:
        difference: The metric of the first model minus that of the second.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end of it.
        p_value: Two-sided; at least two in the number of resamples, which cannot tell less.
        share: Fraction of resamples in favour of the first model, ties counted half.
    """

    difference: float
    low: float
    high: float
    p_value: float
    share: float


def resample(primaries: int, resamples: int = 10_000, seed: int = 0) -> NDArray[np.float32]:
    """How often each primary occurs in each bootstrap resample.

    Models are compared on the same resamples: that is what makes a comparison paired.

    Args:
        primaries: The number of primaries K, all drawn with the same probability, with replacement.
        resamples: The number of resamples R.
        seed: Seed of the resampling.

    Returns:
        Counts with shape (R, K), each row summing to K; float32, ready for matrix products.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(primaries, np.full(primaries, 1 / max(primaries, 1)), size=resamples).astype(np.float32)


def resampled_mean(values: ArrayLike, weights: ArrayLike, counts: NDArray[np.float32]) -> Floats:
    """The weighted mean over primaries in every resample.

    Args:
        values: The metric of each primary with shape (K,), averaged over runs, see
            :meth:`calosim.metrics.conditional.ConditionalMAE.per_primary`.
        weights: Weights of the primaries with shape (K,); 0 for those the metric leaves out.
        counts: From :func:`resample`, with shape (R, K).

    Returns:
        Means with shape (R,); NaN for a resample without any weight.
    """
    value, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if not value.shape == weight.shape == counts.shape[1:]:
        raise ValueError(
            f"expected values, weights and counts of K primaries, got {value.shape}, {weight.shape}, {counts.shape}"
        )
    total = counts @ weight
    return np.divide(counts @ (weight * value), total, out=np.full(len(total), np.nan), where=total > 0)


def resampled_wasserstein(
    reference: NDArray, generated: NDArray, group: NDArray, counts: NDArray[np.float32], chunk: int = 512
) -> Floats:
    r"""The mean channel Wasserstein distance in every resample of primaries.

    The distance is the area between two distribution functions. Each is a sum over primaries, so that those of all
    resamples are one matrix product, and the area is exact since both are constant between the values that occur.

    Args:
        reference: Channel values of N Monte Carlo responses, with shape (N, 5).
        generated: Channel values of G generations of each, with shape (N, G, 5).
        group: The primary of each row, 0 to K - 1, with shape (N,).
        counts: From :func:`resample`, with shape (R, K).
        chunk: Resamples at a time, a matter of memory.

    Returns:
        Distances in photons with shape (R,), those of :func:`calosim.metrics.wasserstein.wasserstein` up to float32.
    """
    primaries, generations = counts.shape[1], generated.shape[1]
    rows = counts @ np.bincount(group, minlength=primaries).astype(np.float32)
    result = np.zeros(len(counts))
    for channel in range(reference.shape[1]):
        values, place = np.unique(
            np.concatenate([reference[:, channel], generated[:, :, channel].ravel()]), return_inverse=True
        )
        if len(values) < 2:
            continue
        bins = np.concatenate([group, np.repeat(group, generations)]) * len(values) + place.ravel()
        signs = np.concatenate([np.ones(len(group)), np.full(len(group) * generations, -1 / generations)])
        difference = np.bincount(bins, signs, primaries * len(values)).reshape(primaries, -1).cumsum(axis=1)
        difference, gaps = difference[:, :-1].astype(np.float32), np.diff(values).astype(np.float32)
        for begin in range(0, len(counts), chunk):
            part = slice(begin, begin + chunk)
            result[part] += np.abs(counts[part] @ difference) @ gaps
    return result / rows / reference.shape[1]


def interval(value: float, samples: Floats, least: float = 0.0) -> tuple[float, float]:
    r"""The 95 % interval of a metric: quantiles of its resamples, moved by what resampling adds on average.

    Resampled primaries occur several times, so that distances between resampled distributions are larger than that between
    the distributions themselves, as if there were fewer primaries; how far they scatter is what tells.

    Args:
        value: The metric.
        samples: The metric in each resample, with shape (R,).
        least: The least value that the metric can have.

    Returns:
        Lower and upper end; NaN where nothing could be resampled.

    References:
        | An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 10: estimates of bias
    """
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975]) + (value - known.mean())
    return max(least, float(low)), float(high)


def contrast(first: float, second: float, firsts: Floats, seconds: Floats) -> Bootstrap:
    """Compares two models, lower being better.

    Args:
        first: The metric of the first model.
        second: The metric of the second model.
        firsts: The first model's metric in every resample, with shape (R,).
        seconds: The second model's, in the same resamples.

    Returns:
        The comparison; NaN where there is nothing to compare.

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, table 4
    """
    differences = firsts - seconds
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Bootstrap(*[float("nan")] * 5)
    low, high = np.quantile(differences, [0.025, 0.975])
    below, equal = (differences < 0).mean(), (differences == 0).mean()
    p_value = min(1.0, max(2 * min(below + equal, 1 - below), 2 / len(differences)))
    return Bootstrap(first - second, float(low), float(high), float(p_value), float(below + equal / 2))
