"""ROOT files: they come back as they were written, say how they were made, and bad ones are refused in one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from calosim.data import FEATURES, Showers, Writer, read, write
from calosim.data.cache import content_hash, primaries_hash, read_recipe
from calosim.data.reading import checked_pieces, sources
from calosim.data.root import read_made
from calosim.detectors import DETECTORS
from calosim.io import write_json


def test_a_file_says_how_it_was_made_whatever_becomes_of_its_name(tmp_path, root_file, showers, command):
    data = tmp_path / "a.root"
    words = ["simulate", "--primaries", root_file, "--responses_per_primary", 1, "--seed", 7, "--quiet"]
    assert command(*words, "--out", data) == 0
    recipe = read_recipe(data)
    assert recipe["settings"] == {
        **{"detector": "zn", "primaries": str(root_file), "responses_per_primary": 1, "split": None},
        **{"match_sums": 0, "keep_empty": False, "seed": 7},
    }
    assert recipe["primaries_hash"] == content_hash([str(root_file)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.root"]
    assert read_recipe(data.rename(tmp_path / "b.root")) == recipe
    # A model's file says how it was generated, which is no recipe; others say nothing.
    write(data, showers, {"models": {}})
    assert (read_recipe(data), read_made(data)) == (None, {"models": {}})
    for silent in (tmp_path / "c.csv", tmp_path / "d.h5"):
        assert read_recipe(silent) is read_made(silent) is None


def test_a_record_of_calosim_0_2_beside_the_file_is_of_that_file_alone(tmp_path, showers):
    data = tmp_path / "a.root"
    write(data, showers)
    record = {"calosim": "0.2.0", "settings": {"keep_dark": True, "seed": 1}, "data_hash": content_hash([str(data)])}
    write_json(f"{data}.json", record)
    assert read_recipe(data)["settings"] == {"keep_empty": True, "seed": 1}
    write(data, showers.select(slice(0, 9)))
    assert read_recipe(data) is None


def test_a_hash_is_that_of_the_files_as_they_are(tmp_path, root_file):
    data = tmp_path / "a.root"
    data.write_bytes(root_file.read_bytes())
    before = content_hash([str(data)])
    assert content_hash([str(data)]) == before
    data.write_bytes(root_file.read_bytes()[:-1] + b" ")
    os.utime(data, ns=(1, 1))
    assert content_hash([str(data)]) != before


def test_primaries_may_be_a_table_without_images(tmp_path, root_file, command):
    data, table = tmp_path / "a.root", tmp_path / "primaries.csv"
    table.write_text("pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0,0,0,100\n")
    assert command("simulate", "--primaries", table, "--out", data, "--quiet") == 0
    assert read_recipe(data)["primaries_hash"] == primaries_hash(str(table))
    assert primaries_hash(str(root_file)) == content_hash([str(root_file)])


#: The largest photon sum seen in real output, from one pion of 12 GeV.
ARTEFACT = 177_940


def pieces_of(path: Path, rows: int) -> list[Showers]:
    return [piece for source in sources(path) for piece in checked_pieces(source, rows)]


@pytest.mark.parametrize("detector", DETECTORS)
def test_round_trip(detector, tmp_path, make, check_equal):
    showers = make(20, detector)
    write(tmp_path / "a.root", showers)
    got = read(tmp_path / "a.root", detector)
    check_equal(got, showers)
    assert got.images.dtype == np.int16


def test_form_of_the_file(tmp_path, make):
    showers = make(9, "zp")
    write(tmp_path / "a.root", showers)
    with uproot.open(tmp_path / "a.root") as file:
        tree = file["showers"]
        types = {branch.name: branch.typename for branch in tree.branches}
        assert types == dict.fromkeys(FEATURES, "double") | {"pdg": "int32_t", "response": "int16_t[56][30]"}
        assert str(file["detector"]) == "zp"
        for k, name in enumerate(FEATURES):
            np.testing.assert_array_equal(tree[name].array(library="np"), showers.particles[:, k])


@pytest.mark.usefixtures("small_baskets")
@pytest.mark.parametrize("chunk", [1, 3, 7, 20, 50])
def test_pieces_do_not_matter(chunk, tmp_path, make, join, check_equal):
    showers = make(50)
    with Writer(tmp_path / "a.root", "zn") as writer:
        for first in range(0, len(showers), chunk):
            piece = join([showers.select(slice(first, first + chunk))])
            writer.extend(piece)
            piece.images[:] = 9  # the writer must not look again
    check_equal(read(tmp_path / "a.root"), showers)
    with uproot.open(tmp_path / "a.root") as file:
        assert file["showers"]["response"].num_baskets == 8  # of 7 rows, whatever the pieces were

    pieces = pieces_of(tmp_path / "a.root", chunk)
    assert max(map(len, pieces)) <= chunk + 6  # whole baskets
    check_equal(join(pieces), showers)


@pytest.mark.usefixtures("small_baskets")
def test_rows_that_fill_their_baskets(tmp_path, make):
    write(tmp_path / "a.root", make(14))
    with uproot.open(tmp_path / "a.root") as file:
        assert file["showers"]["response"].num_baskets == 2


@pytest.mark.usefixtures("small_baskets")
@pytest.mark.parametrize("row", [0, 24, 49])
def test_artefact(row, tmp_path, make, check_equal):
    showers = make(50)
    images = showers.images.astype(np.int64)
    images[row, 3, 4] = ARTEFACT
    showers = Showers(showers.particles, showers.pdg, images, "zn")
    write(tmp_path / "a.root", showers)
    got = read(tmp_path / "a.root")
    check_equal(got, showers)
    assert got.images.dtype == np.int32
    assert [path.name for path in tmp_path.iterdir()] == ["a.root"]


def test_foreign_root_file(tmp_path, make, join, check_equal):
    """Other types, no detector's name, other baskets, a colon in the file's name."""
    showers = make(50)
    path = tmp_path / "run:3.root"
    branches = {name: showers.particles[:, k] for k, name in enumerate(FEATURES)}
    branches |= {"pdg": showers.pdg.astype(np.int64), "response": showers.images.astype(np.float32)}
    with uproot.recreate(path) as file:
        types = {name: np.dtype((v.dtype, v.shape[1:])) if v.ndim > 1 else v.dtype for name, v in branches.items()}
        tree = file.mktree("showers", types | {"extra": np.float64})
        for part in (slice(0, 1), slice(1, 34), slice(34, 50)):
            tree.extend({name: values[part] for name, values in (branches | {"extra": np.ones(50)}).items()})
    got = read(path)
    check_equal(got, showers)
    assert got.images.dtype == np.int16
    check_equal(join(pieces_of(path, 10)), showers)
    assert max(map(len, pieces_of(path, 10))) <= 10


@pytest.mark.usefixtures("small_baskets")
def test_error_keeps_the_old_file(tmp_path, make):
    path = tmp_path / "a.root"
    write(path, make(5))
    before = path.read_bytes()

    def interrupted() -> None:
        with Writer(path, "zn") as writer:
            writer.extend(make(30))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [100, 3_000, 30_000, 60_000])
def test_full_disk_keeps_the_old_file(size, tmp_path, make):
    path = tmp_path / "a.root"
    write(path, make(5))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"a\.root: cannot be written: ") as caught:
            write(path, make(500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_and_imports(tmp_path, make):
    """Reading takes less than twice the images; importing takes no slow library along."""
    showers = make(1000)
    with Writer(tmp_path / "a.root", "zn") as writer:
        for _ in range(30):
            writer.extend(showers)
    # Not getrusage, whose peak begins with that of the parent process.
    script = (
        "import sys; from calosim.data import read\n"
        "slow = {'torch', 'uproot', 'particle', 'awkward', 'tqdm'} & set(sys.modules)\n"
        "import uproot, particle; from pathlib import Path\n"
        "peak = lambda: 1024 * int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak(); showers = read(sys.argv[1])\n"
        "print(len(slow), len(showers), (peak() - before) / (2 * showers.images.size))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.root")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    slow, rows, ratio = done.stdout.split()
    assert (int(slow), int(rows)) == (0, 30_000)
    assert 0.9 < float(ratio) < 2


def _later_version(f: Any) -> list[str]:
    with uproot.update(f.root()[0]) as file:
        file["format"] = "calosim 2"
    return [str(f.folder / "bad.root")]


def _damaged_basket(f: Any) -> list[str]:
    path = f.root()[0]
    with uproot.open(path) as file:
        start = int(file["showers"]["response"].member("fBasketSeek")[0])
    return [f.damage(path, start + 100, start + 120)]


def _damaged_index(f: Any) -> list[str]:
    return [f.damage(f.root()[0], 300, 6000)]


def _histogram(f: Any) -> list[str]:
    with uproot.recreate(f.folder / "bad.root") as file:
        file["showers"] = np.histogram([1.0])
    return [str(f.folder / "bad.root")]


def _two_detectors(f: Any) -> list[str]:
    first = Path(f.root()[0]).rename(f.folder / "zn.root")
    return [str(first), *f.root(detector="zp", response=np.ones((f.rows, 56, 30), np.int16))]


#: By name: what makes the file, what the message must say, and options of the conversion.
BAD: dict[str, tuple[Callable[[Any], list[str]], list[str], dict[str, Any]]] = {
    "not a ROOT file": (lambda f: f.named("bad.root", b"<html>" * 9), ["bad.root", "not a ROOT file"], {}),
    "ROOT file cut short": (lambda f: f.cut(f.root()[0], 5000), ["bad.root", "truncated", "bytes"], {}),
    "ROOT file of a header's first bytes": (lambda f: f.cut(f.root()[0], 30), ["bad.root", "truncated"], {}),
    "no tree": (lambda f: f.root(tree="other"), ["bad.root", "no tree 'showers'", "found 'detector', 'other'"], {}),
    "O2 simulation file": (
        lambda f: f.root(tree="o2sim", detector=None),
        ["bad.root", "no branch ZDCResponseImage", "Extract.C"],
        {"detector": "zn"},
    ),
    "missing branch": (lambda f: f.root(vz=None), ["bad.root", "no branch 'vz'", "expected energy"], {}),
    "missing response": (lambda f: f.root(response=None), ["no branch 'response'"], {}),
    "wrong image shape": (
        lambda f: f.root(response=np.ones((f.rows, 44, 30), np.int16)),
        ["response", "(44, 30)", "ZN has (44, 44)"],
        {},
    ),
    "image shape of no detector": (
        lambda f: f.root(detector=None, response=np.ones((f.rows, 7, 8), np.int16)),
        ["bad.root", "(7, 8)", "ZP 56 x 30"],
        {},
    ),
    "flat images of another detector": (
        lambda f: f.root(response=np.ones((f.rows, 1680), np.int16)),
        ["response", "(1680,)", "ZN has (44, 44)"],
        {},
    ),
    "jagged images": (
        lambda f: f.root(response=[[1] * 1936, [3], [], [4]]),
        ["'response'", "expected as many numbers in each entry"],
        {},
    ),
    "feature that is an array": (
        lambda f: f.root(vx=np.ones((f.rows, 3))),
        ["'vx'", "(3,)", "expected one number"],
        {},
    ),
    "another detector": (lambda f: f.root(), ["holds ZN", "expected ZP"], {"detector": "zp"}),
    "unknown detector in the file": (lambda f: f.root(detector="emcal"), ["unknown detector 'emcal'", "zn, zp"], {}),
    "no entries": (
        lambda f: f.root(**{name: values[:0] for name, values in f.columns.items()}),
        ["bad.root", "no rows"],
        {},
    ),
    "NaN feature": (lambda f: f.root(vy=f.column("vy", 3, np.nan)), ["row 3", "vy is nan", "finite"], {}),
    "infinite feature": (lambda f: f.root(px=f.column("px", 1, -np.inf)), ["row 1", "px is -inf"], {}),
    "negative energy": (
        lambda f: f.root(energy=f.column("energy", 2, -5)),
        ["row 2", "energy is -5 GeV", "more than 0"],
        {},
    ),
    "negative photons": (
        lambda f: f.root(response=f.pixel(-1, np.int16)),
        ["row 2", "response holds -1 photons", "(5, 6)"],
        {},
    ),
    "broken photon": (
        lambda f: f.root(response=f.pixel(1.5)),
        ["row 2", "response holds 1.5 photons", "whole number"],
        {},
    ),
    "NaN photons": (lambda f: f.root(response=f.pixel(np.nan)), ["row 2", "response holds nan photons"], {}),
    "unknown PDG code": (
        lambda f: f.root(pdg=f.column("pdg", 0, 999999).astype(np.int32)),
        ["row 0", "PDG code 999999"],
        {},
    ),
    "mass in GeV": (lambda f: f.root(mass=f.full(0.9395654)), ["row 0", "mass is 0.939565", "939.565 MeV"], {}),
    "charge in e/3": (
        lambda f: f.root(pdg=f.full(2212, np.int32), mass=f.full(938.272), charge=f.full(3.0)),
        ["row 0", "charge is 3", "expected 1 e"],
        {},
    ),
    "file of a later version": (_later_version, ["bad.root", "'calosim 2'", "'calosim 1'"], {}),
    "ROOT file damaged inside": (_damaged_basket, ["bad.root", "damaged"], {}),
    "ROOT file without its index": (_damaged_index, ["bad.root", "no tree 'showers'"], {}),
    "histogram for a tree": (_histogram, ["bad.root", "TH1D", "expected a TTree"], {}),
    "two detectors": (_two_detectors, ["bad.root", "holds ZP", "expected ZN"], {}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_line(name, refused):
    make, says, options = BAD[name]
    refused(make, *says, **options)
