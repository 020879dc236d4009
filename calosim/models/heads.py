r"""Distributions of the photon sum given a network's outputs: the exact mass of an integer, draws, and moments.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.1: the Gaussian head,
      https://arxiv.org/abs/2608.12795
    | PixelCNN++: discretized logistic mixture likelihood (Salimans et al., 2017), https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from calosim.flows import mixture

__all__ = ["HEADS", "MIN_SCALE", "GaussianHead", "Head", "MixtureHead", "build_head"]

#: Bounds of the Gaussian's standard deviation, in units of the standardized photon sum.
MIN_SCALE, MAX_LOG_SCALE = 1e-2, 5.0

#: The light yield of the capacity: this quantile of photons per GeV, so that a few artefacts do not matter, times a margin.
YIELD_QUANTILE, YIELD_MARGIN = 0.999, 1.1

#: Only responses of at least that many photons tell the yield; fewer fluctuate too much.
YIELD_PHOTONS = 100

#: Points of the quadrature over a component.
_POINTS = 32


class Head(nn.Module, ABC):
    """A distribution of integers N whose parameters are the outputs of a network.

    Attributes:
        name: What it is called in settings and tables.
        outputs: How many outputs the network has.
        numbers: How many uniform numbers a draw takes.
    """

    name: str
    outputs: int
    numbers: int

    @abstractmethod
    def fit(self, photon_sum: Tensor, energy: Tensor) -> None:
        """Fits bounds and scales on the training split.

        Args:
            photon_sum: Photons with shape (N,), int64.
            energy: Energies of the primaries in GeV with shape (N,).
        """

    def initial_bias(self) -> Tensor | None:
        """The outputs to start from with shape (outputs,), if any will not do."""
        return None

    @abstractmethod
    def log_prob(self, outputs: Tensor, energy: Tensor, photon_sum: Tensor) -> Tensor:
        """Log-probability of the photon sums.

        Args:
            outputs: With shape (*, B, outputs).
            energy: In GeV with shape (B,).
            photon_sum: Photons with shape (B,).

        Returns:
            Nats per response with shape (*, B), comparable between heads.
        """

    @abstractmethod
    def draw(self, outputs: Tensor, energy: Tensor, numbers: Tensor) -> Tensor:
        """Photon sums, by inverting distribution functions.

        Args:
            outputs: With shape (B, outputs).
            energy: In GeV with shape (B,).
            numbers: Uniform numbers in (0, 1) with shape (B, numbers).

        Returns:
            Photon counts with shape (B,), int64.
        """

    @abstractmethod
    def moment(self, outputs: Tensor, energy: Tensor, power: Literal[1, 2] = 1) -> Tensor:
        """A moment of the distribution, differentiable; artefacts are left out.

        Args:
            outputs: With shape (B, outputs).
            energy: In GeV with shape (B,).
            power: 1 for the mean, 2 for the mean square.

        Returns:
            Photons or photons squared, with shape (B,).
        """


class MixtureHead(Head):
    r"""A discretized mixture of logistic distributions on a range that the energy bounds, and beside it the artefacts.

    A primary of energy E leaves at most a capacity of :math:`C(E) = \lceil y E + 6 \sqrt{y E} \rceil + 20` photons, y being
    the largest light yield in the training split (six standard deviations of counting above it). Of the :math:`n = C - a` photons
    above the smallest sum a, the response has :math:`k = N - a`, with the exact mass of :mod:`calosim.flows.mixture`: it sums to
    one and has no tail to invent photons.

    What is beyond the capacity is an artefact, with a weight w of its own and the scale-free distribution
    :math:`P(N \geq m) = (C + 1) / m`. The two supports are disjoint, so that the likelihood's best w is the share of artefacts in
    the training split. Drawn artefacts are never larger than the largest one seen there, and none is drawn if none was seen.

    Args:
        components: Components K of the mixture.
    """

    lower: Tensor
    upper: Tensor
    light_yield: Tensor
    weight: Tensor

    name, numbers = "mixture", 3

    def __init__(self, components: int = 8):
        super().__init__()
        self.components, self.outputs = components, 3 * components
        self.register_buffer("lower", torch.tensor(0.0))
        self.register_buffer("upper", torch.tensor(0.0))
        self.register_buffer("light_yield", torch.tensor(1.0))
        self.register_buffer("weight", torch.tensor(1e-6))

    def initial_bias(self) -> Tensor:
        """Components spread over the range of sums; equal starts would stay equal."""
        bias = mixture.initial_bias(1, self.components).view(3, self.components)
        bias[1] += torch.linspace(-4.0, 2.0, self.components)
        return bias.flatten()

    def fit(self, photon_sum: Tensor, energy: Tensor) -> None:
        """Takes the smallest sum, the light yield and the share of artefacts from the training split."""
        total, energy = photon_sum.double(), energy.double()
        bright = total >= min(YIELD_PHOTONS, float(total.median()))
        per_energy = (total / energy)[bright].numpy()
        self.lower.fill_(total.min())
        self.light_yield.fill_(YIELD_MARGIN * float(np.quantile(per_energy, YIELD_QUANTILE)))
        beyond = total > self.capacity(energy)
        self.upper.fill_(total[beyond].max() if beyond.any() else 0.0)
        # Half a row more: another split may have an artefact where this one has none.
        self.weight.fill_((float(beyond.sum()) + 0.5) / (len(total) + 1))

    def capacity(self, energy: Tensor) -> Tensor:
        """The most photons that a response may have without being an artefact, int64."""
        return self._smooth_capacity(energy).ceil().to(torch.int64)

    def _smooth_capacity(self, energy: Tensor) -> Tensor:
        expected = self.light_yield.double() * energy.double()
        # Not below the smallest sum, which is that of a response after all.
        return torch.maximum(expected + 6 * expected.sqrt() + 20, self.lower.double())

    def log_prob(self, outputs: Tensor, energy: Tensor, photon_sum: Tensor) -> Tensor:
        """The exact log-mass; sums below the smallest of the training split count as the smallest."""
        capacity = self.capacity(energy)
        n = capacity - self.lower.to(torch.int64)
        k = (photon_sum.to(torch.int64) - self.lower.to(torch.int64)).clamp(min=0)
        shape = outputs.shape[:-1]
        usual = mixture.log_mass(torch.minimum(k, n).expand(shape), n.expand(shape), outputs)
        total = photon_sum.to(outputs).clamp(min=1)
        artefact = (capacity + 1).to(outputs).log() - total.log() - (total + 1).log()
        weight = self.weight.to(outputs)
        return torch.where(k <= n, usual + torch.log1p(-weight), artefact + weight.log())

    def draw(self, outputs: Tensor, energy: Tensor, numbers: Tensor) -> Tensor:
        """Photon sums from the smallest of the training split to the capacity, or artefacts up to the largest."""
        capacity, lower = self.capacity(energy), self.lower.to(torch.int64)
        usual = lower + mixture.draw(numbers[:, 0], torch.logit(numbers[:, 1]), capacity - lower, outputs)
        share = numbers[:, 2] / self.weight
        artefact = torch.minimum((capacity + 1) / share.clamp(min=1e-9), self.upper.to(share)).to(torch.int64)
        return torch.where((share < 1) & (artefact > capacity), artefact, usual)

    def moment(self, outputs: Tensor, energy: Tensor, power: Literal[1, 2] = 1) -> Tensor:
        r"""By quadrature over each component's quantiles.

        :math:`k = \lfloor t \rfloor` with :math:`t = v (n + 1)` is on average :math:`t - 1/2`, but 0 where t is small.
        """
        logits, location, log_scale = mixture.unpack(outputs)
        nodes, weights = (torch.from_numpy(a).to(outputs) for a in np.polynomial.legendre.leggauss(_POINTS))
        steps = torch.logit((nodes + 1) / 2)
        v = torch.sigmoid(location[..., None] + log_scale.exp()[..., None] * steps)
        smooth = self._smooth_capacity(energy)
        # The value of the whole number, the gradient of the real one.
        n = (smooth + (smooth.ceil() - smooth).detach() - self.lower.double()).to(outputs)
        total = self.lower.to(outputs) + torch.relu(v * (n + 1)[:, None, None] - 0.5)
        # Not a matrix product, whose sums depend on how many rows there are.
        return (logits.softmax(-1) * (total.pow(power) * (weights / 2)).sum(-1)).sum(-1)


class GaussianHead(Head):
    """The published head: mean and width of the sum itself, bounded by 0 and the largest sum of the training split.

    Its probability of an integer is its density there.
    """

    center: Tensor
    spread: Tensor
    upper: Tensor

    name, outputs, numbers = "gaussian", 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))
        self.register_buffer("upper", torch.tensor(math.inf))

    def fit(self, photon_sum: Tensor, energy: Tensor) -> None:
        """Takes center and spread from the training split."""
        # Quartiles, not moments: one artefact of a hundred thousand photons must not set the scale.
        low, middle, high = np.quantile(photon_sum.double().numpy(), [0.25, 0.5, 0.75])
        self.center.fill_(middle)
        self.spread.fill_(max((high - low) / 1.349, 1e-3))
        self.upper.fill_(photon_sum.max())

    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in photons, each (*,), of outputs (*, 2)."""
        mean, log_scale = outputs.unbind(-1)
        scale = MIN_SCALE + log_scale.clamp(max=MAX_LOG_SCALE).exp()
        return self.center + self.spread * mean, self.spread * scale

    def log_prob(self, outputs: Tensor, energy: Tensor, photon_sum: Tensor) -> Tensor:
        """The log-density."""
        mean, width = self.parameters_of(outputs)
        z = (photon_sum.to(outputs) - mean) / width
        return -z.square() / 2 - width.log() - math.log(2 * math.pi) / 2

    def draw(self, outputs: Tensor, energy: Tensor, numbers: Tensor) -> Tensor:
        """Rounded photon sums from 0 to the largest of the training split."""
        mean, width = self.parameters_of(outputs)
        total = mean + width * torch.special.ndtri(numbers[:, 0])
        return total.round().clamp(torch.zeros_like(self.upper).to(total), self.upper.to(total)).to(torch.int64)

    def moment(self, outputs: Tensor, energy: Tensor, power: Literal[1, 2] = 1) -> Tensor:
        r"""In closed form, what lies beyond the bounds being at them; the rounding is left out."""
        mu, tau = self.parameters_of(outputs)
        upper = self.upper.to(outputs)
        alpha, beta = -mu / tau, (upper - mu) / tau
        inside, beyond = torch.special.ndtr(beta) - torch.special.ndtr(alpha), torch.special.ndtr(-beta)
        low, high = ((-z.square() / 2).exp() / math.sqrt(2 * math.pi) for z in (alpha, beta))
        if power == 1:
            return mu * inside + tau * (low - high) + upper * beyond
        square = (mu.square() + tau.square()) * inside + tau * (mu * low - (mu + upper) * high)
        return square + upper.square() * beyond


HEADS = ("mixture", "gaussian")


def build_head(name: str, components: int) -> Head:
    """The head of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; expected {' or '.join(HEADS)}")
    return MixtureHead(components) if name == "mixture" else GaussianHead()
