r"""How well generated responses agree with the Monte Carlo: channel metrics, diversity, paired bootstrap.

All four metrics work on the five channel values of :meth:`calosim.detectors.Detector.channels` and share one
signature, ``update(generated, reference, particle, input)``, so that they live in one
:class:`torchmetrics.MetricCollection` (see :func:`channel_metrics`). States are gathered across processes and
then sorted, never averaged: any number of processes, in any order, gives the value of one, bit for bit.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026),
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from calosim.detectors import Convention, Detector, get_detector
from calosim.particles import particle_name

__all__ = [
    "Bootstrap",
    "CheckerboardWasserstein",
    "ConditionalMAE",
    "DispersionRatio",
    "Diversity",
    "JaccardError",
    "PerInput",
    "channel_metrics",
    "contrast",
    "diversity",
    "particle_diversity",
    "resample",
    "resampled_mean",
    "resampled_wasserstein",
    "wasserstein",
]

Weights = Literal["log", "count"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The particle-level prior of the dispersion ratio comes from inputs with at least that many responses.
PRIOR_RESPONSES = 5


def wasserstein(reference: ArrayLike, generated: ArrayLike) -> Floats:
    r"""The 1-Wasserstein distance between two empirical distributions, column by column.

    .. math:: W_1 = \int_{-\infty}^{\infty} |F(x) - \hat F(x)| \, dx

    Args:
        reference: Values with shape (N, *).
        generated: Values with shape (M, *).

    Returns:
        Distances with shape (*), in the unit of the values; NaN where a side is empty.
    """
    u, v = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    n, m = len(u), len(v)
    if not n or not m:
        return np.full(u.shape[1:], np.nan)
    values = np.concatenate([u, v])
    order = np.argsort(values, axis=0)
    # Counting in integers keeps ties and the order of equal values from changing a single bit of the result.
    below = np.cumsum(order < n, axis=0)
    total = np.arange(1, n + m + 1).reshape(-1, *[1] * (values.ndim - 1))
    gaps = np.diff(np.take_along_axis(values, order, axis=0), axis=0)
    distance = np.abs(below / n - (total - below) / m)[:-1] * gaps
    # Contiguous rows sum pairwise: a running sum over 10^5 terms would lose digits.
    return np.ascontiguousarray(np.moveaxis(distance, 0, -1)).sum(axis=-1)


class PerInput(NamedTuple):
    """A metric's value for every unique input, in the order of particle type and input.

    Attributes:
        input: Identifiers of the unique inputs with shape (K,).
        particle: Their PDG codes with shape (K,).
        weight: Their weights in the mean with shape (K,).
        value: The metric with shape (K,).
    """

    input: Ints
    particle: Ints
    weight: Floats
    value: Floats


class _Side(NamedTuple):
    """Channel values (N, 5) ordered by unique input; input k has counts[k] rows from starts[k] on."""

    particle: Ints
    input: Ints
    values: Floats
    starts: Ints
    counts: Ints

    def sums(self, values: NDArray) -> NDArray:
        """Sums rows (N, *) over the responses of each input: (K, *)."""
        return np.add.reduceat(values, self.starts) if len(values) else values

    def sort(self, values: Floats) -> Floats:
        """Sorts every column of (N, 5) within each input; that makes later sums independent of row order."""
        group = np.repeat(np.arange(len(self.counts)), self.counts)
        columns = [column[np.lexsort((column, group))] for column in values.T]
        return np.stack(columns, axis=1) if columns else values

    def medians(self, values: Floats) -> Floats:
        """The median of (N, 5) over the responses of each input: (K, 5)."""
        ordered = self.sort(values)
        return (ordered[self.starts + (self.counts - 1) // 2] + ordered[self.starts + self.counts // 2]) / 2

    def mad(self) -> Floats:
        """The median absolute deviation of each input and channel: (K, 5)."""
        medians = np.repeat(self.medians(self.values), self.counts, axis=0)
        return self.medians(np.abs(self.values - medians))


def _by_input(keys: Ints, values: Floats) -> _Side:
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys = keys[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(keys)))
    return _Side(keys[starts, 0], keys[starts, 1], values[order], starts, counts)


def _input_weights(responses: Ints, weights: Weights) -> Floats:
    return np.log1p(responses) if weights == "log" else responses.astype(np.float64)


def _weighted_mean(values: Floats, weights: Floats) -> float:
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


class _ChannelMetric(Metric):
    """Gathers channel values of reference and generated responses with their particle type and input."""

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

    def update(self, generated: Tensor, reference: Tensor, particle: Tensor, input: Tensor) -> None:
        """Adds rows; every generation of a row counts once, and so does its reference.

        Args:
            generated: Channel values of the generated responses with shape (B, 5), or (B, G, 5) for G
                generations of every row.
            reference: Channel values of the Monte Carlo responses with shape (B, 5).
            particle: PDG codes with shape (B,).
            input: Identifiers of the unique inputs with shape (B,); rows of the same primary share one.

        Raises:
            ValueError: If a shape is not as described.
        """
        rows = reference.shape[0] if reference.ndim == 2 else -1
        if (
            reference.shape[1:] != (5,)
            or generated.ndim not in (2, 3)
            or (generated.shape[0], generated.shape[-1]) != (rows, 5)
            or 0 in generated.shape[1:]
            or particle.shape != (rows,)
            or input.shape != (rows,)
        ):
            raise ValueError(
                "expected generated (B, 5) or (B, G, 5), reference (B, 5), particle (B,) and input (B,), got "
                + ", ".join(str(tuple(t.shape)) for t in (generated, reference, particle, input))
            )
        generations = generated.shape[1] if generated.ndim == 3 else 1
        keys = torch.stack([particle, input], dim=1).to(self.device, torch.int64)
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
        """Keys (N, 2), that is particle and input, and channel values (N, 5) of one side."""
        keys, values = getattr(self, f"{side}_keys"), getattr(self, side)
        if isinstance(values, list):  # one tensor while synchronized
            if not values:
                return np.zeros((0, 2), dtype=np.int64), np.zeros((0, 5))
            keys, values = torch.cat(keys), torch.cat(values)
        return keys.cpu().numpy(), values.cpu().numpy()

    def _result(self, values: dict[str, float]) -> dict[str, Tensor]:
        return {key: torch.tensor(value, dtype=torch.float64, device=self.device) for key, value in values.items()}


class CheckerboardWasserstein(_ChannelMetric):
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
        channels = wasserstein(reference, generated)
        values = {"all": float(channels.mean())}
        values |= {name: float(value) for name, value in zip(self.channel_names, channels, strict=True)}
        for pdg in np.unique(reference_keys[:, 0]):
            rows, copies = reference_keys[:, 0] == pdg, generated_keys[:, 0] == pdg
            values[particle_name(int(pdg))] = float(wasserstein(reference[rows], generated[copies]).mean())
        return self._result(values)


class _ConditionalMetric(_ChannelMetric):
    r"""A metric with one value for each unique input, and their weighted mean.

    Args:
        weights: The weight of an input with :math:`n` reference responses: ``log`` for :math:`\log(1 + n)`,
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
        """The value of every input (K,), and which of them count (K,)."""
        raise NotImplementedError

    def _per_input(self) -> PerInput:
        reference, generated = _by_input(*self._state("reference")), _by_input(*self._state("generated"))
        weight = _input_weights(reference.counts, self.weights)
        if not len(weight):
            return PerInput(reference.input, reference.particle, weight, weight)
        value, kept = self._values(reference, generated, weight)
        return PerInput(reference.input[kept], reference.particle[kept], weight[kept], value[kept])

    def per_input(self) -> PerInput:
        """Returns the value of every unique input, gathered from all processes, for :func:`bootstrap`."""
        with self.sync_context():
            return self._per_input()

    def compute(self) -> dict[str, Tensor]:
        """Returns the weighted mean over inputs: ``all``, and one for each particle type present."""
        result = self._per_input()
        values = {"all": _weighted_mean(result.value, result.weight)}
        for pdg in np.unique(self._state("reference")[0][:, 0]):
            rows = result.particle == pdg
            values[particle_name(int(pdg))] = _weighted_mean(result.value[rows], result.weight[rows])
        return self._result(values)


