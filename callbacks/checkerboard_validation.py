"""Validation by what is read out: generates on the validation set and compares the five channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray

from calosim.data.record import Showers
from calosim.detectors import Convention
from calosim.metrics.wasserstein import CheckerboardWasserstein
from calosim.models.base import evaluating
from calosim.particles import particle_symbol
from calosim.plots import image_rows

__all__ = ["CheckerboardValidation"]

#: Pictures are chosen among that many of the validation rows.
CANDIDATES = 2048


class CheckerboardValidation(pl.Callback):
    r"""Logs the checkerboard Wasserstein distance on the validation set and draws a row of pictures.

    The shower model generates with the *true* photon sums, so that the numbers speak of the shape alone. They
    are logged as ``val/ws``, by channel (``val/ws_tower1``) and by particle type (``val/ws_gamma``), and are
    the same for any number of processes: each generates its own share of the rows, then channel values are
    gathered. Pictures go to ``pictures/epoch=003.png`` in the run folder, Monte Carlo above and generated
    below, for the same primaries in every epoch; and to W&B if that is the logger.

    Expects of the module ``detector`` and ``generate(particles, photon_sum, seed=, rows=, requantization=)``,
    of the data module ``primary_ids("val")`` and ``showers("val", rows)``.

    Args:
        every_n_epochs: Generate after epochs 0, n, 2n ...; the first one included, so that a checkpoint may
            monitor ``val/ws`` from the start. ``trainer.validate`` always generates.
        rows: The number of validation rows, chosen by the seed; all if None.
        generations: Responses generated for each row.
        pictures: The number of primaries in the picture, 0 for none; frequent particle types first.
        convention: The channel convention, see :meth:`calosim.detectors.Detector.masks`.
        requantization: How real numbers become counts, where the model leaves a choice; its own if None.
        seed: Seed of the choice of rows and of what is generated for them.
        batch_size: Responses generated at once.

    Raises:
        ValueError: If an argument is out of range.

    References:
        | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026),
          https://arxiv.org/abs/2608.12795
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        rows: int | None = 512,
        generations: int = 1,
        pictures: int = 6,
        convention: Convention = "paper",
        requantization: int | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        for name, value, least in (
            ("every_n_epochs", every_n_epochs, 1),
            ("rows", 1 if rows is None else rows, 1),
            ("generations", generations, 1),
            ("pictures", pictures, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"CheckerboardValidation: expected {name} of at least {least}, got {value}")
        self.every_n_epochs = every_n_epochs
        self.rows = rows
        self.generations = generations
        self.pictures = pictures
        self.convention: Convention = convention
        self.requantization = requantization
        self.seed = seed
        self.batch_size = batch_size

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Generates, logs and draws."""
        fitting = trainer.state.fn == "fit"
        if trainer.sanity_checking or (fitting and trainer.current_epoch % self.every_n_epochs):
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        order = np.random.default_rng(self.seed).permutation(len(datamodule.primary_ids("val")))[: self.rows]
        metric = CheckerboardWasserstein(pl_module.detector, self.convention)
        if trainer.world_size > 1:  # gathered where the processes talk; a lone MPS device has no float64
            metric = metric.to(pl_module.device)
        with isolate_rng(), evaluating(pl_module):
            share = np.sort(order)[trainer.global_rank :: trainer.world_size]
            for begin in range(0, len(share), self.batch_size):
                self._update(metric, pl_module, datamodule, share[begin : begin + self.batch_size])
            if trainer.is_global_zero and self.pictures:
                self._draw(trainer, pl_module, datamodule, order[:CANDIDATES])
        for key, value in metric.compute().items():
            name = "val/ws" if key == "all" else f"val/ws_{key}"
            # All processes hold the same number: the largest of them is that number, their mean need not be.
            pl_module.log(name, value, sync_dist=True, reduce_fx="max", prog_bar=key == "all")

    def _update(self, metric: CheckerboardWasserstein, pl_module: Any, datamodule: Any, rows: NDArray) -> None:
        showers = datamodule.showers("val", rows)
        generated = torch.stack(
            [self._generate(pl_module, showers, rows, self.seed + i) for i in range(self.generations)], dim=1
        )
        metric.update(
            pl_module.detector.channels(generated, self.convention),
            torch.from_numpy(pl_module.detector.channels(showers.images, self.convention)),
            torch.from_numpy(showers.pdg),
            torch.from_numpy(datamodule.primary_ids("val")[rows]),
        )

    def _generate(self, pl_module: Any, showers: Showers, rows: NDArray, seed: int) -> torch.Tensor:
        def tensor(array: NDArray, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(array, dtype=dtype, device=pl_module.device)

        return pl_module.generate(
            tensor(showers.particles, torch.float32),
            tensor(showers.photon_sum, torch.float32),
            seed=seed,
            rows=tensor(rows, torch.int64),
            requantization=self.requantization,
        )

    def _draw(self, trainer: pl.Trainer, pl_module: Any, datamodule: Any, candidates: NDArray) -> None:
        rows = candidates[_varied(datamodule.showers("val", candidates).pdg)[: self.pictures]]
        showers = datamodule.showers("val", rows)
        labels = [
            f"{particle_symbol(int(pdg))}, {energy:.0f} GeV"
            for pdg, energy in zip(showers.pdg, showers.particles[:, 0], strict=True)
        ]
        generated = self._generate(pl_module, showers, rows, self.seed).cpu().numpy()
        path = Path(trainer.default_root_dir) / "pictures" / f"epoch={trainer.current_epoch:03d}.png"
        drawn = image_rows(showers.images, generated, labels, path)
        for logger in trainer.loggers if drawn else ():
            if isinstance(logger, WandbLogger):
                logger.log_image("val/pictures", [str(path)], step=trainer.global_step)


def _varied(pdg: NDArray) -> NDArray:
    """Positions in (N,): one of each particle type, frequent types first, then a second of each, and so on."""
    _, kind, count = np.unique(pdg, return_inverse=True, return_counts=True)
    by_kind = np.argsort(kind, kind="stable")
    occurrence = np.empty_like(kind)
    occurrence[by_kind] = np.arange(len(kind)) - np.repeat(np.cumsum(count) - count, count)
    return np.lexsort((kind, -count[kind], occurrence))
