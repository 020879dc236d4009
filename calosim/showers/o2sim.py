"""Reader of O2's own simulation files: a TTree ``o2sim`` whose branch ``ZDCResponseImage`` holds particles and their images.

An entry is an event, a `std::vector<std::pair<TParticle, std::pair<SpatialPhotonResponse, SpatialPhotonResponse>>>`: who
entered the calorimeters, and the images of ZN and ZP. ROOT writes the members of such a vector as branches of their own.

References:
    | AliceO2Group/AliceO2, Detectors/ZDC/simulation: SpatialPhotonResponse.h, ParticlePhotonResponse in Detector.h
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calosim.detectors import get_detector
from calosim.showers.checks import first_true, pdg_codes, photon_counts, reading_file, row_name, tabulated
from calosim.showers.record import Showers, Source, Where
from calosim.showers.root import open_tree

__all__ = ["O2SIM", "o2sim_source"]

#: The tree.
O2SIM = "o2sim"

_BRANCH = "ZDCResponseImage"

#: Members of the pair that are images, by detector.
_IMAGES = {"zn": "second.first", "zp": "second.second"}

#: Members of the TParticle, in GeV and cm: ours up to the mass.
_FEATURES = tuple(f"first.{name}" for name in ("fE", "fVx", "fVy", "fVz", "fPx", "fPy", "fPz"))
_PDG = "first.fPdgCode"


def o2sim_source(path: Path, wanted: str | None) -> Source:
    """A file of O2's simulation as a source: particles that left photons in ZN or ZP, as in the text of ``Extract.C``.

    Args:
        path: The file.
        wanted: The detector, zn or zp; there are images of both.

    Raises:
        ValueError: If no detector of the two is chosen, or the file has no such branch or one that cannot be read.
    """
    if wanted not in _IMAGES:
        asked = "" if wanted is None else f", got {wanted}"
        raise ValueError(f"{path}: comes with ZN and ZP images; expected a choice of detector, zn or zp{asked}")
    with open_tree(path, O2SIM) as (_, tree):
        pdg, events = _member(path, tree, _PDG)
        columns = [_member(path, tree, name, len(pdg))[0] for name in _FEATURES]
        sums = {name: _member(path, tree, f"{image}.mPhotonSum", len(pdg))[0] for name, image in _IMAGES.items()}
    where, lit = partial(row_name, 0), (sums["zn"] > 0) | (sums["zp"] > 0)
    pdg, photon_sum = pdg_codes(pdg[lit], str(path), where), sums[wanted][lit]
    particles = np.column_stack([*(column[lit] for column in columns), *tabulated(pdg, str(path), where)])

    def pieces(rows: int) -> Iterator[tuple[Showers, Where]]:
        first = 0
        for images in _images(path, wanted, events, lit, rows):
            part, place = slice(first, first + len(images)), partial(row_name, first)
            showers = Showers(particles[part], pdg[part], photon_counts(images, str(path), place), wanted)
            if at := first_true(showers.photon_sum != photon_sum[part]):
                says, has = photon_sum[part][at], showers.photon_sum[at]
                raise ValueError(f"{path}: {place(at[0])}: mPhotonSum is {says}, but the image sums to {has}")
            yield showers, place
            first += len(images)

    return Source(wanted, len(pdg), False, pieces, str(path))


def _images(path: Path, detector: str, events: np.ndarray, lit: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """The images of particles that left photons, up to so many rows at a time; events have so many particles each."""
    nx, ny = get_detector(detector).shape
    name, ends, start = f"{_IMAGES[detector]}.mImageData", np.cumsum(events), 0
    with open_tree(path, O2SIM) as (_, tree):
        while start < len(events):
            done = ends[start] - events[start]
            stop = max(start + 1, int(np.searchsorted(ends, done + rows, side="right")))
            number = ends[stop - 1] - done
            values, _ = _member(path, tree, name, number * nx * ny, start, stop)
            images = values.reshape(number, nx, ny)[lit[done : done + number]]
            yield from (images[k : k + rows] for k in range(0, len(images), rows))
            start = stop


def _member(
    path: Path, tree: Any, name: str, expected: int | None = None, start: int = 0, stop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a member, one event after the other, however deep they are nested; and how many an event has."""
    import awkward

    found = [branch for branch in tree.itervalues() if branch.name == f"{_BRANCH}.{name}"]
    if not found:
        raise ValueError(
            f"{path}: has no branch {_BRANCH}.{name}, as ROOT writes the members of O2's {_BRANCH}; expected that, or the "
            "text that O2's macro Extract.C prints of the file"
        )
    with reading_file(path):
        array = found[0].array(entry_start=start, entry_stop=stop, array_cache=None)
        flat = awkward.to_numpy(awkward.flatten(array, axis=None))
    if expected is not None and len(flat) != expected:
        raise ValueError(
            f"{path}: branch {_BRANCH}.{name}: expected {expected} numbers in events from {start} on, got {len(flat)}"
        )
    return flat, awkward.to_numpy(awkward.num(array, axis=1))
