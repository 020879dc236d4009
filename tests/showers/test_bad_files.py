"""Every kind of bad file gets its one clear line, from the library and from the command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from calosim.__main__ import main
from calosim.showers.reading import convert
from calosim.showers.record import FEATURES

ROWS = 4
SHAPE = (44, 44)
NEUTRON = {"mass": 939.5654, "charge": 0.0}
OLDER = "Detector,Event,Counter,StatusCode,Pdg,Energy,Vx,Vy,Vz,PhotonSum"
NEWER = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"


@dataclass
class Bad:
    """One bad file: where it goes, and what the message must say."""

    make: Callable[[Path], list[str]]
    says: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    out: str = "out.root"


CASES: dict[str, Bad] = {}


def bad(name: str, *says: str, out: str = "out.root", **options: Any) -> Callable[..., Any]:
    def register(make: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
        CASES[name] = Bad(make, says, options, out)
        return make

    return register


def columns() -> dict[str, np.ndarray]:
    """A good data set by branch, for the cases to spoil."""
    branches = {name: np.full(ROWS, 2.0) for name in FEATURES}
    branches |= {name: np.full(ROWS, value) for name, value in NEUTRON.items()}
    images = np.zeros((ROWS, *SHAPE), np.int16)
    images[:, 20, 22] = 17
    return branches | {"pdg": np.full(ROWS, 2112, np.int32), "response": images}


def root(folder: Path, tree: str = "showers", detector: str | None = "zn", **changes: Any) -> list[str]:
    """A ROOT file of the good data set with some branches changed, or left out where None."""
    branches = {name: value for name, value in (columns() | changes).items() if value is not None}
    path = folder / "bad.root"
    with uproot.recreate(path) as file:
        if detector is not None:
            file["detector"] = detector
        kinds = {
            k: v if isinstance(v, str) else np.dtype((v.dtype, v.shape[1:]) if v.ndim > 1 else v.dtype)
            for k, v in ((k, "var * int16" if isinstance(v, list) else v) for k, v in branches.items())
        }
        made = file.mktree(tree, kinds)
        if len(branches["energy"]):
            made.extend(branches)
    return [str(path)]


def spoiled(name: str, row: int, value: float) -> np.ndarray:
    values = columns()[name].astype(np.float64)
    values[row] = value
    return values


def pixel(value: float, dtype: type = np.float32) -> np.ndarray:
    images = columns()["response"].astype(dtype)
    images[2, 5, 6] = value
    return images


def particles() -> np.ndarray:
    return np.column_stack([columns()[name] for name in (*FEATURES, "pdg")])


def npz(folder: Path, table: Any = None, images: Any = None, key: str = "arr_0") -> list[str]:
    """A pair of npz files."""
    first, second = folder / "bad_particles.npz", folder / "bad_responses.npz"
    np.savez_compressed(first, **{key: particles() if table is None else table})
    np.savez_compressed(second, arr_0=columns()["response"] if images is None else images)
    return [str(first), str(second)]


def text(folder: Path, header: str = NEWER, edit: Callable[[list[str], list[str]], Any] | None = None) -> list[str]:
    """An Extract.C CSV and its ZN images, as lists of lines that ``edit`` may change."""
    table, lines = [header], []
    for image in columns()["response"]:
        for letter, n in (("N", image.sum()), ("P", 0)):
            values = {"Detector": letter, "Pdg": 2112, "PhotonSum": n, "Pz": -2.0, "Energy": 2.2, "Vz": -11261.2}
            table.append(",".join(str(values.get(name, 0)) for name in header.split(",")))
        lines += [" ".join(map(str, row)) + " " for row in image]
    if edit is not None:
        edit(table, lines)
    first, second = folder / "bad.csv", folder / "neutron_image.txt"
    first.write_text("\n".join(table) + "\n")
    second.write_text("\n".join(lines) + "\n")
    return [str(first), str(second)]


def cut(path: str, size: int) -> list[str]:
    Path(path).write_bytes(Path(path).read_bytes()[:size])
    return [path]


def damage(path: str, start: int, stop: int) -> str:
    data = bytearray(Path(path).read_bytes())
    data[start:stop] = bytes(255 - b for b in data[start:stop])
    Path(path).write_bytes(data)
    return path


def without_second(paths: list[str]) -> list[str]:
    Path(paths[1]).unlink()
    return paths[:1]


def named(folder: Path, name: str, content: bytes = b"") -> list[str]:
    (folder / name).write_bytes(content)
    return [str(folder / name)]


# Any file

bad("missing file", "nowhere.root", "no such file")(lambda f: [str(f / "nowhere.root")])
bad("folder", "is a folder")(lambda f: [str(f)])
bad("empty file", "bad.root", "empty", "0 bytes")(lambda f: named(f, "bad.root"))
bad("unknown suffix", "bad.h5", ".root, .npz, .csv or .txt")(lambda f: named(f, "bad.h5", b"x"))
bad("unknown detector asked for", "unknown detector 'zdc'", "zn, zp", detector="zdc")(root)

# ROOT

bad("not a ROOT file", "bad.root", "not a ROOT file")(lambda f: named(f, "bad.root", b"<html>" * 9))
bad("ROOT file cut short", "bad.root", "truncated", "bytes")(lambda f: cut(root(f)[0], 5000))
bad("ROOT file of a header's first bytes", "bad.root", "truncated")(lambda f: cut(root(f)[0], 30))
bad("no tree", "bad.root", "no tree 'showers'", "found detector, other")(lambda f: root(f, tree="other"))
bad("O2 simulation file", "bad.root", "o2sim", "Extract.C")(lambda f: root(f, tree="o2sim", detector=None))
bad("missing branch", "bad.root", "no branch 'vz'", "expected energy")(lambda f: root(f, vz=None))
bad("missing response", "no branch 'response'")(lambda f: root(f, response=None))
bad("wrong image shape", "'response'", "(44, 30)", "ZN has (44, 44)")(
    lambda f: root(f, response=np.ones((ROWS, 44, 30), np.int16))
)
bad("image shape of no detector", "bad.root", "(7, 8)", "ZP 56 x 30")(
    lambda f: root(f, detector=None, response=np.ones((ROWS, 7, 8), np.int16))
)
bad("flat images", "'response'", "(1936,)", "ZN has (44, 44)")(
    lambda f: root(f, response=np.ones((ROWS, 1936), np.int16))
)
bad("jagged images", "'response'", "expected fixed arrays")(lambda f: root(f, response=[[1, 2], [3], [], [4]]))
bad("feature that is an array", "'vx'", "(3,)", "expected one number")(lambda f: root(f, vx=np.ones((ROWS, 3))))
bad("another detector", "holds ZN", "expected ZP", detector="zp")(root)
bad("unknown detector in the file", "unknown detector 'emcal'", "zn, zp")(lambda f: root(f, detector="emcal"))
bad("no entries", "bad.root", "no rows")(lambda f: root(f, **{name: values[:0] for name, values in columns().items()}))
bad("NaN feature", "row 3", "vy is nan", "finite")(lambda f: root(f, vy=spoiled("vy", 3, np.nan)))
bad("infinite feature", "row 1", "px is -inf")(lambda f: root(f, px=spoiled("px", 1, -np.inf)))
bad("negative energy", "row 2", "energy is -5 GeV", "more than 0")(lambda f: root(f, energy=spoiled("energy", 2, -5)))
bad("negative photons", "row 2", "response holds -1 photons", "(5, 6)")(lambda f: root(f, response=pixel(-1, np.int16)))
bad("broken photon", "row 2", "response holds 1.5 photons", "whole number")(lambda f: root(f, response=pixel(1.5)))
bad("NaN photons", "row 2", "response holds nan photons")(lambda f: root(f, response=pixel(np.nan)))
bad("unknown PDG code", "row 0", "PDG code 999999")(lambda f: root(f, pdg=spoiled("pdg", 0, 999999).astype(np.int32)))
bad("mass in GeV", "row 0", "mass is 0.939565", "939.565 MeV")(lambda f: root(f, mass=np.full(ROWS, 0.9395654)))
bad("charge in e/3", "row 0", "charge is 3", "expected 1 e")(
    lambda f: root(f, pdg=np.full(ROWS, 2212, np.int32), mass=np.full(ROWS, 938.272), charge=np.full(ROWS, 3.0))
)


@bad("file of a later version", "bad.root", "'calosim 2'", "'calosim 1'")
def later_version(folder: Path) -> list[str]:
    with uproot.update(root(folder)[0]) as file:
        file["format"] = "calosim 2"
    return [str(folder / "bad.root")]


@bad("ROOT file damaged inside", "bad.root", "damaged")
def damaged_basket(folder: Path) -> list[str]:
    path = root(folder)[0]
    with uproot.open(path) as file:
        start = int(file["showers"]["response"].member("fBasketSeek")[0])
    return [damage(path, start + 100, start + 120)]


@bad("ROOT file without its index", "bad.root", "no tree 'showers'")
def damaged_index(folder: Path) -> list[str]:
    return [damage(root(folder)[0], 300, 6000)]


@bad("histogram for a tree", "bad.root", "TH1D", "expected a TTree")
def histogram(folder: Path) -> list[str]:
    with uproot.recreate(folder / "bad.root") as file:
        file["showers"] = np.histogram([1.0])
    return [str(folder / "bad.root")]


@bad("two detectors", "bad.root", "holds ZP", "expected ZN")
def two_detectors(folder: Path) -> list[str]:
    first = Path(root(folder)[0]).rename(folder / "zn.root")
    return [str(first), *root(folder, detector="zp", response=np.ones((ROWS, 56, 30), np.int16))]


# npz

bad("npz that is no zip", "bad_particles.npz", "damaged")(lambda f: named(f, "bad_particles.npz", b"numbers"))
bad("npz cut short", "bad_responses.npz", "damaged")(lambda f: cut(npz(f)[1], 150))
bad("npz damaged inside", "bad_responses.npz", "damaged")(
    lambda f: [npz(f)[0], damage(str(f / "bad_responses.npz"), 120, 140)]
)
bad("npz without key", "bad_particles.npz", "'arr_0'", "found data")(lambda f: npz(f, key="data"))
bad("npz with pickles", "bad_particles.npz", "pickled")(lambda f: npz(f, table=particles().astype(object)))
bad("npz with eight columns", "bad_particles.npz", "8 columns", "expected 9")(
    lambda f: npz(f, table=particles()[:, :8])
)
bad("npz of a single column", "bad_particles.npz", "1 dimensions")(lambda f: npz(f, table=np.ones(ROWS)))
bad("npz lengths differ", "bad_responses.npz", "4 rows", "has 3")(lambda f: npz(f, table=particles()[:3]))
bad("npz without partner", "bad_particles.npz", "responses is missing")(lambda f: without_second(npz(f)))
bad("npz image shape", "bad_responses.npz", "(44, 43)")(lambda f: npz(f, images=np.ones((ROWS, 44, 43))))
bad("npz broken photon", "bad_responses.npz", "row 2", "1.5 photons")(lambda f: npz(f, images=pixel(1.5)))
bad("npz images in Fortran order", "bad_responses.npz", "Fortran order")(
    lambda f: npz(f, images=np.asfortranarray(columns()["response"]))
)
bad("npz PDG code not whole", "bad_particles.npz", "row 0", "pdg is 2112.5")(
    lambda f: npz(f, table=particles() + 0.5 * np.eye(10)[9])
)
bad("mass of no particle", "bad_particles.npz", "row 0", "mass 777 MeV", "no particle")(
    lambda f: npz(f, table=np.where(np.arange(9) == 7, 777.0, particles()[:, :9]))
)
bad("mass of two particles", "bad_particles.npz", "row 0", "130, 310", "tenth column")(
    lambda f: npz(f, table=np.where(np.arange(9) == 7, 497.611, particles()[:, :9]))
)

# Text

bad("CSV without column", "bad.csv", "no column 'Vz'", "expected Detector")(lambda f: text(f, NEWER.replace(",Vz", "")))
bad("CSV without momenta", "bad.csv", "no momenta", "assume_beam_direction")(lambda f: text(f, OLDER))
bad("CSV word for a number", "bad.csv", "line 4", "Energy is 'high'", "a number")(
    lambda f: text(f, edit=lambda table, _: table.__setitem__(3, table[3].replace("2.2", "high")))
)
bad("CSV unknown PDG code", "bad.csv", "line 4", "PDG code 999999")(
    lambda f: text(f, edit=lambda table, _: table.__setitem__(3, table[3].replace("2112", "999999")))
)
bad("CSV NaN", "bad.csv", "line 6", "energy is nan")(
    lambda f: text(f, edit=lambda table, _: table.__setitem__(5, table[5].replace("2.2", "nan")))
)
bad("CSV unknown detector", "bad.csv", "line 2", "Detector is 'Z'", "N or P")(
    lambda f: text(f, edit=lambda table, _: table.__setitem__(1, table[1].replace("N", "Z")))
)
bad("CSV short line", "bad.csv", "line 3", "expected 10 fields, got 9")(
    lambda f: text(f, edit=lambda table, _: table.__setitem__(2, table[2].rpartition(",")[0]))
)
bad("CSV photon sum", "bad.csv", "line 2", "PhotonSum is 18", "sums to 17")(
    lambda f: text(f, edit=lambda table, _: table.__setitem__(1, table[1].replace(",17", ",18")))
)
bad("CSV without images", "bad.csv", "0 ZN image texts", "neutron_image.txt")(lambda f: without_second(text(f)))
bad("images without CSV", "neutron_image.txt", "images without particles")(lambda f: text(f)[1:])
bad("image lines missing", "neutron_image.txt", "has 174 lines", "4 images x 44 lines = 176")(
    lambda f: text(f, edit=lambda _, lines: lines.__delitem__(slice(2)))
)
bad("image lines too many", "neutron_image.txt", "has 177 lines", "= 176")(
    lambda f: text(f, edit=lambda _, lines: lines.append(lines[0]))
)
bad("image line too short", "neutron_image.txt", "line 50", "expected 44 numbers, got 43")(
    lambda f: text(f, edit=lambda _, lines: lines.__setitem__(49, "0 " * 43))
)
bad("image line empty", "neutron_image.txt", "line 50", "got 0")(
    lambda f: text(f, edit=lambda _, lines: lines.__setitem__(49, ""))
)
bad("image of no detector", "neutron_image.txt", "line 1", "44 (ZN) or 30 (ZP)", "got 12")(
    lambda f: text(f, edit=lambda _, lines: lines.__setitem__(0, "0 " * 12))
)
bad("image word for a number", "neutron_image.txt", "line 50", "'x'", "a whole number")(
    lambda f: text(f, edit=lambda _, lines: lines.__setitem__(49, "x " + "0 " * 43))
)
bad("image negative photons", "neutron_image.txt", "row 1", "-1 photons", "(5, 0)")(
    lambda f: text(f, edit=lambda _, lines: lines.__setitem__(49, "-1 " + "0 " * 43))
)
bad("text without rows", "bad.csv", "no rows", detector="zn")(
    lambda f: text(f, edit=lambda table, _: table.__delitem__(slice(1, None)))
)

# Output

bad("output is the source", "bad.root", "also a source", out="bad.root")(root)
bad("output suffix", "out.h5", "expected .root", out="out.h5")(root)


@bad("output is a folder", "dir.root", "is a folder", out="dir.root")
def output_folder(folder: Path) -> list[str]:
    (folder / "dir.root").mkdir()
    return root(folder)


bad("output below a file", "bad.root", "cannot be written", out="bad.root/out.root")(root)


def command(source: list[str], out: Path) -> list[str]:
    return ["convert", "--source", source[0] if len(source) == 1 else f"[{', '.join(source)}]", "--out", str(out)]


@pytest.mark.parametrize("name", CASES)
def test_bad_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    source, out = case.make(tmp_path), tmp_path / case.out
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    with pytest.raises(ValueError) as caught:
        convert(source, str(out), **case.options)
    message = str(caught.value)
    assert "\n" not in message
    for part in case.says:
        assert part in message

    capsys.readouterr()
    arguments = [f"--{key}={value}" for key, value in case.options.items()]
    status = main([*command(source, out), *arguments])
    shown = capsys.readouterr()
    assert status == 2
    assert shown.err == f"calosim: error: {message}\n"
    assert shown.out == ""

    # Nothing was written, nothing was left behind and nothing that was there has changed.
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["ROOT file damaged inside", "CSV word for a number"])
def test_bad_file_in_a_process(name: str, tmp_path: Path) -> None:
    case, out = CASES[name], tmp_path / "out.root"
    arguments = command(case.make(tmp_path), out)
    done = subprocess.run([sys.executable, "-m", "calosim", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("calosim: error: ")
    assert done.stderr.count("\n") == 1
    assert not out.exists()
