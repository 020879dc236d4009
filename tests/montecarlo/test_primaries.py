"""Primaries are on their mass shell, in the published mix and in the detector's acceptance."""

from __future__ import annotations

import numpy as np
import pytest
from particle import Particle

from calosim.montecarlo import SETUPS, draw_primaries

KINEMATIC_TOLERANCE = 1e-9  # relative


@pytest.mark.parametrize("name", list(SETUPS))
def test_primaries_are_on_shell_with_pdg_properties(name, mass):
    particles, pdg = draw_primaries(5000, name, seed=14)
    energy, momentum, m = particles[:, 0], particles[:, 4:7], particles[:, 7] / 1000
    np.testing.assert_allclose(energy**2, (momentum**2).sum(1) + m**2, rtol=KINEMATIC_TOLERANCE)
    for code in np.unique(pdg):
        assert np.unique(particles[pdg == code, 7:9], axis=0).shape == (1, 2)
        np.testing.assert_allclose(particles[pdg == code, 7][0], 1000 * mass(code))
        assert particles[pdg == code, 8][0] == Particle.from_pdgid(code).charge
    assert np.abs(particles[:, 1:3]).max() < 1e-4
    assert np.abs(particles[:, 3]).max() < 0.3


def test_zdc_primaries_have_21_types_both_sides_and_the_exact_mix():
    n = 20_000
    particles, pdg = draw_primaries(n, "zn", seed=15)
    sources = SETUPS["zn"].primaries.sources
    weights = sum(s.weight for s in sources.values())
    assert len(np.unique(pdg)) == 21
    for code, source in sources.items():
        assert abs((pdg == code).sum() - n * source.weight / weights) <= 1
    assert abs((particles[:, 6] > 0).mean() - SETUPS["zn"].primaries.forward) < 1e-3
    assert np.linalg.norm(particles[:, 4:7], axis=1).max() <= SETUPS["zn"].primaries.beam * (1 + 1e-3)


def test_focal_primaries_lie_in_acceptance():
    particles, _ = draw_primaries(2000, "focal_h", seed=16)
    eta = np.arcsinh(particles[:, 6] / np.hypot(particles[:, 4], particles[:, 5]))
    low, high = SETUPS["focal_h"].primaries.eta
    assert low - 1e-6 <= eta.min() < eta.max() <= high + 1e-6
