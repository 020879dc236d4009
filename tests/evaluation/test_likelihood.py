"""The likelihood's own test: nothing is found between a model's own responses, much where photons were moved."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from calosim import FastSimulator
from calosim.evaluation.definitions import TITLES
from calosim.evaluation.references import floor_of_sums
from calosim.evaluation.tests import judge_by_likelihood, likelihood_rows, likelihood_tables
from calosim.models.student import Student
from calosim.particles import particle_code

#: Standard errors that a difference may lie off its expectation.
SIGMAS = 4.0


@pytest.fixture(scope="module")
def simulator(run_folders):
    return FastSimulator.load(run_folders["splits"])


@pytest.fixture(scope="module")
def own(simulator, showers, all_of):
    """Rows whose responses are the model's own, and other responses of it: ``own(seed)``."""

    def sample(seed):
        return simulator.sample(showers.particles, showers.pdg, seed, photon_sum=showers.photon_sum)

    return replace(all_of(showers), showers=replace(showers, images=sample(1))), sample


def test_a_model_is_not_surprised_by_its_own_responses(simulator, own):
    rows, sample = own
    floors = {"shape_floor": floor_of_sums(replace(rows.showers, images=sample(3)), rows, 2)}
    found = judge_by_likelihood(simulator, rows, sample(2), floors, 1, quiet=True)
    assert found["per"] == "image"
    assert found["monte_carlo"] > 0
    for name in ("shape", "mc_sums"):
        assert abs(found[name]["difference"]) < SIGMAS * found[name]["error"]
    assert found["damaged_10"]["high"] < 0
    assert found["shape"]["low"] < found["shape"]["difference"] < found["shape"]["high"]
    title, metric, _, *numbers = next(likelihood_rows(found))
    assert (title, metric, numbers) == (TITLES["shape"], "nll_difference", list(found["shape"].values()))
    head, table = likelihood_tables(found)
    assert f"{found['monte_carlo']:.4g} nats per image" in head
    assert len(table.splitlines()) == 2 + 3
    # Members of an ensemble answer for their own rows.
    ensemble = FastSimulator(simulator.shower, members={particle_code("gamma"): simulator.shower})
    assert judge_by_likelihood(ensemble, rows, sample(2), floors, 1, quiet=True)["shape"] == pytest.approx(
        found["shape"]
    )


def test_another_simulation_is_not_what_a_hardly_trained_model_generates(simulator, showers, all_of, own):
    found = judge_by_likelihood(simulator, all_of(showers), own[1](2), {}, 1, quiet=True)
    assert abs(found["shape"]["difference"]) > SIGMAS * found["shape"]["error"]
    assert "mc_sums" not in found


def test_students_and_few_primaries_are_told(simulator, own):
    rows, _ = own
    student = SimpleNamespace(shower=Student.__new__(Student), members={})
    assert "students" in judge_by_likelihood(student, rows, rows.showers.images, {}, 1)["reason"]
    first = np.flatnonzero(rows.inputs < 5)
    few = replace(
        rows,
        showers=rows.showers.select(first),
        inputs=rows.inputs[first],
        positions=first,
        natural=rows.natural[first],
    )
    found = judge_by_likelihood(simulator, few, few.showers.images, {}, 1)
    assert likelihood_tables(found) == ["No likelihood test: it needs 20 primaries or more, the rows to judge have 5."]
    assert likelihood_tables({}) == []
    assert not list(likelihood_rows(found))
