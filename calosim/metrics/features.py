r"""High-level features of photon images: what a shower looks like in about ninety numbers.

Features are named and come in groups, so that a classifier that tells a model from the Monte Carlo can say by what. Most are
shares of the photon sum :math:`n`. The strongest against blurred images are pair counts: the share of photon pairs
that lie a given number of pixels apart,

.. math:: A(a, b) = \frac{1}{n (n - 1)} \sum_{x, y} n_{x, y} \left(n_{x + a, y + b} - \delta_{a 0} \delta_{b 0}\right)

which is free of bias for photons that fall independently, however few they are.

References:
    | High-level features of the CaloChallenge: CaloChallenge/homepage, ``code/HighLevelFeatures.py``
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calosim.detectors import Detector

__all__ = ["GROUPS", "Features", "shower_features"]

Floats = NDArray[np.float32]
Table = dict[str, Floats]

#: What the groups of features are, in words.
GROUPS: dict[str, str] = {
    "photons": "photon sum",
    "center": "center of the light",
    "width": "widths along x and y, and their correlation",
    "channels": "shares of the read-out channels",
    "hottest": "shares of the hottest pixels",
    "core": "light around the hottest pixel",
    "pairs": "photon pairs at small distances",
    "halo_pairs": "the same, away from the hottest pixel",
    "lit": "how many pixels are lit, and by how many photons",
    "texture": "differences between neighbouring pixels, isolated pixels, holes, entropy",
    "cells": "lit and hottest cells of 2 x 2, 4 x 4 and 8 x 8 pixels",
    "radial": "share of the light within a radius",
}

#: Images at a time: the temporary arrays of more would not stay in a processor's cache.
_CHUNK = 512
#: Half the side of the window around the hottest pixel.
_REACH = 3
_LAGS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2), (2, 1), (1, 2), (2, 2), (3, 0), (0, 3))
_HALO_LAGS = _LAGS[:6]


class Features(NamedTuple):
    """Features of some images.

    Attributes:
        values: The features with shape (N, F), float32, finite.
        names: Their F names.
        groups: The group of each, a key of :data:`GROUPS`.
    """

    values: Floats
    names: tuple[str, ...]
    groups: tuple[str, ...]


def shower_features(images: NDArray[np.integer], detector: Detector) -> Features:
    """Computes the features of images.

    Args:
        images: Photon counts with shape (N, nx, ny), not negative; an image without photons has finite features, too.
        detector: The detector.

    Returns:
        The features, their names and their groups.

    Raises:
        ValueError: If the images do not have the detector's shape.
    """
    if images.ndim != 3 or images.shape[1:] != detector.shape:
        nx, ny = detector.shape
        raise ValueError(f"expected {detector.title} images (N, {nx}, {ny}), got {images.shape}")
    parts = [_grouped(images[k : k + _CHUNK], detector) for k in range(0, max(len(images), 1), _CHUNK)]
    keys = [(group, name) for group, table in parts[0].items() for name in table]
    columns = [np.concatenate([p[group][name] for p in parts]) for group, name in keys]
    return Features(np.stack(columns, 1).astype(np.float32), tuple(n for _, n in keys), tuple(g for g, _ in keys))


def _grouped(images: NDArray[np.integer], detector: Detector) -> dict[str, Table]:
    """The features of one chunk by group and name."""
    x = images.astype(np.float32)
    n = x.sum((1, 2))
    some = np.maximum(n, 1)
    flat = x.reshape(len(x), detector.pixels)
    hot = np.stack(np.unravel_index(flat.argmax(1), detector.shape), 1)
    center, width = _moments(x, some)
    shares = detector.channels(images) / some[:, None]
    away = np.where(
        _squared(x, hot) > 8, x, np.float32(0)
    )  # the 5 x 5 pixels around the hottest have distances up to 8
    return {
        "photons": {"log_photons": np.log1p(n)},
        "center": {"center_x": center[:, 0], "center_y": center[:, 1]},
        "width": width,
        "channels": {f"share_{name}": shares[:, i] for i, name in enumerate(detector.channel_names())},
        "hottest": _hottest(flat, some),
        "core": _core(x, hot, some),
        "pairs": _pairs(x, n, _LAGS, "pairs"),
        "halo_pairs": {"halo_share": away.sum((1, 2)) / some}
        | _pairs(away, away.sum((1, 2)), _HALO_LAGS, "halo_pairs"),
        "lit": _nonempty(x, some),
        "texture": _texture(x, some),
        "cells": _cells(x, n),
        "radial": _radial(x, center, hot, some),
    }


def _moments(x: Floats, n: Floats) -> tuple[Floats, Table]:
    """Center in pixels from the face's corner, (N, 2), and widths in pixels."""
    i, j = (np.arange(side, dtype=np.float32) for side in x.shape[1:])
    px, py = x.sum(2) / n[:, None], x.sum(1) / n[:, None]
    mx, my = px @ i, py @ j
    dx, dy = i - mx[:, None], j - my[:, None]
    sx, sy = np.sqrt((px * dx**2).sum(1)), np.sqrt((py * dy**2).sum(1))
    # As matrix products: the center is subtracted first, float32 would lose a covariance of large numbers.
    covariance = (np.matmul(dx[:, None, :], x)[:, 0] * dy).sum(1) / n
    widths = {"width_x": sx, "width_y": sy, "width_ratio": np.log((sx + 0.1) / (sy + 0.1))}
    return np.stack([mx, my], 1), widths | {"correlation": covariance / np.maximum(sx * sy, 1e-2)}


