"""Files are whole or not there, and results know their source."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from calosim.files import atomic_write
from calosim.runs import git_hash


@pytest.mark.parametrize("content", ["Λ → n π⁰\n", b"\x00\xff", "", b""])
def test_content_arrives_whole_in_folders_made_on_the_way(tmp_path, content):
    path = tmp_path / "a" / "b" / "file.txt"
    atomic_write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    atomic_write(str(path), "again")
    assert path.read_text() == "again"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_file_is_not_there_before_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.exists()))
    atomic_write(path, "content")
    assert seen == [False]
    assert path.exists()


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/below: cannot write there \(.+\)"):
        atomic_write(tmp_path / "file" / "below", "x")


def test_git_hash_of_a_checkout(tmp_path, monkeypatch):
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    source = tmp_path / "package" / "provenance.py"
    source.parent.mkdir()
    source.write_text("one")
    monkeypatch.setattr("calosim.runs.__file__", str(source))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
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


def test_no_git_no_hash(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert git_hash() is None
