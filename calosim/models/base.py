"""What all calosim LightningModules share: optimizers, row-keyed training draws, self-describing checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from calosim import draws
from calosim.detectors import get_detector
from calosim.models.schedules import WarmupCosine
from calosim.runs import FORMAT

__all__ = ["CalosimModule", "evaluating", "fit_sample", "step_keys"]

#: Rows of the training split that fit the standardization; beyond this the means no longer move.
FIT_ROWS = 20_000


class evaluating:
    """Puts a module in evaluation mode without gradients, and back as it was."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __enter__(self) -> None:
        self.modes = [(m, m.training) for m in self.module.modules()]
        self.module.eval()
        self.guard = torch.no_grad()
        self.guard.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.guard.__exit__(*error)
        for module, mode in self.modes:
            module.training = mode


def step_keys(rows: Tensor, stream: int, step: int) -> Tensor:
    """Keys of what is drawn for rows in a training step: by row, step and the seed of the training.

    Args:
        rows: Row numbers with shape (B,).
        stream: One of the streams of :mod:`calosim.draws`.
        step: The training step, so that a row that is sampled twice gets other draws; -1 for the fixed draws of
            validation, which are those of every training.

    Returns:
        Keys with shape (B,).
    """
    return draws.row_keys(rows, stream, *((step + 1, draws.training_seed()) if step >= 0 else (0,)))


def fit_sample(datamodule: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Evenly spread training rows that fit a module's standardizations: row numbers, features (M, 9), images (M, nx, ny)."""
    rows = datamodule.rows("train")
    positions = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), FIT_ROWS)).round().astype(np.int64))
    showers = datamodule.showers("train", positions)
    return tuple(map(torch.from_numpy, (rows[positions], showers.particles, showers.images)))  # type: ignore[return-value]


class CalosimModule(LightningModule):
    """A LightningModule whose checkpoint holds all that inference needs.

    A checkpoint names its class and the plain arguments of its constructor, so that
    :func:`~calosim.models.checkpoints.load_module` rebuilds it under ``weights_only=True``; standardizations are buffers of
    the module.

    Args:
        detector: The detector's name.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch; a
            :class:`~calosim.models.schedules.WarmupCosine` after every batch.
        init: The other constructor arguments as plain values; with them and ``detector`` the module can be rebuilt.
    """

    def __init__(
        self,
        detector: str,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        **init: Any,
    ):
        super().__init__()
        self.detector = get_detector(detector)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.init = {"detector": self.detector.name, **init}

    def configure_optimizers(self) -> Any:
        """The optimizer and, if given, its scheduler."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        scheduler, interval = self.scheduler(optimizer), "epoch"
        if isinstance(scheduler, WarmupCosine):
            interval, scheduler.total_steps = "step", scheduler.total_steps or self._steps()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def _steps(self) -> int | None:
        """Steps that the training will take, None if it has no end."""
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if math.isfinite(steps) and steps > 0 else None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keys dropout and weight noise by (seed, step, process), so that a resumed run repeats the uninterrupted one."""
        # The batch too: gradient accumulation takes several batches to a step.
        words = (draws.training_seed(), self.global_step, batch_idx, self.global_rank)
        torch.manual_seed(int(draws.row_keys(torch.zeros(1, dtype=torch.int64), draws.TRAINING_STREAM, *words)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the class and its arguments into the checkpoint."""
        checkpoint["calosim"] = {"format": FORMAT, "class": type(self).__name__, "init": self.init}

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Loads a checkpoint of this class, see :func:`calosim.models.checkpoints.load_module`.

        Raises:
            ValueError: If the checkpoint is of another class.
        """
        from calosim.models.checkpoints import load_module

        module = load_module(path, device)
        if not isinstance(module, cls):
            raise ValueError(f"{path}: expected a checkpoint of {cls.__name__}, got one of {type(module).__name__}")
        return module
