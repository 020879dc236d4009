"""Photon images to logits and back: exact where it must be, conserving where it claims to, finite everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calosim import rng
from calosim.detectors import DETECTORS, Detector
from calosim.representations.pixels import REQUANTIZATIONS, PixelConfig, PixelLogits, requantize

ZN = DETECTORS["zn"]
METHODS = tuple(REQUANTIZATIONS)
#: float32 sums over two thousand pixels, relative.
SUMS = 1e-5
#: Logits around -8 and back in float32: relative error of a shape.
LOGITS = 1e-5
#: The dequantization noise is an odd multiple of 2^-24 times its width: nothing lies closer to an integer.
CLOSEST = 2.0**-25
every_method = pytest.mark.parametrize("method", METHODS)


def make_images(rows: int = 40, seed: int = 0, shape: tuple[int, int] = ZN.shape) -> torch.Tensor:
    """Sparse counts with a bright spot, one image without photons and one artefact."""
    rng = np.random.default_rng(seed)
    images = rng.poisson(0.05, (rows, *shape))
    images[:, shape[0] // 2 - 1 : shape[0] // 2 + 2, shape[1] // 2] += rng.poisson(60, (rows, 3))
    images[3] = 0
    images[5, 1, 2] = 177_940
    return torch.from_numpy(images)


def keys(rows: int, *words: int) -> torch.Tensor:
    return rng.row_keys(torch.arange(rows), rng.NOISE_STREAM, *words)


def exact_shapes(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    noisy = images.flatten(1).double() + noise
    return noisy / noisy.sum(1, keepdim=True)


def small(*shape: int) -> Detector:
    """The ZN with few pixels."""
    return ZN.replace(shape=shape)


def encoded(logits: PixelLogits, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return logits.encode(images, keys)[0]


@pytest.fixture
def logits() -> PixelLogits:
    """Fitted, so that the standardization takes part in the laws."""
    module = PixelLogits(ZN)
    module.fit(make_images(), keys(40, 9))
    return module


# -- noise removal ----------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("noise", [0.5, 1.0, 0.01])
def test_noise_just_added_is_removed_exactly(method, noise):
    images = make_images()
    noisy = images.double() + noise * rng.uniform(keys(40), ZN.pixels).double().view(images.shape)
    assert torch.equal(requantize(noisy, images.flatten(1).sum(1), method, noise), images)


@every_method
def test_noise_removal_is_exact_in_float32_too(method):
    images = make_images().clamp(max=1000)
    noisy = images.float() + 0.5 * (0.01 + 0.98 * rng.uniform(keys(40), ZN.pixels)).view(images.shape)
    assert torch.equal(requantize(noisy, images.flatten(1).sum(1), method), images)


@pytest.mark.parametrize("method", [3, 4])
def test_methods_3_and_4_keep_the_photon_sum_to_the_rounding_of_their_pixels(method):
    values = rng.uniform(keys(60), 400).square() * 5
    photon_sum = torch.linspace(1, 3000, 60).round()
    counts = requantize(values, photon_sum, method)
    requantization = 0.5 * (counts > 0).sum(1) + 0.5 * ((counts == 0) & (values >= 0.75)).sum(1)
    assert ((counts.sum(1) - photon_sum).abs() <= requantization).all()
    # A multiple of the surviving counts is met exactly.
    survivors = requantize(values, photon_sum, method - 2)
    assert torch.equal(requantize(values, 3 * survivors.sum(1), method), 3 * survivors)


def test_methods_1_and_2_ignore_the_photon_sum():
    values = rng.uniform(keys(5), 100) * 3
    for method in (1, 2):
        few, many = (requantize(values, torch.full((5,), n), method) for n in (0, 10**6))
        assert torch.equal(few, many)


def test_noise_removals_by_hand():
    values = torch.tensor([[0.2, 0.8, 1.9, 3.1]])
    for method, expected in {1: [0, 0, 1, 3], 2: [0, 1, 2, 3], 3: [0, 0, 2, 6], 4: [0, 1, 3, 4]}.items():
        assert requantize(values, torch.tensor([8]), method).tolist() == [expected], method


@every_method
def test_images_in_which_no_pixel_survives_stay_empty(method):
    values = torch.tensor([[0.1, 0.2], [0.0, 0.0], [1.3, 2.4]])
    counts = requantize(values, torch.tensor([50, 0, 3]), method)
    assert counts.dtype == torch.int64
    assert counts[:2].sum() == 0
    assert counts[2].tolist() == [1, 2]


def test_a_method_for_each_row_equals_the_same_method_for_all():
    values = (rng.uniform(keys(40), ZN.pixels) * 3).view(-1, *ZN.shape)
    photon_sum = torch.arange(40) * 30
    method = torch.arange(40) % 4 + 1
    mixed = requantize(values, photon_sum, method)
    for m in METHODS:
        assert torch.equal(mixed[method == m], requantize(values, photon_sum, m)[method == m])
    assert requantize(values[:0], photon_sum[:0], method[:0]).shape == (0, *ZN.shape)


@pytest.mark.parametrize("method", [0, 5, -1, torch.tensor([3, 3, 7])])
def test_unknown_noise_removals_are_named(method):
    with pytest.raises(ValueError, match=r"unknown requantization \[.*(0|5|-1|7)\]; expected 1, 2, 3 or 4"):
        requantize(torch.ones(3, 4), torch.ones(3), method)


# -- shapes and logits ------------------------------------------------------------------------------------------------


def test_shapes_sum_to_one_and_are_positive(logits):
    shapes = logits.dequantize(make_images(), keys(40))
    torch.testing.assert_close(shapes.sum(1), torch.ones(40), rtol=SUMS, atol=0)
    assert (shapes > 0).all()
    back = logits.shapes(torch.randn(40, ZN.pixels, generator=torch.manual_seed(0)))
    torch.testing.assert_close(back.sum(1), torch.ones(40), rtol=SUMS, atol=0)
    assert (back >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_lead_back_to_the_shape(logits, dtype):
    logits.to(dtype)
    shapes = logits.dequantize(make_images(), keys(40)).to(dtype)
    shapes = shapes / shapes.sum(1, keepdim=True)
    tolerance = LOGITS if dtype == torch.float32 else 1e-12
    floor = 1e-9 if dtype == torch.float32 else 1e-16  # alpha is taken away again from numbers of its size
    torch.testing.assert_close(logits.shapes(logits.logit(shapes)), shapes, rtol=tolerance, atol=floor)


def test_logits_are_those_of_the_formula(logits):
    logits.double()
    shapes = logits.dequantize(make_images(), keys(40)).double()
    squeezed = logits.alpha + (1 - 2 * logits.alpha) * shapes
    expected = (torch.logit(squeezed) - logits.mean) / logits.scale
    torch.testing.assert_close(logits.logit(shapes), expected, rtol=1e-10, atol=1e-10)


@every_method
def test_round_trip_is_exact_with_the_noise_that_was_added(logits, method):
    images = make_images()
    total = images.flatten(1).sum(1)
    noise = 0.5 * rng.uniform(keys(40), ZN.pixels).double()
    assert noise.min() >= CLOSEST / 2
    logits.double()
    shapes = logits.shapes(logits.logit(exact_shapes(images, noise)))
    values = shapes * (total + noise.sum(1))[:, None]
    rest = values - images.flatten(1)
    # float64 keeps the artefact's pixel of 177,940 photons to 1e-10, far inside the closest noise.
    assert rest.min() > 0
    assert torch.equal(requantize(values, total, method).view(images.shape), images)


@every_method
def test_round_trip_is_exact_with_the_expected_noise(logits, method):
    # With every pixel's noise at its expectation, `decode` scales by exactly the sum that was divided out.
    images = make_images().clamp(max=2000)
    total = images.flatten(1).sum(1)
    shapes = exact_shapes(images, torch.full((ZN.pixels,), logits.noise / 2).double()).float()
    assert torch.equal(logits.decode(logits.logit(shapes), total, method), images)


@pytest.mark.parametrize("method", [2, 4])
def test_subtracting_removals_survive_single_precision_with_random_noise(logits, method):
    # Methods 2 and 4 leave a quarter of a photon of room on both sides; floors leave none below.
    images = make_images().clamp(max=2000)
    noise = 0.5 * rng.uniform(keys(40), ZN.pixels).double()
    scale = images.flatten(1).sum(1) + noise.sum(1)
    values = logits.shapes(logits.logit(exact_shapes(images, 0.98 * noise + 0.005).float())) * scale.float()[:, None]
    assert torch.equal(requantize(values, images.flatten(1).sum(1), method).view(images.shape), images)


@every_method
def test_decode_keeps_small_errors_small(logits, method):
    # The sum of the noise is not known after sampling, only its expectation: 484 +- 6.4 photons for ZN.
    images = make_images(200, seed=1)[10:]
    total = images.flatten(1).sum(1)
    counts = logits.decode(encoded(logits, images, keys(200)[10:]), total, method)
    spread = 6.0 * logits.noise * math.sqrt(ZN.pixels / 12)
    assert ((counts - images).flatten(1).abs().sum(1) <= 2 * spread * total / logits.expected_noise + 2 * spread).all()
    if method >= 3:
        assert ((counts.flatten(1).sum(1) - total).abs() <= 0.5 * (images.flatten(1) > 0).sum(1)).all()


@every_method
def test_an_image_without_photons_survives_every_path(logits, method):
    empty = torch.zeros(2, *ZN.shape, dtype=torch.int16)
    shapes = logits.dequantize(empty, keys(2))
    torch.testing.assert_close(shapes.sum(1), torch.ones(2), rtol=SUMS, atol=0)
    x = encoded(logits, empty, keys(2))
    assert torch.isfinite(x).all()
    assert logits.decode(x, torch.zeros(2), method).sum() == 0
    assert logits.decode(x, torch.tensor([0, 1]), method).min() >= 0


@every_method
@pytest.mark.parametrize("size", [0.0, 10.0, 100.0, -100.0, 1e4])
def test_wild_logits_give_whole_images(logits, method, size):
    wild = size * torch.randn(6, ZN.pixels, generator=torch.manual_seed(1))
    shapes = logits.shapes(wild)
    assert torch.isfinite(shapes).all()
    counts = logits.decode(wild, torch.full((6,), 100), method)
    assert counts.min() >= 0
    assert counts.flatten(1).sum(1).max() <= 100 + 2 * logits.expected_noise + 0.5 * ZN.pixels


def test_a_method_for_each_row_of_decode(logits):
    images = make_images()
    x, total = encoded(logits, images, keys(40)), images.flatten(1).sum(1)
    method = torch.arange(40) % 4 + 1
    mixed = logits.decode(x, total, method)
    assert mixed.dtype == torch.int64
    for m in METHODS:
        assert torch.equal(mixed[method == m], logits.decode(x[method == m], total[method == m], m))


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0])
def test_gradients_through_shapes_are_finite_and_those_of_the_formula(size):
    module = PixelLogits(small(3, 4)).double()
    x = (size * torch.randn(5, 12, generator=torch.manual_seed(2))).double().requires_grad_()
    (module.shapes(x).square().sum() * 1e3).backward()
    assert torch.isfinite(x.grad).all()
    if size == 1.0:
        assert torch.autograd.gradcheck(module.shapes, x)
        assert torch.autograd.gradcheck(lambda y: module.logit(module.shapes(y)), x)


def test_dequantization_is_keyed_by_the_row_alone(logits):
    images = make_images()
    order = torch.randperm(40, generator=torch.manual_seed(0))
    whole = encoded(logits, images, keys(40, 2))
    assert torch.equal(encoded(logits, images[order], keys(40, 2)[order]), whole[order])
    assert torch.equal(
        torch.cat([encoded(logits, images[i : i + 1], keys(40, 2)[i : i + 1]) for i in range(40)]), whole
    )
    assert not torch.isclose(encoded(logits, images, keys(40, 3)), whole).float().mean() > 1e-2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_types_give_equal_logits(logits, dtype):
    images = make_images()[6:].clamp(max=200)
    assert torch.equal(encoded(logits, images.to(dtype), keys(34)), encoded(logits, images.float(), keys(34)))


def test_fitted_logits_are_standard(logits):
    x = encoded(logits, make_images(), keys(40, 9))
    torch.testing.assert_close(x.mean(0), torch.zeros(ZN.pixels), rtol=0, atol=1e-3)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(ZN.pixels), rtol=1e-3, atol=0)


def test_one_artefact_does_not_decide_the_scale_of_the_logits():
    images = make_images(400)
    images[5] = images[6]
    clean, dirty = PixelLogits(ZN), PixelLogits(ZN)
    clean.fit(images, keys(400))
    images[5, 1, 2] = 177_940
    dirty.fit(images, keys(400))
    # One row of 400 moves a mean by at most its own distance over 400, about 6 logits / 400.
    assert (clean.mean - dirty.mean).abs().max() < 0.05
    assert (dirty.scale / clean.scale).median() < 1.05


def test_unstandardized_logits_have_no_scale():
    module = PixelLogits(ZN, PixelConfig(standardize=False))
    module.fit(make_images(), keys(40))
    assert module.log_volume() == 0
    shapes = module.dequantize(make_images(), keys(40))
    squeezed = module.alpha + (1 - 2 * module.alpha) * shapes
    torch.testing.assert_close(module.logit(shapes), torch.logit(squeezed), rtol=1e-5, atol=1e-5)


def test_log_volume_is_the_jacobian_of_the_standardization():
    module = PixelLogits(small(3, 3))
    module.fit(make_images(30, shape=(3, 3)), keys(30))
    module.double()
    plain = torch.randn(9, generator=torch.manual_seed(0)).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: (x - module.mean) / module.scale, plain)
    torch.testing.assert_close(module.log_volume(), torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": 0.0}, r"dequantization noise in \(0, 1\], got 0.0"),
        ({"noise": 1.5}, r"dequantization noise in \(0, 1\], got 1.5"),
        ({"alpha": 0.0}, r"alpha in \(0, 0.5\), got 0.0"),
        ({"alpha": 0.5}, r"alpha in \(0, 0.5\), got 0.5"),
    ],
)
def test_impossible_noise_and_alpha_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelLogits(ZN, PixelConfig(**arguments))


def test_state_dict_restores_everything(logits):
    fresh = PixelLogits(ZN)
    assert not torch.equal(encoded(fresh, make_images(), keys(40)), encoded(logits, make_images(), keys(40)))
    fresh.load_state_dict(logits.state_dict())
    assert torch.equal(encoded(fresh, make_images(), keys(40)), encoded(logits, make_images(), keys(40)))
