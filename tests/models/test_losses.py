"""The losses: hand values, laws of symmetry and scaling, gradients, and agreement with the toy Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calosim.detectors import DETECTORS
from calosim.models.losses import (
    center_of_gravity,
    channel_loss,
    distillation,
    shower_center,
    squared_distance,
)
from calosim.montecarlo.simulate import simulate

EXACT = 1e-12  # float64
every_detector = pytest.mark.parametrize("detector", DETECTORS.values(), ids=list(DETECTORS))


def random_images(detector, rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, *detector.shape, generator=generator, dtype=torch.float64)


def primaries(*momenta):
    particles = torch.zeros(len(momenta), 9, dtype=torch.float64)
    particles[:, 4:7] = torch.tensor(momenta, dtype=torch.float64)
    return particles


# -- distillation ---------------------------------------------------------------------------------------------------------


def test_squared_distance_sums_over_features_and_keeps_rows():
    a, b = torch.zeros(2, 3, 4), torch.tensor([1.0, 2.0])[:, None, None].expand(2, 3, 4)
    assert squared_distance(a, b).tolist() == [12.0, 48.0]


def test_distillation_does_not_depend_on_the_number_of_features():
    a = torch.randn(4, 6, dtype=torch.float64)
    wide = [a.repeat(1, 50)], [a.repeat(1, 50) + 0.5]
    torch.testing.assert_close(distillation([a], [a + 0.5]), distillation(*wide), rtol=EXACT, atol=EXACT)
    assert distillation([a], [a + 0.5]).tolist() == pytest.approx([0.25] * 4)


def test_distillation_adds_what_is_paired_row_by_row():
    pairs = [torch.randn(4, 6, dtype=torch.float64) for _ in range(6)]
    together = distillation(pairs[:3], pairs[3:])
    parts = sum(distillation([t], [s]) for t, s in zip(pairs[:3], pairs[3:], strict=True))
    torch.testing.assert_close(together, parts, rtol=EXACT, atol=EXACT)
    alone = distillation([t[2:3] for t in pairs[:3]], [s[2:3] for s in pairs[3:]])
    torch.testing.assert_close(together[2:3], alone, rtol=EXACT, atol=EXACT)


def test_what_cannot_be_paired_is_refused():
    a = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="as many tensors"):
        distillation([a], [a, a])
    with pytest.raises(ValueError, match="at least one"):
        distillation([], [])
    with pytest.raises(ValueError, match="one shape"):
        distillation([a], [a[:, :2]])


# -- channels ---------------------------------------------------------------------------------------------------------------


@every_detector
@pytest.mark.parametrize("convention", ["paper", "o2"])
def test_channel_loss_sees_sums_of_channels_only(detector, convention):
    images = random_images(detector)
    mask = torch.from_numpy(detector.masks(convention)[2])
    moved = images.clone()
    moved[:, mask] = images[:, mask].flip(1)  # the same light elsewhere in the channel
    zero = channel_loss(moved, images, detector, convention)
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-20)
    pixel = mask.nonzero()[0]
    moved[:, pixel[0], pixel[1]] += 3.0
    torch.testing.assert_close(channel_loss(moved, images, detector, convention), zero + 9 / 5, rtol=1e-9, atol=0)


def test_channel_loss_scales_with_the_square_of_the_light():
    zn = DETECTORS["zn"]
    a, b = random_images(zn), random_images(zn, seed=1)
    once, factor = channel_loss(a, b, zn), torch.arange(1.0, 6.0, dtype=torch.float64)
    scaled = channel_loss(a * factor[:, None, None], b * factor[:, None, None], zn)
    torch.testing.assert_close(scaled, once * factor**2, rtol=1e-9, atol=0)
    relative = channel_loss(a * factor[:, None, None], b * factor[:, None, None], zn, scale=factor)
    torch.testing.assert_close(relative, once, rtol=1e-9, atol=0)


# -- centers ----------------------------------------------------------------------------------------------------------------


@every_detector
def test_center_of_gravity_of_single_pixels(detector):
    x, y = detector.pixel_centers
    images = torch.zeros(3, *detector.shape, dtype=torch.int16)
    images[0, 2, 5] = 7
    images[1, 0, 0] = images[1, -1, -1] = 3
    found = center_of_gravity(images, detector)
    assert found[0].tolist() == pytest.approx([x[2] + detector.center_x, y[5]])
    assert found[1].tolist() == pytest.approx([detector.center_x, 0.0])
    assert found[2].isnan().all()
    with pytest.raises(ValueError, match="expected"):
        center_of_gravity(images[:, 1:], detector)


def test_shower_center_is_zero_on_target_with_finite_gradients():
    focal = DETECTORS["focal_h"]
    x, y = focal.pixel_centers
    images = torch.zeros(3, *focal.shape, dtype=torch.float64)
    images[0, 20, 10] = images[1, 20, 10] = 50.0
    images.requires_grad_()
    lever = focal.front_z[0] / 300.0
    at = (float(x[20]) / lever, float(y[10]) / lever, 300.0)
    beside = (float(x[20] + 4.0) / lever, float(y[10] + 3.0) / lever, 300.0)
    distances = shower_center(images, primaries(at, beside, at), focal)
    assert distances.tolist() == pytest.approx([0.0, 5.0, 0.0], abs=1e-9)
    (gradient,) = torch.autograd.grad(distances.sum(), images)
    assert gradient.isfinite().all()
    assert gradient[1].abs().sum() > 0
    assert not gradient[2].any()  # no light, nothing to pull at


@every_detector
@pytest.mark.parametrize("side", [1, -1])
def test_shower_center_follows_the_vertex(detector, side):
    """A primary from half a centimetre beside the beam line flies half a centimetre beside the one from the middle."""
    x, y = detector.pixel_centers
    images = torch.zeros(2, *detector.shape, dtype=torch.float64)
    images[:, 3, 4] = 10.0
    lever = detector.front_z[0] / 1000.0
    particles = primaries(*[((float(x[3]) + detector.center_x) / lever, float(y[4]) / lever, side * 1000.0)] * 2)
    particles[1, 1:3] = torch.tensor([0.4, -0.3])
    assert shower_center(images, particles, detector).tolist() == pytest.approx([0.0, 0.5], abs=1e-7)


def test_the_straight_flight_agrees_with_the_monte_carlo():
    """Photons into FoCal-H: narrow showers at |x| < 17 cm of 49, in four directions; a pixel is 3.3 cm wide."""
    focal = DETECTORS["focal_h"]
    phi = np.array([0.4, 2.0, -1.1, -math.pi])
    particles = np.zeros((4, 9))
    particles[:, 0] = 400.0
    particles[:, 4:7] = 400.0 * np.stack(
        [np.cos(phi) / np.cosh(4.5), np.sin(phi) / np.cosh(4.5), np.full(4, np.tanh(4.5))], 1
    )
    showers = simulate((particles, np.full(4, 22)), 50, focal, seed=1)
    expected = torch.stack(focal.straight_flight(torch.from_numpy(particles)), 1)
    found = center_of_gravity(torch.from_numpy(showers.images), focal)
    for k in range(4):
        of_primary = torch.from_numpy((showers.particles[:, 4:7] == particles[k, 4:7]).all(1))
        assert of_primary.sum() > 20
        assert torch.linalg.vector_norm(expected[k]) > 15
        torch.testing.assert_close(found[of_primary].mean(0), expected[k], rtol=0, atol=0.5)
