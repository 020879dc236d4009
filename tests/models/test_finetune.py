"""Fine-tuning starts where the baseline ended, keeps its standardizations, and leaves an ordinary teacher behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from calosim.__main__ import main
from calosim.data.reading import read
from calosim.models.checkpoints import load_module
from calosim.models.finetune import FineTune
from calosim.models.teacher import Teacher
from calosim.simulation.simulator import FastSimulator

#: As many batches of an epoch as it takes to tell one from the next.
FEW = {"limit_train_batches": 2, "limit_val_batches": 1}
CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture
def baseline(run_folders, tmp_path) -> Path:
    """A copy of the baseline that a test may change or delete."""
    return Path(shutil.copytree(run_folders["teacher"], tmp_path / "baseline"))


@pytest.fixture(scope="module")
def finetuned(run_folders, root_file, tmp_path_factory, fit) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    fit(FineTune(run_folders["teacher"], dropout=0.5), root_file, folder, particle="neutron", trainer=FEW)
    return folder


def test_begins_as_the_baseline(run_folders, showers):
    module, baseline = FineTune(run_folders["teacher"]).eval(), Teacher.load(run_folders["teacher"])
    assert module.init == baseline.init
    few = showers.select(slice(0, 4))
    inputs = [torch.from_numpy(few.particles).float(), torch.from_numpy(few.photon_sum), 3, torch.arange(4)]
    assert torch.equal(module.generate(*inputs), baseline.generate(*inputs))
    assert module.state_dict().keys() == baseline.state_dict().keys()
    for a, b in zip(module.state_dict().values(), baseline.state_dict().values(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr() or not a.numel()


def test_learns_and_keeps_the_standardizations(finetuned, run_folders):
    before, after = Teacher.load(run_folders["teacher"]), Teacher.load(finetuned)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    for (name, a), b in zip(before.named_buffers(), after.buffers(), strict=True):
        assert torch.equal(a, b), f"{name} was fitted anew"


def test_leaves_an_ordinary_teacher(finetuned, run_folders):
    checkpoint = torch.load(finetuned / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["calosim"]["class"] == "Teacher"
    baseline = Teacher.load(run_folders["teacher"]).init
    assert checkpoint["calosim"]["init"] == {**baseline, "flow": {**baseline["flow"], "dropout": 0.5}}
    assert type(load_module(finetuned)) is Teacher
    assert str(run_folders["teacher"]) not in str(checkpoint["calosim"])


def test_can_be_fine_tuned_again(finetuned, root_file, tmp_path, fit):
    again = FineTune(finetuned)
    assert again.init["flow"]["dropout"] == 0.5
    fit(again, root_file, tmp_path, particle="lambda", trainer=FEW)
    assert type(load_module(tmp_path)) is Teacher


def test_resuming_loads_its_own_state(baseline, root_file, tmp_path, fit):
    whole = FineTune(baseline)
    fit(whole, root_file, tmp_path / "whole", epochs=2, particle="neutron", trainer=FEW)
    fit(FineTune(baseline), root_file, tmp_path / "parts", epochs=1, particle="neutron", trainer=FEW)
    # Other weights in the baseline's place: what is resumed must not depend on them.
    checkpoint = torch.load(baseline / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["state_dict"] = Teacher(**checkpoint["calosim"]["init"]).state_dict()
    torch.save(checkpoint, baseline / "checkpoints" / "best.ckpt")
    resumed = FineTune(baseline)
    assert not torch.equal(next(resumed.parameters()), next(whole.parameters()))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    fit(resumed, root_file, tmp_path / "parts", epochs=2, ckpt_path=last, particle="neutron", trainer=FEW)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_bad_baselines(run_folders, tmp_path):
    with pytest.raises(ValueError, match="expected a baseline of ZP, got one of ZN"):
        FineTune(run_folders["teacher"], detector="zp")
    with pytest.raises(ValueError, match="expected a checkpoint of ShowerModel, got one of PhotonSum"):
        FineTune(run_folders["photons"])
    with pytest.raises(ValueError, match="nowhere: expected a checkpoint or a run folder"):
        FineTune(tmp_path / "nowhere")


def test_by_the_command_then_simulate_without_the_baseline(baseline, root_file, run_folders, showers, tmp_path, capfd):
    run = tmp_path / "run"
    words = ["--data.files", str(root_file), "--data.particle", "neutron", "--data.batch_size", "16"]
    words += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"]
    words += ["--trainer.max_epochs", "2", "--trainer.callbacks.rows", "4", "--trainer.enable_progress_bar", "false"]
    command = ["fit", "-c", str(CONF / "finetune/gd.yaml"), "--model.init_from", str(baseline), *words]
    assert main([*command, "--run", str(run)]) == 0
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert {"finetune/stage", "finetune/lr", "finetune/parameters", "val/ws_neutron"} <= set(header.split(","))
    assert rows
    shutil.rmtree(baseline)
    few = showers.select(showers.pdg == 2112).select(slice(0, 3))
    simulator = FastSimulator.load(run, run_folders["photons"])
    assert simulator.sample(few.particles, few.pdg, 1).sum() > 0
    primaries, out = tmp_path / "primaries.csv", tmp_path / "out.root"
    primaries.write_text("pdg,energy,vx,vy,vz,px,py,pz\n2112,1000,0,0,0,0.1,0,-999.99955\n")
    models = ["--shower", str(run), "--photons", str(run_folders["photons"])]
    assert main(["generate", *models, "--primaries", str(primaries), "--out", str(out), "--responses", "2"]) == 0
    assert np.array_equal(read(out, "zn").pdg, [2112, 2112])
    # Resuming without the baseline, and another detector, are refused in one line.
    capfd.readouterr()
    assert main([*command, "--run", str(run), "--ckpt_path", "last"]) == 2
    assert (
        main([*command[:3], "--model.init_from", str(run), "--data.detector", "zp", "--run", str(tmp_path / "x")]) == 2
    )
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: error:")]
    assert len(errors) == 2
    assert "baseline: expected a checkpoint or a run folder" in errors[0]
    assert "expected a baseline of ZP, got one of ZN" in errors[1]
