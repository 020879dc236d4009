"""What every kind of coordinates must do: there and back, the image in between, and refusals in one line.

Coordinates that join :data:`KINDS` are held to the same laws.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
import torch

from calosim import rng
from calosim.detectors import DETECTORS
from calosim.representations import PixelConfig, Representation, RepresentationConfig, SplitConfig, from_plain, to_plain

KINDS = {
    "pixels": PixelConfig(),
    # All levels are coarse: nothing is left to draw.
    "splits": SplitConfig(coarse_levels=99, hidden=8),
    "pixels, other settings": PixelConfig(noise=0.25, alpha=1e-5, standardize=False),
}
ROWS = 30
#: float32 sums over a detector's pixels, relative.
SUMS = 1e-5
every = pytest.mark.parametrize("kind", KINDS)


def make_images(shape: tuple[int, int]) -> torch.Tensor:
    """Sparse counts with a bright spot; the first image is dark, the second has a single photon."""
    rng = np.random.default_rng(0)
    images = rng.poisson(0.05, (ROWS, *shape))
    images[:, shape[0] // 2, shape[1] // 2] += rng.poisson(60, ROWS)
    images[:2] = 0
    images[1, 0, 0] = 1
    return torch.from_numpy(images)


def keys(*words: int) -> torch.Tensor:
    return rng.row_keys(torch.arange(ROWS), rng.NOISE_STREAM, *words)


@pytest.fixture(scope="module", params=["zn", "focal_h"])
def made(request) -> dict[str, Representation]:
    """Every kind of coordinates for a detector, fitted."""
    found = {}
    for name, config in KINDS.items():
        found[name] = config.build(DETECTORS[request.param], 3)
        found[name].fit(make_images(found[name].shape), keys(9))
    return found


@every
def test_sizes(kind, made):
    representation = made[kind]
    x, log_volume = representation.encode(make_images(representation.shape), keys())
    assert x.shape == (ROWS, representation.size)
    assert log_volume.shape == (ROWS,)
    assert torch.isfinite(x).all()
    assert torch.isfinite(log_volume).all()
    # A density of noisy pixels is per pixel, a probability is per image.
    assert representation.nll_unit == ("nats a pixel" if representation.requantizations else "nats an image")


@every
def test_encoding_depends_on_image_and_key_alone(kind, made):
    representation = made[kind]
    images, order = make_images(representation.shape), torch.randperm(ROWS, generator=torch.manual_seed(0))
    whole = representation.encode(images, keys())
    again = representation.encode(images[order], keys()[order])
    assert all(torch.equal(a[order], b) for a, b in zip(whole, again, strict=True))
    assert not torch.equal(representation.encode(images, keys(1))[0], whole[0])


@every
def test_counts_come_back(kind, made):
    """Exactly where there is no rounding to choose; else up to the noise, whose sum decoding knows by its mean only."""
    representation = made[kind]
    images = make_images(representation.shape)
    total = images.flatten(1).sum(1)
    x, _ = representation.encode(images, keys())
    for requantization in representation.requantizations or [None]:
        back = representation.decode(x, total, requantization)
        assert back.shape == images.shape
        assert back.dtype == torch.int64
        assert (back >= 0).all()
        assert back[0].sum() == 0
        if not representation.requantizations:
            assert torch.equal(back, images)
        assert ((back - images).abs().flatten(1).sum(1) <= 3 + 0.05 * total).all()


@every
def test_the_expected_image_has_the_photons_and_the_noise(kind, made):
    representation = made[kind]
    total = make_images(representation.shape).flatten(1).sum(1)
    x = torch.randn(ROWS, representation.size, generator=torch.manual_seed(1)).requires_grad_()
    with_noise, without = (representation.expected(x, total, noise=noise) for noise in (True, False))
    assert with_noise.shape == (ROWS, *representation.shape)
    torch.testing.assert_close(without.sum((1, 2)), total.to(without), rtol=SUMS, atol=SUMS * representation.size)
    noise = (with_noise - without).sum((1, 2))
    assert (noise >= 0).all()
    torch.testing.assert_close(noise, noise.mean().expand(ROWS), rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(with_noise.square().sum(), x)
    assert torch.isfinite(gradient).all()
    assert gradient[2:].any(1).all()


@every
def test_requantizations_are_known_by_number_and_words(kind, made):
    representation = made[kind]
    assert all(isinstance(k, int) and words for k, words in representation.requantizations.items())
    assert representation.requantization in (representation.requantizations or [None])
    if representation.requantizations:
        with pytest.raises(ValueError, match="unknown requantization"):
            representation.decode(torch.zeros(2, representation.size), torch.ones(2), 99)


@every
def test_settings_lead_back(kind):
    plain = json.loads(json.dumps(to_plain(KINDS[kind])))
    assert from_plain(plain) == KINDS[kind]
    assert from_plain(KINDS[kind]) is KINDS[kind]
    assert plain["kind"] == kind.partition(",")[0]


def test_settings_are_told_apart_by_their_names():
    """The parser takes the first kind that has the names which are given, whatever class was said before them."""
    kinds = get_args(RepresentationConfig)
    assert {type(config) for config in KINDS.values()} == set(kinds), "expected the laws to be tested of every kind"
    names = [field.name for kind in kinds for field in fields(kind)]
    assert not {name for name in names if names.count(name) > 1}, "expected no name that two kinds have"


@pytest.mark.parametrize("kind", ["voxels", None])
def test_unknown_kinds_are_refused(kind):
    plain = {**to_plain(PixelConfig()), "kind": kind}
    with pytest.raises(ValueError, match=rf"unknown representation '?{kind}'?; expected one of splits, pixels"):
        from_plain(plain)
