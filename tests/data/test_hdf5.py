"""HDF5 in the CaloChallenge's layout: the same showers back, the same bytes for the same rows; others are refused in one line."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from calosim.data import FEATURES, Showers, convert, read, write
from calosim.data.datamodule import RootDataModule
from calosim.data.hdf5 import Hdf5Writer
from calosim.detectors import DETECTORS
from calosim.options import Convert


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
