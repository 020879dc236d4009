r"""Random draws keyed by (seed, row): a row gets the same numbers in any batch, on any rank and on any device.

A counter-based generator: every number is a hash of its key and its counter, so there is no state to carry, to
synchronize between processes or to restore after a resume. The hash is the finalizer of SplitMix64, applied twice.

References:
    | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), https://doi.org/10.1145/2063384.2063405
    | Fast Splittable Pseudorandom Number Generators (Steele et al., 2014), https://doi.org/10.1145/2660193.2660195
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

__all__ = ["mix", "normal", "row_keys", "training_seed", "uniform", "uniform_at"]

#: First word of a key: what the draws are for, so that no two uses of one (seed, row) share their numbers.
NOISE_STREAM, BASE_STREAM, PHOTON_STREAM, FIT_STREAM, TRAINING_STREAM, EVALUATION_STREAM, ACCEPTANCE_STREAM = range(
    1, 8
)

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64; torch shifts are arithmetic, so the sign bits are masked away."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def training_seed() -> int:
    """The seed of the training, as ``seed_everything`` leaves it in the environment for all processes; 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED") or 0)


def row_keys(rows: Tensor, *words: int) -> Tensor:
    """One 64-bit key per row.

    Args:
        rows: Row numbers with shape (B,), int64.
        words: Integers that tell draws apart: the stream, the seed, the epoch. Order matters.

    Returns:
        Keys with shape (B,), int64.
    """
    key = rows.to(torch.int64)
    for word in words:
        key = mix(key * _GOLDEN + (int(word) & 0x7FFFFFFFFFFFFFFF))
    return mix(key + _GOLDEN)


def _bits(keys: Tensor, n: int) -> Tensor:
    counters = torch.arange(1, n + 1, dtype=torch.int64, device=keys.device) * _GOLDEN
    return mix(keys[:, None] + counters)


def uniform(keys: Tensor, n: int) -> Tensor:
    r"""Uniform numbers in :math:`(0, 1)`.

    Args:
        keys: Row keys with shape (B,), from :func:`row_keys`.
        n: Numbers per row.

    Returns:
        float32 with shape (B, n), odd multiples of :math:`2^{-24}`: neither 0 nor 1 occurs.
    """
    # 23 bits and a half step: with 24, the largest value would round to 1 in float32.
    return ((_bits(keys, n) >> 41) & 0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)


def uniform_at(keys: Tensor, counters: Tensor) -> Tensor:
    r"""Single uniform numbers in :math:`(0, 1)` of 52 bits: number ``counters`` of the row ``keys``.

    Args:
        keys: Row keys, from :func:`row_keys`, with any shape.
        counters: Which number of its row, from 0, int64, broadcast against the keys.

    Returns:
        float64 with the broadcast shape, odd multiples of :math:`2^{-53}`: neither 0 nor 1 occurs.
    """
    bits = mix(keys + (counters + 1) * _GOLDEN)
    # 52 bits and a half step: with 53, the largest value would round to 1 in float64.
    return ((bits >> 12) & 0xFFFFFFFFFFFFF).to(torch.float64).add_(0.5).mul_(2.0**-52)


def normal(keys: Tensor, n: int) -> Tensor:
    r"""Standard normal numbers by the Box-Muller transform.

    Args:
        keys: Row keys with shape (B,), from :func:`row_keys`.
        n: Numbers per row.

    Returns:
        float32 with shape (B, n); the 32-bit radius reaches 6.66 standard deviations.
    """
    bits = _bits(keys, (n + 1) // 2)
    radius = ((bits >> 32) & 0xFFFFFFFF).to(torch.float32).add_(1.0).mul_(2.0**-32).clamp_(max=1.0)
    angle = (bits & 0xFFFFFFFF).to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
    radius = radius.log_().mul_(-2.0).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]
