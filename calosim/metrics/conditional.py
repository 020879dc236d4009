"""Channel metrics with a value for each primary: means, dispersion and common firing, averaged over primaries.

Rows of the same primary share an identifier; the values of the primaries are what a paired bootstrap resamples, see
:mod:`calosim.metrics.bootstrap`.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026),
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from calosim.detectors import Convention, Detector, get_detector
from calosim.metrics.bootstrap import Floats
from calosim.metrics.wasserstein import ChannelMetric, Ints
from calosim.particles import groups

__all__ = ["ConditionalMAE", "DispersionRatio", "Diversity", "JaccardError", "PerPrimary", "diversity"]


Weights = Literal["log", "count"]

#: The dispersion ratio's prior of a particle type comes from primaries with at least that many responses.
PRIOR_RESPONSES = 5


class PerPrimary(NamedTuple):
    """A metric's value for every primary, in the order of PDG code and primary.

    Attributes:
        primary_id: Identifiers of the primaries with shape (K,).
        pdg: Their PDG codes with shape (K,).
        weight: Their weights in the mean with shape (K,).
        value: The metric with shape (K,).
    """

    primary_id: Ints
    pdg: Ints
    weight: Floats
    value: Floats


class _Side(NamedTuple):
    """Channel values (N, 5) ordered by primary; primary k has counts[k] rows from starts[k] on."""

    pdg: Ints
    primary_id: Ints
    values: Floats
    starts: Ints
    counts: Ints

    def sums(self, values: NDArray) -> NDArray:
        """Sums rows (N, *) over the responses of each primary: (K, *)."""
        return np.add.reduceat(values, self.starts) if len(values) else values

    def sort(self, values: Floats) -> Floats:
        """Sorts every column of (N, 5) within each primary; that makes later sums independent of row order."""
        group = np.repeat(np.arange(len(self.counts)), self.counts)
        columns = [column[np.lexsort((column, group))] for column in values.T]
        return np.stack(columns, axis=1) if columns else values

    def medians(self, values: Floats) -> Floats:
        """The median of (N, 5) over the responses of each primary: (K, 5)."""
        ordered = self.sort(values)
        return (ordered[self.starts + (self.counts - 1) // 2] + ordered[self.starts + self.counts // 2]) / 2

    def mad(self) -> Floats:
        """The median absolute deviation of each primary and channel: (K, 5)."""
        medians = np.repeat(self.medians(self.values), self.counts, axis=0)
        return self.medians(np.abs(self.values - medians))


def _by_primary(keys: Ints, values: Floats) -> _Side:
    """Orders keys (N, 2), PDG code and primary, and channel values (N, 5) by primary."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys = keys[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(keys)))
    return _Side(keys[starts, 0], keys[starts, 1], values[order], starts, counts)


def _primary_weights(responses: Ints, weights: Weights) -> Floats:
    """The weights (K,) of primaries with that many responses (K,)."""
    return np.log1p(responses) if weights == "log" else responses.astype(np.float64)


def _weighted_mean(values: Floats, weights: Floats) -> float:
    """The mean of (K,) with weights (K,); NaN without any weight."""
    total = weights.sum()
    return float((weights * values).sum() / total) if total > 0 else float("nan")


def _weighted_median(values: Floats, weights: Floats) -> Floats:
    """The weighted median of (K, C) over K; the plain median where all weights are equal."""
    order = np.argsort(values, axis=0)
    share = np.cumsum(weights[order], axis=0)
    share /= share[-1:]
    # Half the weight, up to rounding: there the median lies midway between two values.
    ends = (np.argmax(share >= 0.5 - 1e-12, axis=0), np.argmax(share > 0.5 + 1e-12, axis=0))
    ordered = np.take_along_axis(values, order, axis=0)
    return sum(np.take_along_axis(ordered, end[None], axis=0)[0] for end in ends) / 2


