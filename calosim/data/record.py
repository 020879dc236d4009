"""What a data set is: primaries with their responses, and what is refused of them, in one line that names the row."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from calosim.detectors import DETECTORS, Detector, get_detector
from calosim.particles import lookup

__all__ = [
    "COLUMNS",
    "FEATURES",
    "TABULATED",
    "Showers",
    "Source",
    "Where",
    "agreed_detector",
    "check_primaries",
    "check_showers",
    "existing_file",
    "features_of",
    "first_true",
    "infer_pdg",
    "masses_and_charges",
    "number_primaries",
    "pdg_codes",
    "photon_counts",
    "reading_file",
    "row_name",
    "showers_of",
    "tabulated",
    "told_detector",
]


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
    def primary_ids(self) -> np.ndarray:
        """The number of each row's primary, shape (N,), int64, in order of first appearance.

        Rows are of one primary when the nine features and the PDG code are identical: it was simulated again.
        """
        return number_primaries(self.particles, self.pdg)

    def select(self, rows: np.ndarray | slice) -> Showers:
        """Returns some rows, by index, mask or slice."""
        return Showers(self.particles[rows], self.pdg[rows], self.images[rows], self.detector)


def number_primaries(particles: np.ndarray, pdg: np.ndarray) -> np.ndarray:
    """Numbers primaries (N, 9) with PDG codes (N,), see :attr:`Showers.primary_ids`, where there are no images."""
    # Adding zero turns -0.0 into 0.0, which must compare equal byte by byte.
    rows = np.ascontiguousarray(np.column_stack([particles, pdg]) + 0.0)
    keys = rows.view(f"V{rows.shape[1] * rows.itemsize}")[:, 0].tolist()
    seen: dict[bytes, int] = {}
    return np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int64, len(keys))


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


_INT16_MAX = np.iinfo(np.int16).max
_INT32_MAX = np.iinfo(np.int32).max

#: Tables of particle masses differ by less: relative to the mass, and in MeV.
_RELATIVE, _LEAST = 0.01, 1e-3
#: Where the mass is to tell the particle: nuclear and atomic masses of light nuclei differ by up to 1.1 MeV.
_MOST = 1.5

#: Masses per nucleon of nuclei and hypernuclei, in MeV.
_NUCLEON_MASS = (900.0, 1150.0)

#: How far an energy may be off the mass shell, relative to it: files are written with few digits.
_SHELL = 0.01

#: Energy per nucleon in GeV that no planned collider's beam exceeds.
_MOST_ENERGY = 1e5

#: What can be a primary of a forward calorimeter (c tau above a centimeter), for files without PDG codes.
#: Neutral antiparticles are left out: nothing in mass and charge tells them from the far more frequent
#: particles.
_LONG_LIVED: tuple[int, ...] = (
    *(22, -11, 11, -13, 13, 130, 310, -211, 211, -321, 321, 2112, -2212, 2212, 3122),
    *(-3112, 3112, -3222, 3222, 3322, -3312, 3312, -3334, 3334),
    *(1000010020, 1000010030, 1000020030, 1000020040),
)


@lru_cache
def _mass_and_charge(pdg: int) -> tuple[float, float] | None:
    try:
        particle = lookup(pdg)
    except ValueError:
        return None
    if particle is None:  # a hypernucleus or an excited nucleus, whose code tells the charge
        from particle import PDGID

        return math.nan, float(PDGID(pdg).charge)
    # Neutrinos have no mass in the tables.
    return float(particle.mass or 0.0), float(particle.charge or 0.0)


def masses_and_charges(pdg: np.ndarray, source: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Masses and charges of particles.

    Args:
        pdg: PDG codes with shape (N,).
        source: Where they come from, for the message; usually a file name.
        where: What to call a row.

    Returns:
        Masses in MeV and charges in units of e, each with shape (N,). The mass of a nucleus that the tables lack, such as a
        hypernucleus, is NaN.

    Raises:
        ValueError: If a code is not in the PDG tables.
    """
    codes, inverse = np.unique(pdg, return_inverse=True)
    known = [_mass_and_charge(int(code)) for code in codes]
    if at := first_true(np.array([k is None for k in known], dtype=bool)[inverse]):
        raise ValueError(f"{source}: {where(at[0])}: unknown PDG code {pdg[at]}; expected one of the PDG tables")
    values = np.array(known, dtype=np.float64).reshape(-1, 2)[inverse]
    return values[:, 0], values[:, 1]


