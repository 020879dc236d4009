"""Trainings that make room: wherever the signal comes, the job's next life ends as if there had been one."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress

import pytest
import torch

from calosim.io import read_csv
from calosim.models.photon_sum import PhotonSum
from calosim.runs import Run

JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "test"}


@pytest.fixture
def words(root_file):
    """A training of three epochs with validations inside of them."""
    sizes = ["--model.hidden", "[8]", "--model.components", 2, "--model.members", 3, "--data.batch_size", 64, "--quiet"]
    often = ["--trainer.log_every_n_steps", 1, "--trainer.val_check_interval", 0.5, "--trainer.max_epochs", 3]
    return ["fit", "-c", "conf/photons.yaml", "--data.files", root_file, *sizes, *often]


@pytest.fixture
def told_at(monkeypatch):
    """Sends the signal to this process in a training step: ``told_at(3)``."""

    def tell(step, number=signal.SIGUSR1):
        before, state = PhotonSum.training_step, {"left": 1}

        def training_step(self, batch):
            if self.global_step == step and state["left"]:
                state["left"] = 0
                os.kill(os.getpid(), number)
            return before(self, batch)

        monkeypatch.setattr(PhotonSum, "training_step", training_step)

    return tell


@pytest.fixture
def job(monkeypatch):
    """Puts this process into a job, whose number in the queue is noted."""
    queued = []
    monkeypatch.setattr("calosim.cli.record.requeue", lambda job: queued.append(job) or "")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    return queued


@pytest.fixture
def whole(words, once, command):
    """The uninterrupted training."""
    return Run(once("whole", lambda folder: command(*words, "--run", folder)))


def content(run: Run):
    """Weights of both checkpoints, the metrics, and what was counted."""
    files = [torch.load(path, weights_only=True)["state_dict"] for path in (run.best, run.last)]
    rows = [{k: v for k, v in row.items() if v} for row in read_csv(run / Run.METRICS)]
    return files, rows, {k: v for k, v in run.training.items() if k not in ("finished", "seconds")}


def assert_same(one: Run, other: Run):
    (a, rows, counts), (b, others, numbers) = content(one), content(other)
    assert all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)
    assert rows == others
    assert counts == numbers


def test_the_next_lives_of_a_job_end_as_if_there_had_been_one(words, whole, job, told_at, command, tmp_path):
    """Told inside of an epoch, then in the last step of the second, before whose end a validation is due."""
    run = Run(tmp_path / "run")
    for told, after in ((2, 3), (9, 10)):
        told_at(told)
        with pytest.raises(SystemExit, match="75"):
            command(*words, "--run", run.folder)
        assert torch.load(run.hpc, weights_only=True)["global_step"] == after
        assert run.training is None
    assert run.hpc.name == "hpc_ckpt_2.ckpt"
    assert command(*words, "--run", run.folder) == 0
    assert_same(run, whole)
    assert job == ["77", "77"]
    assert not list(run.folder.glob("hpc*"))


@pytest.mark.slow
def test_wherever_the_signal_comes(words, whole, job, told_at, command, tmp_path):
    for step in range(whole.training["steps"]):
        run = Run(tmp_path / str(step))
        told_at(step)
        with suppress(SystemExit):
            command(*words, "--run", run.folder)
        assert run.training or command(*words, "--run", run.folder) == 0
        assert_same(run, whole)


@pytest.mark.parametrize("how", ["asked", "by a finished job"])
def test_without_its_signal_a_job_goes_on_from_the_last_epoch(
    how, words, whole, job, command, tmp_path, monkeypatch, error_of
):
    """A node that died leaves no other checkpoint, and a script of several commands begins with those that are done."""
    run = Run(shutil.copytree(whole.folder, tmp_path / "run"))
    record = run / Run.RECORD
    record.write_text(record.read_text().replace('"job": null', '"job": {"cluster": "", "job": "77"}'))
    assert "holds a run already" in error_of(*words, "--run", run.folder)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "holds a run already" in error_of(*words, "--run", run.folder)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    if how == "asked":
        shutil.copy(run.last, run / "hpc_ckpt_1.ckpt")
        monkeypatch.delenv("SLURM_RESTART_COUNT")
        words = [*words, "--ckpt_path", "hpc"]
    assert command(*words, "--run", run.folder) == 0
    assert_same(run, whole)


def test_a_signal_that_does_not_requeue_leaves_a_checkpoint(words, job, told_at, command, tmp_path, capfd):
    told_at(2, signal.SIGTERM)
    with pytest.raises(SystemExit, match="75"):
        command(*words, "--run", tmp_path / "run")
    assert job == []
    assert (
        "written after 3 steps; job 77 not requeued (it was not asked to be); go on with --ckpt_path hpc"
        in capfd.readouterr().out
    )
