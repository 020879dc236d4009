r"""The photon sum of a response: a Bayesian network with a Gaussian head, as published, or a mixture density head.

Decays and secondaries give the sums of Lambda, K0S and Sigma+ several modes, which a Gaussian cannot make; the default
head is therefore a mixture of Gaussians of :math:`\log N`, each truncated below the smallest sum of the training split.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), sections 3.1 and 4.2: the photon
      sum is the bottleneck of the two-stage model, https://arxiv.org/abs/2608.12795
    | Mixture Density Networks (Bishop, 1994)
    | Weight Uncertainty in Neural Networks (Blundell et al., 2015), https://arxiv.org/abs/1505.05424
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric
from zuko.bayesian import BayesianModel

from calosim import draws
from calosim.models.base import CalosimModule, evaluating, step_keys
from calosim.shapes.features import FeatureScaler

__all__ = ["PhotonSum"]

#: Bounds of the standard deviations of the heads, in units of the standardized target.
MIN_SCALE, MAX_LOG_SCALE = 1e-2, 5.0


class PhotonSum(CalosimModule):
    r"""Bayesian network for :math:`p(N \mid \text{primary})`.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        head: ``mixture``: mixture density on the log of the sum; ``gaussian``: mean and width of the sum itself.
        components: Components of the mixture.
        hidden: Widths of the hidden layers.
        physics: Whether log-energy and the straight-flight spot join the nine features.
        prior_scale: Standard deviation of the weights' Gaussian prior.
        posterior_samples: Networks drawn from the posterior for sampling and prediction; every row uses one of them.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.
    """

    center: Tensor
    spread: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        detector: str = "zn",
        head: Literal["mixture", "gaussian"] = "mixture",
        components: int = 8,
        hidden: tuple[int, ...] = (128, 128, 128),
        physics: bool = True,
        prior_scale: float = 1.0,
        posterior_samples: int = 16,
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
            prior_scale=prior_scale,
            posterior_samples=posterior_samples,
        )
        if head not in ("mixture", "gaussian"):
            raise ValueError(f"unknown head {head!r}; expected mixture or gaussian")
        self.head, self.components = head, components
        self.prior_scale, self.posterior_samples = prior_scale, posterior_samples
        self.features = FeatureScaler(self.detector, physics=physics)
        outputs = 3 * components if head == "mixture" else 2
        widths = [self.features.width, *hidden]
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), nn.SiLU()]
        last = nn.Linear(widths[-1], outputs)
        if head == "mixture":
            # Components start spread over the range of sums; equal starts would stay equal.
            with torch.no_grad():
                last.bias[components : 2 * components].copy_(torch.linspace(-1.5, 1.5, components))
        self.bayes = BayesianModel(nn.Sequential(*layers, last))
        # The wrapper's means replace these; left trainable, DDP would wait for gradients that never come.
        self.bayes.base.requires_grad_(False)
        self.register_buffer("center", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))
        self.register_buffer("lower", torch.tensor(0.0))
        self.register_buffer("upper", torch.tensor(math.inf))
        self.val_nll = MeanMetric()
        self.test_nll = MeanMetric()
        self._networks: dict[int, list[nn.Module]] = {}
        self.register_load_state_dict_post_hook(_forget_networks)

    def setup(self, stage: str) -> None:
        """Fits the standardizations on the training split, unless a checkpoint brought them."""
        if stage != "fit" or bool(self.features.fitted):
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = data.rows("train")
        total = torch.from_numpy(data.arrays["photon_sum"][rows])
        self.features.fit(torch.from_numpy(data.arrays["particles"][rows]))
        self.lower.fill_(total.min())
        self.upper.fill_(total.max())
        target = total.double().log() if self.head == "mixture" else total.double()
        # Quartiles, not moments: one artefact of a hundred thousand photons must not set the scale.
        low, middle, high = np.quantile(target.numpy(), [0.25, 0.5, 0.75])
        self.center.fill_(middle)
        self.spread.fill_(max((high - low) / 1.349, 1e-3))

    # -- the two heads ------------------------------------------------------------------------------------------------

    def _edge(self) -> Tensor:
        """Half a photon below the smallest sum, as a standardized target."""
        return ((self.lower - 0.5).clamp(min=0.5).log() - self.center) / self.spread

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and standard deviations of the components, each (B, K)."""
        if self.head == "gaussian":
            mean, log_scale = outputs.chunk(2, dim=1)
            return torch.zeros_like(mean), mean, MIN_SCALE + log_scale.clamp(max=MAX_LOG_SCALE).exp()
        weight, mean, log_scale = outputs.chunk(3, dim=1)
        return weight.log_softmax(1), mean, MIN_SCALE + log_scale.clamp(max=MAX_LOG_SCALE).exp()

    def log_density(self, outputs: Tensor, photon_sum: Tensor, jitter: Tensor) -> Tensor:
        """Log-density of the photon sums, in nats.

        Args:
            outputs: The network's outputs with shape (B, outputs).
            photon_sum: Photons with shape (B,).
            jitter: Uniform numbers in (0, 1) with shape (B,), which spread each integer over its unit interval.

        Returns:
            Log-density per photon with shape (B,), comparable between heads.
        """
        log_weight, mean, scale = self._split(outputs)
        noisy = photon_sum.to(outputs) + jitter - 0.5
        if self.head == "gaussian":
            target, volume = (noisy - self.center) / self.spread, self.spread.log()
        else:
            noisy = noisy.clamp(min=0.5)
            target, volume = (noisy.log() - self.center) / self.spread, self.spread.log() + noisy.log()
        z = (target[:, None] - mean) / scale
        log_prob = log_weight - z.square() / 2 - scale.log() - math.log(2 * math.pi) / 2
        if self.head == "mixture":
            log_prob = log_prob - torch.special.log_ndtr((mean - self._edge()) / scale)
        return log_prob.logsumexp(1) - volume

    def draw(self, outputs: Tensor, numbers: Tensor) -> Tensor:
        """Photon sums from the head's distribution.

        Args:
            outputs: The network's outputs with shape (B, outputs).
            numbers: Uniform numbers in (0, 1) with shape (B, 2).

        Returns:
            Photon counts with shape (B,), int64, up to the largest sum of the training split and not below the smallest
            (``mixture``) or 0 (``gaussian``).
        """
        log_weight, mean, scale = self._split(outputs)
        cumulative = log_weight.exp().cumsum(1)
        chosen = (numbers[:, :1] * cumulative[:, -1:] > cumulative).sum(1, keepdim=True).clamp(max=mean.shape[1] - 1)
        mean, scale = mean.gather(1, chosen)[:, 0], scale.gather(1, chosen)[:, 0]
        u = numbers[:, 1]
        if self.head == "gaussian":
            total = self.center + self.spread * (mean + scale * torch.special.ndtri(u))
        else:
            # Upper tail probability of the truncated component, by symmetry, where ndtri keeps its digits.
            tail = torch.special.ndtr((mean - self._edge()) / scale) * u
            y = mean - scale * torch.special.ndtri(tail.clamp(min=1e-300))
            total = (self.center + self.spread * y).exp()
        # Far in the tail of a truncated component, rounding alone would fall below its edge.
        lowest = self.lower if self.head == "mixture" else torch.zeros_like(self.lower)
        return total.round().clamp(lowest.to(total), self.upper.to(total)).to(torch.int64)

    def moment(self, outputs: Tensor, power: Literal[1, 2] = 1) -> Tensor:
        r"""A moment of the head's distribution, in closed form and differentiable.

        The rounding to integers is left out; the bounds at the smallest and largest sum of the training split are not.
        For a component :math:`\log N \sim \mathcal{N}(\mu, \tau^2)` above the edge :math:`\log a`, clamped at :math:`u`,

        .. math:: E[N^p] = \frac{e^{p \mu + p^2 \tau^2 / 2} \left[\Phi(\beta - p \tau) - \Phi(\alpha - p \tau)\right]
                  + u^p \, \Phi(-\beta)}{\Phi(-\alpha)}, \quad
                  \alpha = \frac{\log a - \mu}{\tau}, \; \beta = \frac{\log u - \mu}{\tau}.

        Args:
            outputs: The network's outputs with shape (B, outputs).
            power: 1 for the mean, 2 for the mean square.

        Returns:
            :math:`E[N^p]` in photons or photons squared, with shape (B,).
        """
        log_weight, mean, scale = self._split(outputs)
        center, spread, upper = (b.to(outputs) for b in (self.center, self.spread, self.upper))
        mu, tau = center + spread * mean, spread * scale
        if self.head == "gaussian":
            alpha, beta = -mu / tau, (upper - mu) / tau
            inside, beyond = torch.special.ndtr(beta) - torch.special.ndtr(alpha), torch.special.ndtr(-beta)
            low, high = ((-z.square() / 2).exp() / math.sqrt(2 * math.pi) for z in (alpha, beta))
            if power == 1:
                return (mu * inside + tau * (low - high) + upper * beyond)[:, 0]
            square = (mu.square() + tau.square()) * inside + tau * (mu * low - (mu + upper) * high)
            return (square + upper.square() * beyond)[:, 0]
        alpha, beta = (self._edge() - mean) / scale, (upper.log() - mu) / tau
        a, b = alpha - power * tau, beta - power * tau
        # In logs and in the nearer tail: far components have weights of 1e-300 and exponentials of 1e+300.
        larger = torch.special.log_ndtr(torch.where(a > 0, -a, b))
        smaller = torch.special.log_ndtr(torch.where(a > 0, -b, a))
        inside = power * mu + power**2 * tau.square() / 2 + larger + (-torch.expm1(smaller - larger)).log()
        clamped = power * upper.log() + torch.special.log_ndtr(-beta)
        return (log_weight + torch.logaddexp(inside, clamped) - torch.special.log_ndtr(-alpha)).exp().sum(1)

    # -- training -----------------------------------------------------------------------------------------------------

    def _log_likelihood(self, network: nn.Module, features: Tensor, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        jitter = draws.uniform(step_keys(batch["rows"], draws.NOISE_STREAM, step), 1)[:, 0]
        return self.log_density(network(features), batch["images"].flatten(1).sum(1), jitter)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Minimizes the negative evidence lower bound per row."""
        with self.bayes.reparameterize(local_trick=True) as network:
            nll = -self._log_likelihood(network, self.features(batch["particles"]), batch, self.global_step).mean()
        rows = len(self.trainer.datamodule.rows("train"))  # type: ignore[attr-defined]
        kl = self.bayes.kl_divergence(self.prior_scale**2) / rows
        self.log_dict({"train/nll": nll, "train/kl": kl}, batch_size=len(batch["rows"]))
        self.log("train/loss", nll + kl, prog_bar=True, batch_size=len(batch["rows"]))
        return nll + kl

    def on_train_epoch_start(self) -> None:
        """Forgets networks drawn from an older posterior."""
        self._networks.clear()

    def _evaluation_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Negative log of the posterior predictive density, shape (B,)."""
        features = self.features(batch["particles"]).double()
        logs = torch.stack([self._log_likelihood(n, features, batch) for n in self.networks(0)])
        return math.log(len(logs)) - logs.logsumexp(0)

    def on_validation_epoch_start(self) -> None:
        """Draws the networks of this epoch's posterior."""
        self._networks.clear()

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log predictive density over all rows of all processes."""
        self.val_nll.update(self._evaluation_step(batch))
        self.log("val/loss", self.val_nll, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log predictive density of the test split."""
        self.test_nll.update(self._evaluation_step(batch))
        self.log("test/loss", self.test_nll)

    # -- inference ----------------------------------------------------------------------------------------------------

    def networks(self, seed: int) -> list[nn.Module]:
        """Networks drawn from the posterior, in float64; the same for the same seed, and global random state stays untouched.

        Args:
            seed: Seed of the weights.
        """
        if seed not in self._networks:
            self._networks.clear()
            device = self.center.device
            # Lightning evaluates in inference mode; what is kept must be usable outside of it.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.random.fork_rng([device] if device.type == "cuda" else []),
            ):
                torch.manual_seed(seed)
                self._networks[seed] = [self.bayes.sample_model().double() for _ in range(self.posterior_samples)]
        return self._networks[seed]

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
            keys = draws.row_keys(rows, draws.PHOTON_STREAM, seed)
            numbers = draws.uniform(keys, 3).double()
            features = self.features(particles).double()
            networks = self.networks(seed)
            chosen = (numbers[:, 2] * len(networks)).long()
            total = torch.empty(len(rows), dtype=torch.int64, device=particles.device)
            for k, network in enumerate(networks):
                mine = chosen == k
                if mine.any():
                    total[mine] = self.draw(network(features[mine]), numbers[mine, :2])
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
            keys = draws.row_keys(rows, draws.PHOTON_STREAM, seed)
            numbers = draws.uniform(keys, 2 * len(networks) * each).double().view(len(rows), len(networks), each, 2)
            outputs = [network(features) for network in networks]
            samples = [
                self.draw(o.repeat_interleave(each, 0), n.reshape(-1, 2)).view(len(rows), each)
                for o, n in zip(outputs, numbers.unbind(1), strict=True)
            ]
            first = torch.stack([self.moment(o, 1) for o in outputs], 1)
            second = torch.stack([self.moment(o, 2) for o in outputs], 1)
            aleatoric = (second - first.square()).clamp(min=0).mean(1)
            return torch.cat(samples, 1), aleatoric, first.var(1, correction=0)

    def predict_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws one photon sum per row."""
        return {"photon_sum": self.sample(batch["particles"], 0, batch["rows"]), "rows": batch["rows"]}


def _forget_networks(module: PhotonSum, incompatible_keys: object) -> None:
    """Networks drawn from a posterior that was replaced by a checkpoint's, as by ``test`` after ``fit``."""
    module._networks.clear()
