"""From images of real numbers to photon counts: rounded as they are, or with a given photon sum."""

from __future__ import annotations

import numpy as np

__all__ = ["rounded", "with_sum"]


def rounded(images: np.ndarray) -> np.ndarray:
    """Counts of images of real numbers that are not negative, shape (N, nx, ny), with the sums that come out."""
    return np.rint(np.nan_to_num(images)).astype(np.int64)


def with_sum(images: np.ndarray, photon_sum: np.ndarray) -> np.ndarray:
    """Counts with given sums in proportion to images of real numbers, by largest remainders.

    Pixels below half a photon, which rounding would leave dark, stay dark, or the haze of a smooth model would be lit; only
    an image that has nothing else keeps its haze, and one without any light stays dark.

    Args:
        images: Real numbers that are not negative, shape (N, nx, ny).
        photon_sum: Photons with shape (N,).

    Returns:
        Counts with shape (N, nx, ny), int64.
    """
    light = np.nan_to_num(images.reshape(len(images), -1).astype(np.float64))
    kept = np.where(light >= 0.5, light, 0.0)
    light = np.where(kept.any(1, keepdims=True), kept, light)
    total = light.sum(1, keepdims=True)
    scaled = light * np.divide(photon_sum[:, None], total, out=np.zeros_like(total), where=total > 0)
    counts = np.floor(scaled).astype(np.int64)
    missing = np.where(total[:, 0] > 0, photon_sum - counts.sum(1), 0)
    # The largest remainders get one photon more each.
    order = np.argsort(counts - scaled, axis=1, kind="stable")
    more = np.arange(light.shape[1])[None] < missing[:, None]
    np.put_along_axis(counts, order, np.take_along_axis(counts, order, 1) + more, 1)
    return counts.reshape(images.shape)
