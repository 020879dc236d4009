"""What tests of the toy Monte Carlo share: primaries of one type, and small data sets with every attempt."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from particle import Particle

from calosim.data import Showers
from calosim.montecarlo import Truth, simulate_with_truth


def _mass(pdg: int) -> float:
    return (Particle.from_pdgid(pdg).mass or 0.0) / 1000


def _primaries(pdg: int, momentum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Primaries of one type at the origin, from momenta (n, 3) in GeV/c."""
    particles = np.zeros((len(momentum), 9))
    particles[:, 0] = np.sqrt((momentum**2).sum(1) + _mass(pdg) ** 2)
    particles[:, 4:7] = momentum
    particles[:, 7] = 1000 * _mass(pdg)
    return particles, np.full(len(momentum), pdg)


@pytest.fixture(scope="session")
def mass() -> Callable[[int], float]:
    """Masses in GeV: ``mass(pdg)``."""
    return _mass


@pytest.fixture(scope="session")
def primaries() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Primaries of one type at the origin: ``primaries(pdg, momentum)`` with momenta (n, 3) in GeV/c."""
    return _primaries


@pytest.fixture(scope="session")
def attempts() -> Callable[[str], tuple[Showers, Truth]]:
    """Every attempt, empty ones too, of 1000 primaries on ZN or FoCal-H and of 100 on ZP: ``attempts(detector)``."""

    @cache
    def make(detector: str) -> tuple[Showers, Truth]:
        # Few attempts leave light in ZP.
        return simulate_with_truth(100 if detector == "zp" else 1000, 2, detector, seed=12, min_photons=0)

    return make
