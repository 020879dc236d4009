"""A run folder knows its files, and results know their source."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from calosim.files import write_json
from calosim.runs import FORMAT, Run, git_hash

DATA = {
    "data_hash": "x",
    "split_by": "primary",
    "seed": 3,
    "fractions": [0.7, 0.1, 0.2],
    "particle": 22,
    "files": ["a"],
}


def make(folder, *names: str) -> Run:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return Run(folder)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["checkpoints/best.ckpt", "checkpoints/last.ckpt"], "checkpoints/best.ckpt"),
        (["checkpoints/last.ckpt"], "checkpoints/last.ckpt"),
    ],
)
def test_the_best_checkpoint_comes_before_the_last(tmp_path, names, expected):
    run = make(tmp_path, *names)
    assert run.checkpoint == tmp_path / expected
    named = Run(tmp_path / "checkpoints" / "last.ckpt")
    assert named.folder == tmp_path
    assert named.checkpoint == tmp_path / "checkpoints" / "last.ckpt"


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected a checkpoint or a run folder with checkpoints/best\.ckpt"):
        _ = Run(tmp_path).checkpoint


def test_what_determines_the_test_rows(tmp_path):
    run = Run(tmp_path)
    assert not run.exists
    assert run.split is None
    write_json(run / Run.RECORD, {"format": FORMAT, "data": DATA})
    run = Run(tmp_path)
    assert run.exists
    assert run.split == {"data_hash": "x", "split_by": "primary", "seed": 3, "fractions": [0.7, 0.1, 0.2]}
    assert run.particle == 22
    assert run.training is None


def test_another_format_and_a_missing_file_get_one_line(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ValueError, match=r"expected a run folder with run\.json"):
        _ = run.record
    write_json(run / Run.RECORD, {"data": DATA})
    with pytest.raises(ValueError, match=rf"expected a run of format {FORMAT}, got 1; train it anew"):
        _ = run.record
    (run / Run.CONFIG).write_text("a: [")
    with pytest.raises(ValueError, match=r"config\.yaml: expected YAML \(.+\)") as caught:
        _ = run.config
    assert "\n" not in str(caught.value)


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Runs git in an empty folder, where nobody's settings reach."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def run(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    return run


def test_git_hash_of_a_checkout(tmp_path, monkeypatch, git):
    source = tmp_path / "calosim" / "runs.py"
    source.parent.mkdir()
    source.write_text("one")
    monkeypatch.setattr("calosim.runs.__file__", str(source))
    assert git_hash() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "--no-verify", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert git_hash() == commit
    (tmp_path / "untracked").write_text("")
    assert git_hash() == commit
    source.write_text("two")
    assert git_hash() == commit + "+changes"


def test_a_foreign_repository_around_an_installed_calosim_gives_no_hash(tmp_path, monkeypatch, git):
    source = tmp_path / "venv" / "site-packages" / "calosim" / "runs.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    monkeypatch.setattr("calosim.runs.__file__", str(source))
    (tmp_path / ".gitignore").write_text("venv\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "--no-verify", "-m", "an analysis of somebody else")
    assert git_hash() is None


def test_no_git_no_hash(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert git_hash() is None
