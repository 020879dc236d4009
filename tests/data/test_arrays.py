"""Pairs of npz files are read by either of their names, in pieces; bad pairs are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from calosim.data import FEATURES, Showers, convert, read, write
from calosim.data.arrays import Hdf5Writer
from calosim.data.datamodule import RootDataModule
from calosim.data.reading import checked_pieces, sources
from calosim.detectors import DETECTORS
from calosim.options import Convert


@pytest.mark.parametrize("detector", ["zn", "zp"])
@pytest.mark.parametrize("columns", [9, 10])
@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int32])
def test_npz_pair(detector, columns, dtype, tmp_path, make, join, check_equal, save_npz):
    showers = make(30, detector)
    first, second = save_npz(tmp_path, showers, columns, dtype)
    for given in (first, second, [second, first]):
        check_equal(read(given), showers)
    (source,) = sources(first)
    pieces = list(checked_pieces(source, 7))
    assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 2]
    check_equal(join(pieces), showers)


def test_npz_choice_between_particles(tmp_path, make, save_npz):
    showers = make(3)
    showers.particles[:, 7:] = (497.614, 0)
    first, _ = save_npz(tmp_path, showers, 9, np.int16)
    for code in (310, 130):
        assert read(first, prefer=[code]).pdg.tolist() == [code] * 3


#: By name: what makes the file, what the message must say, and options of the conversion.
BAD: dict[str, tuple[Callable[[Any], list[str]], list[str], dict[str, Any]]] = {
    "npz that is no zip": (lambda f: f.named("bad_particles.npz", b"numbers"), ["bad_particles.npz", "damaged"], {}),
    "npz cut short": (lambda f: f.cut(f.npz()[1], 150), ["bad_responses.npz", "damaged"], {}),
    "npz damaged inside": (
        lambda f: [f.npz()[0], f.damage(str(f.folder / "bad_responses.npz"), 120, 140)],
        ["bad_responses.npz", "damaged"],
        {},
    ),
    "npz without key": (lambda f: f.npz(key="data"), ["bad_particles.npz", "'arr_0'", "found data"], {}),
    "npz with pickles": (lambda f: f.npz(table=f.table.astype(object)), ["bad_particles.npz", "pickled"], {}),
    "npz with eight columns": (
        lambda f: f.npz(table=f.table[:, :8]),
        ["bad_particles.npz", "8 columns", "expected 9"],
        {},
    ),
    "npz of a single column": (lambda f: f.npz(table=f.full(1.0)), ["bad_particles.npz", "1 dimensions"], {}),
    "npz lengths differ": (lambda f: f.npz(table=f.table[:3]), ["bad_responses.npz", "4 rows", "has 3"], {}),
    "npz without partner": (lambda f: f.first(f.npz()), ["bad_particles.npz", "responses is missing"], {}),
    "npz image shape": (lambda f: f.npz(images=np.ones((f.rows, 44, 43))), ["bad_responses.npz", "(44, 43)"], {}),
    "npz broken photon": (lambda f: f.npz(images=f.pixel(1.5)), ["bad_responses.npz", "row 2", "1.5 photons"], {}),
    "npz images in Fortran order": (
        lambda f: f.npz(images=np.asfortranarray(f.columns["response"])),
        ["bad_responses.npz", "Fortran order"],
        {},
    ),
    "npz PDG code not whole": (
        lambda f: f.npz(table=f.table + 0.5 * np.eye(10)[9]),
        ["bad_particles.npz", "row 0", "pdg is 2112.5"],
        {},
    ),
    "mass of no particle": (
        lambda f: f.npz(table=np.where(np.arange(9) == 7, 777.0, f.table[:, :9])),
        ["bad_particles.npz", "row 0", "mass 777 MeV", "no particle"],
        {},
    ),
    "mass in GeV": (
        lambda f: f.npz(table=np.where(np.arange(9) == 7, 0.93957, f.table[:, :9])),
        ["bad_particles.npz", "row 0", "mass 0.93957 MeV", "no particle", "masses in MeV"],
        {},
    ),
    "mass of two particles": (
        lambda f: f.npz(table=np.where(np.arange(9) == 7, 497.611, f.table[:, :9])),
        ["bad_particles.npz", "row 0", "130, 310", "tenth column"],
        {},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_line(name, refused):
    make, says, options = BAD[name]
    refused(make, *says, **options)


def test_several_pairs_are_found_by_their_names(tmp_path, make, save_npz):
    pairs = [save_npz(tmp_path, make(4, seed=k), stem=stem) for k, stem in enumerate("ab")]
    (a, a_images), (b, b_images) = pairs
    crossed = read([a, b, b_images, a_images])
    assert np.array_equal(crossed.images, read([a, a_images, b, b_images]).images)
    renamed = tmp_path / "z.npz"
    (tmp_path / b_images).rename(renamed)
    with pytest.raises(ValueError, match=r"b_particles\.npz: which of 2 files holds its responses"):
        read([a, b, a_images, renamed])
    assert len(read([b, renamed])) == 4  # a single pair may be called anything


def test_swapped_columns_are_refused(tmp_path, make, save_npz):
    """Vertex for momentum: every number is good by itself, but energy and momentum are none of a particle's."""
    showers = make(20)
    swapped = np.ascontiguousarray(showers.particles[:, [0, 4, 5, 6, 1, 2, 3, 7, 8]])
    paths = save_npz(tmp_path, Showers(swapped, showers.pdg, showers.images, "zn"))
    order = "energy, vx, vy, vz, px, py, pz, mass, charge, pdg"
    with pytest.raises(
        ValueError, match=rf"row \d+: energy is .* GeV; expected .* by its momentum and mass \(columns {order}\)"
    ):
        read(paths)


