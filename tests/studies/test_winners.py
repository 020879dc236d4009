"""Ranks and winners: who is best, and how often chance would have chosen another."""

from __future__ import annotations

import numpy as np

from calosim.studies.plan import Table
from calosim.studies.statistics import Cell, mean_ranks, winners

TITLES = {"a": "A", "b": "B", "c": "C"}


def test_ranks():
    """A metric that one of the models lacks ranks none of them; a model that lacks all is not in the race."""
    values = np.array([[1.0, 2.0, 2.0, np.nan], [5.0, 4.0, np.nan, np.nan]])
    np.testing.assert_equal(mean_ranks(values), [1, 2.5, 2.5, np.nan])
    np.testing.assert_equal(mean_ranks(values[:, :2]), [1.5, 1.5])
    np.testing.assert_equal(mean_ranks(np.stack([values, values[:, ::-1]], 2))[:, 1], [np.nan, 2.5, 2.5, 1])


def cells_of(metric, particle, shifts, noise, sampled=True):
    return {
        ("shape", metric, particle, label): Cell(10.0 + x, 0.1, 1, 0.0, 50, 10 + x + noise[i] if sampled else None)
        for i, (label, x) in enumerate(zip("abc", shifts, strict=True))
    }


def test_winners_are_named_with_their_certainty():
    """Of two models that differ by noise alone neither wins often; one that is better in every resample always wins."""
    noise = np.random.default_rng(0).normal(size=(3, 4000))
    cells = cells_of("ws", "gamma", (0, 0.1, 20), noise) | cells_of("ws", "neutron", (20, 20, 0), noise)
    # What cannot be resampled, or is not known for all, has no say.
    cells |= cells_of("center", "gamma", (9, 9, 0), noise, sampled=False)
    cells |= cells_of("delta", "gamma", (9, 0, np.nan), noise) | cells_of("delta", "k0s", (np.nan,) * 3, noise)
    table = Table(["gamma", "neutron", "k0s"], ["center", "ws", "delta"], ["shape"])
    gamma, neutron = winners(table, cells, TITLES).splitlines()[-2:]
    share = int(gamma.split("|")[4].strip(" %"))
    assert "**A** (1.00)" in gamma
    assert 50 < share < 60
    assert f"B ({100 - share} %)" in gamma
    assert "**C** (1.00) | 100 %" in neutron


def test_centers_are_best_where_the_monte_carlo_has_them():
    """Closer to the straight flight than the Monte Carlo is as wrong as farther."""
    noise = np.random.default_rng(0).normal(size=(3, 100)) / 100
    cells = cells_of("center", "gamma", (-9, 0.5, 3), noise)
    for cell in cells.values():
        cell.target = 10.0
    table = Table(["gamma"], ["center"], ["shape"])
    assert "**B** (1.00) | 100 % | " in winners(table, cells, TITLES).splitlines()[-1]


def test_without_resamples_nobody_wins():
    cells = cells_of("ws", "gamma", (0, 1, 2), np.zeros((3, 1)), sampled=False)
    assert winners(Table(["gamma"], ["ws"], ["shape"]), cells, TITLES) == ""
