"""What particles meet: a dipole that keeps their momentum, and light of the right amount and width."""

from __future__ import annotations

import numpy as np

from calosim.detectors import get_detector
from calosim.montecarlo.flight import Flight
from calosim.montecarlo.matter import Dipole, Light

SIGMAS = 5.0  # statistical tests fail by chance once in two million


def test_dipole_keeps_momentum_and_neutrals_and_points_spectator_protons_at_zp():
    zp = get_detector("zp")
    flight = Flight(
        np.arange(3), np.array([2212, 2112, -211]), np.tile([0, 0, 2510.0], (3, 1)), np.zeros((3, 3)), np.ones(3, bool)
    ).moved(Dipole().z)
    out = Dipole().act(flight, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(out.momentum, axis=1), 2510.0)
    x = out.moved(zp.front_z[0]).position[:, 0]
    np.testing.assert_allclose(x, [zp.center_x, 0.0, -zp.center_x], atol=0.01)


def test_mean_profile_is_a_cauchy_of_the_summed_widths():
    light = Light(1.0, 0.5, 0.0, 0.0, core=0.11, spread=0.2, subshowers=8, clumping=0.5)
    _, position = light.photon_positions(np.zeros((20_000, 2)), np.full(20_000, 5), np.random.default_rng(8))
    for axis in position:
        for times in (0.5, 1.0, 3.0):
            expected = 2 / np.pi * np.arctan(times)
            # Photons of one shower are correlated, at worst fully.
            assert abs((np.abs(axis) < times * 0.31).mean() - expected) < SIGMAS * 0.5 / np.sqrt(20_000)


def test_resolution_and_mean_of_the_photon_sum():
    light = Light(10.0, 0.5, stochastic=1.0, constant=0.05, core=0.1)
    energy, n = 100.0, 50_000
    counts = light.counts(np.full(n, energy), np.ones(n, bool), np.random.default_rng(9))
    mean = light.expected(np.array([energy]))[0]
    variance = mean**2 * (1.0**2 / energy + 0.05**2) + mean
    assert abs(counts.mean() - mean) < SIGMAS * np.sqrt(variance / n)
    np.testing.assert_allclose(counts.var(), variance, rtol=0.05)
