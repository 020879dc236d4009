"""What all calosim LightningModules share: optimizers, row-keyed training draws, self-describing checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from calosim import rng
from calosim.data.record import FEATURES
from calosim.data.splits import ShowerData
from calosim.detectors import get_detector
from calosim.models.optim import WarmupCosine
from calosim.particles import particle_name
from calosim.runs import FORMAT, SPLIT, renamed

__all__ = [
    "PRECISIONS",
    "CalosimModule",
    "Lineage",
    "Seen",
    "check_precision",
    "check_rows",
    "evaluating",
    "first_not_finite",
    "fit_sample",
    "joined",
    "lineage_of",
    "not_seen",
    "primaries_of",
    "same_line",
    "split_unlike",
    "step_keys",
]


#: The trainer's precisions in which losses were compared with those of 64 bits. In half of them counts above 256
#: (bfloat16) or 2048 (float16) are no longer themselves, and logarithms of normal probabilities have no kernels.
PRECISIONS = ("32-true", "64-true")

#: Data sets and splits, the oldest first: mappings with the keys of :data:`calosim.runs.SPLIT` and ``particle``.
Lineage = list[dict[str, Any]]

#: Rows of training by PDG code (as text), and the smallest and largest value of each feature: ``pdg``, ``low``, ``high``.
Seen = dict[str, Any]

#: How far outside of its range in training a feature is far outside: in units of that range's width, or in its own unit;
#: below the lowest energy in units of it.
MARGIN, LEAST_MARGIN = 0.1, 1e-3


def check_precision(precision: str) -> None:
    """Refuses a trainer's precision that is not one of :data:`PRECISIONS`.

    Raises:
        ValueError: If so.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"expected trainer.precision {' or '.join(PRECISIONS)}, got {precision}: photon counts and the logarithms of "
            "small probabilities do not survive in half precision"
        )


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite; None if there is none."""
    floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
    return next((name for name, value in floats.items() if not value.isfinite().all()), None)


def lineage_of(data: Any) -> Lineage:
    """What a data module gives to learn from, as one entry of a line; none without the project's own data module."""
    source = getattr(data, "data", None)
    if not isinstance(source, ShowerData):
        return []
    told = source.describe()
    return [{key: told[key] for key in (*SPLIT, "particle")}]


def joined(*lines: Lineage) -> Lineage:
    """Several lines as one; what they have in common stands where it stands first."""
    result: Lineage = []
    for entry in (entry for line in lines for entry in line):
        if entry not in result:
            result.append(entry)
    return result


def same_line(mine: Lineage, theirs: Lineage) -> str:
    """What differs between two lines, in words; an empty text if nothing does."""
    if mine == theirs:
        return ""
    if len(mine) != len(theirs):
        return f"{len(theirs)} data sets or splits in its line, not {len(mine)}"
    pair = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
    keys = [key for key in (*SPLIT, "particle") if pair[0].get(key) != pair[1].get(key)]
    return ", ".join(f"{key} {pair[1].get(key)}, not {pair[0].get(key)}" for key in keys)


def split_unlike(line: Lineage) -> str:
    """Which ancestor was trained on another split of the same data than the last of a line, in words; empty if none."""
    for entry in (entry for entry in line[:-1] if entry["data_hash"] == line[-1]["data_hash"]):
        if differs := ", ".join(f"{k} {entry[k]}, not {line[-1][k]}" for k in SPLIT if entry[k] != line[-1][k]):
            return f"what it begins from was trained on another split of these data ({differs})"
    return ""


def primaries_of(data: Any, earlier: Seen | None = None) -> Seen | None:
    """Types and ranges of the primaries of a data module's training rows, together with those that were seen earlier.

    Args:
        data: The data module.
        earlier: What the model had seen that the training began from.
    """
    if not hasattr(data, "arrays"):
        return earlier
    rows = data.rows("train")
    particles, pdg = data.arrays["particles"][rows], data.arrays["pdg"][rows]
    codes = {str(code): int((pdg == code).sum()) for code in np.unique(pdg)}
    low, high = particles.min(0), particles.max(0)
    if earlier is not None:
        codes = {code: codes.get(code, 0) + earlier["pdg"].get(code, 0) for code in {**earlier["pdg"], **codes}}
        low, high = np.minimum(low, earlier["low"]), np.maximum(high, earlier["high"])
    return {"pdg": codes, "low": low.tolist(), "high": high.tolist()}


