"""Metrics as public codes compute them, so that a number of theirs can be held against ours of the same definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calosim.metrics.wasserstein import wasserstein

__all__ = ["VARIANTS", "Variant", "variant_metrics"]


@dataclass(frozen=True)
class Variant:
    """How a code computes its metrics.

    Attributes:
        source: Repository and files.
        rounded: Whether channel sums are of whole photons, or of the real numbers that a model gives.
        pooled: Whether all generations of a row count, or the first alone.
    """

    source: str
    rounded: bool
    pooled: bool

    @property
    def words(self) -> str:
        """The definition in words."""
        sums = "whole photons" if self.rounded else "channel sums not rounded"
        generations = "all generations of a row pooled" if self.pooled else "one generation of each row"
        return f"{sums}, {generations}, MAE paired row by row"


#: By the names of the repositories.
VARIANTS: dict[str, Variant] = {
    "zdc": Variant("m-wojnar/zdc, zdc/utils/train.py and wasserstein.py", rounded=False, pooled=True),
    "zdc-fast-simulations": Variant("majerzemilia/zdc-fast-simulations, test-nf.py", rounded=True, pooled=False),
}


def variant_metrics(variant: Variant, reference: NDArray, generated: NDArray) -> dict[str, float]:
    """The metrics of one run.

    The MAE compares each generated response with the very one that the Monte Carlo gave in that row. Two responses to a
    primary differ, so that the Monte Carlo itself is far from 0.

    Args:
        variant: How.
        reference: Channel values of N Monte Carlo responses with shape (N, 5).
        generated: Those of G generations of each row with shape (N, G, 5).

    Returns:
        ``ws`` and ``mae``, both means over channels in photons.
    """
    used = np.asarray(generated, dtype=np.float64)[:, : None if variant.pooled else 1]
    distances = wasserstein(reference, used.reshape(-1, used.shape[-1]))
    errors = np.abs(used - np.asarray(reference)[:, None])
    return {"ws": float(distances.mean()), "mae": float(errors.mean()) if errors.size else float("nan")}
