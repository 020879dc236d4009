"""What coordinates of a shower are: the wall between images and the flows that model them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from calosim.detectors import Detector
from calosim.flows import FlowConfig, Stage

__all__ = ["Representation"]


class Representation(nn.Module, ABC):
    """Photon images to the real numbers that a flow models, and back.

    Models, callbacks and tools know this interface alone. Random numbers are keyed by row, so that neither batch size nor
    the number of processes changes them.

    Args:
        detector: The detector whose images they describe.

    Attributes:
        size: The number D of coordinates, the features of the flow.
        per: What a log-likelihood is divided by: the number of pixels where it is a density of D = pixels noisy
            coordinates; 1 where it is a probability of the image.
        nodes: None where a flow of points models the coordinates. Else what a masked network of counts splits: for each
            of D nodes its source, which child of it it is, and its step, see :class:`calosim.flows.MaskedSplits`.
        requantizations: The ways from coordinates to integer counts and what they do, by number; empty where counts come out
            exactly.
        requantization: The one that is used unless another is asked for; None where there is none.
    """

    size: int
    per: int
    requantizations: dict[int, str] = {}  # noqa: RUF012
    requantization: int | None = None
    nodes: tuple[Tensor, Tensor, Tensor] | None = None

    def __init__(self, detector: Detector):
        super().__init__()
        self.shape = detector.shape

    @abstractmethod
    def fit(self, images: Tensor, keys: Tensor) -> None:
        """Sets standardizations from a sample of the training split.

        Args:
            images: Photon counts with shape (N, nx, ny).
            keys: Row keys with shape (N,), see :func:`calosim.rng.row_keys`.
        """

    @abstractmethod
    def encode(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Photon counts to coordinates.

        Args:
            images: Photon counts with shape (B, nx, ny).
            keys: Row keys of the dequantization noise with shape (B,).

        Returns:
            Coordinates (B, D), and the log-volume (B,) that turns their log-density into that of the images.
        """

    @abstractmethod
    def decode(self, x: Tensor, photon_sum: Tensor, requantization: int | Tensor | None = None) -> Tensor:
        """Coordinates to photon counts.

        Args:
            x: Coordinates with shape (B, D).
            photon_sum: Photons with shape (B,); an image whose sum is 0 is empty.
            rounding: A key of :attr:`requantizations`, for all rows or for each, shape (B,); :attr:`requantization` if None.

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """

    @abstractmethod
    def expected(self, x: Tensor, photon_sum: Tensor, noise: bool = True) -> Tensor:
        """The image that coordinates stand for, before rounding; differentiable.

        Args:
            x: Coordinates with shape (B, D).
            photon_sum: Photons with shape (B,).
            noise: Whether the dequantization noise is left in, so that it drops out of the difference of two images with
                the same noise; else its expectation is subtracted.

        Returns:
            Photons with shape (B, nx, ny).
        """

    @abstractmethod
    def log_likelihood(self, flow: Any, images: Tensor, context: Tensor, particles: Tensor, keys: Tensor) -> Tensor:
        """The log-likelihood of images given their photon sums, over :attr:`per`.

        Args:
            flow: The flow of these coordinates.
            images: Photon counts with shape (B, nx, ny).
            context: What the flow is conditioned on, with shape (B, C).
            particles: Features of the primaries with shape (B, 9).
            keys: Row keys of dequantization noise with shape (B,).

        Returns:
            Nats with shape (B,).
        """

    @abstractmethod
    def generate(
        self,
        flow: Any,
        photon_sum: Tensor,
        context: Tensor,
        particles: Tensor,
        keys: Tensor,
        requantization: int | Tensor | None = None,
    ) -> Tensor:
        """Draws images.

        Args:
            flow: The flow of these coordinates.
            photon_sum: Photons with shape (B,).
            context: With shape (B, C).
            particles: With shape (B, 9).
            keys: Row keys of the draws with shape (B,).
            rounding: See :meth:`decode`.

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """

    @abstractmethod
    def flow(self, context: int, settings: FlowConfig | None, inverse: bool = False) -> nn.Module:
        """Makes the flow that models these coordinates.

        Args:
            context: The number of context features.
            settings: Of a flow of points; None where the coordinates' own settings say all.
            inverse: Whether sampling takes one pass (a student's) instead of the likelihood (a teacher's).
        """

    def stages(self) -> list[Stage]:
        """What of these coordinates is trained besides the flow, from the flow's side to the pixels."""
        return []

    def check_requantization(self, requantization: int | None) -> int | None:
        """Refuses a rounding that these coordinates do not have.

        Raises:
            ValueError: If so.
        """
        if requantization is not None and requantization not in self.requantizations:
            known = (
                f"one of {', '.join(map(str, self.requantizations))}"
                if self.requantizations
                else "none: counts come out exactly"
            )
            raise ValueError(f"unknown noise removal {requantization!r}; expected {known}")
        return requantization
