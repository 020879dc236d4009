"""The record of showers: primaries with their photon images, and what a file of them is to its readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calosim.detectors import Detector, get_detector

__all__ = ["COLUMNS", "FEATURES", "TABULATED", "Showers", "Source", "Where"]

#: The primary particle's features, in the order of ``Showers.particles``.
#: energy GeV; vx, vy, vz cm; px, py, pz GeV/c; mass MeV; charge in units of e.
FEATURES: tuple[str, ...] = ("energy", "vx", "vy", "vz", "px", "py", "pz", "mass", "charge")

#: Columns of a table of showers, and those that follow from the PDG code where they are missing.
COLUMNS: tuple[str, ...] = (*FEATURES, "pdg", "response")
TABULATED: tuple[str, ...] = ("mass", "charge")


@dataclass(frozen=True)
class Showers:
    """Primary particles and the photon images they left in one detector.

    Attributes:
        particles: Features with shape (N, 9), float64, in the order and units of :data:`FEATURES`.
        pdg: PDG codes with shape (N,), int32.
        images: Photon counts with shape (N, nx, ny), integers.
        detector: The detector's name, a key of :data:`calosim.detectors.DETECTORS`.
    """

    particles: np.ndarray
    pdg: np.ndarray
    images: np.ndarray
    detector: str

    def __len__(self) -> int:
        return len(self.pdg)

    @property
    def geometry(self) -> Detector:
        """The detector of :attr:`detector`."""
        return get_detector(self.detector)

    @property
    def photon_sum(self) -> np.ndarray:
        """Photons of every image, shape (N,), int64."""
        return self.images.sum(axis=(1, 2), dtype=np.int64)

    @cached_property
    def inputs(self) -> np.ndarray:
        """The unique input each row belongs to, shape (N,), int64, numbered in order of first appearance.

        Rows are of one input when the nine features and the PDG code are identical: the same primary
        simulated again.
        """
        # Adding zero turns -0.0 into 0.0, which must compare equal byte by byte.
        rows = np.ascontiguousarray(np.column_stack([self.particles, self.pdg]) + 0.0)
        keys = rows.view(f"V{rows.shape[1] * rows.itemsize}")[:, 0].tolist()
        seen: dict[bytes, int] = {}
        return np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int64, len(keys))

    def select(self, rows: np.ndarray | slice) -> Showers:
        """Returns some rows, by index, mask or slice."""
        return Showers(self.particles[rows], self.pdg[rows], self.images[rows], self.detector)


#: Names a row of a piece for messages: its index within the piece to ``row 12`` or ``line 34``.
Where = Callable[[int], str]


@dataclass(frozen=True)
class Source:
    """A data set that can be read in pieces.

    Attributes:
        detector: The detector's name.
        rows: The number of rows.
        narrow: Whether the images are stored as 16-bit integers, so that no piece can be wider.
        pieces: Called with a number of rows, yields records of at most that many and what to call their rows.
        name: The file's name for messages.
    """

    detector: str
    rows: int
    narrow: bool
    pieces: Callable[[int], Iterator[tuple[Showers, Where]]]
    name: str
