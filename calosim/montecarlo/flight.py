r"""Particles on their way: their properties, and how they decay into two.

References:
    Review of Particle Physics (Particle Data Group, 2024), https://doi.org/10.1103/PhysRevD.110.030001
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from calosim.particles import lookup

__all__ = ["Flight", "decay", "properties", "two_body"]

#: Two-body decays: branching fraction and daughters (PDG 2024); normalized to the channels listed here.
_DECAYS: dict[int, tuple[tuple[float, int, int], ...]] = {
    111: ((0.98823, 22, 22),),
    211: ((0.99988, -13, 14),),
    310: ((0.6920, 211, -211), (0.3069, 111, 111)),
    321: ((0.6356, -13, 14), (0.2067, 211, 111)),
    3122: ((0.641, 2212, -211), (0.359, 2112, 111)),
    3222: ((0.5147, 2212, 111), (0.4843, 2112, 211)),
    3112: ((0.99848, 2112, -211),),
    3322: ((0.99524, 3122, 111),),
    3312: ((0.99887, 3122, -211),),
}
_OWN_ANTIPARTICLES = frozenset({22, 111, 130, 310})


@dataclass(frozen=True)
class Flight:
    """Particles on their way, one entry each, in a frame where every row flies towards positive z.

    Attributes:
        row: The response a particle belongs to, shape (M,).
        pdg: PDG codes, shape (M,).
        momentum: px, py, pz in GeV/c, shape (M, 3).
        position: x, y, z in cm, shape (M, 3).
        primary: Whether it is the primary itself, shape (M,).
    """

    row: np.ndarray
    pdg: np.ndarray
    momentum: np.ndarray
    position: np.ndarray
    primary: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def energy(self) -> np.ndarray:
        """Total energies in GeV, shape (M,)."""
        return np.sqrt((self.momentum**2).sum(1) + properties(self.pdg).mass ** 2)

    def select(self, which: np.ndarray | slice) -> Flight:
        """Returns some of the particles, by mask, index or slice."""
        return Flight(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def moved(self, z: np.ndarray | float) -> Flight:
        """Returns the particles after a straight flight to z."""
        step = (z - self.position[:, 2]) / self.momentum[:, 2]
        return Flight(self.row, self.pdg, self.momentum, self.position + step[:, None] * self.momentum, self.primary)

    @staticmethod
    def join(parts: list[Flight]) -> Flight:
        """Returns all particles of several flights."""
        return Flight(*(np.concatenate([getattr(p, n) for p in parts]) for n in Flight.__dataclass_fields__))


class _Properties(NamedTuple):
    mass: np.ndarray  # GeV
    charge: np.ndarray  # e
    ctau: np.ndarray  # cm; infinite where there is no two-body channel to decay by


@lru_cache(maxsize=256)
def _property(pdg: int) -> tuple[float, float, float]:
    found = lookup(pdg)
    if found is None:
        raise ValueError(f"cannot simulate PDG code {pdg}: it is not in the PDG tables")
    ctau = (found.ctau or 0.0) / 10.0 if _channels(pdg) else np.inf
    return (found.mass or 0.0) / 1000.0, float(found.charge or 0.0), ctau


def properties(pdg: np.ndarray) -> _Properties:
    """Masses in GeV, charges in e and decay lengths at rest in cm of PDG codes, each with shape (M,).

    Raises:
        ValueError: If a code is not in the PDG tables.
    """
    codes, inverse = np.unique(pdg, return_inverse=True)
    table = np.array([_property(int(code)) for code in codes]).reshape(-1, 3)[inverse]
    return _Properties(*table.T)


def _channels(pdg: int) -> tuple[tuple[float, int, int], ...]:
    """The decays of a particle or, charge-conjugated, of an antiparticle."""
    if pdg > 0:
        return _DECAYS.get(pdg, ())

    def conjugate(code: int) -> int:
        return code if code in _OWN_ANTIPARTICLES else -code

    return tuple((fraction, conjugate(a), conjugate(b)) for fraction, a, b in _DECAYS.get(-pdg, ()))


def two_body(
    momentum: np.ndarray, mass: np.ndarray, first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    r"""Decays particles into two, isotropically in their rest frame, and boosts the daughters.

    .. math:: p^* = \frac{\sqrt{(M^2 - (m_1 + m_2)^2) (M^2 - (m_1 - m_2)^2)}}{2 M}

    Args:
        momentum: Parent momenta in GeV/c, shape (M, 3).
        mass: Parent masses in GeV, shape (M,).
        first: Masses of the first daughter in GeV, shape (M,).
        second: Masses of the second daughter in GeV, shape (M,).
        rng: The random stream.

    Returns:
        The daughters' momenta in GeV/c, twice (M, 3).
    """
    product = (mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2)
    size = np.sqrt(product.clip(min=0)) / (2 * mass)
    rest = _directions(len(mass), rng) * size[:, None]
    energy = np.sqrt((momentum**2).sum(1) + mass**2)
    along = (momentum * rest).sum(1) / (mass * (energy + mass))

    def boost(star: np.ndarray, sign: float, m: np.ndarray) -> np.ndarray:
        return star + momentum * (sign * along + np.sqrt(size**2 + m**2) / mass)[:, None]

    return boost(rest, 1.0, first), boost(-rest, -1.0, second)


def _directions(n: int, rng: np.random.Generator) -> np.ndarray:
    cosine, phi = rng.uniform(-1, 1, n), rng.uniform(0, 2 * np.pi, n)
    sine = np.sqrt(1 - cosine**2)
    return np.stack([sine * np.cos(phi), sine * np.sin(phi), cosine], 1)


def decay(flight: Flight, rng: np.random.Generator) -> Flight:
    """Decays every particle where it is.

    Args:
        flight: Particles that have a channel to decay by.
        rng: The random stream.

    Returns:
        Their daughters, 2 M particles.
    """
    daughters = np.empty((len(flight), 2), dtype=np.int64)
    draw = rng.random(len(flight))
    for code in np.unique(flight.pdg):
        which = flight.pdg == code
        channels = _channels(int(code))
        fractions = np.cumsum([c[0] for c in channels])
        chosen = np.searchsorted(fractions / fractions[-1], draw[which], side="right")
        daughters[which] = np.array([c[1:] for c in channels])[chosen]
    first, second = (properties(daughters[:, i]).mass for i in (0, 1))
    momenta = two_body(flight.momentum, properties(flight.pdg).mass, first, second, rng)
    secondary = np.zeros(len(flight), dtype=bool)
    return Flight.join([Flight(flight.row, daughters[:, i], momenta[i], flight.position, secondary) for i in (0, 1)])
