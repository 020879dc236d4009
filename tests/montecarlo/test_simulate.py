"""Laws of the toy Monte Carlo: kinematics, decay lengths, geometry, light, reproducibility."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from particle import Particle

from calosim.detectors import get_detector
from calosim.montecarlo.calibration import Target, calibrate, to_markdown, to_text
from calosim.montecarlo.flight import _DECAYS, Flight, _channels, decay, two_body
from calosim.montecarlo.matter import Dipole, Light
from calosim.montecarlo.setups import SETUPS
from calosim.montecarlo.simulate import (
    MIN_PHOTONS,
    draw_primaries,
    illuminate,
    simulate,
    simulate_with_truth,
    transport,
)

KINEMATIC_TOLERANCE = 1e-9  # relative, float64 at a boost of 10,000
SIGMAS = 5.0  # statistical tests fail by chance once in two million
SPOT_TOLERANCE = 0.03  # cm; a fifth of a ZN pixel


def mass(pdg: int) -> float:
    return (Particle.from_pdgid(pdg).mass or 0.0) / 1000


def primaries(pdg: int, momentum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Primaries of one type at the origin, from momenta (n, 3) in GeV/c."""
    particles = np.zeros((len(momentum), 9))
    particles[:, 0] = np.sqrt((momentum**2).sum(1) + mass(pdg) ** 2)
    particles[:, 4:7] = momentum
    particles[:, 7] = 1000 * mass(pdg)
    return particles, np.full(len(momentum), pdg)


def centroids(images: np.ndarray, detector) -> np.ndarray:
    x, y = detector.pixel_centers
    total = images.sum((1, 2))
    return np.stack([images.sum(2) @ x / total, images.sum(1) @ y / total], 1)


# Kinematics


@pytest.mark.parametrize(("parent", "first", "second"), [(3122, 2112, 111), (310, 211, -211), (111, 22, 22)])
def test_two_body_decay_conserves_energy_and_momentum(parent, first, second):
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


def test_two_body_decay_is_isotropic_at_rest():
    n = 50_000
    rest = np.zeros((n, 3))
    m = [np.full(n, mass(p)) for p in (3122, 2212, -211)]
    direction = two_body(rest, *m, np.random.default_rng(1))[0]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    # Moments of the uniform distribution on the sphere: <n_i> = 0, <n_i n_j> = delta_ij / 3.
    assert np.abs(direction.mean(0)).max() < SIGMAS / np.sqrt(3 * n)
    assert np.abs(direction.T @ direction / n - np.eye(3) / 3).max() < SIGMAS * 0.3 / np.sqrt(n)


@pytest.mark.parametrize("code", [c for p in _DECAYS for c in (p, -p) if c not in (-111, -310)])
def test_decay_channels_conserve_charge_and_have_room(code):
    for _, first, second in _channels(code):
        charges = [Particle.from_pdgid(p).charge for p in (code, first, second)]
        assert charges[0] == charges[1] + charges[2]
        assert mass(code) > mass(first) + mass(second)


def test_branching_fractions():
    n = 20_000
    start = Flight(np.arange(n), np.full(n, 3122), np.tile([0, 0, 1e3], (n, 1)), np.zeros((n, 3)), np.ones(n, bool))
    to_proton = (decay(start, np.random.default_rng(2)).pdg == 2212).sum() / n
    assert abs(to_proton - 0.641) < SIGMAS * np.sqrt(0.641 * 0.359 / n)


@pytest.mark.parametrize(("pdg", "momentum"), [(3122, 1500.0), (310, 900.0), (3222, 2500.0), (-3122, 1500.0)])
@pytest.mark.parametrize("distance", [200.0, 2000.0, 11260.0])
def test_decay_lengths_are_exponential(pdg, momentum, distance):
    n = 20_000
    particles, codes = primaries(pdg, np.tile([0.0, 0.0, momentum], (n, 1)))
    detector = get_detector("zn").replace(front_z=(distance, -distance))
    alive = transport(particles, codes, detector, (), np.random.default_rng(3)).primary.sum() / n
    expected = np.exp(-distance * mass(pdg) / (momentum * Particle.from_pdgid(pdg).ctau / 10))
    assert abs(alive - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / n) + 1e-12


