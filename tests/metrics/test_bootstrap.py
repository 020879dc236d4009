"""The paired bootstrap against its normal limit, cases that can be counted, and resampled rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calosim.metrics.bootstrap import contrast, interval, resample, resampled_mean, resampled_wasserstein
from calosim.metrics.wasserstein import wasserstein

ROUNDING = 1e-9  # relative: the same formula, summed in another order


def compare(a, b, weights, resamples=4000):
    counts = resample(len(a), resamples)
    means = [resampled_mean(x, weights, counts) for x in (a, b)]
    return contrast(np.average(a, weights=weights), np.average(b, weights=weights), *means)


def test_bootstrap_against_the_normal_limit():
    """With equal weights and many inputs, the interval is the mean +- 1.96 standard errors."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (2, 500))
    result = compare(a, b, np.full(500, 2.0))
    error = (a - b).std() / math.sqrt(500)
    assert result.difference == pytest.approx((a - b).mean(), rel=ROUNDING)
    expected = (a - b).mean() + 1.96 * error * np.array([-1, 1])
    # The ends of 4,000 resamples scatter by about 0.04 standard errors.
    np.testing.assert_allclose([result.low, result.high], expected, atol=0.2 * error)
    expected_share = 0.5 * math.erfc((a - b).mean() / error / math.sqrt(2))
    assert result.share == pytest.approx(expected_share, abs=0.04)
    assert result.p_value == pytest.approx(2 * min(result.share, 1 - result.share))
    assert result == compare(a, b, np.full(500, 2.0))


def test_bootstrap_resamples_inputs_with_their_weights():
    """With two inputs there are three outcomes, a quarter, half and a quarter of the resamples."""
    result = compare(np.array([1.0, 0.0]), np.array([0.0, 5.0]), np.array([3.0, 1.0]))
    assert result.difference == pytest.approx((3 * 1 - 5) / 4)
    assert (result.low, result.high) == (-5.0, 1.0)
    assert result.share == pytest.approx(0.75, abs=0.04)


def test_bootstrap_extremes():
    x, ones = np.arange(1.0, 6.0), np.ones(5)
    same, better = compare(x, x, ones, 100), compare(x - 1, x, ones, 100)
    assert same == (0.0, 0.0, 0.0, 1.0, 0.5)
    assert (better.p_value, better.share) == (2 / 100, 1.0)
    nothing = np.full(100, np.nan)
    assert all(math.isnan(value) for value in contrast(1.0, 2.0, nothing, nothing))
    # An input without weight is left out; a resample of such inputs only has no mean.
    counts = resample(2, 1000)
    means = resampled_mean([7.0, 1.0], [0.0, 1.0], counts)
    assert set(means[counts[:, 1] > 0]) == {1.0}
    assert np.isnan(means[counts[:, 1] == 0]).all()
    with pytest.raises(ValueError, match="K primaries"):
        resampled_mean(x, x[1:], counts)


def test_resampled_wasserstein_is_the_distance_of_the_resampled_rows(make_rows):
    generated, reference, _, input = (x.numpy() for x in make_rows())
    _, group = np.unique(input, return_inverse=True)
    counts = resample(group.max() + 1, 20, seed=4)
    distances = resampled_wasserstein(reference, generated, group, counts, chunk=8)
    for count, distance in zip(counts, distances, strict=True):
        rows = np.repeat(np.arange(len(group)), count[group].astype(int))
        expected = wasserstein(reference[rows], generated[rows].reshape(-1, 5)).mean()
        assert distance == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_an_interval_is_around_the_value_and_of_the_resamples_width():
    """Distances between resampled distributions are larger than the distance itself; how they scatter is what counts."""
    samples = np.random.default_rng(0).normal(9.0, 1.0, 20_000)
    low, high = interval(5.0, np.append(samples, np.nan))
    np.testing.assert_allclose([low, high], [5 - 1.96, 5 + 1.96], atol=0.05)
    assert interval(1.0, samples)[0] == 0
    assert np.isnan(interval(1.0, np.full(3, np.nan))).all()
