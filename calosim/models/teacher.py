"""The teacher: a conditional masked autoregressive flow of the shower's shape, trained by exact maximum likelihood."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from calosim.flows import maf
from calosim.flows.build import Permutation
from calosim.models.shape import ShapeModule

__all__ = ["Teacher"]


class Teacher(ShapeModule):
    r"""Masked autoregressive flow :math:`p(x \mid \text{primary}, N)` over the logits of the shape.

    Defaults are the published recipe but for the pixel orders, raster and reversed: four transforms, rational-quadratic
    splines with 8 bins on [-14, 14], hidden layers of 1452 units, dropout 0.05.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        transforms: Number of autoregressive transforms.
        hidden: Widths of the hidden layers.
        bins: Bins of the splines; 0 for an affine flow.
        bound: The splines act on [-bound, bound].
        dropout: Dropout probability in the conditioners.
        permutation: How pixel orders follow each other: ``alternate`` (reversal and random permutation in turn, as
            published), ``reverse`` (raster order and its reversal) or ``random``.
        context_share: Share of hidden units that see the primary and the photon sum only, and are seen by all pixels.
        noise: Width of the dequantization noise in photons.
        alpha: Squeezing of the shape before the logit.
        standardize: Whether logits are standardized per pixel.
        physics: Whether log-energy and the spot of a straight flight join the context.
        flow_seed: Seed of the random permutations.
        optimizer: From parameters to an optimizer; Adam with learning rate 1e-4 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.

    References:
        | majerzemilia/zdc-fast-simulations (the reference training)
        | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.1,
          https://arxiv.org/abs/2608.12795
    """

    def __init__(
        self,
        detector: str = "zn",
        transforms: int = 4,
        hidden: tuple[int, ...] = (1452, 1452),
        bins: int = 8,
        bound: float = 14.0,
        dropout: float = 0.05,
        permutation: Permutation = "reverse",
        context_share: float = 0.0,
        noise: float = 0.5,
        alpha: float = 1e-6,
        standardize: bool = True,
        physics: bool = True,
        flow_seed: int = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(
            detector,
            optimizer,
            scheduler,
            noise=noise,
            alpha=alpha,
            standardize=standardize,
            physics=physics,
            transforms=transforms,
            hidden=list(hidden),
            bins=bins,
            bound=bound,
            dropout=dropout,
            permutation=permutation,
            context_share=context_share,
            flow_seed=flow_seed,
        )
        self.flow = maf(
            self.detector.pixels,
            self.features.width,
            transforms=transforms,
            hidden=tuple(hidden),
            bins=bins,
            bound=bound,
            dropout=dropout,
            permutation=permutation,
            context_share=context_share,
            seed=flow_seed,
        )
        self.val_nll = MeanMetric()

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Minimizes the negative log-likelihood in nats per pixel."""
        loss = -self.log_likelihood(batch, self.global_step).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["rows"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log-likelihood over all rows of all processes."""
        self.val_nll.update(-self.log_likelihood(batch))
        self.log("val/loss", self.val_nll, prog_bar=True)
