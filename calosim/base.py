"""What all calosim LightningModules share: optimizers, self-describing checkpoints, and shape models' generation."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from calosim import draws
from calosim.detectors import get_detector
from calosim.preprocessing import FeatureScaler, ShapeLogits

__all__ = [
    "CalosimModule",
    "ShapeModule",
    "checkpoint_path",
    "evaluating",
    "fit_sample",
    "load_module",
    "step_keys",
]

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

    A checkpoint names its class and the plain arguments of its constructor, so that :func:`load_module` rebuilds it
    under ``weights_only=True``; standardizations are buffers of the module.

    Args:
        detector: The detector's name.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.
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
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "epoch"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keys dropout and weight noise by (seed, step, process), so that a resumed run repeats the uninterrupted one."""
        # The batch too: gradient accumulation takes several batches to a step.
        words = (draws.training_seed(), self.global_step, batch_idx, self.global_rank)
        torch.manual_seed(int(draws.row_keys(torch.zeros(1, dtype=torch.int64), draws.TRAINING_STREAM, *words)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the class and its arguments into the checkpoint."""
        checkpoint["calosim"] = {"class": f"{type(self).__module__}.{type(self).__name__}", "init": self.init}

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Loads a checkpoint of this class, see :func:`load_module`.

        Raises:
            ValueError: If the checkpoint is of another class.
        """
        module = load_module(path, device)
        if not isinstance(module, cls):
            raise ValueError(f"{path}: expected a checkpoint of {cls.__name__}, got one of {type(module).__name__}")
        return module


def checkpoint_path(path: str | Path) -> Path:
    """The checkpoint of a run folder: the best by validation, else the last; a file is returned as it is.

    Raises:
        ValueError: If there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise ValueError(f"{path}: expected a checkpoint or a run folder with checkpoints/best.ckpt")


def load_module(path: str | Path, device: str | torch.device = "cpu") -> CalosimModule:
    """Loads a trained module for inference.

    Args:
        path: A checkpoint, or a run folder (its best checkpoint is taken).
        device: Where the weights go.

    Returns:
        The module, in evaluation mode.

    Raises:
        ValueError: If the file is not a checkpoint of calosim.
    """
    path = checkpoint_path(path)
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected a checkpoint, but it cannot be read ({reason})") from None
    if not isinstance(checkpoint, dict) or "calosim" not in checkpoint:
        raise ValueError(f"{path}: expected a checkpoint written by calosim, found no `calosim` entry")
    name, init = checkpoint["calosim"]["class"], checkpoint["calosim"]["init"]
    package, _, attribute = name.rpartition(".")
    kind = None
    if package.startswith("calosim."):
        with suppress(ImportError):
            kind = getattr(importlib.import_module(package), attribute, None)
    # Nothing else of calosim: a checkpoint must not choose which function is called with which arguments.
    if not (isinstance(kind, type) and issubclass(kind, CalosimModule)):
        raise ValueError(f"{path}: expected a module of calosim, got {name}")
    module = kind(**init)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit {name} ({' '.join(str(error).split())[:200]})") from None
    return module.to(device).eval()


class ShapeModule(CalosimModule):
    """A conditional flow of the shower's shape, given the primary and the photon sum.

    Subclasses build ``self.flow`` (a zuko flow over ``detector.pixels`` features with ``features.width`` context
    features) and say how it is trained.

    Args:
        detector: The detector's name.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler.
        noise: Width of the dequantization noise in photons, see :class:`~calosim.preprocessing.ShapeLogits`.
        alpha: Squeezing of the shape before the logit.
        standardize: Whether logits are standardized per pixel.
        physics: Whether derived columns join the context, see :class:`~calosim.preprocessing.FeatureScaler`.
        init: Further constructor arguments of the subclass, as plain values.
    """

    flow: Any

    def __init__(
        self,
        detector: str,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        noise: float,
        alpha: float,
        standardize: bool,
        physics: bool,
        **init: Any,
    ):
        preprocessing = {"noise": noise, "alpha": alpha, "standardize": standardize, "physics": physics}
        super().__init__(detector, optimizer, scheduler, **preprocessing, **init)
        self.features = FeatureScaler(self.detector, photon_sum=True, physics=physics)
        self.logits = ShapeLogits(self.detector.shape, noise, alpha, standardize)
        self.test_nll = MeanMetric()

    def setup(self, stage: str) -> None:
        """Fits the standardizations on the training split, unless a checkpoint brought them.

        Every process computes the same numbers from the same rows; nothing needs to be broadcast.
        """
        if stage != "fit" or bool(self.features.fitted):
            return
        rows, particles, images = fit_sample(self.trainer.datamodule)  # type: ignore[attr-defined]
        self.features.fit(particles, images.flatten(1).sum(1))
        self.logits.fit(images, draws.row_keys(rows, draws.FIT_STREAM))

    def context(self, particles: Tensor, photon_sum: Tensor) -> Tensor:
        """The flow's context, shape (B, width), from features (B, 9) and photon sums (B,)."""
        return self.features(particles, photon_sum)

    def inputs(self, batch: dict[str, Tensor], step: int = -1) -> tuple[Tensor, Tensor]:
        """A batch as logits and context.

        Args:
            batch: A batch of :class:`~calosim.data.RootDataModule`.
            step: The training step, which keys the dequantization noise together with the row, so that a row that is
                sampled twice gets other noise; -1 is the fixed noise of validation.

        Returns:
            Logits (B, nx * ny) and context (B, width).
        """
        keys = step_keys(batch["rows"], draws.NOISE_STREAM, step)
        images = batch["images"]
        return self.logits(images, keys), self.context(batch["particles"], images.flatten(1).sum(1))

    def log_likelihood(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """Log-density of the (not standardized) logits in nats per pixel, shape (B,).

        The standardization's volume is included, so that models with and without it can be compared.
        """
        logits, context = self.inputs(batch, step)
        return (self.flow(context).log_prob(logits) + self.logits.log_volume()) / self.detector.pixels

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the exact negative log-likelihood of the test split, in nats per pixel."""
        self.test_nll.update(-self.log_likelihood(batch))
        self.log("test/loss", self.test_nll)

    def predict_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generates one response per row from the row's true photon sum."""
        photon_sum = batch["images"].flatten(1).sum(1)
        return {
            "images": self.generate(batch["particles"], photon_sum, 0, batch["rows"]),
            "rows": batch["rows"],
        }

    def generate(
        self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor, noise_removal: int | Tensor = 3
    ) -> Tensor:
        """Generates one photon image per row.

        Args:
            particles: Features with shape (B, 9).
            photon_sum: Photon sums with shape (B,).
            seed: Seed of the draws.
            rows: Row numbers with shape (B,), int64; with the seed they key the draws.
            noise_removal: A key of :data:`~calosim.preprocessing.NOISE_REMOVALS`, for all rows or for each, shape (B,).

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """
        return self.logits.photons(self.generate_logits(particles, photon_sum, seed, rows), photon_sum, noise_removal)

    def generate_logits(self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Generates standardized logits, shape (B, nx * ny), before noise removal; see :meth:`generate`."""
        with evaluating(self):
            base = draws.normal(draws.row_keys(rows, draws.BASE_STREAM, seed), self.detector.pixels)
            return self.flow(self.context(particles, photon_sum)).transform.inv(base)
