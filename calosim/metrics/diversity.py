r"""How much the responses to one input differ: the diversity of a primary's photon images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calosim.metrics.wasserstein import Floats, Ints

__all__ = ["Diversity", "diversity"]


class Diversity(NamedTuple):
    """The diversity of every unique input, in the order of its identifier.

    Attributes:
        input: Identifiers of the unique inputs with shape (K,).
        responses: The number of responses to each with shape (K,).
        value: The diversity with shape (K,), in photons, or in [0, 1] if normalized.
    """

    input: NDArray
    responses: Ints
    value: Floats


def diversity(
    images: NDArray, inputs: ArrayLike, normalized: bool = False, quantile: float = 1.0, chunk: int = 2048
) -> Diversity:
    r"""How much the responses to the same input differ.

    .. math:: f_\mathrm{div}(c) = \sum_{ij} \sqrt{\frac{1}{|X_c|} \sum_{t \in X_c} (x_{ij}^t - \mu_{ij})^2}

    Images are read in chunks of rows, so that a memory-mapped file of any length fits; rows of one input may be
    anywhere. An input with a single response has diversity 0.

    Args:
        images: Photon counts with shape (N, nx, ny), also memory-mapped.
        inputs: Identifiers of the unique inputs with shape (N,).
        normalized: Scale the values to [0, 1] by their minimum and maximum over inputs, as published.
        quantile: The quantile of the values over inputs that is scaled to 1, with everything above it clipped
            there. The published scale is 1, the maximum. A single artefact of 10^5 photons then sets the
            scale and presses all other inputs to 0: choose 0.99 or so for data that may hold such rows.
        chunk: Rows read at a time; memory is about ``80 * chunk * nx * ny`` bytes at worst.

    Returns:
        The diversity of each unique input.

    Raises:
        ValueError: If the numbers of images and inputs differ, or the quantile is outside (0, 1].

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, equation 1
        | SDI-GAN: Selectively Increasing Diversity of Simulations (Dubinski et al., 2023)
    """
    inputs = np.asarray(inputs)
    if len(images) != len(inputs) or not 0 < quantile <= 1:
        raise ValueError(
            f"expected as many inputs as images and a quantile in (0, 1], got {len(images)} images, "
            f"{len(inputs)} inputs and quantile {quantile}"
        )
    ids, group, counts = np.unique(inputs, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    pixels = int(np.prod(images.shape[1:]))
    value = np.zeros(len(ids))
    carry: Floats = np.zeros((2, pixels))  # sums of an input that spans two chunks
    carried = -1
    for begin in range(0, len(order), chunk):
        rows = np.sort(order[begin : begin + chunk])  # rising rows read a memory-mapped file forwards
        own = group[rows]
        low, high = int(own.min()), int(own.max())
        block = np.asarray(images[rows]).reshape(-1)
        # Almost all pixels are dark: adding up the others only is several times faster.
        nonempty = np.flatnonzero(block)
        place = (own - low)[nonempty // pixels] * pixels + nonempty % pixels
        light = block[nonempty].astype(np.float64)
        sums: Floats = np.stack(
            [np.bincount(place, w, (high - low + 1) * pixels).reshape(-1, pixels) for w in (light, light**2)]
        )
        if carried == low:
            sums[:, 0] += carry
        carry, carried = sums[:, -1].copy(), high
        # An unfinished last input gets a value here that the next chunk overwrites.
        n = counts[low : high + 1, None]
        variance = (sums[1] - sums[0] ** 2 / n) / n
        value[low : high + 1] = np.sqrt(np.maximum(variance, 0)).sum(axis=1)
    return Diversity(ids, counts, _scaled(value, quantile) if normalized and len(value) else value)


def _scaled(values: Floats, quantile: float) -> Floats:
    """Values (K,) scaled so that their minimum is 0 and that quantile of them 1, clipped there."""
    low, high = values.min(), np.quantile(values, quantile)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
