"""The fast simulation: routing of its parts, and what its results may not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calosim.flows import FlowConfig
from calosim.models.photon_sum import PhotonSum
from calosim.models.teacher import Teacher
from calosim.options import Requantization
from calosim.representations import PixelConfig
from calosim.simulation.simulator import FastSimulator, devices_of, pick_device

ROWS = 6


@pytest.fixture(scope="module")
def simulator(run_folders) -> FastSimulator:
    return FastSimulator.load(run_folders["teacher"], run_folders["photons"])


def test_batch_size_changes_nothing(simulator, showers):
    rows = np.arange(100, 100 + ROWS)
    whole = simulator.sample(showers.particles[:ROWS], showers.pdg[:ROWS], 3, rows)
    parts = simulator.sample(showers.particles[:ROWS], showers.pdg[:ROWS], 3, rows, batch_size=2)
    assert whole.shape == (ROWS, 44, 44)
    assert np.array_equal(whole, parts)


def test_a_row_depends_on_seed_and_row_alone(simulator, showers):
    few = showers.select(slice(0, 3))
    both = simulator.sample(few.particles, few.pdg, 3, np.array([7, 8, 9]))
    alone = simulator.sample(few.particles[1:2], few.pdg[1:2], 3, np.array([8]))
    assert np.array_equal(both[1], alone[0])
    assert not np.array_equal(both, simulator.sample(few.particles, few.pdg, 4, np.array([7, 8, 9])))
    assert not np.array_equal(both, simulator.sample(few.particles, few.pdg, 3, np.array([1, 2, 3])))


def test_given_photon_sums_are_kept_to_rounding(simulator, run_folders, showers):
    few = showers.select(slice(0, ROWS))
    images = simulator.sample(few.particles, few.pdg, 0, photon_sum=few.photon_sum)
    floored = FastSimulator.load(run_folders["teacher"], requantization=1)
    nonempty = (floored.sample(few.particles, few.pdg, 0, photon_sum=few.photon_sum) > 0).sum((1, 2))
    # Renormalizing the floored image rounds each of its lit pixels once, by half a photon at most.
    assert (np.abs(images.sum((1, 2)) - few.photon_sum) <= nonempty / 2).all()


def test_no_photons_no_light(simulator, showers):
    few = showers.select(slice(0, 2))
    images = simulator.sample(few.particles, few.pdg, 0, photon_sum=np.array([0, 50]))
    assert images[0].sum() == 0
    assert images[1].sum() > 0


def test_noise_removal_by_particle(run_folders, showers):
    few = showers.select(np.array([np.flatnonzero(showers.pdg == code)[0] for code in (22, 2112)]))

    def images(methods):
        simulator = FastSimulator.load(run_folders["teacher"], requantization=methods)
        return simulator.sample(few.particles, few.pdg, 0, photon_sum=few.photon_sum)

    mixed = images({0: 3, 2112: 2})
    assert np.array_equal(mixed[0], images(3)[0])
    assert np.array_equal(mixed[1], images(2)[1])


def test_models_of_two_detectors_are_refused():
    with pytest.raises(ValueError, match="ZN and a photon-sum model of ZP"):
        FastSimulator(
            Teacher("zn", FlowConfig(transforms=1, hidden=(8,), bins=4), PixelConfig()), PhotonSum("zp", hidden=(8,))
        )


def test_photon_sums_must_come_from_somewhere(run_folders, showers):
    simulator = FastSimulator.load(run_folders["teacher"])
    with pytest.raises(ValueError, match="--photons"):
        simulator.sample(showers.particles[:1], showers.pdg[:1], 0)


def _with(values, column, value):
    return np.where(np.arange(9) == column, value, values)


#: What is wrong with the features, codes or options of two rows, by what is said of it.
WRONG = {
    "row 0: energy is nan": lambda s: {"particles": _with(s.particles, 0, np.nan)},
    "row 0: mass is": lambda s: {"particles": _with(s.particles, 7, 0.9396)},
    r"shape \(2, 9\), got \(2, 8\)": lambda s: {"particles": s.particles[:, :8]},
    r"pdg with shape \(2,\), got \(1,\)": lambda s: {"pdg": s.pdg[:1]},
    "row 0: unknown PDG code 99999": lambda s: {"pdg": [99999, 99999]},
    "whole numbers in pdg, got": lambda s: {"pdg": s.pdg + 0.5},
    r"rows with shape \(2,\)": lambda s: {"rows": [1]},
    "whole numbers of at least 0 in photon_sum, got": lambda s: {"photon_sum": [-1, 5]},
    "whole numbers of at least 0 in photon_sum": lambda s: {"photon_sum": [0.5, np.nan]},
    "batch size of at least 1, got 0": lambda s: {"batch_size": 0},
}


@pytest.mark.parametrize("said", WRONG)
def test_bad_arguments_of_a_sample_get_one_line(said, simulator, showers):
    few = showers.select(np.flatnonzero(showers.pdg == 2112)[:2])
    with pytest.raises(ValueError, match=said) as caught:
        simulator.sample(**{"particles": few.particles, "pdg": few.pdg, "seed": 1, **WRONG[said](few)})
    assert "\n" not in str(caught.value)


def test_lists_and_tensors_are_samples_too(simulator, showers):
    few = showers.select(slice(0, 2))
    expected = simulator.sample(few.particles, few.pdg, 1, photon_sum=few.photon_sum)
    for as_given in (np.ndarray.tolist, torch.from_numpy):
        particles, pdg, sums = map(as_given, (few.particles, few.pdg, few.photon_sum))
        assert np.array_equal(simulator.sample(particles, pdg, 1, photon_sum=sums), expected)


def test_a_photon_model_is_no_shape_model(run_folders):
    with pytest.raises(ValueError, match="expected a checkpoint of ShowerModel, got one of PhotonSum"):
        FastSimulator.load(run_folders["photons"])


def test_noise_removals_are_read():
    assert Requantization().by_code() == {}
    assert Requantization(3, ["neutron=1", "k0s=2"]).by_code() == {0: 3, 2112: 1, 310: 2}
    with pytest.raises(ValueError, match="particle=1"):
        Requantization(3, ["neutron"]).by_code()


def test_unknown_noise_removal(run_folders):
    with pytest.raises(ValueError, match="unknown requantization 7"):
        FastSimulator.load(run_folders["teacher"], requantization=7)


def test_what_changes_responses_changes_the_fingerprint(simulator, run_folders):
    folders = run_folders["teacher"], run_folders["photons"]
    same, other = (FastSimulator.load(*folders, requantization=method).fingerprint() for method in (3, 1))
    assert simulator.fingerprint() == same != other
    changed = FastSimulator.load(*folders)
    next(changed.photons.parameters()).data[0] += 1e-6
    assert (
        changed.fingerprint()
        != same
        != FastSimulator.load(*folders, acceptance=run_folders["acceptance"]).fingerprint()
    )


def test_missing_device_is_said():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available"):
            pick_device("cuda")
    assert pick_device("cpu").type == "cpu"


def test_with_acceptance_some_rows_are_dark_and_the_rest_is_as_before(simulator, run_folders, showers):
    both = FastSimulator.load(run_folders["teacher"], run_folders["photons"], acceptance=run_folders["acceptance"])
    few = showers.select(slice(0, 30))
    images, before = (s.sample(few.particles, few.pdg, 3) for s in (both, simulator))
    accepted = both.acceptance.sample(torch.from_numpy(few.particles).float(), 3, torch.arange(30)).numpy()
    assert 0 < accepted.sum() < 30
    assert (images[~accepted] == 0).all()
    assert np.array_equal(images[accepted], before[accepted])
    # Given sums are taken as they are.
    given = [s.sample(few.particles, few.pdg, 3, photon_sum=few.photon_sum) for s in (both, simulator)]
    assert np.array_equal(*given)


@pytest.mark.parametrize("name", ["teacher", "splits"])
def test_threads_change_nothing_and_are_given_back(name, run_folders, showers):
    simulator = FastSimulator.load(run_folders[name], run_folders["photons"])
    many = np.arange(150) % len(showers)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(simulator.sample(showers.particles[many], showers.pdg[many], 3))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)


@pytest.mark.slow
def test_processes_change_nothing(run_folders, showers):
    folders = run_folders["splits"], run_folders["photons"]
    one, two = (FastSimulator.load(*folders, acceptance=run_folders["acceptance"], devices=n) for n in (1, 2))
    assert two.workers == 2
    many, rows = np.arange(150) % len(showers), np.arange(7, 157)
    for sums in (None, showers.photon_sum[many]):
        answers = (
            s.sample(showers.particles[many], showers.pdg[many], 3, rows, sums, batch_size=40) for s in (one, two)
        )
        assert np.array_equal(*answers)
    assert two.sample(showers.particles[:0], showers.pdg[:0], 3).shape == (0, 44, 44)


def test_devices_that_are_not_here_are_refused():
    assert devices_of(torch.device("cpu"), 3) == ["cpu"] * 3
    for device, count in (("cpu", 0), ("cuda", torch.cuda.device_count() + 1), ("mps", 2)):
        with pytest.raises(ValueError, match="expected at"):
            devices_of(torch.device(device), count)


def test_what_goes_wrong_in_a_thread_is_raised(simulator, showers, monkeypatch):
    def broken(*arguments: object) -> None:
        raise ValueError("no more rows")

    monkeypatch.setattr(simulator.shower, "generate", broken)
    with pytest.raises(ValueError, match="no more rows"):
        simulator.sample(showers.particles[:ROWS], showers.pdg[:ROWS], 3)
