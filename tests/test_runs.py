"""Run folders: what they hold, where a checkpoint belongs, and what is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from calosim import runs
from calosim.runs import FORMAT, Run, git_hash


@pytest.fixture
def run(run_folders, tmp_path) -> Run:
    """A copy of a finished run that a test may change."""
    return Run(shutil.copytree(run_folders["photons"], tmp_path / "run"))


def test_a_run_explains_itself(run_folders, root_file):
    run = Run(run_folders["teacher"])
    assert run.exists
    assert not run.is_ensemble
    assert run.config["model"]["class_path"].endswith("Teacher")
    assert run.record["format"] == FORMAT
    assert run.record["data"]["files"] == [str(root_file)]
    assert run.split["data_hash"] == run.record["data"]["data_hash"]
    assert run.training["epochs"] == 1
    assert run.particle is None
    assert {run.best.name, run.last.name} == {p.name for p in (run / Run.CHECKPOINTS).iterdir()}
    # A checkpoint belongs to its run.
    assert Run(run.last).folder == run.folder
    assert Run(run.last).checkpoint == run.last
    assert Run(run.last).split == run.split


def test_best_comes_before_last(tmp_path):
    run = Run(tmp_path)
    run.last.parent.mkdir()
    with pytest.raises(ValueError, match=r"expected a checkpoint or a run folder with checkpoints/best\.ckpt"):
        _ = run.checkpoint
    for path in (run.last, run.best):
        path.write_text("")
        assert Run(tmp_path).checkpoint == path
        assert Run(path).checkpoint == path


def test_a_folder_that_says_nothing(tmp_path):
    run = Run(tmp_path)
    assert not run.exists
    assert run.training is run.split is run.particle is None
    for what, name in (("config", "config.yaml"), ("record", "run.json")):
        with pytest.raises(ValueError, match=rf"expected a run folder with {name}"):
            getattr(run, what)


@pytest.mark.parametrize("found", [1, 3])
def test_runs_of_another_format_get_one_line(found, run):
    record = {**run.record, "format": found}
    if found == 1:
        del record["format"]  # the first format did not say
    (run / Run.RECORD).write_text(json.dumps(record))
    message = rf"run\.json: expected a run of format 2, got {found}; train it anew$"
    with pytest.raises(ValueError, match=message) as caught:
        _ = Run(run.folder).record
    assert "\n" not in str(caught.value)


def test_damaged_files_get_one_line(run):
    for what, name in (("config", Run.CONFIG), ("record", Run.RECORD)):
        (run / name).write_text("{")
        with pytest.raises(ValueError, match=rf"{name}: expected") as caught:
            getattr(Run(run.folder), what)
        assert "\n" not in str(caught.value)


def test_the_commit_is_calosims_own(tmp_path, monkeypatch):
    """In a foreign repository around an installed package there is none."""
    package = tmp_path / "site-packages" / "calosim" / "runs.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    monkeypatch.setattr(runs, "__file__", str(package))
    assert git_hash() is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "foreign"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, env=environment)
    assert git_hash() is None
    subprocess.run(["git", "-C", tmp_path, "add", package], check=True, env=environment)
    assert len(git_hash().removesuffix("+changes")) == 40


def test_what_resumed_sessions_logged_comes_after_the_first(tmp_path):
    assert Run(tmp_path).metrics == []
    paths = [tmp_path / place / Run.METRICS for place in ("", "fit-1", "fit-2", "test-1")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert Run(tmp_path).metrics == paths[:3]


def test_sessions_become_one_file_and_what_they_repeat_stands_once(tmp_path):
    sessions = {
        "": "step,train/loss\n9,3.0\n19,2.0\n29,9.0\n",
        "fit-1": "lr,step,train/loss\n,19,2.5\n0.1,29,1.0\n",
        "fit-2": "step,train/loss\n39,0.5\n",
    }
    for place, text in sessions.items():
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / Run.METRICS).write_text(text)
    for _ in range(2):
        Run(tmp_path).join_metrics()
        text = (tmp_path / Run.METRICS).read_text()
        assert text == "lr,step,train/loss\n,9,3.0\n,19,2.5\n0.1,29,1.0\n,39,0.5\n"
        assert [path.name for path in tmp_path.iterdir()] == [Run.METRICS]
