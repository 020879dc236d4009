"""The photon sum of a response: networks of the primary with a mixture head, or as published: Bayesian, with a Gaussian head.

Decays and secondaries give the sums of Lambda, K0S and Sigma+ several modes, which a Gaussian cannot make.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.1: the Gaussian head, and
      section 4.2: the photon sum is the bottleneck of the two-stage model, https://arxiv.org/abs/2608.12795
    | PixelCNN++: discretized logistic mixture likelihood (Salimans et al., 2017), https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from calosim import rng
from calosim.flows import mixture
from calosim.models.base import CalosimModule, evaluating
from calosim.models.uncertainty import MASS, SPOT, BayesianNetworks, Ensemble, PiecewiseLinear
from calosim.representations.features import FeatureScaler

__all__ = ["HEADS", "MIN_SCALE", "GaussianHead", "Head", "MixtureHead", "PhotonSum", "build_head"]


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


class PhotonSum(CalosimModule):
    r"""Networks for :math:`p(N \mid \text{primary})`.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        head: ``mixture``: exact mass of the integer under a discretized mixture; ``gaussian``: mean and width of the sum.
        components: Components of the mixture.
        hidden: Widths of the hidden layers.
        physics: Whether log-energy and the straight-flight spot join the nine features.
        bins: Bins of the mass and the spot, see :class:`~calosim.models.uncertainty.PiecewiseLinear`; 0 for none.
        posterior: ``ensemble``: networks from other random weights; ``bayesian``: networks with Gaussian weights.
        members: Networks of the ensemble, or networks drawn from the Bayesian posterior; every row uses one of them.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.
    """

    #: What batches need not hold.
    with_images = False

    loss_name, loss_unit = "negative log-likelihood", "nats"

    def __init__(
        self,
        detector: str = "zn",
        head: Literal["mixture", "gaussian"] = "mixture",
        components: int = 8,
        hidden: tuple[int, ...] = (128, 128, 128),
        physics: bool = True,
        bins: int = 64,
        posterior: Literal["ensemble", "bayesian"] = "ensemble",
        members: int = 4,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(
            detector,
            optimizer,
            scheduler,
            head=head,
            components=components,
            hidden=list(hidden),
            physics=physics,
            bins=bins,
            posterior=posterior,
            members=members,
        )
        if posterior not in ("ensemble", "bayesian") or bins < 0:
            raise ValueError(
                f"expected a posterior ensemble or bayesian and at least 0 bins, got {posterior!r} and {bins}"
            )
        self.head, self.members = build_head(head, components), members
        self.features = FeatureScaler(self.detector, physics=physics)
        columns = (MASS, *(SPOT if physics else ())) if bins else ()
        self.encoding = PiecewiseLinear(self.features.width, columns, bins)
        widths = (self.encoding.width, *hidden, self.head.outputs)
        self.posterior = Ensemble(widths, members) if posterior == "ensemble" else BayesianNetworks(widths)
        for member in range(self.posterior.members):
            if (start := self.head.initial_bias()) is not None:
                self.posterior.start_from(member, start)
        self._networks: dict[int, list[nn.Module]] = {}
        self.register_load_state_dict_post_hook(_forget_networks)

    def setup(self, stage: str) -> None:
        """Fits standardizations, bins and the head's bounds on the training split, unless a checkpoint brought them."""
        super().setup(stage)
        if stage != "fit" or bool(self.features.fitted):
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = data.rows("train")
        particles = torch.from_numpy(data.arrays["particles"][rows])
        self.features.fit(particles)
        self.encoding.fit(self.features(particles))
        self.head.fit(torch.from_numpy(data.arrays["photon_sum"][rows]), particles[:, 0])

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Minimizes the negative log-likelihood per row, of a Bayesian posterior the negative evidence lower bound."""
        outputs = self.posterior(self.encoding(self.features(batch["particles"])))
        losses = -self.head.log_prob(outputs, batch["particles"][:, 0], batch["photon_sum"])
        nll = self.finite(losses, batch).mean()
        rows = len(self.trainer.datamodule.rows("train"))  # type: ignore[attr-defined]
        kl = self.posterior.penalty() / rows
        self.log_dict({"train/nll": nll, "train/kl": kl}, batch_size=len(batch["rows"]), sync_dist=True)
        self.log("train/loss", nll + kl, prog_bar=True, batch_size=len(batch["rows"]), sync_dist=True)
        return nll + kl

    def on_train_epoch_start(self) -> None:
        """Forgets networks drawn from an older posterior."""
        self._networks.clear()

    def loss(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """What is evaluated: the negative log of the predictive probability, the mean over the networks, shape (B,)."""
        features, energy = self.features(batch["particles"]).double(), batch["particles"][:, 0]
        total = batch["photon_sum"]
        logs = torch.stack([self.head.log_prob(network(features), energy, total) for network in self.networks(0)])
        return math.log(len(logs)) - logs.logsumexp(0)

    def on_validation_epoch_start(self) -> None:
        """Draws the networks of this epoch's posterior."""
        self._networks.clear()

    # -- inference ----------------------------------------------------------------------------------------------------

    def networks(self, seed: int) -> list[nn.Module]:
        """The networks from standardized features to the head's outputs, in float64, global random state untouched.

        Args:
            seed: Seed of the weights, of a Bayesian posterior; the same for the same seed.
        """
        if seed not in self._networks:
            self._networks.clear()
            device = self.features.mean.device
            # Lightning evaluates in inference mode; what is kept must be usable outside of it. Devices have generators of
            # their own: the same networks everywhere are those of the CPU's.
            with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng([]):
                torch.random.default_generator.manual_seed(seed)
                drawn = copy.deepcopy(self.posterior).cpu().draw(self.members)
                networks = [nn.Sequential(copy.deepcopy(self.encoding).cpu(), n).double() for n in drawn]
                self._networks[seed] = [network.to(device) for network in networks]
        return self._networks[seed]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PhotonSum:
        # Networks stay where the weights that they were drawn from have been.
        self._networks.clear()
        return super()._apply(fn, recurse)

    def sample(self, particles: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Draws one photon sum per row from the posterior predictive.

        Each row uses one network of the posterior. In float64, so that a row's sum does not depend on the rows computed
        beside it.

        Args:
            particles: Features with shape (B, 9).
            seed: Seed of the draws.
            rows: Row numbers with shape (B,), int64; with the seed they key the draws.

        Returns:
            Photon counts with shape (B,), int64.
        """
        with evaluating(self):
            keys = rng.row_keys(rows, rng.PHOTON_STREAM, seed)
            numbers = rng.uniform(keys, 1 + self.head.numbers).double()
            features, energy = self.features(particles).double(), particles[:, 0].float()
            networks = self.networks(seed)
            chosen = (numbers[:, -1] * len(networks)).long()
            total = torch.empty_like(rows)
            for k, network in enumerate(networks):
                mine = chosen == k
                total[mine] = self.head.draw(network(features[mine]), energy[mine], numbers[mine, :-1])
            return total

    def predictive(self, particles: Tensor, seed: int, rows: Tensor, each: int = 32) -> tuple[Tensor, Tensor, Tensor]:
        r"""Samples of the posterior predictive, and its variance in two parts.

        By the law of total variance over networks :math:`k` of the posterior,

        .. math:: \operatorname{Var} N = \underbrace{E_k \operatorname{Var}(N \mid k)}_{\text{aleatoric}}
                  + \underbrace{\operatorname{Var}_k E(N \mid k)}_{\text{epistemic}}.

        Args:
            particles: Features with shape (B, 9).
            seed: Seed of networks and draws.
            rows: Row numbers with shape (B,), int64; with the seed they key the draws.
            each: Samples from each of the K networks.

        Returns:
            Photon counts with shape (B, K * each), int64; aleatoric and epistemic variance in photons squared, each (B,).
        """
        with evaluating(self):
            networks, features = self.networks(seed), self.features(particles).double()
            energy, several = particles[:, 0].float(), self.head.numbers
            keys = rng.row_keys(rows, rng.PHOTON_STREAM, seed)
            numbers = rng.uniform(keys, several * len(networks) * each).double()
            outputs = [network(features) for network in networks]
            samples = [
                self.head.draw(
                    o.repeat_interleave(each, 0), energy.repeat_interleave(each), n.reshape(-1, several)
                ).view(len(rows), each)
                for o, n in zip(outputs, numbers.view(len(rows), len(networks), each, several).unbind(1), strict=True)
            ]
            first = torch.stack([self.head.moment(o, energy, 1) for o in outputs], 1)
            second = torch.stack([self.head.moment(o, energy, 2) for o in outputs], 1)
            aleatoric = (second - first.square()).clamp(min=0).mean(1)
            return torch.cat(samples, 1), aleatoric, first.var(1, correction=0)

    def predict_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws one photon sum per row."""
        return {"photon_sum": self.sample(batch["particles"], 0, batch["rows"]), "rows": batch["rows"]}


def _forget_networks(module: PhotonSum, incompatible_keys: object) -> None:
    """Networks drawn from a posterior that was replaced by a checkpoint's, as by ``test`` after ``fit``."""
    module._networks.clear()