class ConditionalMAE(_ConditionalMetric):
    r"""The conditional mean absolute error of mean channel values, weighted over unique inputs.

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
    r"""How much the spread of the responses to one input differs, from 0 (equal) to 1.

    For unique input :math:`u` and channel :math:`c`, with :math:`R` the channel values of its responses,

    .. math::
        \mathrm{MAD}_{u,c} &= \mathrm{median}_i |R_{u,c}^i - \mathrm{median}_j R_{u,c}^j| \\
        \widetilde{\mathrm{MAD}}_{u,c} &= \alpha_u \mathrm{MAD}_{u,c} +
        (1 - \alpha_u) \mathrm{MAD}_{\mathrm{particle},c}
        \qquad \alpha_u = \frac{N_u}{N_u + \kappa} \\
        \delta_{u,c} &= \frac{|\widetilde{\mathrm{MAD}}^\mathrm{gen} - \widetilde{\mathrm{MAD}}^\mathrm{ref}|}
        {\widetilde{\mathrm{MAD}}^\mathrm{gen} + \widetilde{\mathrm{MAD}}^\mathrm{ref} + \tau}

    averaged over channels, then over inputs by weight. What the publication leaves open is settled as follows.
    :math:`N_u` is the number of *reference* responses on both sides, so that several generations a row do not
    shrink the two sides differently; :math:`\kappa` is the 10th percentile (linear interpolation) of
    :math:`N_u` over all inputs of the particle type. :math:`\mathrm{MAD}_\mathrm{particle}` is the median
    over the reference inputs of the type with at least 5 responses, weighted as the mean is; a type without
    such an input takes all its inputs with at least 2. Inputs with fewer than 2 responses on either side are
    left out.

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
        for pdg in np.unique(reference.particle[kept]):
            rows = reference.particle == pdg
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

    For the responses to unique input :math:`u` and each of the :math:`P` pairs of neighbouring channels,
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


