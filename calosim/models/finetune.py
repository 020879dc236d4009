"""Fine-tuning: a trained teacher goes on learning from one particle type, and stays an ordinary teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from calosim.detectors import get_detector
from calosim.models.teacher import Teacher

__all__ = ["FineTune"]


class FineTune(Teacher):
    """A teacher that starts from a trained one, the baseline.

    The baseline gives architecture, weights and standardizations; which rows are learned from is the data module's
    matter (``--data.particle lambda``), and which part of the flow learns when that of a callback. Checkpoints are those
    of a :class:`~calosim.models.teacher.Teacher`: they need neither this class nor the baseline to be loaded.

    A run that is resumed reads the baseline again, and then its own state over it.

    Args:
        init_from: Run folder or checkpoint of the baseline.
        detector: The detector's name; on the command line it follows ``--data.detector``.
        dropout: Dropout probability in the conditioners; the baseline's if None.
        optimizer: From parameters to an optimizer; Adam with learning rate 1e-4 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.

    Raises:
        ValueError: If there is no such baseline, or it is of another detector.

    References:
        Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
    """

    def __init__(
        self,
        init_from: str | Path,
        detector: str = "zn",
        dropout: float | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        baseline = Teacher.load(init_from)
        wanted = get_detector(detector)
        if baseline.detector != wanted:
            raise ValueError(
                f"{init_from}: expected a baseline of {wanted.title}, got one of {baseline.detector.title}"
            )
        init = {**baseline.init}
        if dropout is not None:
            init["flow"] = {**init["flow"], "dropout": dropout}
        super().__init__(**init, optimizer=optimizer, scheduler=scheduler)
        self.load_state_dict(baseline.state_dict())
        self.ancestors, self.seen_before = baseline.lineage, baseline.seen

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes a teacher's checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["calosim"]["class"] = Teacher.__name__