def not_seen(seen: Seen | None, particles: np.ndarray, pdg: np.ndarray) -> dict[str, np.ndarray]:
    """Primaries outside of what a model was trained on.

    Args:
        seen: What it has seen; nothing is outside if it does not tell.
        particles: Features with shape (N, 9).
        pdg: PDG codes with shape (N,).

    Returns:
        By reason, such as ``deuteron never seen`` or ``energy beyond [50.1, 2980] GeV``, which rows it concerns, shape (N,).
    """
    if seen is None:
        return {}
    known = np.isin(pdg, [int(code) for code in seen["pdg"]])
    found = {f"{particle_name(int(code))} never seen": pdg == code for code in np.unique(pdg[~known])}
    low, high = np.array(seen["low"]), np.array(seen["high"])
    margin = np.maximum(MARGIN * (high - low), LEAST_MARGIN)
    margin_below = margin.copy()
    margin_below[0] = MARGIN * low[0]  # energies span orders of magnitude
    beyond = (particles < low - margin_below) | (particles > high + margin)
    for k, name in enumerate(FEATURES[:7]):  # mass and charge follow from the type
        found[f"{name} beyond [{low[k]:.4g}, {high[k]:.4g}]"] = beyond[:, k] & known
    return {reason: rows for reason, rows in found.items() if rows.any()}


def check_rows(values: Tensor, rows: Tensor, what: str) -> None:
    """Refuses values of rows that are not finite.

    Args:
        values: With shape (*, B).
        rows: Row numbers in the data, shape (B,).
        what: What they are, and when.

    Raises:
        FloatingPointError: If one is not.
    """
    values = values.detach()
    bad = ~values.isfinite()
    if bad.any():
        at = tuple(torch.nonzero(bad)[0].tolist())
        row, value = int(rows[at[-1]]), float(values[at])
        raise FloatingPointError(f"{what}: row {row} of the data gives {value}; expected a finite number")


#: Rows of the training split that fit the standardization; beyond this the means no longer move.
FIT_ROWS = 20_000
#: Settings of networks that count something there must be.
SIZES = {"components", "embedding", "hidden", "latent", "members", "min_photons", "noise", "steps", "width", "widths"}


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

    #: What :meth:`loss` is, in words; of most models a sum of their own.
    loss_name = "loss"
    #: The unit of that where it is a likelihood, and of a student's divergence from its teacher; else empty.
    loss_unit = ""

    def __init__(
        self,
        detector: str,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        **init: Any,
    ):
        for name in SIZES & init.keys():
            if min(init[name] if isinstance(init[name], list) else [init[name]], default=1) < 1:
                raise ValueError(f"expected {name} of at least 1, got {init[name]}")
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

    @property
    def size(self) -> int:
        """The number of parameters that a response needs."""
        return sum(p.numel() for part in self.answering() for p in part.parameters())

    def answering(self) -> Sequence[nn.Module]:
        """The parts that a response needs; others serve the training alone."""
        return (self,)

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

    def loss(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """What training minimizes, of each row.

        Args:
            batch: A batch of :class:`~calosim.data.datamodule.RootDataModule`: ``images`` (B, nx, ny), ``particles`` (B, 9),
                ``rows`` (B,) and more.
            step: The training step, which keys random numbers together with the row, see :func:`step_keys`; -1 for the fixed ones
                of validation.

        Returns:
            Losses with shape (B,).
        """
        return self.parts(batch, step)["loss"]

    def parts(self, batch: dict[str, Tensor], step: int = -1) -> dict[str, Tensor]:
        """The loss of each row as ``loss``, and by their names what it is made of and worth a curve; each with shape (B,)."""
        return {"loss": self.loss(batch, step)}

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Minimizes the mean loss of the rows."""
        parts, rows = self.parts(batch, self.global_step), len(batch["rows"])
        loss = self.finite(parts.pop("loss"), batch).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=rows, sync_dist=True)
        for name, part in parts.items():
            self.log(f"train/{name}", part.detach().mean(), batch_size=rows, sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the losses, noise fixed, over all rows of all processes."""
        parts = self.parts(batch)
        self.finite(parts["loss"], batch)
        for name, part in parts.items():
            self.log_mean(f"val/{name}", part, prog_bar=name == "loss")

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the loss of the test split."""
        self.log_mean("test/loss", self.finite(self.loss(batch), batch))

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
