"""Keyed draws: a row's numbers depend on its key alone, and they are as random as they must be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from calosim import rng
from calosim.rng import normal, row_keys, uniform

#: Statistical tests fail by chance less often than this, and with fixed seeds never.
P_MIN = 1e-4
#: Deviation of a mean of n independent numbers in units of its standard error.
SIGMAS = 4.5
ROWS = torch.tensor([0, 1, 2, 5, 77, 2**31 - 1, 2**31, 2**31 + 1, 2**40 + 3, 2**62, -1, -(2**33)])
both = pytest.mark.parametrize("draw", [uniform, normal])


def correlation_sigmas(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().flatten(), b.double().flatten()
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    return float((a * b).mean()) * math.sqrt(len(a))


@both
@pytest.mark.parametrize("n", [1, 2, 7, 1936])
def test_a_row_gets_the_same_numbers_in_any_batch_and_order(draw, n):
    whole = draw(row_keys(ROWS, 1, 3), n)
    for order in (torch.arange(len(ROWS)).flip(0), torch.randperm(len(ROWS), generator=torch.manual_seed(0))):
        assert torch.equal(draw(row_keys(ROWS[order], 1, 3), n), whole[order])
    for size in (1, 3, 5):
        parts = [draw(row_keys(part, 1, 3), n) for part in ROWS.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(draw(row_keys(ROWS.repeat(40), 1, 3), n), whole.repeat(40, 1))


@both
def test_no_global_state_is_read_or_written(draw):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = draw(row_keys(ROWS, 1, 2), 10)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(row_keys(ROWS, 1, 2), 10), first)


def test_keys_of_different_rows_and_words_differ():
    rows = torch.cat([torch.arange(200_000), torch.arange(200_000) + 2**31, torch.arange(200_000) + 2**53])
    words = [(1, 0), (1, 1), (1, 2), (2, 1), (1, -1), (1,), (1, 1, 0)]
    keys = torch.cat([row_keys(rows[::10], *w) for w in words] + [row_keys(rows, 7, 7)])
    assert len(keys.unique()) == len(keys)
    assert keys.dtype == torch.int64


def test_rows_may_be_of_any_integer_type():
    rows = torch.tensor([0, 3, 9])
    assert torch.equal(row_keys(rows.to(torch.int32), 4), row_keys(rows, 4))


@both
def test_no_rows(draw):
    assert draw(row_keys(torch.arange(0), 1), 5).shape == (0, 5)


def test_uniform_numbers_are_odd_multiples_of_a_power_of_two():
    # ... and therefore lie strictly inside (0, 1), symmetrically around 1/2.
    steps = uniform(row_keys(torch.arange(2000), 1), 500).double() * 2**24
    assert torch.equal(steps % 2, torch.ones_like(steps))
    assert steps.min() > 0
    assert steps.max() < 2**24


@pytest.mark.parametrize("bits", [0, -1])
def test_extreme_bits_stay_finite_and_inside(monkeypatch, bits):
    monkeypatch.setattr(rng, "_bits", lambda keys, n: torch.full((len(keys), n), bits, dtype=torch.int64))
    assert 0 < float(uniform(torch.zeros(1), 1)) < 1
    numbers = normal(torch.zeros(1), 2)
    assert torch.isfinite(numbers).all()
    assert numbers.abs().max() < 6.67


@pytest.mark.parametrize(
    "rows",
    [torch.arange(4000), torch.arange(4000) * 2**32, torch.arange(4000) + 2**31, -torch.arange(4000)],
    ids=["small", "spread", "large", "negative"],
)
def test_uniform_numbers_are_uniform(rows):
    numbers = uniform(row_keys(rows, 1, 0), 25)
    assert numbers.dtype == torch.float32
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > P_MIN
    for counter in (0, 1, 24):  # over the rows at one counter, and over the counters of one row
        assert stats.kstest(numbers[:, counter].numpy(), "uniform").pvalue > P_MIN
    long = uniform(row_keys(rows[:3], 1, 0), 20_000)
    for row in long:
        assert stats.kstest(row.numpy(), "uniform").pvalue > P_MIN


def test_pairs_of_uniform_numbers_fill_the_square():
    numbers = uniform(row_keys(torch.arange(40_000), 1, 0), 4)
    for i, j in itertools.combinations(range(4), 2):
        cells = (numbers[:, i] * 10).long() * 10 + (numbers[:, j] * 10).long()
        assert stats.chisquare(cells.bincount(minlength=100).numpy()).pvalue > P_MIN
    cells = (numbers[:-1, 0] * 10).long() * 10 + (numbers[1:, 0] * 10).long()  # neighbouring rows
    assert stats.chisquare(cells.bincount(minlength=100).numpy()).pvalue > P_MIN


def test_every_bit_of_the_keys_is_fair_and_changes_when_a_row_bit_changes():
    rows = torch.arange(20_000)
    keys = row_keys(rows, 1, 0)
    shifts = torch.arange(64)
    bits = (keys[:, None] >> shifts) & 1
    error = SIGMAS * 0.5 / math.sqrt(len(rows))
    torch.testing.assert_close(bits.double().mean(0), torch.full((64,), 0.5).double(), rtol=0, atol=error)
    for flipped in (0, 1, 20, 40, 62):
        changed = ((keys ^ row_keys(rows ^ (1 << flipped), 1, 0))[:, None] >> shifts) & 1
        torch.testing.assert_close(changed.double().mean(0), torch.full((64,), 0.5).double(), rtol=0, atol=error)


@pytest.mark.parametrize(
    ("first", "second"),
    [((1, 0), (2, 0)), ((1, 0), (1, 1)), ((1, 1), (1, 2)), ((1, 0), (1, 2**31)), ((1, 2), (2, 1)), ((1,), (1, 0))],
)
@both
def test_streams_and_seeds_are_independent(draw, first, second):
    a, b = (draw(row_keys(torch.arange(2000), *words), 50) for words in (first, second))
    assert not torch.isclose(a, b, rtol=1e-5).float().mean() > 1e-3
    assert abs(correlation_sigmas(a, b)) < SIGMAS
    assert abs(correlation_sigmas(a.square(), b.square())) < SIGMAS


@pytest.mark.parametrize("n", [1, 3, 50, 51])
def test_normal_numbers_are_standard_normal(n):
    numbers = normal(row_keys(torch.arange(200_000 // n), 2, 0), n)
    assert numbers.shape == (200_000 // n, n)
    assert numbers.dtype == torch.float32
    x = numbers.double().flatten()
    assert stats.kstest(x.numpy(), "norm").pvalue > P_MIN
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float((x**power).mean()) - moment) < SIGMAS * math.sqrt(variance / len(x))


def test_the_two_numbers_of_a_box_muller_pair_are_independent():
    cosine, sine = normal(row_keys(torch.arange(100_000), 2, 0), 2).unbind(1)
    assert abs(correlation_sigmas(cosine, sine)) < SIGMAS
    assert abs(correlation_sigmas(cosine.square(), sine.square())) < SIGMAS
    angle = torch.atan2(sine, cosine)
    assert stats.kstest(angle.numpy(), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > P_MIN
    radius = (cosine.square() + sine.square()).sqrt()
    assert stats.kstest(radius.numpy(), "rayleigh").pvalue > P_MIN
