"""What a training leaves in its run folder: settings, record, time, checkpoints, metrics, predictions."""

from __future__ import annotations

import csv
import os

import numpy as np
import pytest
import torch

from calosim.runs import FORMAT, Run


def logged(path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_run_folder_explains_itself(run_folders, root_file):
    run = Run(run_folders["teacher"])
    names = {"config.yaml", "run.json", "training.json", "metrics.csv", "hparams.yaml", "checkpoints", "pictures"}
    assert set(os.listdir(run.folder)) == names
    record = run.record
    assert record["format"] == FORMAT
    assert record["seed"] == 1
    assert record["model"] == "Teacher"
    assert record["command"][:3] == ["fit", "-c", "conf/teacher.yaml"]
    assert record["data"]["files"] == [str(root_file)]
    assert len(record["data"]["data_hash"]) == 32
    assert record["batch_size"] == {"process": 64, "total": 64}
    assert record["learning_rate"] == run.config["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert run.config["model"]["init_args"]["flow"]["hidden"] == [8, 8]
    assert run.config["model"]["init_args"]["representation"]["noise"] == 0.5
    assert run.config["data"]["batch_size"] == 64
    metrics = logged(run / Run.METRICS)
    assert any(row["val/loss"] for row in metrics)
    assert any(row["val/ws"] for row in metrics)
    assert (run / Run.PICTURES / "epoch=000.png").stat().st_size > 1000
    training = run.training
    assert (training["epochs"], training["steps"] > 0, training["seconds"] > 0) == (1, True, True)


@pytest.mark.parametrize("model", ["teacher", "photons"])
def test_checkpoints_load_without_pickles(model, run_folders):
    run = Run(run_folders[model])
    best, last = (torch.load(path, weights_only=True) for path in (run.best, run.last))
    assert best["calosim"] == last["calosim"]
    assert best["calosim"]["format"] == FORMAT
    # After one epoch both are the same.
    assert all(torch.equal(value, last["state_dict"][key]) for key, value in best["state_dict"].items())


def test_both_checkpoints_are_options(photons, again, command, tmp_path):
    words = ["--best.monitor", "train/loss", "--best.filename", "lowest", "--last.every_n_epochs", 2]
    assert command("fit", *again, "--trainer.max_epochs", 1, *words, "--run", tmp_path / "new") == 0
    assert os.listdir(tmp_path / "new" / Run.CHECKPOINTS) == ["lowest.ckpt"]
    off = ["--trainer.enable_checkpointing", "false", "--run", tmp_path / "none"]
    assert command("fit", *again, "--trainer.max_epochs", 1, *off) == 0
    assert not (tmp_path / "none" / Run.CHECKPOINTS).exists()


def test_a_resumed_run_is_told_as_a_whole(photons, again, command, error_of):
    before, begun = (photons / Run.METRICS).read_text(), photons.record
    steps = torch.load(photons.last, weights_only=True)["global_step"]
    assert "holds a run already" in error_of("fit", *again, "--trainer.max_epochs", 2)
    seconds = photons.training["seconds"]
    assert command("fit", *again, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    # The settings are those that the weights were trained with in the end; the record tells what was changed, and when.
    now = Run(photons.folder)
    assert now.config["trainer"]["max_epochs"] == 2
    (session,) = now.record.pop("sessions")
    assert now.record == begun
    assert session["step"] == steps
    assert session["changed"]["trainer.max_epochs"] == [1, 2]
    assert not [key for key in session["changed"] if key.startswith(("model", "data"))]
    assert sorted(path.name for path in photons.folder.glob("*.yaml")) == [Run.CONFIG, "hparams.yaml"]
    # One file of both sessions: of one epoch before, of two now.
    header, *lines = before.splitlines()
    now = (photons / Run.METRICS).read_text().splitlines()
    assert now[0] == header
    assert now[1 : len(lines) + 1] == lines
    assert len(now) == 1 + 2 * len(lines)
    assert not list(photons.folder.glob("fit-*"))
    assert torch.load(photons.last, weights_only=True)["epoch"] == 1
    assert photons.training["epochs"] == 2
    assert photons.training["seconds"] > seconds


def test_a_run_resumes_from_its_own_configuration(photons, command):
    words = ["-c", photons / Run.CONFIG, "--trainer.max_epochs", 2, "--trainer.limit_train_batches", 1]
    assert command("fit", *words, "--ckpt_path", "last") == 0
    assert torch.load(photons.last, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_verbs_write_beside_the_training(verb, photons, again, command):
    # The run is that of the checkpoint.
    assert command(verb, *again[:-2], "--ckpt_path", photons.best) == 0
    if verb == "predict":
        with np.load(photons / Run.PREDICTIONS) as made:
            assert made["photon_sum"].shape == made["rows"].shape
            assert (made["photon_sum"] > 0).all()
        return
    (row,) = logged(photons / f"{verb}-1" / Run.METRICS)
    assert f"{verb[:3]}" in "".join(row)
    if verb == "validate":
        # The checkpoint's weights, not random ones: the loss it had in training.
        before = [r["val/loss"] for r in logged(photons / Run.METRICS) if r["val/loss"]][-1]
        assert float(row["val/loss"]) == pytest.approx(float(before), rel=1e-5)
