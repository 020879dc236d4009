"""The noise removal that is chosen is the closest on validation rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from calosim.evaluation.requantization import best_requantizations
from calosim.models.shower import ShowerModel


def test_noise_removal_is_chosen_on_validation_rows_by_distance(run_folders, data):
    methods, distances = best_requantizations(ShowerModel.load(run_folders["teacher"]), data, 1000, 0, quiet=True)
    assert set(distances) <= {"all", "gamma", "neutron", "lambda", "sigma_plus"}
    assert distances["all"][methods[0]] == min(distances["all"].values())
    assert len(set(distances["all"].values())) > 1


def test_there_is_nothing_to_choose_where_counts_come_out_exactly(data):
    exact = SimpleNamespace(requantizations={})
    with pytest.raises(ValueError, match="this model's counts come out exactly; there is no noise removal to choose"):
        best_requantizations(exact, data, 10, 0)
