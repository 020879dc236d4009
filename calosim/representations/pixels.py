r"""Photon images to the logits a flow models, and back: normalization, dequantization noise and its removal.

An image :math:`n` of integer counts becomes a shape and then logits (the recipe of the reference training)

.. math:: p = \frac{n + u}{\sum_j (n_j + u_j)}, \quad u \sim U(0, a), \qquad
          \ell = \operatorname{logit}(\alpha + (1 - 2 \alpha) p), \qquad x = (\ell - \mu) / \sigma

with :math:`a = 0.5`, :math:`\alpha = 10^{-6}` and per-pixel :math:`\mu, \sigma` of the training split. Back again, the
shape is scaled by the photon sum plus the expected noise :math:`D a / 2`, and the noise is removed by one of four ways.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.4,
      https://arxiv.org/abs/2608.12795
    | majerzemilia/zdc-fast-simulations (the reference training)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calosim import rng
from calosim.detectors import Detector
from calosim.flows import FlowChanges, FlowConfig, iaf, maf
from calosim.representations.base import Representation
from calosim.representations.distillation import PointPairing

__all__ = ["REQUANTIZATIONS", "PixelConfig", "PixelLogits", "requantize"]

#: The four published ways to remove the noise.
REQUANTIZATIONS: dict[int, str] = {
    1: "floor",
    2: "subtract the expected noise, round",
    3: "floor, renormalize to the photon sum, round",
    4: "subtract the expected noise, round, renormalize to the photon sum, round",
}


def requantize(values: Tensor, photon_sum: Tensor, method: int | Tensor = 3, noise: float = 0.5) -> Tensor:
    """Turns noisy, real-valued photon images into integer counts.

    Args:
        values: Shape times (photon sum + expected noise), with shape (B, *), not negative.
        photon_sum: The photon sum to renormalize to, with shape (B,); used by methods 3 and 4.
        method: A key of :data:`REQUANTIZATIONS`, for all rows or for each, with shape (B,). 3 is the published best
            overall and for photons, 1 for neutrons, Lambda and Sigma+, 2 for K0S.
        noise: The width of the uniform noise that preprocessing added; its expectation is half of that.

    Returns:
        Photon counts with shape (B, *), int64, never negative. With methods 3 and 4 an image sums to the photon sum
        up to the rounding of its pixels; an image in which no pixel survives stays empty.

    Raises:
        ValueError: If a method is not 1 to 4.
    """
    method = torch.as_tensor(method, device=values.device).expand(len(values))
    if not bool(((method >= 1) & (method <= 4)).all()):
        raise ValueError(f"unknown requantization {method.unique().tolist()}; expected 1, 2, 3 or 4")
    column = (-1, *[1] * (values.ndim - 1))
    floors, renormalizes = (method % 2 == 1).view(column), method >= 3
    counts = torch.where(floors, values.floor(), (values - noise / 2).round().clamp(min=0))
    total = counts.flatten(1).sum(1)
    factor = torch.where(renormalizes, torch.where(total > 0, photon_sum.to(total) / total.clamp(min=1), 0.0), 1.0)
    return (counts * factor.view(column)).round().to(torch.int64)


@dataclass(frozen=True)
class PixelConfig:
    """Settings of pixels as published: logits of the noisy shape.

    Attributes:
        noise: Width of the uniform dequantization noise in photons; an integer count n fills [n, n + noise).
        alpha: Keeps the logits finite: the shape is squeezed into [alpha, 1 - alpha].
        standardize: Whether logits are standardized per pixel.
    """

    noise: float = 0.5
    alpha: float = 1e-6
    standardize: bool = True

    def flow_settings(self, given: FlowConfig | dict[str, Any] | None) -> FlowConfig:
        """Settings of the flow: those that are given, else the published ones."""
        return FlowConfig() if given is None else FlowConfig.from_plain(given)

    def student_settings(self, known: Any, changes: FlowChanges | dict[str, Any] | None) -> FlowConfig:
        """Settings of a student's flow: all of them, or changes of those known of its teacher."""
        if isinstance(changes, dict):
            return self.flow_settings(changes)
        # Without dropout unless given: the targets are exact and never repeat.
        return self.flow_settings(known).changed(FlowChanges(dropout=0.0)).changed(changes)

    def build(self, detector: Detector, context: int = 0) -> PixelLogits:
        """The representation of a detector's images."""
        return PixelLogits(detector, self)


#: Never changed.
DEFAULTS = PixelConfig()


