"""The fast simulation: routing of its parts, and what its results may not depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from calosim.flows import FlowConfig
from calosim.models.photons import PhotonSum
from calosim.models.teacher import Teacher
from calosim.shapes import PixelConfig
from calosim.runs import FORMAT
from calosim.showers.reading import read
from calosim.simulation.ensemble import save_ensemble
from calosim.simulation.simulator import FastSimulator, NoiseRemoval, generate, pick_device

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
    floored = FastSimulator.load(run_folders["teacher"], noise_removal=1)
    lit = (floored.sample(few.particles, few.pdg, 0, photon_sum=few.photon_sum) > 0).sum((1, 2))
    # Renormalizing the floored image rounds each of its lit pixels once, by half a photon at most.
    assert (np.abs(images.sum((1, 2)) - few.photon_sum) <= lit / 2).all()


def test_no_photons_no_light(simulator, showers):
    few = showers.select(slice(0, 2))
    images = simulator.sample(few.particles, few.pdg, 0, photon_sum=np.array([0, 50]))
    assert images[0].sum() == 0
    assert images[1].sum() > 0


def test_noise_removal_by_particle(run_folders, showers):
    pdg = np.array([22, 2112], dtype=np.int32)
    few = showers.select(slice(0, 2))

    def images(methods):
        simulator = FastSimulator.load(run_folders["teacher"], noise_removal=methods)
        return simulator.sample(few.particles, pdg, 0, photon_sum=few.photon_sum)

    mixed = images({0: 3, 2112: 2})
    assert np.array_equal(mixed[0], images(3)[0])
    assert np.array_equal(mixed[1], images(2)[1])


def test_stream_is_the_sample_in_pieces(simulator, showers):
    few = showers.select(slice(0, 2))
    pieces = list(simulator.stream(few.particles, few.pdg, 3, seed=5, batch_size=4))
    assert [len(p) for p in pieces] == [4, 2]
    repeated = np.repeat([0, 1], 3)
    whole = simulator.sample(few.particles[repeated], few.pdg[repeated], 5)
    assert np.array_equal(np.concatenate([p.images for p in pieces]), whole)


def test_models_of_two_detectors_are_refused():
    with pytest.raises(ValueError, match="ZN and a photon-sum model of ZP"):
        FastSimulator(Teacher("zn", FlowConfig(transforms=1, hidden=(8,), bins=4), PixelConfig()), PhotonSum("zp", hidden=(8,)))


def test_photon_sums_must_come_from_somewhere(run_folders, showers):
    simulator = FastSimulator.load(run_folders["teacher"])
    with pytest.raises(ValueError, match="--photons"):
        simulator.sample(showers.particles[:1], showers.pdg[:1], 0)


def test_a_photon_model_is_no_shape_model(run_folders):
    with pytest.raises(ValueError, match="expected a checkpoint of ShapeModule, got one of PhotonSum"):
        FastSimulator.load(run_folders["photons"])


def test_noise_removals_are_read():
    assert NoiseRemoval().by_code() == {}
    assert NoiseRemoval(3, ["neutron=1", "k0s=2"]).by_code() == {0: 3, 2112: 1, 310: 2}
    with pytest.raises(ValueError, match="particle=1"):
        NoiseRemoval(3, ["neutron"]).by_code()


def test_unknown_noise_removal(run_folders):
    with pytest.raises(ValueError, match="unknown noise removal 7"):
        FastSimulator.load(run_folders["teacher"], noise_removal=7)


def test_missing_device_is_said():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available"):
            pick_device("cuda")
    assert pick_device("cpu").type == "cpu"


# -- ensembles ------------------------------------------------------------------------------------------------------


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


@pytest.fixture
def ensemble(run_folders, other_teacher, tmp_path) -> Path:
    folder = tmp_path / "ensemble"
    members = {"neutron": other_teacher}
    removal = NoiseRemoval(1, ["lambda=2"])
    save_ensemble(folder, run_folders["teacher"], members, run_folders["photons"], removal)
    return folder


def test_a_member_answers_its_rows_as_it_would_alone(run_folders, other_teacher, showers):
    photons = PhotonSum.load(run_folders["photons"])
    models = [Teacher.load(folder) for folder in (run_folders["teacher"], other_teacher)]
    few, rows = showers.select(slice(0, 40)), np.arange(500, 540)
    alone = [FastSimulator(m, photons).sample(few.particles, few.pdg, 3, rows) for m in models]
    mixed = FastSimulator(models[0], photons, members={2112: models[1]})
    images = mixed.sample(few.particles, few.pdg, 3, rows, batch_size=7)
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
    few = showers.select(slice(0, 12))
    models = [Teacher.load(folder) for folder in (run_folders["teacher"], other_teacher)]
    photons = PhotonSum.load(run_folders["photons"])
    expected = FastSimulator(models[0], photons, {0: 1, 3122: 2}, {2112: models[1]})
    moved = tmp_path / "elsewhere" / "copy"
    moved.parent.mkdir()
    shutil.move(ensemble, moved)
    loaded = FastSimulator.load(moved)
    assert loaded.noise_removal == expected.noise_removal == {0: 1, 3122: 2}
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
    assert FastSimulator.load(ensemble, noise_removal=4).noise_removal == {0: 4}
    assert FastSimulator.load(ensemble, noise_removal={0: 2}).noise_removal == {0: 2}
    assert FastSimulator.load(ensemble, noise_removal={22: 3}).noise_removal == {0: 1, 3122: 2, 22: 3}
    assert FastSimulator.load(run_folders["teacher"], noise_removal={22: 1}).noise_removal == {0: 3, 22: 1}


def test_generate_with_an_ensemble(ensemble, run_folders, tmp_path):
    primaries = tmp_path / "primaries.csv"
    primaries.write_text("pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0,0,0,100\n2112,1000,0,0,0,0.1,0,-999.99955\n")
    generate(str(ensemble), str(primaries), str(tmp_path / "out.root"), responses=2, quiet=True)
    generated = read(tmp_path / "out.root", "zn")
    assert generated.pdg.tolist() == [22, 22, 2112, 2112]
    simulator = FastSimulator.load(ensemble)
    particles = generated.particles
    assert np.array_equal(generated.images, simulator.sample(particles, generated.pdg, 1))
    with pytest.raises(ValueError, match="holds no photon-sum model; name one with --photons"):
        generate(str(run_folders["teacher"]), str(primaries), str(tmp_path / "none.root"), quiet=True)
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
    save_ensemble(tmp_path / "e", runs[0], {"lambda": runs[1]})
    for name in ("config.yaml", "run.json"):
        assert (tmp_path / "e" / name).exists() == (seeds[0] == seeds[1])


def test_ensembles_that_cannot_be(ensemble, run_folders, tmp_path):
    teacher = run_folders["teacher"]
    with pytest.raises(ValueError, match="exists already"):
        save_ensemble(ensemble, teacher, {})
    for members, said in (
        ({"xyz": teacher}, "unknown particle 'xyz'"),
        ({"lambda": run_folders["photons"]}, "expected a checkpoint of ShapeModule, got one of PhotonSum"),
        ({"lambda": tmp_path / "nowhere"}, "nowhere: expected a checkpoint"),
        ({"lambda": teacher, "3122": teacher}, "one particle twice"),
    ):
        with pytest.raises(ValueError, match=said):
            save_ensemble(tmp_path / "new", teacher, members)
    default, member = Teacher.load(teacher), Teacher("zp", FlowConfig(transforms=1, hidden=(8,), bins=4), PixelConfig())
    with pytest.raises(ValueError, match="a shape model of ZN and a member lambda of ZP"):
        FastSimulator(default, members={3122: member})
    assert not list(tmp_path.glob("*new*"))
    (ensemble / "simulator.json").write_text("{}")
    with pytest.raises(ValueError, match=r"simulator.json: expected the record of an ensemble, it lacks default"):
        FastSimulator.load(ensemble)
    (ensemble / "simulator.json").write_text("{")
    with pytest.raises(ValueError, match=r"simulator.json: expected JSON"):
        FastSimulator.load(ensemble)