def channel_metrics(detector: str | Detector = "zn", convention: Convention = "paper") -> MetricCollection:
    """Returns the published metrics, ready to update together.

    Args:
        detector: The detector, by name or as a :class:`calosim.detectors.Detector`.
        convention: The convention in which the channels are summed.

    Returns:
        A collection of ``ws``, ``mae_cond`` (logarithmic weights), ``mae_w`` (weighted by responses),
        ``delta`` and ``jacc``. Its ``compute()`` joins names with an underscore: ``ws_all``, ``ws_tower1``,
        ``delta_gamma``.
    """
    return MetricCollection(
        {
            "ws": CheckerboardWasserstein(detector, convention),
            "mae_cond": ConditionalMAE("log"),
            "mae_w": ConditionalMAE("count"),
            "delta": DispersionRatio(),
            "jacc": JaccardError(detector, convention),
        }
    )


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
        groups = group[rows]
        low, high = int(groups.min()), int(groups.max())
        block = np.asarray(images[rows]).reshape(-1)
        # Almost all pixels are dark: adding up the others only is several times faster.
        lit = np.flatnonzero(block)
        cell = (groups - low)[lit // pixels] * pixels + lit % pixels
        light = block[lit].astype(np.float64)
        sums: Floats = np.stack(
            [np.bincount(cell, w, (high - low + 1) * pixels).reshape(-1, pixels) for w in (light, light**2)]
        )
        if carried == low:
            sums[:, 0] += carry
        carry, carried = sums[:, -1].copy(), high
        # An unfinished last input gets a value here that the next chunk overwrites.
        n = counts[low : high + 1, None]
        variance = (sums[1] - sums[0] ** 2 / n) / n
        value[low : high + 1] = np.sqrt(np.maximum(variance, 0)).sum(axis=1)
    if normalized and len(value):
        lowest, highest = value.min(), np.quantile(value, quantile)
        value = np.clip((value - lowest) / (highest - lowest), 0, 1) if highest > lowest else np.zeros_like(value)
    return Diversity(ids, counts, value)


def particle_diversity(
    images: NDArray, inputs: ArrayLike, particle: ArrayLike, quantile: float = 1.0
) -> dict[str, float]:
    """The normalized diversity of each particle type: the mean over its inputs, weighted by responses.

    Args:
        images: Photon counts with shape (N, nx, ny), also memory-mapped.
        inputs: Identifiers of the unique inputs with shape (N,).
        particle: PDG codes with shape (N,).
        quantile: See :func:`diversity`.

    Returns:
        Values in [0, 1] by the name of the particle type.

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, table 2
    """
    _, responses, value = diversity(images, inputs, normalized=True, quantile=quantile)
    pdg = np.asarray(particle)[np.unique(np.asarray(inputs), return_index=True)[1]]
    return {
        particle_name(int(code)): _weighted_mean(value[pdg == code], responses[pdg == code].astype(np.float64))
        for code in np.unique(pdg)
    }


class Bootstrap(NamedTuple):
    """A paired comparison of two models, lower being better.

    Attributes:
        difference: The metric of the first model minus that of the second.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end of it.
        p_value: Two-sided; at least two in the number of resamples, which cannot tell less.
        share: Fraction of resamples in favour of the first model, ties counted half.
    """

    difference: float
    low: float
    high: float
    p_value: float
    share: float


def resample(inputs: int, resamples: int = 10_000, seed: int = 0) -> NDArray[np.float32]:
    """How often each unique input occurs in each bootstrap resample.

    Models are compared on the same resamples: that is what makes a comparison paired.

    Args:
        inputs: The number of unique inputs K, all drawn with the same probability, with replacement.
        resamples: The number of resamples R.
        seed: Seed of the resampling.

    Returns:
        Counts with shape (R, K), each row summing to K; float32, ready for matrix products.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(inputs, np.full(inputs, 1 / max(inputs, 1)), size=resamples).astype(np.float32)


def resampled_mean(values: ArrayLike, weights: ArrayLike, counts: NDArray[np.float32]) -> Floats:
    """The weighted mean over unique inputs in every resample.

    Args:
        values: The metric of each input with shape (K,), see :meth:`ConditionalMAE.per_input`; averaged over runs.
        weights: Weights of the inputs with shape (K,); 0 for those the metric leaves out.
        counts: From :func:`resample`, with shape (R, K).

    Returns:
        Means with shape (R,); NaN for a resample without any weight.
    """
    value, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if not value.shape == weight.shape == counts.shape[1:]:
        raise ValueError(
            f"expected values, weights and counts of K inputs, got {value.shape}, {weight.shape}, {counts.shape}"
        )
    total = counts @ weight
    return np.divide(counts @ (weight * value), total, out=np.full(len(total), np.nan), where=total > 0)


def resampled_wasserstein(
    reference: NDArray, generated: NDArray, group: NDArray, counts: NDArray[np.float32], chunk: int = 512
) -> Floats:
    r"""The mean channel Wasserstein distance in every resample of unique inputs.

    The distance is the area between two distribution functions. Each is a sum over inputs, so that those of all
    resamples are one matrix product, and the area is exact since both are constant between the values that occur.

    Args:
        reference: Channel values of N Monte Carlo responses, with shape (N, 5).
        generated: Channel values of G generations of each, with shape (N, G, 5).
        group: The unique input of each row, 0 to K - 1, with shape (N,).
        counts: From :func:`resample`, with shape (R, K).
        chunk: Resamples at a time, a matter of memory.

    Returns:
        Distances in photons with shape (R,), those of :func:`wasserstein` up to float32.
    """
    inputs, generations = counts.shape[1], generated.shape[1]
    rows = counts @ np.bincount(group, minlength=inputs).astype(np.float32)
    result = np.zeros(len(counts))
    for channel in range(reference.shape[1]):
        values, place = np.unique(
            np.concatenate([reference[:, channel], generated[:, :, channel].ravel()]), return_inverse=True
        )
        if len(values) < 2:
            continue
        cells = np.concatenate([group, np.repeat(group, generations)]) * len(values) + place.ravel()
        signs = np.concatenate([np.ones(len(group)), np.full(len(group) * generations, -1 / generations)])
        difference = np.bincount(cells, signs, inputs * len(values)).reshape(inputs, -1).cumsum(axis=1)
        difference, gaps = difference[:, :-1].astype(np.float32), np.diff(values).astype(np.float32)
        for begin in range(0, len(counts), chunk):
            part = slice(begin, begin + chunk)
            result[part] += np.abs(counts[part] @ difference) @ gaps
    return result / rows / reference.shape[1]


def contrast(first: float, second: float, firsts: Floats, seconds: Floats) -> Bootstrap:
    """Compares two models, lower being better.

    Args:
        first: The metric of the first model.
        second: The metric of the second model.
        firsts: The first model's metric in every resample, with shape (R,).
        seconds: The second model's, in the same resamples.

    Returns:
        The comparison; NaN where there is nothing to compare.

    References:
        | Majerz et al. (2026), https://arxiv.org/abs/2608.12795, table 4
    """
    differences = firsts - seconds
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Bootstrap(*[float("nan")] * 5)
    low, high = np.quantile(differences, [0.025, 0.975])
    below, equal = (differences < 0).mean(), (differences == 0).mean()
    p_value = min(1.0, max(2 * min(below + equal, 1 - below), 2 / len(differences)))
    return Bootstrap(first - second, float(low), float(high), float(p_value), float(below + equal / 2))
