"""What all calosim LightningModules share: optimizers, self-describing checkpoints, and shape models' generation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from calosim import draws
from calosim.models.base import CalosimModule, evaluating, fit_sample, step_keys
from calosim.shapes.features import FeatureScaler
from calosim.shapes.pixels import ShapeLogits

__all__ = ["ShapeModule"]


class ShapeModule(CalosimModule):
    """A conditional flow of the shower's shape, given the primary and the photon sum.

    Subclasses build ``self.flow`` (a zuko flow over ``detector.pixels`` features with ``features.width`` context
    features) and say how it is trained.

    Args:
        detector: The detector's name.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler.
        noise: Width of the dequantization noise in photons, see :class:`~calosim.shapes.pixels.ShapeLogits`.
        alpha: Squeezing of the shape before the logit.
        standardize: Whether logits are standardized per pixel.
        physics: Whether derived columns join the context, see :class:`~calosim.shapes.features.FeatureScaler`.
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
            batch: A batch of :class:`~calosim.showers.datamodule.RootDataModule`.
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
            noise_removal: A key of :data:`~calosim.shapes.pixels.NOISE_REMOVALS`, for all rows or for each, shape (B,).

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """
        return self.logits.photons(self.generate_logits(particles, photon_sum, seed, rows), photon_sum, noise_removal)

    def generate_logits(self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Generates standardized logits, shape (B, nx * ny), before noise removal; see :meth:`generate`."""
        with evaluating(self):
            base = draws.normal(draws.row_keys(rows, draws.BASE_STREAM, seed), self.detector.pixels)
            return self.flow(self.context(particles, photon_sum)).transform.inv(base)
