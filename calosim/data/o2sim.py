"""Reader of O2's own simulation files: a TTree ``o2sim`` whose branch ``ZDCResponseImage`` holds particles and their images.

An entry is an event, a `std::vector<std::pair<TParticle, std::pair<SpatialPhotonResponse, SpatialPhotonResponse>>>`: who
entered the calorimeters, and the images of ZN and ZP. ROOT writes the particles as objects, and the members of the responses
as branches of their own (split mode 99, the default) or all in one branch (0). Only `o2-sim-serial` is expected to write that
branch: the workers of the parallel `o2-sim` pass hits on, and no images. Mode 0 is read object by object by uproot, a thousand
times slower: convert such a file once.

References:
    | AliceO2Group/AliceO2, Detectors/ZDC/simulation: SpatialPhotonResponse.h, ParticlePhotonResponse in Detector.h
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calosim.data.record import FEATURES, Showers, Source, Where, features_of, first_true, photon_counts, row_name
from calosim.data.root import Names, Tree, open_tree
from calosim.detectors import get_detector

__all__ = ["o2sim_source"]

_BRANCH = "ZDCResponseImage"

#: Members of the pair that are images, by detector.
_IMAGES = {"zn": "second.first", "zp": "second.second"}

#: Members of the TParticle, in GeV and cm: ours up to the mass; and the PDG code.
_PARTICLE = dict(zip(FEATURES, ("fE", "fVx", "fVy", "fVz", "fPx", "fPy", "fPz"), strict=False)) | {"pdg": "fPdgCode"}

#: A TParticle as ROOT writes it, 150 bytes of which the first four say so: uproot reads objects one by one, this at once. One
#: that a TRef points to is two bytes longer; events with such are left to uproot.
_OBJECT = np.dtype(
    {
        "names": ["size", "fPdgCode", "fPx", "fPy", "fPz", "fE", "fVx", "fVy", "fVz"],
        "formats": [">u4", ">i4", *[">f8"] * 7],
        "offsets": [0, 34, *range(70, 126, 8)],
        "itemsize": 150,
    }
)
_SIZE = 0x4000_0000 + _OBJECT.itemsize - 4

#: Bytes of a branch that are decompressed at once where particles are counted.
_STEP = 64e6


def o2sim_source(path: Path, wanted: str | None, names: Names = Names()) -> Source:
    """A file of O2's simulation as a source: particles that left photons in ZN or ZP, as in the text of ``Extract.C``.

    Args:
        path: The file.
        wanted: The detector, zn or zp; there are images of both.
        names: Of the tree.

    Raises:
        ValueError: If no detector of the two is chosen, or the file has no such branch or one that cannot be read.
    """
    if wanted not in _IMAGES:
        asked = "" if wanted is None else f", got {wanted}"
        raise ValueError(f"{path}: comes with ZN and ZP images; expected a choice of detector, zn or zp{asked}")
    with open_tree(path, names) as tree:
        columns, sums, events = _particles(path, tree)
    where, nonempty = partial(row_name, 0), (sums["zn"] > 0) | (sums["zp"] > 0)
    particles, pdg = features_of({name: values[nonempty] for name, values in columns.items()}, str(path), where)
    photon_sum = sums[wanted][nonempty]

    def pieces(rows: int) -> Iterator[tuple[Showers, Where]]:
        first = 0
        for images in _images(path, names, wanted, events, nonempty, rows):
            part, place = slice(first, first + len(images)), partial(row_name, first)
            showers = Showers(particles[part], pdg[part], photon_counts(images, str(path), place), wanted)
            if at := first_true(showers.photon_sum != photon_sum[part]):
                says, has = photon_sum[part][at], showers.photon_sum[at]
                raise ValueError(f"{path}: {place(at[0])}: mPhotonSum is {says}, but the image sums to {has}")
            yield showers, place
            first += len(images)

    return Source(wanted, len(pdg), False, pieces, str(path))


def _particles(path: Path, tree: Tree) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Columns of all particles (N,), their photons by detector (N,), and how many particles an event has."""
    import awkward

    wanted = {name: f"{_BRANCH}.first.{member}" for name, member in _PARTICLE.items()}
    wanted |= {name: f"{_BRANCH}.{image}.mPhotonSum" for name, image in _IMAGES.items()}
    if missing := [member for member in wanted.values() if member not in tree]:
        raise ValueError(
            f"{path}: has no branch {missing[0]}, as o2-sim-serial writes it for O2's {_BRANCH}; expected that, or the text that "
            "O2's macro Extract.C prints of the file"
        )
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    events, step = [np.zeros(0, np.int64)], max(1, int(_STEP * tree.rows / max(tree.size, 1)))
    for start, stop in tree.steps(wanted["pdg"], step):
        arrays = _members(tree, list(wanted.values()), start, stop)
        for name, member in wanted.items():
            found[name].append(_flat(path, member, arrays[member]))
        events.append(awkward.to_numpy(awkward.num(arrays[wanted["pdg"]], axis=1)))
    columns = {name: np.concatenate([np.zeros(0), *parts]) for name, parts in found.items()}
    if len({len(values) for values in columns.values()}) > 1:
        numbers = ", ".join(f"{len(values)} {name}" for name, values in columns.items())
        raise ValueError(f"{path}: {_BRANCH}: expected as many of each member, got {numbers}")
    return columns, {name: columns.pop(name) for name in _IMAGES}, np.concatenate(events)


