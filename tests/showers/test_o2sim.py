"""O2's simulation files, in the layout that ROOT gives the members of its vector of pairs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import awkward as ak
import numpy as np
import pytest
import uproot

from calosim.showers import Showers, convert, read
from calosim.showers.o2sim import _member

#: Particles of the events, some of which left no photons.
EVENTS = [0, 5, 1, 0, 9, 6]
PAIR = "ZDCResponseImage.second."
#: Masses are those of the tables.
TABLES = 1e-7


def write(path: Path, both: tuple[Showers, Showers], **changed: np.ndarray | None) -> Path:
    """Particles of the first, images of both; members are one after the other in an event."""
    zn, zp = both
    columns = dict(zip(("E", "Vx", "Vy", "Vz", "Px", "Py", "Pz"), zn.particles.T, strict=False))
    members = {f"ZDCResponseImage.first.f{name}": column for name, column in columns.items()}
    members["ZDCResponseImage.first.fPdgCode"] = zn.pdg
    for name, showers in (("first", zn), ("second", zp)):
        members[f"{PAIR}{name}.mPhotonSum"] = showers.photon_sum.astype(np.int32)
        members[f"{PAIR}{name}.mImageData"] = showers.images.astype(np.int32)
    members |= {PAIR + name: values for name, values in changed.items()}
    members = {name: values for name, values in members.items() if values is not None}
    with uproot.recreate(path) as file:
        tree = file.mktree("o2sim", {name: f"var * {values.dtype}" for name, values in members.items()})
        for start in (0, 3):  # two baskets
            events = np.array(EVENTS[start : start + 3])
            rows = slice(sum(EVENTS[:start]), sum(EVENTS[:start]) + events.sum())
            each = {name: values[0].size for name, values in members.items()}
            tree.extend({n: ak.unflatten(v[rows].ravel(), events * each[n]) for n, v in members.items()})
    return path


@pytest.fixture
def both(make) -> tuple[Showers, Showers]:
    zn, zp = make(sum(EVENTS)), make(sum(EVENTS), "zp")
    for dark in (zn.images[3:8], zp.images[5:9]):
        dark[...] = 0
    return zn, zp


@pytest.mark.parametrize("detector", ["zn", "zp"])
@pytest.mark.parametrize("basket", [4, 4000])
def test_particles_that_left_photons(detector, basket, both, tmp_path, check_equal, monkeypatch):
    monkeypatch.setattr("calosim.showers.reading.BASKET", basket)
    path = write(tmp_path / "o2sim.root", both)
    lit = both[0].photon_sum + both[1].photon_sum > 0
    assert 15 < lit.sum() < sum(EVENTS)
    zn, zp = both
    expected = zn if detector == "zn" else Showers(zn.particles, zn.pdg, zp.images, "zp")
    check_equal(read(path, detector), expected.select(lit), TABLES)
    convert(str(path), str(tmp_path / "out.root"), detector, quiet=True)
    check_equal(read(tmp_path / "out.root"), expected.select(lit), TABLES)


@pytest.mark.parametrize(
    ("detector", "changed", "said"),
    [
        (None, {}, "expected a choice of detector, zn or zp"),
        ("focal_h", {}, "zn or zp, got focal_h"),
        ("zn", {"first.mImageData": None}, "no branch ZDCResponseImage.second.first.mImageData.*Extract.C"),
        ("zn", {"first.mImageData": np.zeros((sum(EVENTS), 5, 5), np.int32)}, "expected 40656 numbers .* got 525"),
        ("zn", {"first.mPhotonSum": np.arange(sum(EVENTS), dtype=np.int32)}, "row 0: mPhotonSum is 0, but the image"),
    ],
)
def test_bad_files(detector, changed, said, both, tmp_path):
    with pytest.raises(ValueError, match=said):
        read(write(tmp_path / "o2sim.root", both, **changed), detector)


def test_members_may_be_nested():
    images = np.arange(24).reshape(3, 4, 2)
    nested = ak.unflatten(ak.from_regular(ak.from_numpy(images), axis=None), [2, 0, 1])
    assert nested.ndim == 4
    branch = SimpleNamespace(name="ZDCResponseImage.a", array=lambda **_: nested)
    values, events = _member(Path("x.root"), SimpleNamespace(itervalues=lambda: [branch]), "a", 24)
    assert np.array_equal(values, images.ravel())
    assert events.tolist() == [2, 0, 1]
