"""The interface of all models of showers, and what those that are flows of a representation share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from calosim import rng
from calosim.flows import FlowConfig, Side, Stage, stages
from calosim.models.base import CalosimModule, evaluating, fit_sample, step_keys
from calosim.representations import FeatureScaler, RepresentationConfig, from_plain, to_plain

__all__ = ["FlowModel", "ShowerModel"]


class ShowerModel(CalosimModule):
    """A model of photon images, given the primary and the photon sum.

    A kind of model is a subclass that says what it minimizes (:meth:`loss`, or :meth:`parts` where it has several) and how it
    draws images (:meth:`generate`). The rest has an answer here that it may replace. Whatever trains, generates, judges or
    exports asks this interface, never for the kind.

    Args:
        detector: The detector's name.
        physics: Whether derived columns join the context, see :class:`~calosim.representations.features.FeatureScaler`.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler.
        init: The other constructor arguments as plain values.

    Attributes:
        nll_unit: The unit of :meth:`log_likelihood`, ``nats an image`` if it is an exact probability; None if there is none.
        fast_likelihood: Whether a likelihood takes about as long as a step of training.
        requantizations: The ways from real numbers to counts and what they do, by number; empty where counts come out exactly.
        requantization: The one that is used unless another is asked for; None where there is none.
    """

    nll_unit: str | None = None
    fast_likelihood = True
    requantizations: Mapping[int, str] = {}
    requantization: int | None = None

    def __init__(
        self,
        detector: str,
        physics: bool,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        **init: Any,
    ):
        super().__init__(detector, optimizer, scheduler, **init, physics=physics)
        self.features = FeatureScaler(self.detector, photon_sum=True, physics=physics)

    # -- what a kind of model says ------------------------------------------------------------------------------------

    def generate(
        self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor, requantization: int | Tensor | None = None
    ) -> Tensor:
        """Generates one photon image per row.

        Args:
            particles: Features with shape (B, 9).
            photon_sum: Photon sums with shape (B,); an image whose sum is 0 is empty.
            seed: Seed of the draws.
            rows: Row numbers with shape (B,), int64; with the seed they key the draws, so that a row's image does not depend
                on its batch.
            requantization: A key of :attr:`requantizations`, for all rows or for each, shape (B,); the model's own if None.

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """
        raise NotImplementedError

    def log_likelihood(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """The log-likelihood of each row's image given its primary and photon sum, in :attr:`nll_unit`, shape (B,)."""
        raise NotImplementedError

    def stages(self, side: Side = "data") -> list[Stage]:
        """The parts of the model that thaw one after the other when it is fine-tuned; none if it has no such parts.

        Args:
            side: Where to start: ``data``, or ``gauss`` for the side of the noise.
        """
        return []

    def generate_points(self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor) -> Tensor:
        """The real numbers, shape (B, *), that :meth:`generate` makes counts of with :meth:`decode`.

        Raises:
            ValueError: If counts come out exactly.
        """
        raise ValueError("counts come out exactly: there is nothing to requantize")

    def decode(self, points: Tensor, photon_sum: Tensor, requantization: int | Tensor | None = None) -> Tensor:
        """Real numbers of :meth:`generate_points` to counts (B, nx, ny), int64, see :meth:`generate`."""
        raise NotImplementedError

    def expected(self, points: Tensor, photon_sum: Tensor) -> Tensor:
        """Photons (B, nx, ny) that real numbers stand for before requantization, the expected noise subtracted."""
        raise NotImplementedError

    def not_exportable(self) -> str:
        """Why the model cannot be exported as a graph, in words; empty if it can."""
        return f"it is a {type(self).__name__}, which no graph is known of"

    def write(self, graph: Any) -> str:
        """Writes what :meth:`generate` does as a graph, where nothing stands against it.

        Args:
            graph: What to write with, a :class:`calosim.export.graph.ShowerGraph`.

        Returns:
            The name of the photons, row by row of y, (ny nx,) float32.
        """
        raise NotImplementedError

    def fit_images(self, images: Tensor, keys: Tensor) -> None:
        """Sets standardizations of images from a sample of the training split, where there are any.

        Args:
            images: Photon counts with shape (N, nx, ny).
            keys: Row keys with shape (N,), see :func:`calosim.rng.row_keys`.
        """

    # -- what follows from it -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Fits the standardizations on the training split, unless a checkpoint brought them.

        Every process computes the same numbers from the same rows; nothing needs to be broadcast.
        """
        super().setup(stage)
        if stage != "fit" or bool(self.features.fitted):
            return
        rows, particles, images = fit_sample(self.trainer.datamodule)  # type: ignore[attr-defined]
        self.features.fit(particles, images.flatten(1).sum(1))
        self.fit_images(images, rng.row_keys(rows, rng.FIT_STREAM))

    def context(self, particles: Tensor, photon_sum: Tensor) -> Tensor:
        """What an image is conditioned on, shape (B, width), from features (B, 9) and photon sums (B,)."""
        return self.features(particles, photon_sum)

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Accumulates the negative log-likelihood of the test split, or the loss where there is none.

        The probability of an image has a name of its own, which no density per pixel, bound or loss shares.
        """
        values = self.loss(batch) if self.nll_unit is None else -self.log_likelihood(batch)
        self.log_mean("test/nll" if self.nll_unit == "nats an image" else "test/loss", self.finite(values, batch))

    def predict_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generates one response per row from the row's true photon sum."""
        photon_sum = batch["images"].flatten(1).sum(1)
        images = self.generate(batch["particles"], photon_sum, 0, batch["rows"])
        return {"images": images, "rows": batch["rows"]}

    def check_requantization(self, requantization: int | None) -> int | None:
        """Refuses a requantization that the model does not have.

        Raises:
            ValueError: If so.
        """
        if requantization is not None and requantization not in self.requantizations:
            known = ", ".join(map(str, self.requantizations))
            expected = f"one of {known}" if known else "none: counts come out exactly"
            raise ValueError(f"unknown requantization {requantization!r}; expected {expected}")
        return requantization


