"""The fast simulation: routing of its parts, and what its results may not depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from calosim.data.reading import read
from calosim.flows import FlowConfig
from calosim.models.checkpoints import older, weights_of
from calosim.models.finetune import FineTune
from calosim.models.photon_sum import PhotonSum
from calosim.models.teacher import Teacher
from calosim.options import Ensemble, Generate, Requantization, Stages
from calosim.representations import PixelConfig
from calosim.runs import FORMAT, Run
from calosim.simulation.generate import generate
from calosim.simulation.simulator import FastSimulator, devices_of, pick_device, save_ensemble

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
    "whole numbers from 0 to 2147483647 in photon_sum, got": lambda s: {"photon_sum": [-1, 5]},
    r"whole numbers from 0 to 2147483647 in photon_sum, got \[4294967297": lambda s: {"photon_sum": [2**32 + 1, 5]},
    "whole numbers from 0 to 2147483647 in photon_sum": lambda s: {"photon_sum": [0.5, np.nan]},
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


@pytest.fixture(scope="module")
def other_teacher(run_folders, tmp_path_factory) -> Path:
    """A teacher whose responses differ from those of the fixture's."""
    checkpoint = torch.load(run_folders["teacher"] / "checkpoints" / "best.ckpt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in checkpoint["state_dict"].items():
        if name.endswith("output.bias"):
            value += torch.randn(value.shape, generator=generator)
    folder = tmp_path_factory.mktemp("runs") / "other"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def ensemble(run_folders, other_teacher, tmp_path_factory) -> Path:
    """An ensemble of both teachers, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "ensemble"
    members = {"neutron": other_teacher}
    removal = Requantization(1, ["lambda=2"])
    save_ensemble(Ensemble(folder, run_folders["teacher"], members, run_folders["photons"], removal))
    return folder


def test_a_member_answers_its_rows_as_it_would_alone(run_folders, other_teacher, showers):
    photons = PhotonSum.load(run_folders["photons"])
    models = [Teacher.load(folder) for folder in (run_folders["teacher"], other_teacher)]
    few, rows = showers.select(slice(0, 16)), np.arange(500, 516)
    alone = [FastSimulator(m, photons).sample(few.particles, few.pdg, 3, rows) for m in models]
    mixed = FastSimulator(models[0], photons, members={2112: models[1]})
    images = mixed.sample(few.particles, few.pdg, 3, rows, batch_size=5)
    neutron = few.pdg == 2112
    assert 0 < neutron.sum() < len(few)
    assert np.array_equal(images[neutron], alone[1][neutron])
    assert np.array_equal(images[~neutron], alone[0][~neutron])
    assert (alone[0] != alone[1]).any(axis=(1, 2)).all()
    given = mixed.sample(few.particles, few.pdg, 3, rows, photon_sum=few.photon_sum)
    assert np.array_equal(
        given[neutron], FastSimulator(models[1]).sample(few.particles, few.pdg, 3, rows, few.photon_sum)[neutron]
    )


def test_an_ensemble_needs_nothing_but_its_folder(ensemble, run_folders, other_teacher, showers, tmp_path):
    few = showers.select(slice(0, 8))
    models = [Teacher.load(folder) for folder in (run_folders["teacher"], other_teacher)]
    photons = PhotonSum.load(run_folders["photons"])
    expected = FastSimulator(models[0], photons, {0: 1, 3122: 2}, {2112: models[1]})
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(ensemble, moved)
    loaded = FastSimulator.load(moved)
    assert loaded.requantization == expected.requantization == {0: 1, 3122: 2}
    assert np.array_equal(loaded.sample(few.particles, few.pdg, 5), expected.sample(few.particles, few.pdg, 5))
    record = json.loads((moved / "simulator.json").read_text())
    assert record["members"] == {"2112": "neutron.ckpt"}
    assert set(record["sources"]) == {"default.ckpt", "neutron.ckpt", "photons.ckpt"}
    for name in record["sources"]:
        # Nothing of the training: not even a name of it.
        assert set(torch.load(moved / name, weights_only=True)) <= {"calosim", "state_dict", "epoch"}
    # Without their run folders nobody can tell the members' test rows.
    assert {p.name for p in moved.iterdir()} == {"simulator.json", *record["sources"]}


def test_what_is_given_beside_an_ensemble_wins(ensemble, run_folders):
    assert FastSimulator.load(ensemble, requantization=4).requantization == {0: 4}
    assert FastSimulator.load(ensemble, requantization={0: 2}).requantization == {0: 2}
    assert FastSimulator.load(ensemble, requantization={22: 3}).requantization == {0: 1, 3122: 2, 22: 3}
    assert FastSimulator.load(run_folders["teacher"], requantization={22: 1}).requantization == {0: 3, 22: 1}


def test_generate_with_an_ensemble(ensemble, run_folders, tmp_path):
    primaries = tmp_path / "primaries.csv"
    primaries.write_text("pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0,0,0,100\n2112,1000,0,0,0,0.1,0,-999.99955\n")
    generate(Generate(Stages(str(ensemble)), str(primaries), str(tmp_path / "out.root"), responses=2, quiet=True))
    generated = read(tmp_path / "out.root", "zn")
    assert generated.pdg.tolist() == [22, 22, 2112, 2112]
    simulator = FastSimulator.load(ensemble)
    particles = generated.particles
    assert np.array_equal(generated.images, simulator.sample(particles, generated.pdg, 1))
    with pytest.raises(ValueError, match="holds no photon-sum model; name one with --photons"):
        generate(Generate(Stages(str(run_folders["teacher"])), str(primaries), str(tmp_path / "none.root"), quiet=True))
    assert not (tmp_path / "none.root").exists()


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["one split", "two splits"])
def test_an_ensemble_of_one_split_can_be_evaluated(seeds, run_folders, tmp_path):
    runs = []
    for k, seed in enumerate(seeds):
        runs.append(tmp_path / str(k))
        shutil.copytree(run_folders["teacher"], runs[k])
        data = {"data_hash": "x", "split_by": "primary", "seed": seed}
        (runs[k] / "run.json").write_text(json.dumps({"format": FORMAT, "data": data}))
        (runs[k] / "config.yaml").write_text(f"data: {{fractions: [0.7, 0.1, 0.2], seed: {seed}}}\n")
    save_ensemble(Ensemble(tmp_path / "e", runs[0], {"lambda": runs[1]}))
    for name in ("config.yaml", "run.json"):
        assert (tmp_path / "e" / name).exists() == (seeds[0] == seeds[1])


def test_a_member_answers_for_what_it_was_trained_on(run_folders, fit, root_file, tmp_path):
    few = {"limit_train_batches": 1, "limit_val_batches": 1}
    fit(FineTune(run_folders["splits"]), root_file, tmp_path / "tuned", particle="lambda", trainer=few)
    baseline = str(run_folders["splits"])
    with pytest.raises(ValueError, match="expected a member trained on gamma or on all particles, got one of lambda"):
        save_ensemble(Ensemble(tmp_path / "wrong", baseline, {"gamma": str(tmp_path / "tuned")}))
    save_ensemble(Ensemble(tmp_path / "right", baseline, {"gamma": baseline}))
    record = Run(tmp_path / "right").record
    assert record["model"] == "Ensemble"
    assert record["members"].keys() == {"default.ckpt", "gamma.ckpt"}
    assert record["ancestors"] == Teacher.load(baseline).lineage


def test_ensembles_that_cannot_be(ensemble, run_folders, tmp_path):
    teacher = run_folders["teacher"]
    with pytest.raises(ValueError, match="exists already"):
        save_ensemble(Ensemble(ensemble, teacher, {}))
    for members, said in (
        ({"xyz": teacher}, "unknown particle 'xyz'"),
        ({"lambda": run_folders["photons"]}, "expected a checkpoint of ShowerModel, got one of PhotonSum"),
        ({"lambda": tmp_path / "nowhere"}, "nowhere: expected a checkpoint"),
        ({"lambda": teacher, "3122": teacher}, "one particle twice"),
    ):
        with pytest.raises(ValueError, match=said):
            save_ensemble(Ensemble(tmp_path / "new", teacher, members))
    default, member = Teacher.load(teacher), Teacher("zp", FlowConfig(transforms=1, hidden=(8,), bins=4), PixelConfig())
    with pytest.raises(ValueError, match="a shower model of ZN and a member lambda of ZP"):
        FastSimulator(default, members={3122: member})
    assert not list(tmp_path.glob("*new*"))
    damaged = Run(shutil.copytree(ensemble, tmp_path / "damaged"))
    for text, said in (("{}", "expected the record of an ensemble, it lacks default"), ("{", "expected JSON")):
        (damaged / Run.ENSEMBLE).write_text(text)
        with pytest.raises(ValueError, match=rf"simulator.json: {said}"):
            FastSimulator.load(damaged.folder)


def test_an_ensemble_is_older_than_members_that_were_trained_on(run_folders, tmp_path, train_on):
    run = shutil.copytree(run_folders["teacher"], tmp_path / "r")
    save_ensemble(Ensemble(str(tmp_path / "e"), str(run), {"lambda": str(run_folders["teacher"])}))
    told = weights_of([tmp_path / "e"], tmp_path / "evaluation")
    assert older(told, tmp_path / "evaluation") == ""
    train_on(run)
    assert older(told, tmp_path / "evaluation") == "older than the weights of what e was made of"