def tabulated(pdg: np.ndarray, source: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Masses and charges where a file has none, as :func:`masses_and_charges` but all known.

    Raises:
        ValueError: If the tables lack one.
    """
    mass, charge = masses_and_charges(pdg, source, where)
    if at := first_true(np.isnan(mass)):
        raise ValueError(
            f"{source}: {where(at[0])}: the PDG tables have no mass for code {pdg[at]}; expected columns mass and charge"
        )
    return mass, charge


def _check_nuclei(mass: np.ndarray, true: np.ndarray, pdg: np.ndarray, source: str, where: Where) -> None:
    """Checks masses of nuclei that the tables lack, by what any of their number of nucleons weighs."""
    from particle import PDGID

    for row in np.flatnonzero(np.isnan(true)):
        nucleons = PDGID(int(pdg[row])).A
        if not _NUCLEON_MASS[0] < mass[row] / nucleons < _NUCLEON_MASS[1]:
            raise ValueError(
                f"{source}: {where(int(row))}: mass is {mass[row]:g}; expected about {950 * nucleons} MeV for the "
                f"{nucleons} nucleons of PDG code {pdg[row]}"
            )


def _tolerance(mass: Any) -> Any:
    """How far a given mass may be off the tables' (MeV)."""
    return np.maximum(_RELATIVE * mass, _LEAST)


def infer_pdg(particles: np.ndarray, prefer: Sequence[int], source: str, where: Where) -> np.ndarray:
    """PDG codes from mass and charge, for files that have none.

    Args:
        particles: Features with shape (N, 9).
        prefer: Codes to take where several fit.
        source: Where they come from, for the message.
        where: What to call a row.

    Returns:
        PDG codes with shape (N,), int32.

    Raises:
        ValueError: If no particle fits, or more than one.
    """
    known = {code: _mass_and_charge(code) for code in (*prefer, *_LONG_LIVED)}
    pairs, inverse = np.unique(particles[:, 7:9], axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    codes = np.zeros(len(pairs), np.int32)
    for k, (mass, charge) in enumerate(pairs):
        fits = [c for c, p in known.items() if p and abs(p[0] - mass) < min(_tolerance(p[0]), _MOST) and p[1] == charge]
        fits = [c for c in fits if c in prefer][:1] or fits
        if len(fits) != 1:
            row = where(int((inverse == k).argmax()))
            found = (
                f"fit PDG codes {', '.join(map(str, fits))}, say which with --prefer {fits[-1]}"
                if fits
                else "fit no particle"
            )
            raise ValueError(
                f"{source}: {row}: mass {mass:g} MeV and charge {charge:g} e {found}; "
                "expected one fit of masses in MeV, or the PDG code as a tenth column"
            )
        codes[k] = fits[0]
    return codes[inverse]


def row_name(first: int, index: int) -> str:
    """What most files call a row: ``row`` and its number, counted from 0."""
    return f"row {first + index}"


def first_true(wrong: np.ndarray) -> tuple[int, ...] | None:
    """Where a boolean array is first true, or nothing."""
    return tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape)) if wrong.any() else None


def check_showers(showers: Showers, source: str, where: Where) -> None:
    """Checks that a record means what its type promises.

    Args:
        showers: Any number of rows.
        source: Where they come from, for the message; usually a file name.
        where: What to call a row.

    Raises:
        ValueError: If shapes or types disagree, a feature is not finite, an energy or a photon count is
            negative, a PDG code is unknown, or a mass or charge is not that of its PDG code.
    """
    detector, n = showers.geometry, len(showers.pdg)
    if showers.images.shape != (n, *detector.shape):
        raise ValueError(
            f"{source}: response: expected {detector.title} images with shape {(n, *detector.shape)}, "
            f"got {showers.images.shape}"
        )
    if showers.images.dtype.kind not in "iu":
        raise ValueError(f"{source}: response: expected integer photon counts, got {showers.images.dtype}")
    check_primaries(showers.particles, showers.pdg, source, where)
    photon_counts(showers.images, source, where)