class FlowModel(ShowerModel):
    """A conditional flow of a representation of images.

    Args:
        detector: The detector's name.
        flow: Settings of the flow of points; None where the representation says all.
        representation: Settings of the representation.
        physics: Whether derived columns join the context.
        optimizer: From parameters to an optimizer.
        scheduler: From an optimizer to a learning-rate scheduler.
        inverse: Whether sampling takes one pass (a student's) instead of the likelihood (a teacher's).
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
        inverse: bool = False,
    ):
        representation = from_plain(representation)
        plain = {"flow": None if flow is None else flow.to_plain(), "representation": to_plain(representation)}
        super().__init__(detector, physics, optimizer, scheduler, **plain)
        self.representation = representation.build(self.detector, self.features.width)
        self.flow = self.representation.flow(self.features.width, flow, inverse)
        self.loss_unit = self.representation.nll_unit
        self.nll_unit = self.representation.inverse_nll_unit if inverse else self.loss_unit
        self.requantizations = self.representation.requantizations
        self.requantization = self.representation.requantization
        self.small_products = self.representation.small_products

    def fit_images(self, images: Tensor, keys: Tensor) -> None:
        """Those of the representation, see :meth:`ShowerModel.fit_images`."""
        self.representation.fit(images, keys)

    def stages(self, side: Side = "data") -> list[Stage]:
        """The flow's parts and those of the representation, see :func:`calosim.flows.stages`."""
        below = self.representation.stages()
        if side == "data":
            return [*below[::-1], *stages(self.flow, side)]
        return [*stages(self.flow, side), *below]

    def inputs(self, batch: dict[str, Tensor], step: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, nx, ny), context (B, width) and the keys of the dequantization noise (B,), see :meth:`loss`."""
        images = batch["images"]
        context = self.context(batch["particles"], images.flatten(1).sum(1))
        return images, context, step_keys(batch["rows"], rng.NOISE_STREAM, step)

    def log_likelihood(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """Log-likelihood of the images, the volume of standardizations included, see :meth:`ShowerModel.log_likelihood`."""
        images, context, keys = self.inputs(batch, step)
        return self.representation.log_likelihood(self.flow, images, context, batch["particles"], keys)

    def generate(
        self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor, requantization: int | Tensor | None = None
    ) -> Tensor:
        """Generates one photon image per row, see :meth:`ShowerModel.generate`."""
        keys = rng.row_keys(rows, rng.BASE_STREAM, seed)
        with evaluating(self):
            context = self.context(particles, photon_sum)
            return self.representation.generate(self.flow, photon_sum, context, particles, keys, requantization)

    def generate_points(self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor) -> Tensor:
        """Points of the representation, shape (B, D), see :meth:`ShowerModel.generate_points`."""
        with evaluating(self):
            context = self.context(particles, photon_sum)
            return self.representation.points(self.flow, context, rng.row_keys(rows, rng.BASE_STREAM, seed))

    def decode(self, points: Tensor, photon_sum: Tensor, requantization: int | Tensor | None = None) -> Tensor:
        """As the representation does, see :meth:`ShowerModel.decode`."""
        return self.representation.decode(points, photon_sum, requantization)

    def expected(self, points: Tensor, photon_sum: Tensor) -> Tensor:
        """As the representation does, see :meth:`ShowerModel.expected`."""
        with evaluating(self):
            return self.representation.expected(points, photon_sum, noise=False)

    def not_exportable(self) -> str:
        """What the representation says, see :meth:`ShowerModel.not_exportable`."""
        return self.representation.not_exportable

    def write(self, graph: Any) -> str:
        """Writes the flow and the representation's networks, see :meth:`ShowerModel.write`."""
        return graph.splits(self.representation, self.flow)
