"""Channels conserve photons in every convention, and every pixel goes where the published tables send it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from calosim.detectors import CONVENTIONS, DETECTORS, Detector, get_detector

CASES = list(itertools.product(DETECTORS.values(), CONVENTIONS))
ids = [f"{d.name}-{c}" for d, c in CASES]
every = pytest.mark.parametrize(("detector", "convention"), CASES, ids=ids)

#: (detector, convention, x, y) -> channel index, worked out by hand from the published definitions.
PIXELS = [
    # ZN, paper: channels 1, 2, 3, 4, common; common where x + y is odd.
    ("zn", "paper", 0, 0, 0),
    ("zn", "paper", 21, 21, 0),
    ("zn", "paper", 0, 22, 1),
    ("zn", "paper", 22, 0, 2),
    ("zn", "paper", 43, 21, 2),
    ("zn", "paper", 22, 22, 3),
    ("zn", "paper", 43, 43, 3),
    ("zn", "paper", 0, 1, 4),
    ("zn", "paper", 43, 0, 4),
    # ZN, O2: common, 1, 2, 3, 4; common where x + y is even; 2 is right, 3 is up.
    ("zn", "o2", 0, 0, 0),
    ("zn", "o2", 22, 22, 0),
    ("zn", "o2", 0, 1, 1),
    ("zn", "o2", 22, 21, 2),
    ("zn", "o2", 43, 0, 2),
    ("zn", "o2", 0, 23, 3),
    ("zn", "o2", 22, 23, 4),
    # ZP, paper: quadrants of 28 x 15 pixels.
    ("zp", "paper", 0, 0, 0),
    ("zp", "paper", 27, 15, 1),
    ("zp", "paper", 28, 14, 2),
    ("zp", "paper", 28, 16, 3),
    ("zp", "paper", 0, 15, 4),
    # ZP, O2: strips of 14 columns along x.
    ("zp", "o2", 13, 0, 1),
    ("zp", "o2", 13, 28, 1),
    ("zp", "o2", 14, 1, 2),
    ("zp", "o2", 27, 0, 2),
    ("zp", "o2", 28, 29, 3),
    ("zp", "o2", 41, 0, 3),
    ("zp", "o2", 42, 1, 4),
    ("zp", "o2", 55, 0, 4),
    ("zp", "o2", 14, 0, 0),
]


def random_images(detector: Detector, batch: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Counts with the sparsity of real images and one artefact of a hundred thousand photons."""
    images = np.random.default_rng(seed).poisson(0.2, (*batch, *detector.shape))
    images.reshape(-1)[7] = 177_940
    return images