class PixelLogits(Representation):
    """Photon images to standardized logits of their shape, and back.

    Args:
        detector: The detector.
        config: The settings.

    Raises:
        ValueError: If a setting is out of its range.
    """

    mean: Tensor
    scale: Tensor
    requantizations = REQUANTIZATIONS
    requantization = 3
    nll_unit = inverse_nll_unit = "nats a pixel"
    small_products = False
    not_exportable = "it is of pixels, whose flow no graph is known of; a model of splits has one"

    def __init__(self, detector: Detector, config: PixelConfig = DEFAULTS):
        super().__init__(detector)
        if not 0 < config.noise <= 1:
            raise ValueError(f"expected a dequantization noise in (0, 1], got {config.noise}")
        if not 0 < config.alpha < 0.5:
            raise ValueError(f"expected alpha in (0, 0.5), got {config.alpha}")
        self.config, self.size = config, detector.pixels
        self.noise, self.alpha = config.noise, config.alpha
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("scale", torch.ones(self.size))

    @property
    def expected_noise(self) -> float:
        """The expected sum of the noise over an image, in photons."""
        return self.size * self.noise / 2

    def dequantize(self, images: Tensor, keys: Tensor) -> Tensor:
        """Adds the noise and normalizes.

        Args:
            images: Photon counts with shape (B, nx, ny).
            keys: Row keys of the noise with shape (B,), from :func:`calosim.rng.row_keys`.

        Returns:
            Shapes with shape (B, nx * ny), each summing to 1. An image without photons is a shape like any other.
        """
        noisy = images.flatten(1).to(torch.float32) + self.noise * rng.uniform(keys, self.size)
        return noisy / noisy.sum(1, keepdim=True)

    def logit(self, shapes: Tensor) -> Tensor:
        """Shapes (B, nx * ny) to standardized logits (B, nx * ny)."""
        squeezed = self.alpha + (1 - 2 * self.alpha) * shapes
        # log1p keeps the digits of 1 - p near p = 0, where nearly all pixels are.
        return (squeezed.log() - torch.log1p(-squeezed) - self.mean) / self.scale

    def shapes(self, x: Tensor) -> Tensor:
        """Standardized logits (B, nx * ny) to shapes (B, nx * ny) that sum to 1; differentiable.

        The inverse of :meth:`logit` up to the normalization, which a flow's samples need and which changes nothing on
        the logits of a true shape.
        """
        squeezed = torch.sigmoid(x * self.scale + self.mean)
        positive = ((squeezed - self.alpha) / (1 - 2 * self.alpha)).clamp(min=0)
        return positive / positive.sum(1, keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)

    def encode(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Photon counts (B, nx, ny) to standardized logits (B, nx * ny), and their log-volume (B,)."""
        x = self.logit(self.dequantize(images, keys))
        return x, self.log_volume().expand(len(x))

    def decode(self, x: Tensor, photon_sum: Tensor, requantization: int | Tensor | None = None) -> Tensor:
        """Standardized logits to photon images, see :meth:`Representation.decode` and :func:`requantize`."""
        total = photon_sum.to(x.device, torch.float32)
        values = self.shapes(x.to(torch.float32)) * (total + self.expected_noise)[:, None]
        method = self.requantization if requantization is None else requantization
        counts = requantize(values, total, method, self.noise) * (total > 0)[:, None]
        return counts.view(-1, *self.shape)

    def expected(self, x: Tensor, photon_sum: Tensor, noise: bool = True) -> Tensor:
        """The noisy image of standardized logits, see :meth:`Representation.expected`."""
        scale = (photon_sum.to(x.dtype) + self.expected_noise)[:, None]
        images = (self.shapes(x) * scale).unflatten(1, self.shape)
        return images if noise else images - self.noise / 2

    def log_likelihood(self, flow: Any, images: Tensor, context: Tensor, particles: Tensor, keys: Tensor) -> Tensor:
        """The log-density of the logits, not standardized, in nats per pixel, see :meth:`Representation.log_likelihood`."""
        x, log_volume = self.encode(images, keys)
        return (flow(context).log_prob(x) + log_volume) / self.size

    def flow(self, context: int, settings: FlowConfig | None, inverse: bool = False) -> nn.Module:
        """A masked autoregressive flow, or an inverse one, see :meth:`Representation.flow`."""
        return (iaf if inverse else maf)(self.size, context, settings or FlowConfig())

    def pairing(self, teacher: Any, student: Any) -> PointPairing:
        """Transformation by transformation, see :meth:`Representation.pairing`."""
        return PointPairing(self, teacher, student)

    def points(self, flow: Any, context: Tensor, keys: Tensor) -> Tensor:
        """Draws logits (B, nx * ny) before they become counts, see :meth:`generate`."""
        return flow(context).transform.inv(rng.normal(keys, self.size))

    def generate(
        self,
        flow: Any,
        photon_sum: Tensor,
        context: Tensor,
        particles: Tensor,
        keys: Tensor,
        requantization: int | Tensor | None = None,
    ) -> Tensor:
        """Draws images, see :meth:`Representation.generate`."""
        return self.decode(self.points(flow, context, keys), photon_sum, requantization)

    @torch.no_grad()
    def fit(self, images: Tensor, keys: Tensor) -> None:
        """Sets the means and scales of the logits, see :meth:`Representation.fit`."""
        if not self.config.standardize:
            return
        self.mean.zero_()
        self.scale.fill_(1.0)
        count, mean, square = 0, *(torch.zeros(self.size, dtype=torch.float64) for _ in range(2))
        for start in range(0, len(images), 4096):
            x = self.encode(images[start : start + 4096], keys[start : start + 4096])[0].double().cpu()
            count += len(x)
            mean += x.sum(0)
            square += x.square().sum(0)
        mean /= count
        self.mean.copy_(mean)
        self.scale.copy_((square / count - mean.square()).clamp(min=1e-4).sqrt())

    def log_volume(self) -> Tensor:
        r"""The constant :math:`-\sum \log \sigma` that turns a log-density of x into one of the logits; shape ()."""
        return -self.scale.log().sum()