@pytest.fixture
def hdf5(tmp_path, make):
    """A file of 20 ZN responses, as the command makes it, and what it holds."""
    showers = make(20)
    write(tmp_path / "a.root", showers)
    convert(Convert(str(tmp_path / "a.root"), str(tmp_path / "a.h5"), quiet=True))
    return tmp_path / "a.h5", showers


@pytest.mark.usefixtures("small_baskets")
@pytest.mark.parametrize("detector", DETECTORS)
def test_there_and_back(detector, tmp_path, make, check_equal):
    showers = make(21, detector)  # whole baskets
    images = showers.images.astype(np.int32)
    images[13, 2, 3] = 177_940  # an artefact that 16 bits do not hold
    showers = Showers(showers.particles, showers.pdg, images, detector)
    write(tmp_path / "a.root", showers)
    for source, out in (("a.root", "a.h5"), ("a.h5", "b.hdf5"), ("b.hdf5", "b.root")):
        convert(Convert(str(tmp_path / source), str(tmp_path / out), quiet=True))
    check_equal(read(tmp_path / "a.h5"), showers)
    assert (tmp_path / "b.root").read_bytes() == (tmp_path / "a.root").read_bytes()
    assert (tmp_path / "b.hdf5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_layout_of_the_challenge(hdf5):
    path, showers = hdf5
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["incident_energies"][:], 1000 * showers.particles[:, :1])  # MeV
        np.testing.assert_array_equal(file["showers"][:], showers.images.reshape(20, -1))
        assert {name: file[name].shape for name in (*FEATURES, "pdg")} == dict.fromkeys((*FEATURES, "pdg"), (20,))
        assert file.attrs["detector"] == "zn"


def test_other_peoples_files(tmp_path, make, check_equal):
    """Without a detector's name, mass and charge, with columns (N, 1), images (N, nx, ny) of floats, and another name."""
    showers = make(20, "zp")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for k, name in enumerate(FEATURES[:7]):
            file[name] = showers.particles[:, [k]]
        file["pdg"], file["cells"] = showers.pdg, showers.images.astype(np.float32)
    check_equal(read(tmp_path / "a.hdf5", columns={"response": "cells"}), showers, 1e-7)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file.attrs["detector"] = np.bytes_(b"zp")
    check_equal(read(tmp_path / "a.hdf5", columns={"response": "cells"}), showers, 1e-7)
    with pytest.raises(ValueError, match=r"has no dataset 'showers'; expected showers with energy, .*, found cells"):
        read(tmp_path / "a.hdf5")


def test_training_data(hdf5, tmp_path):
    path, _ = hdf5
    data = RootDataModule(str(path), cache_dir=str(tmp_path), min_photons=0, split_by="response")
    data.setup()
    assert len(data.arrays["pdg"]) == 20


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"showers": np.zeros((20, 6480))}, r"images of shape \(6480,\) fit no detector"),
        ({"showers": np.zeros((20, 9, 16, 45))}, r"images of shape \(9, 16, 45\) fit no detector"),
        ({"showers": 3}, r"dataset 'energy' has shape \(20,\); expected \(0,\)"),
        ({"vz": None}, "has no dataset 'vz'"),
        ({"vz": np.zeros(19)}, r"dataset 'vz' has shape \(19,\); expected \(20,\)"),
        ({"pdg": np.full(20, b"n")}, "dataset 'pdg' holds .*; expected numbers"),
        ({"showers": np.full((20, 1936), 0.5)}, "row 0: response holds 0.5 photons in pixel"),
        ({"energy": np.full(20, np.nan)}, "row 0: energy is nan"),
    ],
)
def test_what_cannot_be_read_is_refused(changed, said, hdf5):
    path, _ = hdf5
    with h5py.File(path, "a") as file:
        del file.attrs["detector"]
        for name, values in changed.items():
            del file[name]
            if values is not None:
                file[name] = values
    with pytest.raises(ValueError, match=said):
        read(path)


def test_damaged_and_empty_files(hdf5, tmp_path):
    path, _ = hdf5
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut.h5: the file is damaged or incomplete"):
        read(tmp_path / "cut.h5")
    with h5py.File(path, "a") as file:
        for name in file:
            file[name].resize(0, axis=0)
    with pytest.raises(ValueError, match="holds no rows; expected at least one"):
        read(path)


def test_an_error_keeps_the_old_file(hdf5, make):
    path, _ = hdf5
    before = path.read_bytes()

    def interrupted() -> None:
        with Hdf5Writer(path, "zn") as writer:
            writer.extend(make(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert not [p.name for p in path.parent.iterdir() if p.name.startswith(".")]
