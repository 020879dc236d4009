"""What all calosim LightningModules share: optimizers, row-keyed training draws, self-describing checkpoints."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from calosim import rng
from calosim.detectors import get_detector
from calosim.models.optim import WarmupCosine
from calosim.models.provenance import (
    Lineage,
    Seen,
    check_precision,
    check_rows,
    first_not_finite,
    joined,
    lineage_of,
    primaries_of,
    same_line,
)
from calosim.runs import FORMAT, renamed

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
        stream: One of the streams of :mod:`calosim.rng`.
        step: The training step, so that a row that is sampled twice gets other draws; -1 for the fixed draws of
            validation, which are those of every training.

    Returns:
        Keys with shape (B,).
    """
    return rng.row_keys(rows, stream, *((step + 1, rng.training_seed()) if step >= 0 else (0,)))


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
    the module. A subclass with arguments of its own adds them to ``init``.

    Args:
        detector: The detector's name.
        optimizer: From parameters with their names to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch; a
            :class:`~calosim.models.optim.WarmupCosine` as it says itself.
        init: The other constructor arguments as plain values; with them and ``detector`` the module can be rebuilt.

    Attributes:
        small_products: Whether threads that share a product wait for each other longer than they save.
    """

    small_products = True

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
        self.save_hyperparameters(self.init)  # Lightning's too: `load_from_checkpoint` and loggers have them
        self.means = nn.ModuleDict()
        #: What the models have learned from that this one begins from, and which primaries they have seen.
        self.ancestors: Lineage = []
        self.seen_before: Seen | None = None
        #: The same with its own training, from its setup or its checkpoint.
        self.lineage: Lineage = []
        self.seen: Seen | None = None

    def setup(self, stage: str) -> None:
        """Refuses a precision that is not right, and keeps what the training learns from."""
        check_precision(str(self.trainer.precision))
        if stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.lineage = joined(self.ancestors, lineage_of(data))
            self.seen = primaries_of(data, self.seen_before)

    def on_fit_start(self) -> None:
        """Trains with one thread on a CPU where products are small, unless ``OMP_NUM_THREADS`` says how many.

        Two are no faster on a quiet machine, and many times slower beside a busy neighbor, for whom each product waits.
        """
        self._threads = torch.get_num_threads()
        if self.small_products and self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)

    def on_fit_end(self) -> None:
        """Gives the threads back."""
        torch.set_num_threads(self._threads)

    def configure_optimizers(self) -> Any:
        """The optimizer and, if given, its scheduler."""
        optimizer = self.optimizer([(name, p) for name, p in self.named_parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        scheduler, settings = self.scheduler(optimizer), {"interval": "epoch"}
        if isinstance(scheduler, WarmupCosine):
            settings["interval"] = scheduler.every
            scheduler.total_steps = scheduler.total_steps or self._steps(scheduler.every)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            settings["monitor"] = getattr(scheduler, "monitor", "val/loss")  # lightning's own kind names one
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **settings}}

    def _steps(self, every: str) -> int | None:
        """Steps or epochs that the training will take, None if it has no end."""
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps) or steps <= 0:
            return None
        if every == "step":
            return int(steps)
        self.trainer.fit_loop.setup_data()  # counts the batches
        # An epoch's steps: batches, but for accumulated gradients.
        epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return math.ceil(steps / max(1, epoch))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keys dropout and weight noise by (seed, step, process), so that a resumed run repeats the uninterrupted one."""
        # The batch too: gradient accumulation takes several batches to a step.
        words = (rng.training_seed(), self.global_step, batch_idx, self.global_rank)
        torch.manual_seed(int(rng.row_keys(torch.zeros(1, dtype=torch.int64), rng.TRAINING_STREAM, *words)))

    def finite(self, losses: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The losses of a batch's rows, shape (*, B), as they came; the first that is not finite ends what is going on.

        Raises:
            FloatingPointError: If there is one.
        """
        when = "training" if self.training else "evaluation"
        check_rows(losses, batch["rows"], f"loss in {when} after {self.global_step} steps")
        return losses

    def log_mean(self, name: str, values: Tensor, prog_bar: bool = False) -> None:
        """Logs the mean of values over all rows of an evaluation and of all processes.

        Args:
            name: The name in the log.
            values: Of the batch's rows, with shape (B,).
            prog_bar: Whether the progress bar shows it.
        """
        if name not in self.means:
            self.means[name] = MeanMetric().to(self.device)
        metric = cast(MeanMetric, self.means[name])
        metric.update(values)
        self.log(name, metric, prog_bar=prog_bar, metric_attribute=f"means.{name}")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Ends a training whose gradients are not finite, before they are clipped and reach the weights.

        Raises:
            FloatingPointError: If so.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients and not nn.utils.get_total_norm(gradients, math.inf).isfinite():
            bad = first_not_finite({name: p.grad for name, p in self.named_parameters() if p.grad is not None})
            raise FloatingPointError(f"gradient of {bad} after {self.global_step} steps: expected finite numbers")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the class, its arguments and what it has learned from into the checkpoint.

        Raises:
            FloatingPointError: If a weight is not finite.
        """
        if bad := first_not_finite(checkpoint.get("state_dict", {})):
            raise FloatingPointError(f"weights {bad} after {self.global_step} steps: expected finite numbers")
        kind = type(self)
        name = kind.__name__ if kind.__module__.startswith("calosim.") else f"{kind.__module__}.{kind.__qualname__}"
        own = {"class": name, "init": self.init, "lineage": self.lineage, "seen": self.seen}
        checkpoint["calosim"] = {"format": FORMAT, **own}
        checkpoint["hyper_parameters"] = {**self.init}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over what the checkpoint has learned from; a training that is resumed must go on with just that.

        Raises:
            ValueError: If a weight is not finite, or the checkpoint is of another model, of other data, or beyond the training's
                end.
        """
        checkpoint.update({key: renamed(checkpoint[key]) for key in ("state_dict", "calosim") if key in checkpoint})
        if bad := first_not_finite(checkpoint.get("state_dict", {})):
            raise ValueError(f"the checkpoint's weights {bad} are not finite")
        found = checkpoint.get("calosim", {})
        lineage = found.get("lineage", self.lineage)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            init = found.get("init", self.init)
            if keys := [key for key in {**init, **self.init} if init.get(key) != self.init.get(key)]:
                differs = ", ".join(f"{key} {init.get(key)}, not {self.init.get(key)}" for key in keys)
                raise ValueError(f"the checkpoint to resume from is of another model: it has {differs}")
            epochs, most = checkpoint.get("epoch", 0) + 1, self._trainer.max_epochs
            if most is not None and 0 <= most < epochs:
                raise ValueError(
                    f"the checkpoint to resume from is of epoch {epochs}; expected max_epochs of as many, got {most}"
                )
            if differs := same_line(self.lineage, lineage):
                raise ValueError(f"the checkpoint to resume from was trained on other rows: it has {differs}")
        self.lineage, self.seen = lineage, found.get("seen", self.seen)

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
