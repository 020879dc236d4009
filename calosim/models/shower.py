"""What all models of the shower's shape share: coordinates, context, likelihood and generation."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from calosim import rng
from calosim.flows import FlowConfig, Side, Stage, stages
from calosim.models.base import CalosimModule, evaluating, fit_sample, step_keys
from calosim.representations import FeatureScaler, RepresentationConfig, from_plain, to_plain

__all__ = ["ShowerModel"]


class ShowerModel(CalosimModule):
    """A conditional flow of the shower's shape, given the primary and the photon sum.

    Subclasses build ``self.flow`` (a zuko flow over ``coordinates.size`` features with ``features.width`` context
    features) and say how it is trained.

    Args:
        detector: The detector's name.
        flow: Settings of the flow of points; None where the coordinates say all.
        representation: Settings of the coordinates.
        physics: Whether derived columns join the context, see :class:`~calosim.representations.features.FeatureScaler`.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler.
    """

    flow: Any

    def __init__(
        self,
        detector: str,
        flow: FlowConfig | None,
        representation: RepresentationConfig,
        physics: bool,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
    ):
        representation = from_plain(representation)
        plain = {
            "flow": None if flow is None else flow.to_plain(),
            "representation": to_plain(representation),
            "physics": physics,
        }
        super().__init__(detector, optimizer, scheduler, **plain)
        self.features = FeatureScaler(self.detector, photon_sum=True, physics=physics)
        self.representation = representation.build(self.detector, self.features.width)
        self.test_nll = MeanMetric()

    def setup(self, stage: str) -> None:
        """Fits the standardizations on the training split, unless a checkpoint brought them.

        Every process computes the same numbers from the same rows; nothing needs to be broadcast.
        """
        super().setup(stage)
        if stage != "fit" or bool(self.features.fitted):
            return
        rows, particles, images = fit_sample(self.trainer.datamodule)  # type: ignore[attr-defined]
        self.features.fit(particles, images.flatten(1).sum(1))
        self.representation.fit(images, rng.row_keys(rows, rng.FIT_STREAM))

    @property
    def small_products(self) -> bool:
        """Those of networks that split photons are, those of pixel flows are not."""
        return self.representation.nodes is not None

    def context(self, particles: Tensor, photon_sum: Tensor) -> Tensor:
        """The flow's context, shape (B, width), from features (B, 9) and photon sums (B,)."""
        return self.features(particles, photon_sum)

    def stages(self, side: Side = "data") -> list[Stage]:
        """The parts of the model that thaw one after the other when it is fine-tuned, see :func:`calosim.flows.stages`.

        Args:
            side: Where to start: ``data``, or ``gauss`` for the side of the base distribution.
        """
        below = self.representation.stages()
        if side == "data":
            return [*below[::-1], *stages(self.flow, side)]
        return [*stages(self.flow, side), *below]

    def inputs(self, batch: dict[str, Tensor], step: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """What a batch is told by.

        Args:
            batch: A batch of :class:`~calosim.data.datamodule.RootDataModule`.
            step: The training step, which keys the dequantization noise together with the row, so that a row that is
                sampled twice gets other noise; -1 is the fixed noise of validation.

        Returns:
            Images (B, nx, ny), context (B, width) and the keys of the noise (B,).
        """
        images = batch["images"]
        context = self.context(batch["particles"], images.flatten(1).sum(1))
        return images, context, step_keys(batch["rows"], rng.NOISE_STREAM, step)

    def log_likelihood(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """Log-likelihood of the images, over :attr:`~calosim.representations.Representation.per`, in nats, with shape (B,).

        The volume of standardizations is included, so that models with and without them can be compared.
        """
        images, context, keys = self.inputs(batch, step)
        return self.representation.log_likelihood(self.flow, images, context, batch["particles"], keys)

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log-likelihood of the test split."""
        self.test_nll.update(self.finite(-self.log_likelihood(batch), batch))
        # A density per pixel and a probability of images never share a name.
        self.log("test/nll" if self.representation.per == 1 else "test/loss", self.test_nll)

    def predict_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generates one response per row from the row's true photon sum."""
        photon_sum = batch["images"].flatten(1).sum(1)
        return {
            "images": self.generate(batch["particles"], photon_sum, 0, batch["rows"]),
            "rows": batch["rows"],
        }

    def generate(
        self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor, requantization: int | Tensor | None = None
    ) -> Tensor:
        """Generates one photon image per row.

        Args:
            particles: Features with shape (B, 9).
            photon_sum: Photon sums with shape (B,).
            seed: Seed of the draws.
            rows: Row numbers with shape (B,), int64; with the seed they key the draws.
            rounding: How real numbers become counts, see :meth:`calosim.representations.Representation.decode`.

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """
        keys = rng.row_keys(rows, rng.BASE_STREAM, seed)
        with evaluating(self):
            context = self.context(particles, photon_sum)
            return self.representation.generate(self.flow, photon_sum, context, particles, keys, requantization)

    def generate_points(self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Generates coordinates, shape (B, D), before they become counts, where those leave a choice; see :meth:`generate`.

        Raises:
            ValueError: If counts come out exactly.
        """
        if not self.representation.requantizations:
            raise ValueError("counts come out exactly: there is nothing to round")
        with evaluating(self):
            keys = rng.row_keys(rows, rng.BASE_STREAM, seed)
            points: Any = self.representation.points
            return points(self.flow, self.context(particles, photon_sum), keys)
