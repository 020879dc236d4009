"""Files are whole or not there, and come back as they were written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from calosim.io import (
    atomic_write,
    check_not_read,
    check_writable,
    csv_text,
    find_config,
    markdown_table,
    read_csv,
    read_json,
    read_npz,
    read_yaml,
    shipped_config,
    write_json,
    write_npz,
)


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
    with pytest.raises(ValueError, match=r"file: cannot be written \(disk full\)"):
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


# What is there already


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path, there):
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    if there:
        atomic_write(target, "old")
    link.symlink_to(target)
    atomic_write(link, "new")
    assert (link.is_symlink(), target.is_symlink(), target.read_text()) == (True, False, "new")


def test_pipes_and_devices_stay_and_get_the_content(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        arrived = pool.submit(pipe.read_text)
        atomic_write(pipe, "content")
        assert arrived.result(timeout=30) == "content"
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder; expected a file to write"):
        atomic_write(tmp_path, "x")


def test_sources_are_known_by_any_name(tmp_path):
    source, link = tmp_path / "a", tmp_path / "link"
    check_not_read(source, [source, "nowhere"])  # not there
    source.write_text("")
    link.symlink_to(source)
    check_not_read(tmp_path / "b", [source, link])
    for out, told in ((source, "a: is also a source;"), (link, r"link: is also a source \(.*a\);")):
        with pytest.raises(ValueError, match=told):
            check_not_read(out, [source])


#: Makes a temporary folder in the working folder, says so, and waits.
MAKER = """
from calosim.io import temporary_folder
with temporary_folder(".") as folder:
    (folder / "half").write_text("x" * 1000)
    print(folder, flush=True)
    input()
"""


def test_what_a_killed_process_left_is_cleared_away_and_what_another_makes_stays(tmp_path):
    def begin():
        words = [sys.executable, "-c", MAKER]
        maker = subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return maker, tmp_path / maker.stdout.readline().strip()

    (killed, left), (living, wanted) = begin(), begin()
    try:
        killed.kill()
        killed.wait()
        assert (left / "half").exists()
        atomic_write(tmp_path / "file", "another command writes")
        assert not left.exists()
        assert (wanted / "half").exists()
        living.communicate("\n")
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    finally:
        living.kill()
        for maker in (killed, living):
            maker.communicate()


# Formats


def test_json_is_read_back_and_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"name": "Λ", "values": (1, 2.5, float("nan"), float("-inf")), "none": None})
    assert read_json(path) == {"name": "Λ", "values": [1, 2.5, None, None], "none": None}
    assert path.read_text().endswith("}\n")
    assert '\n  "values": [' in path.read_text()


@pytest.mark.parametrize(
    ("content", "message"), [(None, r"a\.json: cannot be read \(No such"), ("{", r"a\.json: expected JSON \(.+\)")]
)
def test_bad_json_gets_one_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_arrays_are_read_back_as_they_were(tmp_path):
    arrays = {
        "images": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        "names": np.array(["γ", "n"]),
        "none": np.empty(0),
    }
    write_npz(tmp_path / "new" / "a.npz", **arrays)
    stored = read_npz(tmp_path / "new" / "a.npz")
    assert list(stored) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(stored[name], values)
        assert stored[name].dtype == values.dtype


def test_nothing_pickled_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_npz(tmp_path / "a.npz")


def test_a_table_as_csv_is_read_back_by_any_reader(tmp_path):
    text = csv_text(["particle", "remark"], [["gamma", 'says "no", twice'], ["K⁰S", 1.5]])
    atomic_write(tmp_path / "a.csv", text)
    assert read_csv(tmp_path / "a.csv") == [
        {"particle": "gamma", "remark": 'says "no", twice'},
        {"particle": "K⁰S", "remark": "1.5"},
    ]
    assert "\r" not in text
    assert text.endswith("\n")


def test_a_table_in_markdown_keeps_its_columns():
    lines = markdown_table(["feature", "photons"], [["|pz|", "12"], ["vx", ""]]).split("\n")
    assert lines == ["| feature | photons |", "|---|---|", "| \\|pz\\| | 12 |", "| vx |  |"]
    assert markdown_table(["a"], []) == "| a |\n|---|"


# Folders and configuration files


def test_a_folder_is_refused_before_the_work_not_after_it(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot write there \(.*file is not a writable folder\)"):
            check_writable(folder)


def test_a_configuration_here_comes_before_the_one_that_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_config("conf/teacher.yaml")
    assert shipped == shipped_config("teacher.yaml")
    assert shipped.is_file()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "teacher.yaml").write_text("")
    assert find_config("conf/teacher.yaml") == Path("conf/teacher.yaml")
    for name in ("conf/no.yaml", "teacher.yaml", str(tmp_path / "no.yaml")):
        with pytest.raises(ValueError, match=rf"{re.escape(name)}: no such file"):
            find_config(name)


EMPTY, TEXT, OPEN, ZIP = b"", b"hello \xff\n", b"{", b"PK\x03\x04" + bytes(50)
DAMAGED = {read_json: (EMPTY, TEXT, OPEN, ZIP), read_yaml: (TEXT, OPEN, ZIP), read_npz: (EMPTY, TEXT, OPEN, ZIP)}


@pytest.mark.parametrize(
    ("read", "content"),
    [(read, c) for read, contents in {**DAMAGED, read_csv: (TEXT,)}.items() for c in (None, *contents)],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(read, content, tmp_path):
    path = tmp_path / "damaged"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
        read(path)
    assert "\n" not in str(caught.value)