def test_stations_do_not_change_decay_lengths():
    n, p = 20_000, 1500.0
    particles, codes = primaries(3122, np.tile([0.0, 0.0, p], (n, 1)))
    detector = get_detector("zn")
    through = transport(particles, codes, detector, (Dipole(z=3000.0), Dipole(z=9000.0)), np.random.default_rng(4))
    expected = np.exp(-detector.front_z[0] * mass(3122) / (p * Particle.from_pdgid(3122).ctau / 10))
    assert abs(through.primary.sum() / n - expected) < SIGMAS * np.sqrt(expected * (1 - expected) / n)


# Geometry


@pytest.mark.parametrize("side", [1, -1])
def test_neutral_spot_is_vertex_plus_slope_times_distance(side):
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


def test_focal_spot_follows_pseudorapidity():
    detector = get_detector("focal_h")
    eta, phi, size = np.array([4.0, 4.5, 5.0]), np.array([0.5, 2.5, 4.0]), 100.0
    unit = np.stack([np.cos(phi) / np.cosh(eta), np.sin(phi) / np.cosh(eta), np.tanh(eta)], 1)
    showers, truth = simulate_with_truth(primaries(22, size * unit), 200, detector, seed=6)
    radius = detector.front_z[0] * np.tan(2 * np.arctan(np.exp(-eta)))
    expected = np.stack([radius * np.cos(phi), radius * np.sin(phi)], 1)
    for i in range(3):
        spot = centroids(showers.images[truth.primary == i], detector).mean(0)
        np.testing.assert_allclose(spot, expected[i], atol=0.1 * detector.pitch)


def test_dipole_keeps_momentum_and_neutrals_and_points_spectator_protons_at_zp():
    zp = get_detector("zp")
    flight = Flight(
        np.arange(3), np.array([2212, 2112, -211]), np.tile([0, 0, 2510.0], (3, 1)), np.zeros((3, 3)), np.ones(3, bool)
    ).moved(Dipole().z)
    out = Dipole().act(flight, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(out.momentum, axis=1), 2510.0)
    x = out.moved(zp.front_z[0]).position[:, 0]
    np.testing.assert_allclose(x, [zp.center_x, 0.0, -zp.center_x], atol=0.01)


def test_charged_primaries_never_reach_zn_themselves():
    showers, truth = simulate_with_truth(3000, 1, "zn", seed=7)
    charged = showers.particles[:, 8] != 0
    assert charged.any()
    assert not truth.direct[charged].any()
    assert truth.direct[~charged].any()


# Light


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


def test_artifacts_are_rare_huge_and_fit_their_integers(monkeypatch):
    ordinary, truth = simulate_with_truth(60, 2, "zn", seed=11)
    assert truth.artifact.mean() < 0.01
    monkeypatch.setitem(SETUPS, "zn", replace(SETUPS["zn"], artifacts=1.0))
    artifacts, truth = simulate_with_truth(60, 2, "zn", seed=11)
    assert truth.artifact.all()
    assert (artifacts.images >= 0).all()
    assert np.median(artifacts.photon_sum) > 20 * np.median(ordinary.photon_sum)


# Datasets


@pytest.mark.parametrize("name", list(SETUPS))
def test_kept_responses_have_at_least_ten_photons(name):
    showers = simulate(400, 2, name, seed=12)
    detector = get_detector(name)
    assert len(showers) > 100
    assert showers.images.shape == (len(showers), *detector.shape)
    assert showers.images.dtype == np.int16
    assert showers.pdg.dtype == np.int32
    assert showers.detector == name
    assert showers.photon_sum.min() >= MIN_PHOTONS
    every, _ = simulate_with_truth(400, 2, name, seed=12, min_photons=0)
    assert (every.photon_sum >= MIN_PHOTONS).sum() == len(showers)