def _squared(x: Floats, at: NDArray) -> Floats:
    """Squared distances of all pixels from one pixel an image, (N, nx, ny)."""
    i, j = (np.arange(side, dtype=np.float32) for side in x.shape[1:])
    return ((i - at[:, :1]) ** 2)[:, :, None] + ((j - at[:, 1:]) ** 2)[:, None, :]


def _hottest(flat: Floats, n: Floats) -> Table:
    count = min(8, flat.shape[1])
    top = -np.sort(-np.partition(flat, -count, axis=1)[:, -count:], axis=1) / n[:, None]
    return {f"hottest_{k + 1}": top[:, k] for k in range(min(5, count))} | {f"hottest_{count}_sum": top.sum(1)}


def _core(x: Floats, hot: NDArray, n: Floats) -> Table:
    """Shares at given squared distances from the hottest pixel, and that pixel against its neighbours."""
    padded = np.pad(x, ((0, 0), (_REACH, _REACH), (_REACH, _REACH)))
    step = np.arange(2 * _REACH + 1)
    rows = hot[:, :1] + step, hot[:, 1:] + step
    window = padded[np.arange(len(x))[:, None, None], rows[0][:, :, None], rows[1][:, None, :]]
    distance = (step[:, None] - _REACH) ** 2 + (step - _REACH) ** 2
    table = {f"ring_{d}": window[:, distance == d].sum(1) / n for d in (1, 2, 4, 5, 8, 9, 10)}
    peak = window[:, _REACH, _REACH]
    table["peak_of_3x3"] = peak / np.maximum(window[:, distance <= 2].sum(1), 1)
    neighbours = np.sort(window[:, distance == 1], axis=1) / np.maximum(peak, 1)[:, None]
    return table | {f"neighbour_{k + 1}": neighbours[:, 3 - k] for k in range(4)}


