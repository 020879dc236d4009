"""The Wasserstein distance between distributions of channel values, and what all channel metrics share.

The metrics of this package work on the five channel values of :meth:`calosim.detectors.Detector.channels` and share one
signature, ``update(generated, reference, pdg, primary_ids)``, so that they may live in one
:class:`torchmetrics.MetricCollection`. States are gathered across processes and then sorted, never averaged: any
number of processes, in any order, gives the value of one, bit for bit.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026),
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from calosim.detectors import Convention, Detector, get_detector
from calosim.metrics.bootstrap import Floats
from calosim.particles import groups

__all__ = [
    "VARIANTS",
    "ChannelMetric",
    "CheckerboardWasserstein",
    "Ints",
    "Variant",
    "variant_metrics",
    "wasserstein",
]


Ints = NDArray[np.int64]


def wasserstein(reference: ArrayLike, generated: ArrayLike) -> Floats:
    r"""The 1-Wasserstein distance between two empirical distributions, column by column.

    .. math:: W_1 = \int_{-\infty}^{\infty} |F(x) - \hat F(x)| \, dx

    Args:
        reference: Values with shape (N, *).
        generated: Values with shape (M, *).

    Returns:
        Distances with shape (*), in the unit of the values; NaN where a side is empty.

    Raises:
        ValueError: If a value is not finite: sorted to an end, it would look like a distance.
    """
    u, v = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    n, m = len(u), len(v)
    if not n or not m:
        return np.full(u.shape[1:], np.nan)
    values = np.concatenate([u, v])
    if not np.isfinite(values).all():
        raise ValueError("expected finite values to compare, got some that are not")
    order = np.argsort(values, axis=0)
    # Counting in integers keeps ties and the order of equal values from changing a single bit of the result.
    below = np.cumsum(order < n, axis=0)
    total = np.arange(1, n + m + 1).reshape(-1, *[1] * (values.ndim - 1))
    gaps = np.diff(np.take_along_axis(values, order, axis=0), axis=0)
    distance = np.abs(below / n - (total - below) / m)[:-1] * gaps
    # Contiguous rows sum pairwise: a running sum over 10^5 terms would lose digits.
    return np.ascontiguousarray(np.moveaxis(distance, 0, -1)).sum(axis=-1)


class ChannelMetric(Metric):
    """Gathers channel values of reference and generated responses with their particle type and primary."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    reference: list[Tensor]
    reference_keys: list[Tensor]
    generated: list[Tensor]
    generated_keys: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("reference", "reference_keys", "generated", "generated_keys"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, generated: Tensor, reference: Tensor, pdg: Tensor, primary_ids: Tensor) -> None:
        """Adds rows; every generation of a row counts once, and so does its reference.

        Args:
            generated: Channel values of the generated responses with shape (B, 5), or (B, G, 5) for G
                generations of every row.
            reference: Channel values of the Monte Carlo responses with shape (B, 5).
            pdg: PDG codes with shape (B,).
            primary_ids: Identifiers of the primaries with shape (B,); rows of the same primary share one.

        Raises:
            ValueError: If a shape is not as described, or a value is not finite.
        """
        rows = reference.shape[0] if reference.ndim == 2 else -1
        if (
            reference.shape[1:] != (5,)
            or generated.ndim not in (2, 3)
            or (generated.shape[0], generated.shape[-1]) != (rows, 5)
            or 0 in generated.shape[1:]
            or pdg.shape != (rows,)
            or primary_ids.shape != (rows,)
        ):
            raise ValueError(
                "expected generated (B, 5) or (B, G, 5), reference (B, 5), pdg (B,) and primary_ids (B,), got "
                + ", ".join(str(tuple(t.shape)) for t in (generated, reference, pdg, primary_ids))
            )
        for name, values in (("generated", generated), ("reference", reference)):
            bad = ~values.isfinite().flatten(1).all(1)
            if bad.any():
                raise ValueError(
                    f"expected finite {name} channel values, got others in row {int(torch.nonzero(bad)[0, 0])}"
                )
        generations = generated.shape[1] if generated.ndim == 3 else 1
        keys = torch.stack([pdg, primary_ids], dim=1).to(self.device, torch.int64)
        self.reference.append(reference.detach().to(self.device, torch.float64))
        self.reference_keys.append(keys)
        self.generated.append(generated.detach().to(self.device, torch.float64).reshape(-1, 5))
        self.generated_keys.append(keys.repeat_interleave(generations, dim=0))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all processes, see :meth:`torchmetrics.Metric.sync`."""
        if not self.reference:  # a process without rows must still meet the others, with the right shapes and types
            for state in (self.reference, self.generated):
                state.append(torch.zeros((0, 5), dtype=torch.float64, device=self.device))
            for state in (self.reference_keys, self.generated_keys):
                state.append(torch.zeros((0, 2), dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def _state(self, side: Literal["reference", "generated"]) -> tuple[Ints, Floats]:
        """Keys (N, 2), that is PDG code and primary, and channel values (N, 5) of one side."""
        keys, values = getattr(self, f"{side}_keys"), getattr(self, side)
        if isinstance(values, list):  # one tensor while synchronized
            if not values:
                return np.zeros((0, 2), dtype=np.int64), np.zeros((0, 5))
            keys, values = torch.cat(keys), torch.cat(values)
        return keys.cpu().numpy(), values.cpu().numpy()

    def _result(self, values: dict[str, float]) -> dict[str, Tensor]:
        """Values as tensors where the metric is."""
        return {key: torch.tensor(value, dtype=torch.float64, device=self.device) for key, value in values.items()}


class CheckerboardWasserstein(ChannelMetric):
    r"""The mean 1-Wasserstein distance between the distributions of photons in each channel.

    .. math:: \mathrm{WS} = \frac{1}{5} \sum_{i=1}^5 \int_0^1 |F_{w_i}^{-1}(z) - F_{\hat w_i}^{-1}(z)| \, dz

    :meth:`compute` returns ``all``, one value for every particle type (by name, ``gamma``) and one for every
    channel over all particles (``tower1``). A type's channels are compared within that type, so ``all`` is no
    mean of types.

    Args:
        detector: The detector, by name or as a :class:`calosim.detectors.Detector`.
        convention: The convention in which the channels were summed; it names them.
        kwargs: See :class:`torchmetrics.Metric`.

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, equation 2
    """

    def __init__(self, detector: str | Detector = "zn", convention: Convention = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channel_names = get_detector(detector).channel_names(convention)

    def compute(self) -> dict[str, Tensor]:
        """Returns the distances in photons: ``all``, each channel, each particle type."""
        reference_keys, reference = self._state("reference")
        generated_keys, generated = self._state("generated")
        values: dict[str, float] = {}
        copies = dict(groups(generated_keys[:, 0]))
        for name, rows in groups(reference_keys[:, 0]):
            distances = wasserstein(reference[rows], generated[copies[name]])
            values[name] = float(distances.mean())
            if name == "all":
                values |= {channel: float(d) for channel, d in zip(self.channel_names, distances, strict=True)}
        return self._result(values)


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
