"""Trainings and predictions of several processes, on one node and two: one folder, one record, the numbers of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import Namespace

from calosim.cli.train import take_processes
from calosim.io import read_csv
from calosim.runs import Run

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.max_epochs", 2]
#: Sums in another order than one process takes them.
ORDER = 1e-4


@pytest.fixture
def torchrun(monkeypatch):
    """As if torchrun had started this process, the first of four on two nodes."""
    started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
def test_processes_of_torchrun_are_taken_and_told_their_folder(root_file, error_of, monkeypatch):
    config = Namespace(run="runs/a", trainer=Namespace(devices=1, num_nodes=1))
    take_processes(config)
    assert (config.trainer.devices, config.trainer.num_nodes) == (2, 2)
    words = ["fit", "-c", "conf/photons.yaml", "--data.files", root_file]
    assert "expected --run RUN_FOLDER, the same for all 4 processes that torchrun starts" in error_of(*words)
    monkeypatch.setenv("WORLD_SIZE", "1")
    config = Namespace(run=None, trainer=Namespace(devices=1, num_nodes=1))
    take_processes(config)
    assert config.trainer.devices == 1


def _run(*words: object, wait: bool = True) -> subprocess.Popen:
    """Starts a command; its environment is that of a terminal."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "TORCHELASTIC_", "PL_"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = subprocess.Popen([sys.executable, "-m", *map(str, words)], env=kept, **pipes)
    if wait:
        said = started.communicate(timeout=300)[0]
        assert started.returncode == 0, said
    return started


def _losses(run: Path) -> list[float]:
    """What was logged, the losses of training and validation."""
    return [float(row[key]) for row in read_csv(run / Run.METRICS) for key in ("train/loss", "val/loss") if row[key]]


@pytest.mark.slow
def test_two_nodes_of_torchrun_train_as_one_process(root_file, tmp_path):
    words = ["calosim", "fit", "-c", "conf/photons.yaml", "--model.hidden", "[8]", "--data.files", root_file, *QUICK]
    words += ["--trainer.accelerator", "cpu"]
    _run(*words, "--run", tmp_path / "1", "--data.batch_size", 64)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d"]
    nodes += ["--rdzv_id", "x", "--rdzv_endpoint", f"127.0.0.1:{port}", "-m", "--"]
    both = [_run(*nodes, *words, "--run", tmp_path / "2", "--data.batch_size", 32, wait=False) for _ in range(2)]
    said = [node.communicate(timeout=300)[0] for node in both]
    assert [node.returncode for node in both] == [0, 0], said
    assert _losses(tmp_path / "2") == pytest.approx(_losses(tmp_path / "1"), rel=ORDER)
    assert len(_losses(tmp_path / "2")) == 3
    assert sorted(os.listdir(tmp_path / "1")) == sorted(os.listdir(tmp_path / "2"))
    one, two = (Run(tmp_path / name).record for name in "12")
    assert (two["processes"], two["nodes"], two["batch_size"]) == (2, 2, {"process": 32, "total": 64})
    assert (one["processes"], one["nodes"], one["batch_size"]) == (1, 1, {"process": 64, "total": 64})
    assert two["learning_rate"] == one["learning_rate"] > 0
    assert Run(tmp_path / "2").training["samples"] == Run(tmp_path / "1").training["samples"]


@pytest.mark.slow
def test_two_processes_predict_as_one(run_folders, tmp_path):
    run = run_folders["splits"]
    words = ["calosim", "predict", "-c", run / Run.CONFIG, "--ckpt_path", Run(run).best, "--data.batch_size", 7]
    made = []
    for count, more in ((1, []), (2, ["--trainer.devices", 2, "--trainer.strategy", "ddp"])):
        _run(*words, *more, "--trainer.accelerator", "cpu", "--run", tmp_path / str(count))
        assert [path.name for path in (tmp_path / str(count)).glob("*.npz")] == [Run.PREDICTIONS]
        with np.load(tmp_path / str(count) / Run.PREDICTIONS) as stored:
            made.append({name: stored[name] for name in stored.files})
    assert made[0].keys() == made[1].keys() == {"images", "rows"}
    assert (np.diff(made[0]["rows"]) > 0).all()
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])