def check_primaries(particles: np.ndarray, pdg: np.ndarray, source: str, where: Where) -> None:
    """Checks features (N, 9) and PDG codes (N,), as :func:`check_showers` does.

    Raises:
        ValueError: If a feature is not finite, an energy not positive or beyond any collider's, a mass or charge not that of its
            PDG code, or energy, momentum and mass do not belong together.
    """
    expected = (len(pdg), len(FEATURES))
    if particles.shape != expected:
        raise ValueError(f"{source}: expected particles with shape {expected}, got {particles.shape}")
    with np.errstate(over="ignore"):
        finite = np.isfinite(particles.astype(np.float32))  # as models will see them
    if at := first_true(~finite):
        name, value = FEATURES[at[1]], particles[at]
        raise ValueError(f"{source}: {where(at[0])}: {name} is {value}; expected a finite number of 32 bits")
    if at := first_true(particles[:, 0] <= 0):
        value = particles[at[0], 0]
        raise ValueError(f"{source}: {where(at[0])}: energy is {value:g} GeV; expected more than 0")
    _check_energy(particles[:, 0], pdg, source, where)
    mass, charge = masses_and_charges(pdg, source, where)
    _check_nuclei(particles[:, FEATURES.index("mass")], mass, pdg, source, where)
    for k, true, tolerance in (
        (FEATURES.index("mass"), mass, _tolerance(mass)),
        (FEATURES.index("charge"), charge, np.zeros_like(charge)),
    ):
        if at := first_true(np.abs(particles[:, k] - true) > tolerance):
            unit = "MeV" if FEATURES[k] == "mass" else "e"
            raise ValueError(
                f"{source}: {where(at[0])}: {FEATURES[k]} is {particles[at[0], k]:g}; "
                f"expected {true[at]:g} {unit} for PDG code {pdg[at]}"
            )
    _check_mass_shell(particles, source, where)


def _check_mass_shell(particles: np.ndarray, source: str, where: Where) -> None:
    r"""Checks that energy, momentum and mass of primaries (N, 9) belong together, :math:`E^2 = p^2 + m^2`.

    Raises:
        ValueError: If the energy is off by more than a hundredth.
    """
    energy, mass = particles[:, 0], particles[:, FEATURES.index("mass")] / 1000
    expected = np.sqrt(np.square(particles[:, 4:7]).sum(1) + mass**2)
    if at := first_true(np.abs(energy - expected) > _SHELL * energy):
        raise ValueError(
            f"{source}: {where(at[0])}: energy is {energy[at]:g} GeV; expected {expected[at]:g} GeV, by its momentum and mass"
        )


def _check_energy(energy: np.ndarray, pdg: np.ndarray, source: str, where: Where) -> None:
    """Checks that energies are none of MeV taken for GeV: no collider gives a nucleon more than :data:`_MOST_ENERGY`."""
    from particle import PDGID

    codes, inverse = np.unique(pdg, return_inverse=True)
    nucleons = np.array([max(1, PDGID(int(code)).A or 1) for code in codes])[inverse]
    if at := first_true(energy > _MOST_ENERGY * nucleons):
        raise ValueError(
            f"{source}: {where(at[0])}: energy is {energy[at]:g} GeV; expected at most {_MOST_ENERGY:g} GeV for each nucleon, "
            "energies and momenta in GeV"
        )


def photon_counts(values: np.ndarray, source: str, where: Where) -> np.ndarray:
    """Photon counts (N, nx, ny) of any numeric type as int16, or int32 where a pixel needs it.

    Raises:
        ValueError: If a count is no whole number, negative or beyond int32.
    """
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    wrong = None
    # Comparisons with NaN are false, hence `not`.
    if not (low >= 0 and high <= _INT32_MAX):
        wrong = ~((values >= 0) & (values <= _INT32_MAX))
    elif values.dtype.kind == "f":
        wrong = values != np.rint(values)
    if wrong is not None and (at := first_true(wrong)):
        raise ValueError(
            f"{source}: {where(at[0])}: response holds {values[at]:g} photons in pixel {at[1:]}; "
            f"expected a whole number from 0 to {_INT32_MAX}"
        )
    return values.astype(np.int16 if high <= _INT16_MAX else np.int32, copy=False)


