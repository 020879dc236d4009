"""Splits: no row twice, none lost, no input in two of them."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.data.datamodule import SPLITS, split_rows

#: Shares of a split by response, of 1000 rows: rounded to one row.
ROW = 1e-3


def many_inputs(rows: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Input numbers and PDG codes: four types with 5 to 300 inputs, unequal numbers of responses."""
    rng = np.random.default_rng(seed)
    pdg_of_input = np.repeat([22, 2112, 3122, 3222], [300, 100, 20, 5])
    inputs = np.concatenate([np.arange(425), rng.choice(425, rows - 425, p=rng.dirichlet(np.ones(425)))])
    inputs = rng.permutation(inputs)
    return inputs, pdg_of_input[inputs]


@pytest.mark.parametrize("by", ["primary", "response"])
@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.34, 0.33, 0.33), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5)])
@pytest.mark.parametrize("rows", [425, 426, 3001])
def test_every_row_is_in_exactly_one_split(by, fractions, rows):
    inputs, pdg = many_inputs(rows)
    splits = split_rows(inputs, pdg, by, fractions, seed=3)
    assert list(splits) == list(SPLITS)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(rows))
    for part in splits.values():
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.0, 0.5, 0.5), (0.2, 0.4, 0.4)])
@pytest.mark.parametrize("by", ["primary", "response"])
def test_few_rows_are_each_in_exactly_one_split(count, fractions, by):
    splits = split_rows(np.arange(count), np.full(count, 22), by, fractions)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(count))


def test_fractions_of_a_split_by_response():
    splits = split_rows(np.zeros(1000, int), np.zeros(1000, int), "response")
    assert [len(splits[s]) / 1000 for s in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=ROW)


def test_fractions_of_a_split_by_primary_hold_for_the_inputs_of_each_type():
    inputs, pdg = many_inputs()
    splits = split_rows(inputs, pdg)
    for code in np.unique(pdg):
        total = len(np.unique(inputs[pdg == code]))
        for name, fraction in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
            rows = splits[name]
            assert abs(len(np.unique(inputs[rows][pdg[rows] == code])) - fraction * total) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_split_by_primary_shares_no_input(seed):
    inputs, pdg = many_inputs(seed=seed)
    sets = [set(inputs[rows]) for rows in split_rows(inputs, pdg, seed=seed).values()]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]


def test_a_split_by_response_shares_inputs():
    inputs, pdg = many_inputs()
    splits = split_rows(inputs, pdg, "response")
    assert set(inputs[splits["train"]]) & set(inputs[splits["test"]])


@pytest.mark.parametrize("count", range(5, 40))
def test_a_type_with_five_inputs_reaches_every_split(count):
    inputs, pdg = np.arange(100 + count), np.repeat([22, 3222], [100, count])
    for rows in split_rows(inputs, pdg, seed=count).values():
        assert (pdg[rows] == 3222).any()


def test_a_split_is_decided_by_its_seed():
    inputs, pdg = many_inputs()
    first, again, other = (split_rows(inputs, pdg, seed=s) for s in (1, 1, 2))
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["train"], other["train"])


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (0.7, 0.3), (1.2, -0.1, -0.1), (0.5, float("nan"), 0.5)])
def test_impossible_fractions_are_named(fractions):
    with pytest.raises(ValueError, match="three split fractions that sum to 1"):
        split_rows(np.arange(9), np.zeros(9), fractions=fractions)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="unknown split 'event'; expected primary or response"):
        split_rows(np.arange(9), np.zeros(9), by="event")
