"""Files of primaries: ROOT and tables as programs write them, read in pieces from any row on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pandas as pd
import pytest

from calosim.data import FEATURES, Showers, convert, read, read_primaries, reading, write
from calosim.data.reading import PrimariesFile, files_read
from calosim.options import Convert

#: Masses of the PDG's editions differ by less, relatively.
EDITIONS = 1e-5


def test_primaries_from_root_and_csv(tmp_path, make):
    showers = make(30)
    momentum, mass = showers.particles[:, 4:7], showers.particles[:, 7] / 1000
    energy = np.sqrt((momentum**2).sum(1) + mass**2)
    showers = replace(showers, particles=np.column_stack([energy, showers.particles[:, 1:]]))
    write(tmp_path / "a.root", showers)
    names = [*FEATURES, "pdg"]
    table = np.column_stack([showers.particles, showers.pdg])
    order = np.random.default_rng(3).permutation(len(names))
    short = [k for k in order if names[k] not in ("mass", "charge")]
    for file, chosen in (("all.csv", order), ("short.csv", short)):
        rows = [",".join(repr(float(r[k])) if k < 9 else str(int(r[k])) for k in chosen) for r in table]
        (tmp_path / file).write_text("\n".join([",".join(names[k] for k in chosen), *rows]) + "\n")
    for file, rtol in (("a.root", 0), ("all.csv", 0), ("short.csv", EDITIONS)):
        particles, pdg = read_primaries(tmp_path / file)
        np.testing.assert_allclose(particles, showers.particles, rtol=rtol, atol=0)
        np.testing.assert_array_equal(pdg, showers.pdg)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("energy,vx,vy,vz,px,py,pdg\n", "no column 'pz'"),
        ("energy,vx,vy,vz,px,py,pz,mass,pdg\n", "no column 'charge'"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n", "holds no rows"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22\n1,0,0,0,0,0,1\n", "line 3: expected 8 fields, got 7"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22.5\n", "line 2: pdg is '22.5'; expected a whole number"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,2" + 30 * "0" + "\n", "expected a whole number"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n-1,0,0,0,0,0,1,22\n", "row 0: energy is -1 GeV"),
        ("energy,vx,vx,vz,px,py,pz,pdg\n", "has 2 columns 'vx'"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22\n\n1,0,0,0,0,0,1,22\n", "line 3: is empty, but line 4 is not"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n9,0,0,0,0,0,8,1010010030\n", "no mass for code 1010010030; .* mass and charge"),
        (
            "energy,vx,vy,vz,px,py,pz,pdg,mass,charge\n9,0,0,0,0,0,8,1010010030,2.99,1\n",
            "about 2850 MeV for the 3 nucl",
        ),
        ("energy,vx,vy,vz,px,py,pz,pdg,mass,charge\n9,0,0,0,0,0,8,1010010030,2991,2\n", "charge is 2; expected 1 e"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n" + "1" * 200_000 + "\n", "a.csv: expected a table of numbers"),
    ],
)
def test_bad_primaries(content, says, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_primaries(tmp_path / "a.csv")


TABLE = "pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0.5,0,0,100\n2112,1000,0,0,0,0.1,0,-999.99955\n"
#: What programs for tables make of that table.
SPREADSHEETS = {
    "byte-order mark": "\ufeff" + TABLE,
    "line ends": TABLE.replace("\n", "\r\n"),
    "old line ends": TABLE.replace("\n", "\r"),
    "UTF-16, tabs": "UTF-16" + TABLE.replace(",", "\t"),
    "semicolons": TABLE.replace(",", ";"),
    "decimal commas": TABLE.replace(",", ";").replace(".", ","),
    "quotes": '"' + TABLE.replace(",", '","').replace("\n", '"\n"').removesuffix('"'),
    "empty columns": TABLE.replace("\n", ",,\n"),
    "empty lines": TABLE + ",,,,,,,\n\n",
    "whole numbers": TABLE.replace("22,", "2.2E+01,").replace("2112,", "2112.0,"),
    "spaces": TABLE.replace(",", " , "),
}


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_tables_as_spreadsheets_write_them(name, tmp_path):
    text, path = SPREADSHEETS[name], tmp_path / "primaries.csv"
    path.write_bytes(text.removeprefix("UTF-16").encode("utf-16" if text.startswith("UTF-16") else "utf-8"))
    particles, pdg = read_primaries(path)
    assert pdg.tolist() == [22, 2112]
    assert particles[:, [0, 3, 4, 6]].tolist() == [[100, 0.5, 0, 100], [1000, 0, 0.1, -999.99955]]


def test_nuclei_that_the_tables_lack_bring_their_mass(tmp_path):
    """The hypertriton: one proton, one neutron, one Lambda."""
    path, momentum, mass = tmp_path / "primaries.csv", 5000.0, 2991.134
    energy = np.hypot(momentum, mass / 1000)
    path.write_text(f"pdg,energy,vx,vy,vz,px,py,pz,mass,charge\n1010010030,{energy},0,0,0,0,0,{momentum},{mass},1\n")
    particles, pdg = read_primaries(path)
    assert pdg.tolist() == [1010010030]
    assert particles[0, 7:].tolist() == [mass, 1.0]


def _table(rows: int, form: str) -> str:
    """A CSV of photons, the energy of each that of its row and one more GeV."""
    lines = [f"22,{row + 1},0,0,0,0,0,{row + 1}" for row in range(rows)]
    return (
        "\n".join(["pdg,energy,vx,vy,vz,px,py,pz", *lines])
        + {"ended": "\n", "open": "", "empty lines": "\n,,\n\n"}[form]
    )


@pytest.mark.parametrize("form", ["ended", "open", "empty lines", "root"])
def test_pieces_from_any_row_on_are_the_file(form, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 4)
    file = tmp_path / "a.csv"
    file.write_text(_table(12, "ended" if form == "root" else form))
    if form == "root":
        particles, pdg = read_primaries(file)
        file = tmp_path / "a.root"
        write(file, Showers(particles, pdg, np.ones((12, 44, 44), np.int16), "zn"))
    source = PrimariesFile.open(file)
    assert source.rows == 12
    for first, stop in ((0, None), (0, 4), (3, 9), (11, 12), (5, 5)):
        pieces = [particles[:, 0].tolist() for particles, _ in source.pieces(first, stop)]
        assert [row for piece in pieces for row in piece] == list(range(first + 1, (12 if stop is None else stop) + 1))
        assert all(len(piece) <= 4 for piece in pieces)


def test_messages_of_later_pieces_name_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 4)
    file, text = tmp_path / "a.csv", _table(12, "ended")
    for wrong, says in (("22,9,0,0,0,0,0,8", "row 8: energy is 9"), ("22,x,0,0,0,0,0,9", "line 10: energy is 'x'")):
        file.write_text(text.replace("22,9,0,0,0,0,0,9", wrong))
        for first in (0, 6):
            with pytest.raises(ValueError, match=says):
                list(PrimariesFile.open(file).pieces(first))
        assert sum(len(pdg) for _, pdg in PrimariesFile.open(file).pieces(9)) == 3
    source = PrimariesFile.open(file)
    file.write_text(_table(6, "ended"))
    with pytest.raises(ValueError, match="it ends with row 5 of 12"):
        list(source.pieces())


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
    convert(Convert([str(text), str(pair[0]), str(tmp_path / "a.root")], str(out), detector="zn"))
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
