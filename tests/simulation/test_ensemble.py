"""Ensembles: each member answers its own rows, and the folder needs nothing but itself."""

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
from calosim.simulation.ensemble import save_ensemble
from calosim.simulation.generate import generate
from calosim.simulation.simulator import FastSimulator


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
