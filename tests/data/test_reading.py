"""Files of every form make one data set: each is read once, in listed order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pandas as pd
import pytest

from calosim.data import FEATURES, convert, read, write
from calosim.data.reading import files_read

#: A number printed with six digits, as Extract.C does.
SIX_DIGITS = 1e-5


# Sets of files


@pytest.fixture
def folder(tmp_path, make, save_npz, save_text) -> Path:
    """Two ROOT files, two npz pairs and a text with images of both detectors, 4 rows each."""
    for k, name in enumerate(("a.root", "b.root")):
        write(tmp_path / name, make(4, seed=k))
    for k, stem in enumerate(("c", "d")):
        save_npz(tmp_path, make(4, seed=2 + k), stem=stem)
    save_text(tmp_path, {"N": make(4, seed=4), "P": make(4, "zp", seed=5)})
    return tmp_path


#: Listed files, the seeds of the rows that they hold, and all that is read for them, where it is not what is listed.
SETS: list[tuple[list[str], list[int], list[str] | None]] = [
    (["a.root", "b.root"], [0, 1], None),
    (["b.root", "a.root"], [1, 0], None),
    (["a.root", "./a.root"], [0], ["a.root"]),
    (["c_particles.npz"], [2], ["c_particles.npz", "c_responses.npz"]),
    (["c_responses.npz"], [2], ["c_particles.npz", "c_responses.npz"]),
    (["c_particles.npz", "c_responses.npz"], [2], None),
    (["c_responses.npz", "c_particles.npz"], [2], ["c_particles.npz", "c_responses.npz"]),
    (
        ["d_particles.npz", "c_particles.npz"],
        [3, 2],
        [f"{x}_{y}.npz" for x in "dc" for y in ("particles", "responses")],
    ),
    (["c_particles.npz", "a.root", "c_responses.npz"], [2, 0], ["c_particles.npz", "c_responses.npz", "a.root"]),
    (["non_zero_examples.txt"], [4], ["non_zero_examples.txt", "neutron_image.txt"]),
    (["neutron_image.txt", "non_zero_examples.txt"], [4], ["non_zero_examples.txt", "neutron_image.txt"]),
    (["b.root", "non_zero_examples.txt"], [1, 4], ["b.root", "non_zero_examples.txt", "neutron_image.txt"]),
]


@pytest.mark.parametrize(("listed", "seeds", "members"), SETS, ids=lambda x: "+".join(map(str, x or ["as listed"])))
def test_files_are_read_once_as_a_set_in_listed_order(folder, listed, seeds, members, make, join, check_equal):
    paths = [os.path.join(folder, name) for name in listed]
    check_equal(read(paths, "zn"), join([make(4, seed=seed) for seed in seeds]), SIX_DIGITS)
    assert files_read(paths, "zn") == [folder / name for name in members or listed]


def test_no_file_is_named():
    with pytest.raises(ValueError, match="no file to read; expected at least one"):
        read([])


# Conversion


def test_convert_joins_every_form(tmp_path, capsys, make, join, check_equal, save_npz, save_text):
    parts = [make(20, seed=seed) for seed in range(3)]
    write(tmp_path / "a.root", parts[0])
    pair = save_npz(tmp_path, parts[1], dtype=np.float32)
    text = save_text(tmp_path, {"N": parts[2], "P": make(20, "zp")})
    out = tmp_path / "new" / "folder" / "all.root"
    convert([str(text), str(pair[0]), str(tmp_path / "a.root")], str(out), detector="zn")
    check_equal(read(out), join(parts[::-1]), SIX_DIGITS)  # in listed order
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{out}: 60 ZN responses of 5 particle types")
    assert shown.out.count("\n") == 1
    assert shown.err == ""


def _output_folder(f: Any) -> list[str]:
    (f.folder / "dir.root").mkdir()
    return f.root()


#: By name: what makes the file, what the message must say, and options of the conversion.
BAD: dict[str, tuple[Callable[[Any], list[str]], list[str], dict[str, Any]]] = {
    "missing file": (lambda f: [str(f.folder / "nowhere.root")], ["nowhere.root", "no such file"], {}),
    "folder": (lambda f: [str(f.folder)], ["is a folder"], {}),
    "empty file": (lambda f: f.named("bad.root"), ["bad.root", "empty", "0 bytes"], {}),
    "unknown suffix": (lambda f: f.named("bad.parquet", b"x"), ["bad.parquet", ".root, .h5, .npz, .csv or .txt"], {}),
    "unknown detector asked for": (lambda f: f.root(), ["unknown detector 'zdc'", "zn, zp"], {"detector": "zdc"}),
    "output is the source": (lambda f: f.root(), ["bad.root", "also a source"], {"out": "bad.root"}),
    "output suffix": (lambda f: f.root(), ["out.csv", "expected .root"], {"out": "out.csv"}),
    "output is a folder": (_output_folder, ["dir.root", "is a folder"], {"out": "dir.root"}),
    "output below a file": (lambda f: f.root(), ["bad.root", "cannot write there"], {"out": "bad.root/out.root"}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_line(name, refused):
    make, says, options = BAD[name]
    refused(make, *says, **options)


def test_a_bad_file_in_a_process(spoil, tmp_path):
    source, out = spoil.named("bad.csv", b"Detector,Pdg\n"), tmp_path / "out.root"
    command = [sys.executable, "-m", "calosim", "convert", "--source", *source, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("calosim: error: ")
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_arrays_in_memory(make, check_equal):
    """numpy's, pandas' and awkward's, with images flat or not, and with what is no column of ours."""
    showers = make(20, "zp")
    columns = dict(zip(FEATURES, showers.particles.T, strict=True)) | {"pdg": showers.pdg, "response": showers.images}
    check_equal(read(columns), showers)
    check_equal(read(columns | {"response": showers.images.reshape(20, -1).tolist(), "event": np.arange(3)}), showers)
    check_equal(read({name: ak.Array(values) for name, values in columns.items()}), showers)
    frame = pd.DataFrame(columns | {"response": list(showers.images)})
    check_equal(read(dict(frame), "zp"), showers)
    check_equal(read({name: columns[name] for name in columns if name not in ("mass", "charge")}), showers, 1e-7)


@pytest.mark.parametrize(
    ("changed", "detector", "said"),
    [
        ({"vx": None}, None, "arrays: has no 'vx'; expected energy"),
        ({"vx": np.zeros(19)}, None, r"arrays: vx has shape \(19,\); expected \(20,\), a number for each image"),
        ({"pdg": ["n"] * 20}, None, "arrays: pdg holds list; expected numbers"),
        ({"pdg": None}, None, "arrays: has no 'pdg'"),
        ({"response": [[1, 2], [3]]}, None, "arrays: response holds list; expected numbers, as many in each row"),
        ({"response": ak.Array([[1, 2], [3]])}, None, "arrays: response holds Array; expected numbers"),
        ({"response": np.zeros((20, 7))}, None, r"images of shape \(7,\) fit no detector"),
        ({}, "zp", "arrays: holds ZN responses; expected ZP"),
        ({"energy": np.full(20, -1)}, None, "arrays: row 0: energy is -1 GeV"),
    ],
)
def test_bad_arrays_get_one_clear_line(changed, detector, said, make):
    showers = make(20)
    columns = dict(zip(FEATURES, showers.particles.T, strict=True)) | {"pdg": showers.pdg, "response": showers.images}
    with pytest.raises(ValueError, match=said):
        read({name: values for name, values in (columns | changed).items() if values is not None}, detector)