def _pairs(x: Floats, n: Floats, lags: tuple[tuple[int, int], ...], name: str) -> Table:
    """Shares of photon pairs by their distance in pixels, and how these fall."""
    norm = np.maximum(n * (n - 1), 1)
    share = {(0, 0): np.einsum("nij,nij->n", x, x) - n} | {lag: _products(x, *lag) for lag in lags}
    same, near, diagonal, far = (
        sum(share[lag] for lag in ring) for ring in ([(0, 0)], [(1, 0), (0, 1)], [(1, 1), (1, -1)], [(2, 0), (0, 2)])
    )
    ratios = {"1_of_0": (near, same), "diagonal_of_0": (diagonal, same), "2_of_0": (far, same), "2_of_1": (far, near)}
    return {f"{name}_{a}_{b}": value / norm for (a, b), value in share.items()} | {
        f"{name}_{key}": above / np.maximum(below, 1) for key, (above, below) in ratios.items()
    }


def _products(x: Floats, a: int, b: int) -> Floats:
    """The sum over pixels of a count times the count `a` pixels on along x and `b` along y, (N,)."""
    width, height = (max(side - abs(step), 0) for side, step in zip(x.shape[1:], (a, b), strict=True))
    here, there = max(-b, 0), max(b, 0)
    first, second = x[:, :width, here : here + height], x[:, a : a + width, there : there + height]
    return np.einsum("nij,nij->n", first, second)


def _nonempty(x: Floats, n: Floats) -> Table:
    nonempty = (x > 0).sum((1, 2))
    table = {"log_lit": np.log1p(nonempty), "lit_per_photon": nonempty / n}
    table |= {f"pixels_of_{k}": (x == k).sum((1, 2)) / n for k in (1, 2, 3)}
    return table | {"pixels_of_5_or_more": (x >= 5).sum((1, 2)) / n}


def _texture(x: Floats, n: Floats) -> Table:
    z = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    four = z[:, :-2, 1:-1] + z[:, 2:, 1:-1] + z[:, 1:-1, :-2] + z[:, 1:-1, 2:]
    corners = z[:, :-2, :-2] + z[:, 2:, 2:] + z[:, :-2, 2:] + z[:, 2:, :-2]
    nonempty, differ = x > 0, x - four / 4
    alone, plus = nonempty & (four == 0), x + four
    return {
        "roughness": np.abs(differ).sum((1, 2)) / n,
        "roughness_squared": (differ**2 / (x + four / 4 + 1)).sum((1, 2)) / n,
        "isolated": (alone & (corners == 0)).sum((1, 2)) / n,
        "no_lit_neighbour": alone.sum((1, 2)) / n,
        "holes": (~nonempty & (four >= 2)).sum((1, 2)) / n,
        "entropy": np.log(n) - (x * np.log(np.maximum(x, 1))).sum((1, 2)) / n,
        "entropy_of_plus": np.log(n) - (plus * np.log(np.maximum(plus, 1))).sum((1, 2)) / (5 * n),
        "neighbour_geometric_mean": np.sqrt(x * four).sum((1, 2)) / n,
    }


def _cells(x: Floats, n: Floats) -> Table:
    table = {}
    for side in (2, 4, 8):
        beyond = [(0, -s % side) for s in x.shape[1:]]
        padded = np.pad(x, ((0, 0), *beyond))
        cells = padded.reshape(len(x), padded.shape[1] // side, side, padded.shape[2] // side, side).sum((2, 4))
        table[f"lit_cells_{side}"] = (cells > 0).sum((1, 2))
        table[f"hottest_cell_{side}"] = cells.max((1, 2)) / np.maximum(n, 1)
        table[f"cell_pairs_{side}"] = (cells * (cells - 1)).sum((1, 2)) / np.maximum(n * (n - 1), 1)
    return table


def _radial(x: Floats, center: Floats, hot: NDArray, n: Floats) -> Table:
    table: Table = {}
    for name, at, radii in (("center", center, (1, 2, 4, 8)), ("hottest", hot, (4, 8, 12))):
        squared = _squared(x, at)
        table |= {f"within_{r}_of_{name}": np.where(squared < r * r, x, 0).sum((1, 2)) / n for r in radii}
    return table
