"""Fine-tuning: a trained model goes on learning, such as from one particle type, and stays a model of its kind."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from calosim.detectors import get_detector
from calosim.models.shower import ShowerModel

__all__ = ["FineTune"]


class FineTune(ShowerModel):
    """A shower model that starts from a trained one of its kind, the baseline: what is made is of the baseline's class.

    The baseline gives architecture, weights and standardizations; which rows are learned from is the data module's
    matter (``--data.particle lambda``), and which part of the model learns when that of a callback. Checkpoints are those
    of the baseline's class: they need neither this one nor the baseline to be loaded.

    A run that is resumed reads the baseline again, and then its own state over it.

    Args:
        init_from: Run folder or checkpoint of the baseline.
        detector: The detector's name; on the command line it follows ``--data.detector``.
        dropout: Dropout probability in the conditioners of a flow of points; the baseline's if None.
        optimizer: From parameters to an optimizer; Adam with learning rate 1e-4 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.

    Raises:
        ValueError: If there is no such baseline, it is of another detector, or has no dropout to set.

    References:
        Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
    """

    def __new__(  # type: ignore[misc]
        cls,
        init_from: str | Path,
        detector: str = "zn",
        dropout: float | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ) -> ShowerModel:
        """The baseline, about to learn."""
        baseline = ShowerModel.load(init_from)
        wanted, kind = get_detector(detector), type(baseline)
        if baseline.detector != wanted:
            raise ValueError(
                f"{init_from}: expected a baseline of {wanted.title}, got one of {baseline.detector.title}"
            )
        init = {**baseline.init}
        if dropout is not None:
            if not init.get("flow"):
                raise ValueError(
                    f"{init_from}: expected a baseline with dropout to set it, got a {kind.__name__} without"
                )
            init["flow"] = {**init["flow"], "dropout": dropout}
        model = kind(**init, optimizer=optimizer, scheduler=scheduler)
        model.load_state_dict(baseline.state_dict())
        model.ancestors, model.seen_before = baseline.lineage, baseline.seen
        return model