def pdg_codes(values: np.ndarray, source: str, where: Where) -> np.ndarray:
    """PDG codes (N,) of any numeric type as int32.

    Raises:
        ValueError: If a code is no whole number.
    """
    if at := first_true(~(np.abs(values) <= _INT32_MAX) | (values != np.rint(values))):
        raise ValueError(f"{source}: {where(at[0])}: pdg is {values[at]}; expected a PDG code")
    return values.astype(np.int32)


def features_of(columns: Mapping[str, np.ndarray], source: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Features and PDG codes of columns (N,) by our names; mass and charge follow from the PDG code where they are missing.

    Returns:
        Features with shape (N, 9), float64, and PDG codes (N,), int32.

    Raises:
        ValueError: If a code is no PDG code, or the tables lack its mass.
    """
    pdg = pdg_codes(columns["pdg"], source, where)
    if missing := [name for name in TABULATED if name not in columns]:
        known = dict(zip(TABULATED, tabulated(pdg, source, where), strict=True))
        columns = dict(columns) | {name: known[name] for name in missing}
    return np.column_stack([columns[name] for name in FEATURES]).astype(np.float64, copy=False), pdg


def showers_of(columns: Mapping[str, np.ndarray], detector: str, source: str, where: Where) -> Showers:
    """A record of columns by our names, see :func:`features_of`; images may be flat, pixel (x, y) at x ny + y.

    Raises:
        ValueError: If a code or a photon count is none.
    """
    particles, pdg = features_of(columns, source, where)
    images = photon_counts(columns["response"], source, where)
    return Showers(particles, pdg, images.reshape(-1, *get_detector(detector).shape), detector)


def told_detector(shape: tuple[int, ...], wanted: str | None, source: str, named: str | None = None) -> str:
    """The name of the detector whose images a file holds.

    Args:
        shape: Shape of an image, or as many numbers in a row.
        wanted: The detector expected; any if None.
        source: The file's name, for the message.
        named: What the file says itself; told by the shape if None, where the one that is wanted comes first.

    Raises:
        ValueError: If there is no such detector, its images have another shape, or another one is wanted.
    """
    fits = [name for name, detector in DETECTORS.items() if shape in (detector.shape, (detector.pixels,))]
    if not named:
        if not fits:
            known = ", ".join(f"{d.title} {d.shape[0]} x {d.shape[1]}" for d in DETECTORS.values())
            raise ValueError(f"{source}: response: images of shape {shape} fit no detector; expected one of {known}")
        named = wanted if wanted in fits else fits[0]
    elif named not in DETECTORS:
        raise ValueError(f"{source}: unknown detector {named!r} in the file; expected one of {', '.join(DETECTORS)}")
    elif named not in fits:
        expected = DETECTORS[named]
        raise ValueError(f"{source}: response: images of shape {shape}; {expected.title} has {expected.shape}")
    return agreed_detector(named, wanted, source)


def agreed_detector(found: str, wanted: str | None, source: str) -> str:
    """The detector that a file holds, if it is the one that is wanted or any will do.

    Raises:
        ValueError: If it is another one.
    """
    if wanted is not None and get_detector(wanted).name != found:
        title = get_detector(wanted).title
        raise ValueError(f"{source}: holds {DETECTORS[found].title} responses; expected {title}")
    return found


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there and not empty.

    Raises:
        ValueError: If it is not.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; expected a file")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    return path


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Turns what a library says of a damaged file into one line; around a single call."""
    try:
        yield
    except Exception as error:  # random bytes can make uproot, zipfile and numpy raise almost anything
        kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
        raise ValueError(f"{path}: the file is damaged or incomplete; reading it ends in {kind}") from error