def _members(tree: Tree, names: list[str], start: int, stop: int) -> dict[str, Any]:
    """Members of events ``start`` to ``stop``, by name."""
    import awkward
    import uproot

    if tree.is_branch(f"{_BRANCH}.first"):
        size, form = f"{_BRANCH}.first.size", uproot.AsJagged(uproot.AsDtype(_OBJECT))
        with suppress(ValueError):  # where objects are of several sizes
            arrays = tree.arrays(
                [*names, size], start, stop, {name: form for name in [*names, size] if ".first.f" in name}
            )
            if awkward.all(arrays.pop(size) == _SIZE):
                return arrays
    return tree.arrays(names, start, stop)


def _images(
    path: Path, names: Names, detector: str, events: np.ndarray, nonempty: np.ndarray, rows: int
) -> Iterator[np.ndarray]:
    """The images of particles that left photons, up to so many rows at a time; events have so many particles each."""
    ends, start = np.cumsum(events), 0
    with open_tree(path, names) as tree:
        while start < len(events):
            done = ends[start] - events[start]
            stop = max(start + 1, int(np.searchsorted(ends, done + rows, side="right")))
            number = ends[stop - 1] - done
            images = _pixels(path, tree, detector, start, stop)
            if len(images) != number:
                raise ValueError(
                    f"{path}: {_BRANCH}: expected {number} images in events from {start} on, got {len(images)}"
                )
            images = images[nonempty[done : done + number]]
            yield from (images[k : k + rows] for k in range(0, len(images), rows))
            start = stop


def _pixels(path: Path, tree: Tree, detector: str, start: int, stop: int) -> np.ndarray:
    """All images of events ``start`` to ``stop``, (N, nx, ny)."""
    import uproot

    name, (nx, ny) = f"{_BRANCH}.{_IMAGES[detector]}.mImageData", get_detector(detector).shape
    if not tree.is_branch(name):
        images = _flat(path, name, tree.arrays([name], start, stop)[name])
        if len(images) and images.shape[1:] != (nx, ny):
            raise ValueError(f"{path}: branch {name}: expected images of {nx} x {ny}, got {images.shape[1:]}")
        return images.reshape(-1, nx, ny)
    # Of vectors in vectors in a member uproot knows no form: an entry is six bytes of version, then for each particle nx, and nx
    # times ny with ny numbers, four bytes each.
    form = uproot.AsJagged(uproot.AsDtype(">i4"), header_bytes=6)
    words = _flat(path, name, tree.arrays([name], start, stop, {name: form})[name])
    if len(words) % (1 + nx * (1 + ny)) == 0:
        each = words.reshape(-1, 1 + nx * (1 + ny))
        lines = each[:, 1:].reshape(-1, nx, 1 + ny)
        if (each[:, 0] == nx).all() and (lines[:, :, 0] == ny).all():
            return lines[:, :, 1:]
    raise ValueError(
        f"{path}: branch {name}: expected images of {nx} x {ny} in events from {start} to {stop - 1}, got others"
    )


def _flat(path: Path, name: str, values: Any) -> np.ndarray:
    """What particles have, one after the other, whatever the event."""
    import awkward

    try:
        return awkward.to_numpy(awkward.to_regular(awkward.flatten(values, axis=1), axis=None))
    except ValueError:
        raise ValueError(
            f"{path}: branch {name}: expected as many numbers of each particle, got {values.type}"
        ) from None