class _ConditionalMetric(ChannelMetric):
    r"""A metric with one value for each primary, and their weighted mean.

    Args:
        weights: The weight of a primary with :math:`n` reference responses: ``log`` for :math:`\log(1 + n)`,
            as published, or ``count`` for :math:`n`.
        kwargs: See :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the weights are unknown.
    """

    def __init__(self, weights: Weights = "log", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if weights not in ("log", "count"):
            raise ValueError(f"unknown weights {weights!r}; expected log or count")
        self.weights = weights

    def _values(self, reference: _Side, generated: _Side, weight: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """The value of every primary (K,), and which of them count (K,)."""
        raise NotImplementedError

    def _per_primary(self) -> PerPrimary:
        reference, generated = _by_primary(*self._state("reference")), _by_primary(*self._state("generated"))
        weight = _primary_weights(reference.counts, self.weights)
        if not len(weight):
            return PerPrimary(reference.primary_id, reference.pdg, weight, weight)
        value, kept = self._values(reference, generated, weight)
        return PerPrimary(reference.primary_id[kept], reference.pdg[kept], weight[kept], value[kept])

    def per_primary(self) -> PerPrimary:
        """Returns the value of every primary, gathered from all processes, for the bootstrap."""
        with self.sync_context():
            return self._per_primary()

    def compute(self) -> dict[str, Tensor]:
        """Returns the weighted mean over primaries: ``all``, and one for each particle type present."""
        result = self._per_primary()
        # A type may be there without a primary that counts.
        kept, none = dict(groups(result.pdg)), np.zeros(len(result.pdg), dtype=bool)
        values = {}
        for name, _ in groups(self._state("reference")[0][:, 0]):
            rows = kept.get(name, none)
            values[name] = _weighted_mean(result.value[rows], result.weight[rows])
        return self._result(values)


class ConditionalMAE(_ConditionalMetric):
    r"""The conditional mean absolute error of mean channel values, weighted over primaries.

    .. math:: \mathrm{MAE}_\mathrm{cond} = \frac{1}{\sum_k p_k} \sum_k p_k
        \frac{1}{5} \sum_{i=1}^5 \left| \overline{w_i^k} - \overline{\hat w_i^k} \right|

    With ``weights="count"`` this is our reading of :math:`\mathrm{MAE}_w` of earlier work.

    Args:
        weights: ``log`` for :math:`p_k = \log(1 + n_k)`, ``count`` for :math:`p_k = n_k` reference responses.
        kwargs: See :class:`torchmetrics.Metric`.

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, equation 3
        | Inverse Autoregressive Flows for ZDC fast simulation (Majerz et al., 2025),
          https://arxiv.org/abs/2512.20346
    """

    def _values(self, reference: _Side, generated: _Side, weight: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        means = [side.sums(side.sort(side.values)) / side.counts[:, None] for side in (reference, generated)]
        return np.abs(means[0] - means[1]).mean(axis=1), np.ones(len(weight), dtype=bool)


class DispersionRatio(_ConditionalMetric):
    r"""How much the spread of the responses to one primary differs, from 0 (equal) to 1.

    For primary :math:`u` and channel :math:`c`, with :math:`R` the channel values of its responses,

    .. math::
        \mathrm{MAD}_{u,c} &= \mathrm{median}_i |R_{u,c}^i - \mathrm{median}_j R_{u,c}^j| \\
        \widetilde{\mathrm{MAD}}_{u,c} &= \alpha_u \mathrm{MAD}_{u,c} +
        (1 - \alpha_u) \mathrm{MAD}_{\mathrm{particle},c}
        \qquad \alpha_u = \frac{N_u}{N_u + \kappa} \\
        \delta_{u,c} &= \frac{|\widetilde{\mathrm{MAD}}^\mathrm{gen} - \widetilde{\mathrm{MAD}}^\mathrm{ref}|}
        {\widetilde{\mathrm{MAD}}^\mathrm{gen} + \widetilde{\mathrm{MAD}}^\mathrm{ref} + \tau}

    averaged over channels, then over primaries by weight. What the publication leaves open is settled as follows.
    :math:`N_u` is the number of *reference* responses on both sides, so that several generations a row do not
    shrink the two sides differently; :math:`\kappa` is the 10th percentile (linear interpolation) of
    :math:`N_u` over all primaries of the particle type. :math:`\mathrm{MAD}_\mathrm{particle}` is the median
    over the reference primaries of the type with at least 5 responses, weighted as the mean is; a type without
    such a primary takes all its primaries with at least 2. Primaries with fewer than 2 responses on either
    side are left out.

    Args:
        weights: ``log`` for :math:`\log(1 + N_u)`, ``count`` for :math:`N_u`.
        tau: :math:`\tau`, in photons; it only decides that 0 against 0 is 0.
        kwargs: See :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If tau is not positive, or the weights are unknown.

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, equations 4-6
    """

    def __init__(self, weights: Weights = "log", tau: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(weights, **kwargs)
        if not tau > 0:
            raise ValueError(f"expected a positive tau, got {tau}")
        self.tau = tau

    def _values(self, reference: _Side, generated: _Side, weight: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        responses = reference.counts
        kept = (responses >= 2) & (generated.counts >= 2)
        mad, prior, kappa = reference.mad(), np.zeros((len(weight), 5)), np.zeros(len(weight))
        for code in np.unique(reference.pdg[kept]):
            rows = reference.pdg == code
            kappa[rows] = np.percentile(responses[rows], 10)
            known = rows & (responses >= PRIOR_RESPONSES)
            known = known if known.any() else rows & (responses >= 2)
            prior[rows] = _weighted_median(mad[known], weight[known])
        alpha = (responses / (responses + kappa))[:, None]
        shrunk_reference, shrunk_generated = (alpha * m + (1 - alpha) * prior for m in (mad, generated.mad()))
        difference = np.abs(shrunk_generated - shrunk_reference)
        return (difference / (shrunk_generated + shrunk_reference + self.tau)).mean(axis=1), kept


class JaccardError(_ConditionalMetric):
    r"""How differently neighbouring channels fire together, from 0 (equal) to 1.

    For the responses to primary :math:`u` and each of the :math:`P` pairs of neighbouring channels,
    :math:`J` is the number of responses with light in both channels over that with light in either, 1 if both
    are always dark:

    .. math:: \mathrm{JaccErr}_u = \frac{1}{P} \sum_\mathrm{pairs} |J_u^\mathrm{gen} - J_u^\mathrm{ref}|

    Args:
        detector: The detector, by name or as a :class:`calosim.detectors.Detector`; its
            :meth:`~calosim.detectors.Detector.channel_neighbors` are the pairs.
        convention: The convention in which the channels were summed.
        weights: ``log`` for :math:`\log(1 + n)`, ``count`` for :math:`n` reference responses.
        kwargs: See :class:`torchmetrics.Metric`.

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, equations 7-8
    """

    def __init__(
        self,
        detector: str | Detector = "zn",
        convention: Convention = "paper",
        weights: Weights = "log",
        **kwargs: Any,
    ) -> None:
        super().__init__(weights, **kwargs)
        self.neighbors = get_detector(detector).channel_neighbors(convention)

    def _values(self, reference: _Side, generated: _Side, weight: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        first, second = np.array(self.neighbors).T
        indices = []
        for side in (reference, generated):
            hit = side.values > 0
            both = side.sums((hit[:, first] & hit[:, second]).astype(np.int64))
            either = side.sums((hit[:, first] | hit[:, second]).astype(np.int64))
            indices.append(np.where(either > 0, both / np.maximum(either, 1), 1.0))
        return np.abs(indices[0] - indices[1]).mean(axis=1), np.ones(len(weight), dtype=bool)


class Diversity(NamedTuple):
    """The diversity of every primary, in the order of its identifier.

    Attributes:
        primary_id: Identifiers of the primaries with shape (K,).
        responses: The number of responses to each with shape (K,).
        value: The diversity with shape (K,), in photons, or in [0, 1] if normalized.
    """

    primary_id: NDArray
    responses: Ints
    value: Floats


def diversity(
    images: NDArray, primary_ids: ArrayLike, normalized: bool = False, quantile: float = 1.0, chunk: int = 2048
) -> Diversity:
    r"""How much the responses to the same primary differ.

    .. math:: f_\mathrm{div}(c) = \sum_{ij} \sqrt{\frac{1}{|X_c|} \sum_{t \in X_c} (x_{ij}^t - \mu_{ij})^2}

    Images are read in chunks of rows, so that a memory-mapped file of any length fits; rows of one primary may be
    anywhere. A primary with a single response has diversity 0.

    Args:
        images: Photon counts with shape (N, nx, ny), also memory-mapped.
        primary_ids: Identifiers of the primaries with shape (N,).
        normalized: Scale the values to [0, 1] by their minimum and maximum over primaries, as published.
        quantile: The quantile of the values over primaries that is scaled to 1, with everything above it clipped
            there. The published scale is 1, the maximum. A single artefact of 10^5 photons then sets the
            scale and presses all other primaries to 0: choose 0.99 or so for data that may hold such rows.
        chunk: Rows read at a time; memory is about ``80 * chunk * nx * ny`` bytes at worst.

    Returns:
        The diversity of each primary.

    Raises:
        ValueError: If the numbers of images and identifiers differ, or the quantile is outside (0, 1].

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, equation 1
        | SDI-GAN: Selectively Increasing Diversity of Simulations (Dubinski et al., 2023)
    """
    primary_ids = np.asarray(primary_ids)
    if len(images) != len(primary_ids) or not 0 < quantile <= 1:
        raise ValueError(
            f"expected as many identifiers of primaries as images and a quantile in (0, 1], got {len(images)} images, "
            f"{len(primary_ids)} identifiers and quantile {quantile}"
        )
    ids, group, counts = np.unique(primary_ids, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    pixels = int(np.prod(images.shape[1:]))
    value = np.zeros(len(ids))
    carry: Floats = np.zeros((2, pixels))  # sums of a primary that spans two chunks
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
        # An unfinished last primary gets a value here that the next chunk overwrites.
        n = counts[low : high + 1, None]
        variance = (sums[1] - sums[0] ** 2 / n) / n
        value[low : high + 1] = np.sqrt(np.maximum(variance, 0)).sum(axis=1)
    return Diversity(ids, counts, _scaled(value, quantile) if normalized and len(value) else value)


def _scaled(values: Floats, quantile: float) -> Floats:
    """Values (K,) scaled so that their minimum is 0 and that quantile of them 1, clipped there."""
    low, high = values.min(), np.quantile(values, quantile)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
