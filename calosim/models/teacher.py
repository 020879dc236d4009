"""The teacher: a conditional masked autoregressive flow of a shower's image, trained by exact maximum likelihood."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from calosim.flows import FlowConfig
from calosim.models.shower import FlowModel
from calosim.representations import RepresentationConfig, SplitConfig, from_plain

__all__ = ["Teacher"]

#: Never changed.
SPLITS = SplitConfig()


class Teacher(FlowModel):
    r"""Masked autoregressive flow :math:`p(x \mid \text{primary}, N)` over a representation of images.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        flow: Size and shape of a flow of points, as of pixels; those of splits are among the representation's settings.
        representation: What is modeled of an image.
        physics: Whether log-energy and the spot of a straight flight join the context.
        optimizer: From parameters to an optimizer; Adam with learning rate 1e-4 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.

    References:
        | majerzemilia/zdc-fast-simulations (the reference training)
        | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.1,
          https://arxiv.org/abs/2608.12795
    """

    loss_name = "negative log-likelihood"

    def __init__(
        self,
        detector: str = "zn",
        flow: FlowConfig | None = None,
        representation: RepresentationConfig = SPLITS,
        physics: bool = True,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        settings = from_plain(representation)
        super().__init__(detector, settings.flow_settings(flow), settings, physics, optimizer, scheduler)

    def loss(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """The negative log-likelihood, see :meth:`ShowerModel.loss`."""
        return -self.log_likelihood(batch, step)