def test_other_shapes_and_pitches():
    detector = get_detector("focal_h").replace(shape=(20, 24), pitch=4.0)
    showers = simulate(50, 2, detector, seed=13)
    assert showers.images.shape[1:] == (20, 24)


@pytest.mark.parametrize("name", list(SETUPS))
def test_primaries_are_on_shell_with_pdg_properties(name):
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


def test_mean_number_of_kept_responses():
    for name in ("zn", "focal_h"):
        showers = simulate(3000, 3, name, seed=17)
        assert abs(len(showers) / 3000 / 3 - 1) < 0.15


@pytest.mark.parametrize("workers", [2, 3])
def test_one_seed_is_one_dataset_whatever_the_workers(workers):
    one, many = (simulate(500, 3, "zn", seed=18, workers=w) for w in (1, workers))
    np.testing.assert_array_equal(one.images, many.images)
    np.testing.assert_array_equal(one.particles, many.particles)
    np.testing.assert_array_equal(one.pdg, many.pdg)


def test_other_seed_other_data():
    first, second = (simulate(200, 3, "zn", seed=s) for s in (1, 2))
    assert not np.isin(first.particles[:, 0], second.particles[:, 0]).any()


def test_same_primaries_other_seed_gives_other_images_of_the_same_particles():
    given = draw_primaries(200, "zn", seed=19)
    first, second = (simulate(given, 10, "zn", seed=s) for s in (1, 2))
    both = np.intersect1d(first.particles[:, 0], second.particles[:, 0])
    assert len(both) > 50
    shared = min(len(first), len(second))
    assert (first.images[:shared] != second.images[:shared]).any((1, 2)).mean() > 0.9
    drawn, again = simulate(200, 10, "zn", seed=19), simulate(given, 10, "zn", seed=19)
    np.testing.assert_array_equal(drawn.images, again.images)


def test_showers_as_primaries_are_taken_once_each():
    showers = simulate(100, 5, "zn", seed=20)
    again = simulate(showers, 5, "zn", seed=21)
    assert set(again.particles[:, 0]) <= set(showers.particles[:, 0])
    unique = np.sort(np.unique(showers.particles[:, 0], return_index=True)[1])
    by_hand = simulate((showers.particles[unique], showers.pdg[unique]), 5, "zn", seed=21)
    np.testing.assert_array_equal(again.images, by_hand.images)


GOOD = (np.zeros((2, 9)), np.full(2, 22))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 1, "zq", 0), "unknown detector 'zq'"),
        ((10, 1, get_detector("zn").replace(name="new"), 0), "cannot simulate detector 'new'"),
        ((0, 1, "zn", 0), "positive number of primaries, got 0"),
        ((10, 0, "zn", 0), "positive number of responses"),
        (((GOOD[0][:, :8], GOOD[1]), 1, "zn", 0), r"features \(n, 9\)"),
        (((GOOD[0], GOOD[1][:1]), 1, "zn", 0), r"features \(n, 9\)"),
        (((GOOD[0], np.full(2, 99_999_999)), 1, "zn", 0), "PDG code 99999999"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate(*arguments)


# Calibration


def test_verdicts_and_tables():
    targets = [
        Target("a", "one", "1", 1.0, 0.1, (0.5, 1.5)),
        Target("a", "two", "2", 9.0, np.nan, (1.5, 2.5)),
        Target("b", "three", "3", 3.0, np.nan, None),
    ]
    assert [t.verdict for t in targets] == ["inside", "MISSED", "shown"]
    for table in (to_text(targets), to_markdown(targets)):
        assert all(t.name in table for t in targets)
        assert "1 inside their band, 1 missed, 1 shown" in table


#: Targets the toy is known to miss, and means so small that their bands are no wider than two statistical errors.
KNOWN_MISSES = {"zero pixels of ZP, %", "lit pixels at 698 photons", "px", "py", "pz"}


@pytest.mark.slow
def test_calibration():
    missed = {t.name for t in calibrate(workers=2) if t.verdict == "MISSED"}
    assert missed <= KNOWN_MISSES
