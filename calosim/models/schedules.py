"""Learning-rate schedules that know how long the training is."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["WarmupCosine"]


class WarmupCosine(LRScheduler):
    """Rises linearly, then falls along half a cosine until the end of the training.

    Args:
        optimizer: The optimizer.
        warmup_steps: Steps until the full learning rate is reached; at most a quarter of the training.
        final: What is left of it at the end, from 0 to 1.
        total_steps: Steps of the training; those that the trainer will take (max_epochs, max_steps) if not given. A resumed
            training that is to become longer goes on along its new curve.
        every: ``step``: a step is a batch; ``epoch``: a step is an epoch.
        last_epoch: The step to go on from; -1 begins anew.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 50,
        final: float = 0.04,
        total_steps: int | None = None,
        every: Literal["step", "epoch"] = "step",
        last_epoch: int = -1,
    ):
        if every not in ("step", "epoch"):
            raise ValueError(f"expected every step or epoch, got {every!r}")
        if warmup_steps < 0 or not 0 <= final <= 1 or (total_steps is not None and total_steps < 1):
            raise ValueError(
                "expected warmup_steps of at least 0, final in [0, 1] and total_steps of at least 1, "
                f"got {warmup_steps}, {final} and {total_steps}"
            )
        self.warmup_steps, self.final, self.total_steps, self.every = warmup_steps, final, total_steps, every
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in a step."""
        warmup = self.warmup_steps if self.total_steps is None else min(self.warmup_steps, self.total_steps // 4)
        rise = min(1.0, (step + 1) / (warmup + 1))
        if self.total_steps is None:
            return rise
        done = min(1.0, step / self.total_steps)
        return rise * (self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the step that was reached, along the curve that is asked for now."""
        mine = {name: getattr(self, name) for name in ("warmup_steps", "final", "total_steps", "every")}
        super().load_state_dict({**state_dict, **mine})
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the parameter groups."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
