r"""The photon sum of a response: networks of the primary with a mixture head, or as published: Bayesian, with a Gaussian head.

Decays and secondaries give the sums of Lambda, K0S and Sigma+ several modes, which a Gaussian cannot make; the heads are in
:mod:`calosim.models.heads`.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), sections 3.1 and 4.2: the photon
      sum is the bottleneck of the two-stage model, https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from calosim import rng
from calosim.models.base import CalosimModule, evaluating
from calosim.models.heads import build_head
from calosim.models.uncertainty import MASS, SPOT, BayesianNetworks, Ensemble, PiecewiseLinear
from calosim.representations.features import FeatureScaler

__all__ = ["PhotonSum"]


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
        if posterior not in ("ensemble", "bayesian") or members < 1 or bins < 0:
            raise ValueError(
                "expected a posterior ensemble or bayesian, at least 1 member and at least 0 bins, "
                f"got {posterior!r}, {members} and {bins}"
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
        self.val_nll = MeanMetric()
        self.test_nll = MeanMetric()
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

    def _evaluation_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Negative log of the predictive probability, the mean over the networks, shape (B,)."""
        features, energy = self.features(batch["particles"]).double(), batch["particles"][:, 0]
        total = batch["photon_sum"]
        logs = torch.stack([self.head.log_prob(network(features), energy, total) for network in self.networks(0)])
        return math.log(len(logs)) - logs.logsumexp(0)

    def on_validation_epoch_start(self) -> None:
        """Draws the networks of this epoch's posterior."""
        self._networks.clear()

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log predictive probability over all rows of all processes."""
        self.val_nll.update(self.finite(self._evaluation_step(batch), batch))
        self.log("val/loss", self.val_nll, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log predictive probability of the test split."""
        self.test_nll.update(self.finite(self._evaluation_step(batch), batch))
        self.log("test/loss", self.test_nll)

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
