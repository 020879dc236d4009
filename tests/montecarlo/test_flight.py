"""Decays conserve what they must and go where they should."""

from __future__ import annotations

import numpy as np
import pytest
from particle import Particle

from calosim.montecarlo.flight import _DECAYS, Flight, _channels, decay, two_body

KINEMATIC_TOLERANCE = 1e-9  # relative, float64 at a boost of 10,000
SIGMAS = 5.0  # statistical tests fail by chance once in two million


@pytest.mark.parametrize(("parent", "first", "second"), [(3122, 2112, 111), (310, 211, -211), (111, 22, 22)])
def test_two_body_decay_conserves_energy_and_momentum(parent, first, second, mass):
    rng = np.random.default_rng(0)
    n = 2000
    momentum = rng.normal(0, 1, (n, 3)) * rng.choice([0.0, 1.0, 1e3], (n, 1))
    m = [np.full(n, mass(p)) for p in (parent, first, second)]
    a, b = two_body(momentum, *m, rng)

    def energy(p, mass):
        return np.sqrt((p**2).sum(1) + mass**2)

    before = energy(momentum, m[0])
    np.testing.assert_allclose(energy(a, m[1]) + energy(b, m[2]), before, rtol=KINEMATIC_TOLERANCE)
    assert (np.abs(a + b - momentum) <= KINEMATIC_TOLERANCE * before[:, None]).all()


def test_two_body_decay_is_isotropic_at_rest(mass):
    n = 50_000
    rest = np.zeros((n, 3))
    m = [np.full(n, mass(p)) for p in (3122, 2212, -211)]
    direction = two_body(rest, *m, np.random.default_rng(1))[0]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    # Moments of the uniform distribution on the sphere: <n_i> = 0, <n_i n_j> = delta_ij / 3.
    assert np.abs(direction.mean(0)).max() < SIGMAS / np.sqrt(3 * n)
    assert np.abs(direction.T @ direction / n - np.eye(3) / 3).max() < SIGMAS * 0.3 / np.sqrt(n)


@pytest.mark.parametrize("code", [c for p in _DECAYS for c in (p, -p) if c not in (-111, -310)])
def test_decay_channels_conserve_charge_and_have_room(code, mass):
    for _, first, second in _channels(code):
        charges = [Particle.from_pdgid(p).charge for p in (code, first, second)]
        assert charges[0] == charges[1] + charges[2]
        assert mass(code) > mass(first) + mass(second)


def test_branching_fractions():
    n = 20_000
    start = Flight(np.arange(n), np.full(n, 3122), np.tile([0, 0, 1e3], (n, 1)), np.zeros((n, 3)), np.ones(n, bool))
    to_proton = (decay(start, np.random.default_rng(2)).pdg == 2212).sum() / n
    assert abs(to_proton - 0.641) < SIGMAS * np.sqrt(0.641 * 0.359 / n)
