"""Trainings on a real Slurm: one makes room and ends with the weights of an uninterrupted one; two in one job; one that fails."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from calosim.io import read_csv
from calosim.runs import Run


@pytest.fixture
def words(root_file, tmp_path, monkeypatch):
    """In an empty folder: a training of 40 short epochs."""
    monkeypatch.chdir(tmp_path)
    sizes = ["--model.hidden", "[8]", "--model.components", "2", "--model.members", "3", "--data.batch_size", "64"]
    return ["fit", "-c", "conf/photons.yaml", "--data.files", str(root_file), *sizes, "--trainer.max_epochs", "40"]


@pytest.fixture
def submitted(slurm, command, capsys, tmp_path):
    """Submits a command, and returns the job's number: ``submitted("fit", ...)``."""

    def submit(*words):
        capsys.readouterr()
        assert command("submit", *words, "--slurm.folder", tmp_path / "logs") == 0
        return capsys.readouterr().out.split()[1].rstrip(":")

    return submit


def test_a_training_that_makes_room_ends_as_one_that_did_not(slurm, submitted, words, tmp_path):
    run = Run(tmp_path / "told")
    job = submitted(*words, "--run", run.folder)
    # Meanwhile the same, and another one, in one job of two steps that name no folder.
    steps = [f"srun {sys.executable} -m calosim {' '.join(more)}" for more in (words, [*words[:-1], "1"])]
    others = slurm("sbatch", "--parsable", f"--output={tmp_path}/%j.out", "--wrap", "\n".join(["set -e", *steps]))
    end = time.monotonic() + 240
    while not run.last.exists() and time.monotonic() < end:
        time.sleep(0.1)
    slurm("scancel", "--signal=USR1", job)
    log = next((tmp_path / "logs").glob(f"fit-*-{job}.out"))
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    assert f"job {job} requeued" in log.read_text()
    assert slurm.wait(others)["JobState"] == "COMPLETED", (tmp_path / f"{others}.out").read_text()
    both = sorted(map(Run, tmp_path.glob(f"runs/photonsum/slurm-{others}-*")), key=lambda r: r.training["epochs"])
    assert [r.training["epochs"] for r in both] == [1, 40]
    for path in ("last", "best"):
        a, b = (torch.load(getattr(r, path), weights_only=True)["state_dict"] for r in (run, both[1]))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert read_csv(run / Run.METRICS) == read_csv(both[1] / Run.METRICS)
    assert run.training["samples"] == both[1].training["samples"]


def test_a_step_that_fails_is_shown(slurm, submitted, words, tmp_path):
    job = submitted(*words, "--data.files", tmp_path / "missing.root", "--run", tmp_path / "run")
    ended = slurm.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "calosim: error: " in next((tmp_path / "logs").glob("*.out")).read_text()
