"""O2's simulation files, as ROOT writes them from classes with O2's members."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import uproot

from calosim.data import Showers, convert, read
from calosim.options import Convert

#: Masses are those of the tables; all else went through ROOT as it is.
TABLES, ROUNDING = 1e-7, 1e-12
PAIR = "ZDCResponseImage.second."
FILES = ["split99-default", "split99-zstd", "split99-lz4", "split99-none", "split0-default"]


@pytest.fixture
def expected(by_root):
    """What the files hold of particles that left photons: in the ZP two are empty, of which one is empty in the ZN too."""

    def of(detector: str) -> Showers:
        particles, pdg, zn = by_root.showers("zn")
        zp = by_root.showers("zp")[2].copy()
        zp[[1, 3]] = 0
        nonempty = (zn.sum((1, 2)) > 0) | (zp.sum((1, 2)) > 0)
        assert nonempty.sum() == by_root.ROWS - 1
        return Showers(particles[nonempty], pdg[nonempty], (zn if detector == "zn" else zp)[nonempty], detector)

    return of


@pytest.mark.parametrize("detector", ["zn", "zp"])
@pytest.mark.parametrize("name", FILES)
def test_particles_that_left_photons(name, detector, by_root, expected, tmp_path, check_equal):
    path = by_root.FOLDER / f"o2sim-{name}.root"
    check_equal(read(path, detector), expected(detector), TABLES)
    convert(Convert(str(path), str(tmp_path / "out.root"), detector, quiet=True))
    check_equal(read(tmp_path / "out.root"), expected(detector), TABLES)


@pytest.mark.parametrize("name", ["split99-default", "split0-default"])
def test_steps_do_not_matter(name, by_root, expected, check_equal, monkeypatch):
    """Events are read a few at a time, those without particles too."""
    monkeypatch.setattr("calosim.data.reading.BASKET", 2)
    monkeypatch.setattr("calosim.data.o2sim._STEP", 1)
    check_equal(read(by_root.FOLDER / f"o2sim-{name}.root", "zp"), expected("zp"), TABLES)


def test_another_file_by_root(real_data):
    """Written elsewhere, with tracks beside the images."""
    path, values = real_data("o2sim_by_root_split99.root"), np.load(real_data("o2sim_by_root_split99.npz"))
    for detector in ("zn", "zp"):
        got = read(path, detector)
        np.testing.assert_array_equal(got.images, values[detector])
        np.testing.assert_array_equal(got.pdg, values["pdg"])
        np.testing.assert_allclose(got.particles[:, :7], values["features"], rtol=ROUNDING)


@pytest.mark.parametrize(
    ("detector", "said"), [(None, "expected a choice of detector, zn or zp"), ("focal_h", "got focal_h")]
)
def test_a_detector_is_chosen(detector, said, by_root):
    with pytest.raises(ValueError, match=said):
        read(by_root.FOLDER / "o2sim-split99-zstd.root", detector)


def test_other_files_are_refused(by_root, tmp_path):
    """Without the branch, or with members of other lengths."""
    path = tmp_path / "o2sim.root"

    def write(**members: np.ndarray) -> None:
        values = {f"ZDCResponseImage.{n}": ak.unflatten(v.ravel(), v.size // 2) for n, v in members.items()}
        with uproot.recreate(path) as file:
            file.mktree("o2sim", {name: v.type.content for name, v in values.items()}).extend(values)

    features = {f"first.{name}": np.ones(4) for name in ("fE", "fVx", "fVy", "fVz", "fPx", "fPy", "fPz")}
    features |= {"first.fPdgCode": np.full(4, 22, np.int32)}
    sums = {f"second.{name}.mPhotonSum": np.full(4, 3, np.int32) for name in ("first", "second")}
    write(**features)
    with pytest.raises(
        ValueError, match=r"no branch ZDCResponseImage.second.first.mPhotonSum.*o2-sim-serial.*Extract.C"
    ):
        read(path, "zn")
    write(**features, **sums | {"second.second.mPhotonSum": np.full(6, 3, np.int32)})
    with pytest.raises(ValueError, match=r"expected as many of each member, got .* 6 zp"):
        read(path, "zn")


@pytest.mark.parametrize("name", ["split99-zstd", "split0-default"])
def test_images_of_another_detector_are_refused(name, by_root, monkeypatch):
    monkeypatch.setattr("calosim.data.o2sim._IMAGES", {"zn": "second.second", "zp": "second.first"})
    with pytest.raises(ValueError, match=r"second.second.mImageData: expected images of 44 x 44"):
        read(by_root.FOLDER / f"o2sim-{name}.root", "zn")
