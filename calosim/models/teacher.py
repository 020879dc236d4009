"""The teacher: a conditional masked autoregressive flow of the shower's shape, trained by exact maximum likelihood."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from calosim.flows import FlowConfig
from calosim.models.shower import ShowerModel
from calosim.representations import RepresentationConfig, SplitConfig, from_plain

__all__ = ["Teacher"]

#: Never changed.
COORDINATES = SplitConfig()


class Teacher(ShowerModel):
    r"""Masked autoregressive flow :math:`p(x \mid \text{primary}, N)` over coordinates of the shape.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        flow: Size and shape of a flow of points (pixel coordinates); those of split coordinates are among their settings.
        representation: What is modeled of an image.
        physics: Whether log-energy and the spot of a straight flight join the context.
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
        flow: FlowConfig | None = None,
        representation: RepresentationConfig = COORDINATES,
        physics: bool = True,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        settings = from_plain(representation)
        flow = settings.flow_settings(flow)
        super().__init__(detector, flow, settings, physics, optimizer, scheduler)
        self.flow = self.representation.flow(self.features.width, flow)
        self.val_nll = MeanMetric()

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Minimizes the negative log-likelihood in nats."""
        loss = self.finite(-self.log_likelihood(batch, self.global_step), batch).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["rows"]), sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log-likelihood over all rows of all processes."""
        self.val_nll.update(self.finite(-self.log_likelihood(batch), batch))
        self.log("val/loss", self.val_nll, prog_bar=True)