@every
@pytest.mark.parametrize("batch", [(), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint8", "float32", "float64"])
def test_channels_sum_to_the_photon_sum(detector, convention, batch, dtype):
    images = random_images(detector, batch, 1) if 0 not in batch else np.zeros((*batch, *detector.shape))
    images = images.clip(max=255 if dtype == "uint8" else 30_000).astype(dtype)
    expected = images.sum((-2, -1), dtype=np.float64)
    channels = detector.channels(images, convention)
    assert channels.shape == (*batch, 5)
    assert channels.dtype == (np.int64 if np.issubdtype(images.dtype, np.integer) else images.dtype)
    np.testing.assert_array_equal(channels.sum(-1), expected)
    as_torch = detector.channels(torch.from_numpy(images), convention)
    np.testing.assert_array_equal(as_torch.numpy(), channels)
    assert as_torch.dtype == torch.from_numpy(channels).dtype


@every
def test_channels_are_the_masked_sums(detector, convention):
    images = random_images(detector, (4,))
    masked = (images[:, None] * detector.masks(convention)).sum((-2, -1))
    np.testing.assert_array_equal(detector.channels(images, convention), masked)


@every
def test_masks_partition_the_pixels_evenly(detector, convention):
    masks = detector.masks(convention)
    assert masks.shape == (5, *detector.shape)
    np.testing.assert_array_equal(masks.sum(0), 1)
    sizes = dict(zip(detector.channel_names(convention), masks.sum((1, 2)), strict=True))
    assert sizes["common"] * 2 == detector.pixels  # every other fibre
    towers = [sizes[f"tower{t}"] for t in range(1, 5)]
    assert max(towers) - min(towers) <= 1 + (detector.shape[0] // 2 % 2 == 1)


@pytest.mark.parametrize(("name", "convention", "x", "y", "channel"), PIXELS)
def test_pixels_of_the_published_tables(name, convention, x, y, channel):
    image = np.zeros(DETECTORS[name].shape, dtype=np.int16)
    image[x, y] = 9
    assert DETECTORS[name].channels(image, convention).tolist() == [9 * (c == channel) for c in range(5)]


def test_conventions_differ_by_parity_and_by_the_names_of_the_towers():
    zn = DETECTORS["zn"]
    paper, o2 = zn.masks("paper"), zn.masks("o2")
    np.testing.assert_array_equal(paper[4], ~o2[0])
    towers_paper, towers_o2 = zn.tower_map("paper"), zn.tower_map("o2")
    assert {(int(p), int(o)) for p, o in zip(towers_paper.flat, towers_o2.flat, strict=True)} == {
        (1, 1),
        (2, 3),
        (3, 2),
        (4, 4),
    }


def test_o2_strips_of_zp_are_fourteen_columns_wide():
    towers = DETECTORS["zp"].tower_map("o2")
    np.testing.assert_array_equal(towers, np.repeat([1, 2, 3, 4], 14)[:, None] * np.ones(30, dtype=int))


@every
def test_gradient_of_a_channel_is_its_mask(detector, convention):
    images = torch.from_numpy(random_images(detector, (2,))).double().requires_grad_()
    weights = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0], dtype=torch.float64)
    (detector.channels(images, convention) @ weights).sum().backward()
    expected = torch.einsum("c,cxy->xy", weights, torch.from_numpy(detector.masks(convention)).double())
    torch.testing.assert_close(images.grad, expected.expand(2, -1, -1), rtol=0, atol=0)


@every
def test_channels_are_exact_under_autocast(detector, convention):
    images = random_images(detector, (4,))  # counts that bfloat16, with its 8 bits, cannot hold
    exact = detector.channels(images, convention)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        channels = detector.channels(torch.from_numpy(images).float(), convention)
    assert channels.dtype == torch.float32
    np.testing.assert_array_equal(channels.numpy(), exact)


@pytest.mark.parametrize("shape", [(43, 44), (44,), (44, 44, 1), (3, 56, 30)])
@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_wrong_shape_is_named(shape, make):
    with pytest.raises(ValueError, match=r"expected ZN images \(\*, 44, 44\), got \("):
        DETECTORS["zn"].channels(make(shape))


@pytest.mark.parametrize("call", ["masks", "tower_map", "channel_names", "channel_neighbors"])
def test_unknown_convention_is_named(call):
    with pytest.raises(ValueError, match="unknown channel convention 'O3'; expected one of paper, o2"):
        getattr(DETECTORS["zp"], call)("O3")


@every
def test_neighbors_share_an_edge(detector, convention):
    pairs = detector.channel_neighbors(convention)
    names = detector.channel_names(convention)
    strips = detector.towers == "strips" and convention == "o2"
    assert len(pairs) == len({frozenset(p) for p in pairs}) == (7 if strips else 8)
    assert sum("common" in (names[a], names[b]) for a, b in pairs) == 4
    named = {frozenset((names[a], names[b])) for a, b in pairs}
    apart = [(1, 3), (1, 4), (2, 4)] if strips else [(1, 4), (2, 3)]
    assert not named & {frozenset((f"tower{a}", f"tower{b}")) for a, b in apart}


def test_geometry_of_the_sources():
    zn, zp, focal = (DETECTORS[n] for n in ("zn", "zp", "focal_h"))
    assert (zn.shape, zp.shape) == ((44, 44), (56, 30))
    assert zn.size == pytest.approx((7.04, 7.04))
    assert zp.size == pytest.approx((22.4, 12.0))
    # 112.5 m from the interaction point for the ZDC, 7.64 m for FoCal; A side positive, C side negative.
    assert zn.front_z == (11259.8, -11261.3)
    assert zp.front_z == (11251.8, -11253.3)
    assert focal.front_z == (764.0, -764.0)
    assert (zn.center_x, zp.center_x, focal.center_x) == (0.0, 24.35, 0.0)
    assert (zn.depth, zp.depth, focal.depth) == (100.0, 150.0, 110.0)


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=list(DETECTORS))
def test_pixel_centers_fill_the_front_face(detector):
    for centers, count, width in zip(detector.pixel_centers, detector.shape, detector.size, strict=True):
        assert centers.shape == (count,)
        np.testing.assert_allclose(np.diff(centers), detector.pitch)
        assert centers.mean() == pytest.approx(0.0, abs=1e-12)
        assert centers[-1] - centers[0] + detector.pitch == pytest.approx(width)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_another_granularity_keeps_the_laws(convention):
    focal = DETECTORS["focal_h"].replace(shape=(17, 5), pitch=5.0)
    assert (focal.pixels, DETECTORS["focal_h"].pixels) == (85, 900)
    images = random_images(focal, (3,))
    np.testing.assert_array_equal(focal.channels(images, convention).sum(-1), images.sum((1, 2)))


def test_detectors_are_found_by_name_in_any_case():
    assert get_detector("ZN") is get_detector("zn") is DETECTORS["zn"]
    own = DETECTORS["zn"].replace(shape=(4, 4))
    assert get_detector(own) is own
    with pytest.raises(ValueError, match=f"unknown detector 'zem'; expected one of {', '.join(DETECTORS)}"):
        get_detector("zem")


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=list(DETECTORS))
def test_the_straight_flight_by_hand_is_the_same_for_numpy_and_torch(detector):
    flights = [
        (0.5, -0.2, 0.3, -0.2, 500.0),
        (0.0, 0.0, -0.1, 0.05, -900.0),
        (1e-4, 2.0, 0.0, 0.0, 100.0),
        (0.0, 0.0, 1e-6, 0.0, 0.0),
    ]
    particles = np.zeros((4, 9))
    particles[:, [1, 2, 4, 5, 6]] = flights
    found = detector.straight_flight(particles)
    z, pz = detector.front_z[0], [500.0, 900.0, 100.0, 1e-3]
    by_hand = [
        (vx + px / p * z - detector.center_x, vy + py / p * z)
        for (vx, vy, px, py, _), p in zip(flights, pz, strict=True)
    ]
    np.testing.assert_allclose(np.stack(found, 1), by_hand, rtol=1e-12, atol=1e-12)
    of_tensors = torch.stack(detector.straight_flight(torch.from_numpy(particles)), 1)
    np.testing.assert_allclose(np.stack(found, 1), of_tensors.numpy(), rtol=1e-12, atol=1e-12)
    far = detector.straight_flight(particles, distance=2 * z)
    np.testing.assert_allclose(far[1] - found[1], found[1] - particles[:, 2], rtol=1e-12, atol=1e-12)


def test_all_of_the_face_is_within_what_networks_are_told():
    assert [DETECTORS[name].farthest for name in ("zn", "zp", "focal_h")] == [30.0, 30.0, 49.125]
