"""Fine-tuning from one end of the model: its parts thaw one by one, and what is frozen does not move by a bit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import lightning.pytorch as pl
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["GradualUnfreezing"]


class GradualUnfreezing(pl.Callback):
    r"""Trains one part of a shower model first, then two, and so on.

    Parts are what the module's ``stages(side)`` says: the transformations of a pixel flow, or the coarse part of a tree of splits
    and the levels below it.

    In stage :math:`s = 0, 1, \dots` the first :math:`s + 1` parts train, counted from the side where ``order``
    begins; none freezes again. Parameters outside of the flow always train.

    Frozen means that neither the values nor the optimizer's state change: all parameters belong to the optimizer, and to
    the gradient reduction of several processes, from the start, but frozen ones lose their gradient before each step,
    and before gradients are clipped, so that the clipped norm is that of the thawed ones. Optimizers skip parameters
    without a gradient: no weight decay, no momentum. A single process does not compute those gradients in the
    first place. The stage follows from epoch and batch alone, so a resumed run is in the right one; resuming with other
    settings is refused.

    Logs ``finetune/stage``, ``finetune/lr`` (of the first parameter group, with the stage's factor) and
    ``finetune/parameters`` (how many train); of an epoch with several stages the last.

    Args:
        order: ``GD`` begins at the Gaussian side (the published ND), ``DG`` at the data side (DN).
        stages: Epochs of each stage. ``equal`` gives each part a stage; where epochs do not divide, the first
            stages have one more, and where there are fewer epochs than parts, stages begin inside of epochs. A list may
            be shorter than the flow: what it leaves out never thaws. The last stage lasts until the end of the training,
            whatever its number.
        lr_factors: The learning rate of a stage relative to what optimizer and scheduler say: a list with one factor for
            each stage, or one number that every further stage is multiplied by again.
        context: When the layers that see the primary and the photon sum, the first of each part, train:
            ``unit``: with their part; ``all``: all of them from the first stage; ``none``: never.

    Raises:
        ValueError: If an argument is out of range, the epochs do not suffice for a list of stages or are not known for
            equal ones, or the module has no stages.

    References:
        | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026): unfreezing from the noise (ND)
          and from the data (DN), https://arxiv.org/abs/2608.12795
        | Universal Language Model Fine-tuning for Text Classification (Howard and Ruder, 2018): gradual unfreezing,
          https://arxiv.org/abs/1801.06146
    """

    def __init__(
        self,
        order: Literal["GD", "DG", "ND", "DN"] = "GD",
        stages: Literal["equal"] | list[int] = "equal",
        lr_factors: float | list[float] = 1.0,
        context: Literal["unit", "all", "none"] = "unit",
    ) -> None:
        if order not in ("GD", "DG", "ND", "DN"):
            raise ValueError(f"GradualUnfreezing: unknown order {order!r}; expected GD (or ND) or DG (or DN)")
        if context not in ("unit", "all", "none"):
            raise ValueError(f"GradualUnfreezing: unknown context {context!r}; expected unit, all or none")
        if stages != "equal" and (isinstance(stages, str) or not stages or min(stages) < 1):
            raise ValueError(f"GradualUnfreezing: expected stages as equal or epochs of at least 1, got {stages!r}")
        if min(lr_factors if isinstance(lr_factors, Sequence) else [lr_factors], default=0) <= 0:
            raise ValueError(f"GradualUnfreezing: expected positive learning-rate factors, got {lr_factors!r}")
        self.side: Literal["data", "gauss"] = "gauss" if order in ("GD", "ND") else "data"
        self.stages, self.lr_factors, self.context = stages, lr_factors, context
        #: When each stage begins, in epochs, and its learning-rate factor; known once there are parts.
        self.starts: list[float] = []
        self.factors: list[float] = []
        self._thaws: list[tuple[nn.Parameter, int]] = []
        self._now: tuple[int, int] | None = None  # epoch and stage
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._hooks: list[RemovableHandle] = []

    def stage(self, epoch: float) -> int:
        """The stage, from 0, after so many epochs."""
        return bisect_right(self.starts, epoch) - 1

    # -- which stage is when ------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Divides the epochs into stages and the parameters among them."""
        if stage != "fit":
            return
        ask = getattr(pl_module, "stages", None)
        parts = ask(self.side) if ask else []
        if not parts:
            raise ValueError(f"GradualUnfreezing: {type(pl_module).__name__} has no stages in which it can thaw")
        self.starts = self._divide(len(parts), -1 if trainer.max_epochs is None else trainer.max_epochs)
        count = len(self.starts)
        given = self.lr_factors
        self.factors = list(given) if isinstance(given, Sequence) else [given**s for s in range(count)]
        if len(self.factors) != count:
            raise ValueError(f"GradualUnfreezing: expected {count} learning-rate factors, one a stage, got {given}")
        self._thaws = []
        for s, part in enumerate(parts):
            first = {"unit": s, "all": 0, "none": count}[self.context]
            self._thaws += [(p, s) for p in part.parameters if p.requires_grad]
            self._thaws += [(p, first) for p in part.context if p.requires_grad]

    def _divide(self, parts: int, epochs: int) -> list[float]:
        """After how many epochs each stage begins."""
        if isinstance(self.stages, str):
            if epochs < 0:
                raise ValueError(
                    "GradualUnfreezing: expected max_epochs, to divide them equally; got an unknown number"
                )
            if epochs < parts:
                return [s * epochs / parts for s in range(parts)]
            lengths = [epochs // parts + (s < epochs % parts) for s in range(parts)]
        else:
            lengths = self.stages
        if len(lengths) > parts:
            raise ValueError(f"GradualUnfreezing: expected up to {parts} stages, one a part, got {len(lengths)}")
        starts: list[float] = []
        starts += [0, *accumulate(lengths)][:-1]
        if 0 <= epochs <= starts[-1]:
            raise ValueError(
                f"GradualUnfreezing: stage {len(starts)} of {len(starts)} begins after {starts[-1]} epochs; expected "
                f"max_epochs beyond that, got {epochs}"
            )
        return starts

    def state_dict(self) -> dict[str, Any]:
        """The settings, for a resumed run to be held to them."""
        return {"side": self.side, "starts": self.starts, "lr_factors": self.factors, "context": self.context}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the settings with those that the run began with.

        Raises:
            ValueError: If they differ.
        """
        mine = self.state_dict()
        changed = [key for key in mine if mine[key] != state_dict.get(key)]
        if self.starts and changed:
            raise ValueError(
                "GradualUnfreezing: expected to be resumed as begun, with "
                + ", ".join(f"{key} {state_dict.get(key)}, got {mine[key]}" for key in changed)
                + " (with stages: equal, max_epochs must stay as well)"
            )

    # -- training -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attaches the stage's learning-rate factor to the optimizers' steps."""
        self._now = None
        for optimizer in trainer.optimizers:
            # Around the step alone: recursive schedulers multiply the rate they find by their own factor.
            self._hooks += [
                optimizer.register_step_pre_hook(self._scale),
                optimizer.register_step_post_hook(self._restore),
            ]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins an epoch or a stage: here, because a run resumed inside of an epoch is not told of its start."""
        stage = self.stage(trainer.current_epoch + batch_idx / trainer.num_training_batches)
        if self._now == (trainer.current_epoch, stage):
            return
        self._now = trainer.current_epoch, stage
        if trainer.world_size == 1:
            # Saves the work. The gradient reduction of several processes needs all gradients that it began with.
            for parameter, when in self._thaws:
                parameter.requires_grad_(when <= stage)
        frozen = sum(p.numel() for p, when in self._thaws if when > stage)
        values = {
            "stage": stage,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]) * self.factors[stage],
            "parameters": sum(p.numel() for p in pl_module.parameters()) - frozen,
        }
        for name, value in values.items():
            how: dict[str, Any] = {"reduce_fx": "min" if name == "lr" else "max"}
            pl_module.log(f"finetune/{name}", float(value), on_epoch=True, on_step=False, sync_dist=True, **how)
        pl_module.log("stage", float(stage), on_step=True, on_epoch=False, prog_bar=True, logger=False, batch_size=1)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Takes the gradients of what is frozen away, before gradients are clipped."""
        assert self._now is not None
        for parameter, when in self._thaws:
            if when > self._now[1]:
                parameter.grad = None

    def _scale(self, optimizer: Optimizer, *_: Any) -> None:
        assert self._now is not None
        factor = self.factors[self._now[1]]
        for group in optimizer.param_groups:
            self._rates.append((group, group["lr"]))
            group["lr"] = group["lr"] * factor

    def _restore(self, *_: Any) -> None:
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates.clear()

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Leaves module and optimizers as they were found, also for a checkpoint of an interrupted run."""
        self._restore()
        for hook in self._hooks:
            hook.remove()
        for parameter, _ in self._thaws:
            parameter.requires_grad_(True)
        self._hooks, self._thaws, self._now = [], [], None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """As :meth:`teardown`."""
        self._leave()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves module and optimizers as they were found."""
        self._leave()
