"""A training that ends when its processor time is spent, and whose learning rate falls until then."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch

from calosim.models.optim import WarmupCosine

__all__ = ["ProcessorTime"]


class ProcessorTime(pl.Callback):
    """Gives a training that many minutes instead of epochs, so that models of other kinds can be compared by what they cost.

    Time is the processor's, divided by the threads, so that other jobs on the machine take nothing from a training; on an idle
    machine it is the clock's. It runs from the callback's setup, standardizations included, but not in validation; of several
    processes the mean counts. A :class:`~calosim.models.optim.WarmupCosine` without ``total_steps`` follows it, and is at its end
    when the time is over. A resumed training goes on counting, from its checkpoint.

    Args:
        minutes: Processor time of a thread.
        share: The share of it that this training has, where the rest is of one that it learns from.

    Raises:
        ValueError: If that is not positive or the share not in (0, 1], or epochs or steps are to end the training too.
    """

    def __init__(self, minutes: float, share: float = 1.0) -> None:
        if not 0 < minutes < math.inf:
            raise ValueError(f"ProcessorTime: expected positive minutes, got {minutes}")
        if not 0 < share <= 1:
            raise ValueError(f"ProcessorTime: expected a share above 0 and up to 1, got {share}")
        self.minutes = minutes * share
        #: Seconds that are spent, and when the processor was asked last; None while it does not count.
        self.spent = 0.0
        self._asked: float | None = None

    def _count(self) -> None:
        if self._asked is not None:
            now = time.process_time()
            self.spent += (now - self._asked) / torch.get_num_threads()
            self._asked = now

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts the clock."""
        if stage != "fit":
            return
        for name, value in (("max_epochs", trainer.max_epochs), ("max_steps", trainer.max_steps)):
            if value != -1:
                raise ValueError(f"ProcessorTime: expected {name} -1, for time alone to end the training, got {value}")
        self._asked = time.process_time()

    def _follow(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells schedules, and the trainer at the end, how much is spent."""
        self._count()
        mine = torch.tensor(self.spent / (60 * self.minutes), device=pl_module.device)
        share = min(1.0, float(trainer.strategy.reduce(mine, reduce_op="mean")))
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupCosine):
                config.scheduler.share = share
        if share >= 1:
            trainer.should_stop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes no further step where a resumed training has spent its time; a new one makes one whatever it has."""
        if trainer.global_step:
            self._follow(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lets the schedule follow."""
        self._follow(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock."""
        self._count()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets the clock run again."""
        if self._asked is not None:
            self._asked = time.process_time()

    def state_dict(self) -> dict[str, Any]:
        """The seconds that are spent."""
        return {"spent": self.spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.spent = state_dict["spent"]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends the count."""
        self._asked = None
