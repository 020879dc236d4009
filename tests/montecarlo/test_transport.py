"""Particles fly straight, live as long as they should and shine where they land."""

from __future__ import annotations

import numpy as np
import pytest
from particle import Particle

from calosim.detectors import get_detector
from calosim.montecarlo import SETUPS, Flight, illuminate, simulate_with_truth, transport
from calosim.montecarlo.matter import Dipole
from calosim.montecarlo.simulate import MIN_PHOTONS

SIGMAS = 5.0  # statistical tests fail by chance once in two million
SPOT_TOLERANCE = 0.03  # cm; a fifth of a ZN pixel


def centroids(images: np.ndarray, detector) -> np.ndarray:
    x, y = detector.pixel_centers
    total = images.sum((1, 2))
    return np.stack([images.sum(2) @ x / total, images.sum(1) @ y / total], 1)


@pytest.mark.parametrize(("pdg", "momentum"), [(3122, 1500.0), (310, 900.0), (3222, 2500.0), (-3122, 1500.0)])
@pytest.mark.parametrize("distance", [200.0, 2000.0, 11260.0])
def test_decay_lengths_are_exponential(pdg, momentum, distance, mass, primaries):
    n = 20_000
    particles, codes = primaries(pdg, np.tile([0.0, 0.0, momentum], (n, 1)))
    detector = get_detector("zn").replace(front_z=(distance, -distance))
    alive = transport(particles, codes, detector, (), np.random.default_rng(3)).primary.sum() / n
    expected = np.exp(-distance * mass(pdg) / (momentum * Particle.from_pdgid(pdg).ctau / 10))
    assert abs(alive - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / n) + 1e-12


def test_stations_do_not_change_decay_lengths(mass, primaries):
    n, p = 20_000, 1500.0
    particles, codes = primaries(3122, np.tile([0.0, 0.0, p], (n, 1)))
    detector = get_detector("zn")
    through = transport(particles, codes, detector, (Dipole(z=3000.0), Dipole(z=9000.0)), np.random.default_rng(4))
    expected = np.exp(-detector.front_z[0] * mass(3122) / (p * Particle.from_pdgid(3122).ctau / 10))
    assert abs(through.primary.sum() / n - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("side", [1, -1])
def test_neutral_spot_is_vertex_plus_slope_times_distance(side, primaries):
    detector = get_detector("zn")
    slope = np.array([[0.0, 0.0], [1.5e-4, 3e-5], [-2e-4, -5e-5]])
    pz = 800.0
    momentum = np.column_stack([slope * pz, np.full(3, side * pz)])
    particles, pdg = primaries(22, momentum)
    particles[:, 1:3] = [[0.2, 0.1], [-0.1, 0.0], [0.0, 0.1]]
    showers, truth = simulate_with_truth((particles, pdg), 60, "zn", seed=5)
    z = abs(detector.front_z[0 if side > 0 else 1])
    expected = particles[:, 1:3] + slope * z
    for i in range(3):
        spots = centroids(showers.images[(truth.primary == i) & truth.direct], detector)
        np.testing.assert_allclose(np.median(spots, axis=0), expected[i], atol=SPOT_TOLERANCE)


def test_focal_spot_follows_pseudorapidity(primaries):
    detector = get_detector("focal_h")
    eta, phi, size = np.array([4.0, 4.5, 5.0]), np.array([0.5, 2.5, 4.0]), 100.0
    unit = np.stack([np.cos(phi) / np.cosh(eta), np.sin(phi) / np.cosh(eta), np.tanh(eta)], 1)
    showers, truth = simulate_with_truth(primaries(22, size * unit), 200, detector, seed=6)
    radius = detector.front_z[0] * np.tan(2 * np.arctan(np.exp(-eta)))
    expected = np.stack([radius * np.cos(phi), radius * np.sin(phi)], 1)
    for i in range(3):
        spot = centroids(showers.images[truth.primary == i], detector).mean(0)
        np.testing.assert_allclose(spot, expected[i], atol=0.1 * detector.pitch)


def test_charged_primaries_never_reach_zn_themselves(attempts):
    showers, truth = attempts("zn")
    kept = showers.photon_sum >= MIN_PHOTONS
    charged = showers.particles[:, 8] != 0
    assert (charged & kept).any()
    assert not truth.direct[charged].any()
    assert truth.direct[~charged].any()


def test_photons_leak_over_the_edge():
    detector, n = get_detector("zn"), 400
    sums = []
    for x in (0.0, 3.5):
        flight = Flight(
            np.arange(n),
            np.full(n, 22),
            np.tile([0, 0, 100.0], (n, 1)),
            np.tile([x, 0.0, 0.0], (n, 1)),
            np.ones(n, bool),
        )
        sums.append(illuminate(flight, n, detector, SETUPS["zn"], np.random.default_rng(10))[0].sum())
    assert 0.45 < sums[1] / sums[0] < 0.65
