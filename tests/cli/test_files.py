"""What commands write: never over their sources, whole where links point, and in any locale."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: A tiny photon-sum model, and one epoch of it.
PHOTONS = ["--model.hidden", "[8]", "--model.components", "2", "--model.members", "3", "--data.batch_size", 64]
QUICK = [
    "--trainer.max_epochs",
    "1",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
]


@pytest.mark.parametrize("verb", ["simulate", "convert", "generate"])
@pytest.mark.parametrize("name", ["own.root", "link.root"])
def test_a_source_is_never_written_over(verb, name, root_file, run_folders, tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    own = shutil.copy(root_file, "own.root")
    os.symlink("own.root", "link.root")
    words = {
        "simulate": ["--primaries", own, "--responses_per_primary", 1],
        "convert": ["--source", own],
        "generate": ["--shower", run_folders["splits"], "--photons", run_folders["photons"], "--primaries", own],
    }[verb]
    assert f"{name}: is also a source" in error_of(verb, *words, "--out", name)
    with open(own, "rb") as after, root_file.open("rb") as before:
        assert after.read() == before.read()


def test_a_page_replaces_pages_only(run_folders, tmp_path, error_of, command):
    record = shutil.copytree(run_folders["photons"], tmp_path / "run") / "run.json"
    before = record.read_text()
    assert "run.json: is there and no page" in error_of("report", "--runs", f"[{record.parent}]", "--out", record)
    assert record.read_text() == before


def test_a_table_of_primaries_is_simulated(tmp_path, command, capsys):
    table, out = tmp_path / "primaries.csv", tmp_path / "zn.root"
    lines = [f"2112,{(p**2 + 0.9395654**2) ** 0.5!r},0,0,0,0,0,{p}" for p in (1000, 2000)]
    table.write_text("\n".join(["pdg,energy,vx,vy,vz,px,py,pz", *lines]))
    assert command("simulate", "--primaries", table, "--responses_per_primary", 2, "--out", out, "--quiet") == 0
    said = capsys.readouterr().out
    assert "to 2 of 2 primaries, " in said


def test_primaries_that_meet_another_detector_are_told(tmp_path, command, capfd):
    source, out = tmp_path / "zp.root", tmp_path / "other.root"
    few = ["--responses_per_primary", 2, "--quiet"]
    assert command("simulate", "--detector", "zp", "--primaries", 60, *few, "--out", source) == 0
    said = f"calosim: {source}: simulated for zp, its primaries now meet zn (--detector zp: the same again)\n"
    again = ["simulate", "--primaries", source, "--seed", 2, *few, "--out", out]
    for words, expected in ([], said), (["--detector", "zp"], ""):
        capfd.readouterr()
        assert command(*again, "--keep_empty", "true", *words) == 0
        assert capfd.readouterr().err == expected
    assert command(*again, "--match_sums", 1) == 2
    assert capfd.readouterr().err == f"calosim: error: {source}: holds ZP responses; expected ZN\n"


@pytest.mark.parametrize("value", [0, -5])
def test_batches_hold_something(value, error_of):
    words = ["--shower", "s", "--primaries", "p", "--out", "o.root", "--batch_size", value]
    assert error_of("generate", *words) == f"calosim: error: expected a batch size of at least 1, got {value}"


#: A terminal that knows no Greek; a machine without any locale, whose Python is told not to mind.
LOCALES = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("locale", LOCALES, ids=["ascii", "C"])
def test_names_and_tables_in_any_locale(locale, tmp_path):
    words = ["simulate", "--primaries", "10", "--responses_per_primary", "2", "--quiet", "--out", "Größe/ü.root"]
    for line in (words, ["convert", "--source", "Größe/ü.root", "--out", "ß.root", "--quiet"]):
        done = subprocess.run(
            [sys.executable, "-m", "calosim", *line],
            cwd=tmp_path,
            env={**os.environ, **locale},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "Größe" / "ü.root").exists()
    assert (tmp_path / "ß.root").exists()


@pytest.mark.parametrize("content", [b"", b"hello\n", "half"])
def test_a_damaged_checkpoint_is_named_before_it_is_loaded(content, run_folders, tmp_path, error_of):
    path, whole = tmp_path / "damaged.ckpt", (run_folders["photons"] / "checkpoints" / "best.ckpt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    line = error_of("test", "-c", run_folders["photons"] / "config.yaml", "--ckpt_path", path)
    assert "damaged.ckpt: expected a checkpoint, but the file is " in line


# -- full disks and folders that are not writable ------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """Makes a small disk of its own: full but for 4 kB, or not writable."""
    made = []

    def make(kind: str):
        place = tmp_path / kind
        place.mkdir()
        options = "size=2m" if kind == "full" else "size=1m,ro"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting takes more rights")
        made.append(place)
        if kind == "full":
            free = os.statvfs(place)
            (place / "old").write_bytes(bytes(free.f_bavail * free.f_frsize - 4096))
        return place

    yield make
    for place in made:
        subprocess.run(["umount", place], check=True)


def writing_words(root_file, run_folders, place):
    """The words that write with each verb, into a folder."""
    models = ["--shower", run_folders["splits"], "--photons", run_folders["photons"]]
    return {
        "simulate": ["--primaries", 60, "--responses_per_primary", 2, "--out", place / "a.root"],
        "convert": ["--source", root_file, "--out", place / "a.root"],
        "fit": ["-c", "conf/photons.yaml", "--data.files", root_file, *PHOTONS, *QUICK, "--run", place / "run"],
        "generate": [*models, "--primaries", root_file, "--out", place / "a.root"],
        "evaluate": [*models, "--rows", 20, "--runs", 1, "--responses", 2, "--out", place / "judged"],
        "export": [*models, "--out", place / "exported"],
        "report": ["--runs", run_folders["photons"], "--out", place / "a.html"],
    }


@pytest.mark.parametrize("kind", ["full", "readonly"])
@pytest.mark.parametrize("verb", ["simulate", "convert", "fit", "generate", "evaluate", "export", "report"])
def test_a_disk_that_takes_nothing_is_named_and_keeps_what_it_has(verb, kind, disk, root_file, run_folders, error_of):
    place = disk(kind)
    free = os.statvfs(place).f_bavail
    line = error_of(verb, *writing_words(root_file, run_folders, place)[verb])
    assert str(place) in line
    assert re.search("No space left on device" if kind == "full" else "Read-only|cannot write there", line)
    if (verb, kind) != ("fit", "full"):  # which begins with some lines about itself
        assert os.statvfs(place).f_bavail == free
        assert [path.name for path in place.rglob("*") if path.is_file()] == ["old"][: kind == "full"]


def test_a_device_that_takes_nothing_is_named(run_folders, error_of):
    line = error_of("report", "--runs", run_folders["photons"], "--out", "/dev/full")
    assert line == "calosim: error: /dev/full: cannot be written (No space left on device)"
    assert Path("/dev/full").is_char_device()


def test_a_training_begins_anew_where_the_disk_was_full(disk, root_file, run_folders, error_of, command):
    place = disk("full")
    words = ["fit", *writing_words(root_file, run_folders, place)["fit"]]
    error_of(*words)
    (place / "old").unlink()
    assert command(*words) == 0
    assert not list(place.rglob("*.calosim-part"))
