"""What a representation of showers is: the wall between images and the flows that model them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from calosim.detectors import Detector
from calosim.flows import FlowConfig, Stage

__all__ = ["Representation"]


class Representation(nn.Module, ABC):
    """Photon images to the real numbers that a flow models, and back.

    Models know this interface alone. Random numbers are keyed by row, so that neither batch size nor
    the number of processes changes them.

    Args:
        detector: The detector whose images they describe.

    Attributes:
        size: The number D of coordinates of a point, the features of the flow.
        nll_unit: The unit of :meth:`log_likelihood`: ``nats an image`` if it is the probability of the image, ``nats a pixel`` if
            it is a density of D = pixels noisy numbers, over D.
        inverse_nll_unit: The same of a student's flow; None if that has no likelihood.
        small_products: Whether threads that share a product of the flow wait for each other longer than they save.
        not_exportable: Why a model cannot be exported as a graph, in words; empty if it can.
        requantizations: The ways from points to integer counts and what they do, by number; empty where counts come out
            exactly.
        requantization: The one that is used unless another is asked for; None where there is none.
    """

    size: int
    nll_unit: str
    inverse_nll_unit: str | None = None
    small_products = True
    not_exportable = "no graph is known of its representation"
    requantizations: dict[int, str] = {}  # noqa: RUF012
    requantization: int | None = None

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
        """Photon counts to points.

        Args:
            images: Photon counts with shape (B, nx, ny).
            keys: Row keys of the dequantization noise with shape (B,).

        Returns:
            Points (B, D), and the log-volume (B,) that turns their log-density into that of the images.
        """

    @abstractmethod
    def decode(self, x: Tensor, photon_sum: Tensor, requantization: int | Tensor | None = None) -> Tensor:
        """Points to photon counts.

        Args:
            x: Points with shape (B, D).
            photon_sum: Photons with shape (B,); an image whose sum is 0 is empty.
            requantization: A key of :attr:`requantizations`, for all rows or for each, shape (B,); the representation's own if
                None.

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """

    @abstractmethod
    def expected(self, x: Tensor, photon_sum: Tensor, noise: bool = True) -> Tensor:
        """The image that points stand for, before requantization; differentiable.

        Args:
            x: Points with shape (B, D).
            photon_sum: Photons with shape (B,).
            noise: Whether the dequantization noise is left in, so that it drops out of the difference of two images with
                the same noise; else its expectation is subtracted.

        Returns:
            Photons with shape (B, nx, ny).
        """

    @abstractmethod
    def log_likelihood(self, flow: Any, images: Tensor, context: Tensor, particles: Tensor, keys: Tensor) -> Tensor:
        """The log-likelihood of images given their photon sums.

        Args:
            flow: The flow of this representation.
            images: Photon counts with shape (B, nx, ny).
            context: What the flow is conditioned on, with shape (B, C).
            particles: Features of the primaries with shape (B, 9).
            keys: Row keys of dequantization noise with shape (B,).

        Returns:
            In :attr:`nll_unit`, with shape (B,).
        """

    @abstractmethod
    def pairing(self, teacher: Any, student: Any) -> Any:
        """What a teacher's and a student's flow of this representation make of data and noise side by side.

        Returns:
            As :class:`calosim.representations.distillation.PointPairing`.
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
            flow: The flow of this representation.
            photon_sum: Photons with shape (B,).
            context: With shape (B, C).
            particles: With shape (B, 9).
            keys: Row keys of the draws with shape (B,).
            requantization: See :meth:`decode`.

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """

    @abstractmethod
    def flow(self, context: int, settings: FlowConfig | None, inverse: bool = False) -> nn.Module:
        """Makes the flow that models this representation.

        Args:
            context: The number of context features.
            settings: Of a flow of points; None where the representation's own settings say all.
            inverse: Whether sampling takes one pass (a student's) instead of the likelihood (a teacher's).
        """

    def stages(self) -> list[Stage]:
        """What of the representation is trained besides the flow, from the flow's side to the pixels."""
        return []

    def points(self, flow: Any, context: Tensor, keys: Tensor) -> Tensor:
        """Draws points (B, D) before they become counts, see :meth:`generate`.

        Raises:
            ValueError: If counts come out exactly.
        """
        raise ValueError("counts come out exactly: there is nothing to requantize")
