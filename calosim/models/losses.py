r"""Losses of the student: their settings, and pure functions with one value a row: distillation, channels, shower center.

All functions are differentiable and run on any device. None averages over the batch, so that rows can be weighted.

References:
    | CaloFlow II (Krause and Shih, 2021), https://arxiv.org/abs/2110.11377
    | Inverse Autoregressive Flows for Zero Degree Calorimeter fast simulation (Majerz et al., 2025),
      https://arxiv.org/abs/2512.20346
    | Towards Fast, ML-Based Calorimeter Simulations in ALICE (Majerz et al., slides)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from calosim.detectors import Convention, Detector

__all__ = [
    "CHANNEL_POWERS",
    "ChannelLoss",
    "ChannelScale",
    "LossWeights",
    "StudentLosses",
    "center_of_gravity",
    "channel_loss",
    "distillation",
    "shower_center",
    "squared_distance",
]


ChannelScale = Literal["photons", "poisson", "relative"]

#: What differences of channel values are divided by: 1, the statistical error of the photon sum, or the photon sum.
CHANNEL_POWERS: dict[str, float] = {"photons": 0.0, "poisson": 0.5, "relative": 1.0}


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of a distillation loss; 0 switches a part off.

    Attributes:
        outputs: Of the final output, data or noise.
        intermediate: Of the states between the transformations.
        parameters: Of the conditioners' outputs.
    """

    outputs: float = 1.0
    intermediate: float = 1.0
    parameters: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ValueError(f"expected a loss weight of at least 0 for {name}, got {value}")


@dataclass(frozen=True)
class ChannelLoss:
    """The loss of the five channels, see :func:`channel_loss`.

    Attributes:
        weight: Its weight; 0 switches it off.
        warmup_steps: It is ramped up linearly over that many steps; not in validation.
        scale: What differences of channels are divided by: ``photons`` (1), ``poisson`` (the root of the row's photon
            sum) or ``relative`` (the photon sum).
        convention: The channel convention, see :meth:`calosim.detectors.Detector.masks`.
    """

    weight: float = 0.0
    warmup_steps: int = 0
    scale: ChannelScale = "poisson"
    convention: Convention = "paper"

    def __post_init__(self) -> None:
        if self.scale not in CHANNEL_POWERS:
            raise ValueError(f"unknown channel scale {self.scale!r}; expected one of {', '.join(CHANNEL_POWERS)}")


#: The defaults, fully guided as published, and no channel loss; never changed.
ALL_PARTS, NO_CHANNELS = LossWeights(), ChannelLoss()


@dataclass(frozen=True)
class StudentLosses:
    """What a student is trained on.

    Attributes:
        x: Weights of the loss that starts from data.
        z: Weights of the loss that starts from noise.
        channel: The loss of the five channels.
        center: Weight of the distance of the shower's center from the expected one, per cm; for FoCal-H.
    """

    x: LossWeights = ALL_PARTS
    z: LossWeights = ALL_PARTS
    channel: ChannelLoss = NO_CHANNELS
    center: float = 0.0

    def weights(self, step: int | None = None) -> dict[str, float]:
        """The weights of all losses that are not switched off: ``x_outputs`` and so on, ``channel``, ``center``.

        Args:
            step: The training step, for the ramp of the channel loss; its full weight if not given.
        """
        found = {f"{space}_{part}": w for space in "xz" for part, w in asdict(getattr(self, space)).items()}
        return {name: w for name, w in found.items() if w} | self.physics(step)

    def physics(self, step: int | None = None) -> dict[str, float]:
        """The weights of the losses of images among them, see :meth:`weights`."""
        warmup = self.channel.warmup_steps
        ramp = 1.0 if step is None or step >= warmup else (step + 1) / (warmup + 1)
        found = {"channel": self.channel.weight * ramp, "center": self.center}
        return {name: w for name, w in found.items() if w}


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    r"""Returns :math:`\sum_j (a_j - b_j)^2` over all features, shape (B,).

    Args:
        a: Values with shape (B, *).
        b: Values with the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"expected two tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    return (a - b).square().flatten(1).sum(1)


def distillation(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    r"""How far a student is from its teacher in what is paired: outputs, intermediate states or spline parameters.

    .. math:: \sum_k \frac{1}{D_k} \sum_{j=1}^{D_k} (t_{kj} - s_{kj})^2

    Summed over what is paired as published, but the mean over features, so that a weight means the same for any
    detector.

    Args:
        teacher: Tensors :math:`t_k` with shape (B, D_k).
        student: As many tensors :math:`s_k` of the same shapes.

    Returns:
        Distances with shape (B,).

    Raises:
        ValueError: If there is nothing to pair, or numbers or shapes differ.

    References:
        | CaloFlow II (Krause and Shih, 2021), section 3, https://arxiv.org/abs/2110.11377
    """
    if not teacher or len(teacher) != len(student):
        raise ValueError(
            f"expected as many tensors of the student as of the teacher, at least one; got {len(student)} and {len(teacher)}"
        )
    total = torch.zeros_like(teacher[0][:, 0])
    for t, s in zip(teacher, student, strict=True):
        total = total + squared_distance(t, s) / t[0].numel()
    return total


def channel_loss(
    generated: Tensor,
    target: Tensor,
    detector: Detector,
    convention: Convention = "paper",
    scale: Tensor | None = None,
) -> Tensor:
    r"""Mean squared difference of the five channel values :math:`w_i`.

    .. math:: \frac{1}{5} \sum_{i=1}^{5} \left( \frac{\hat w_i - w_i}{s} \right)^2

    Args:
        generated: Photons of the student's image, with shape (B, nx, ny).
        target: Photons of the target image, with shape (B, nx, ny).
        detector: The detector.
        convention: The channel convention, see :meth:`calosim.detectors.Detector.masks`.
        scale: Photons :math:`s` that differences are divided by, with shape (B,); 1 if not given.

    Returns:
        Losses with shape (B,), in photons squared without a scale.

    Raises:
        ValueError: If the images do not have the detector's shape.
    """
    difference = detector.channels(generated, convention) - detector.channels(target, convention)
    if scale is not None:
        difference = difference / scale[:, None]
    return difference.square().mean(1)


def center_of_gravity(images: Tensor, detector: Detector) -> Tensor:
    """Center of gravity of images.

    Args:
        images: Photons with shape (B, nx, ny); integer, or real-valued where noise was subtracted, then also negative.
        detector: The detector.

    Returns:
        x and y in cm with shape (B, 2), where the beam line is 0; NaN, without gradient, where there is no light.

    Raises:
        ValueError: If the images do not have the detector's shape.
    """
    if tuple(images.shape[1:]) != detector.shape:
        raise ValueError(
            f"expected {detector.title} images (B, {detector.shape[0]}, {detector.shape[1]}), got {tuple(images.shape)}"
        )
    images = images if images.is_floating_point() else images.to(torch.float64)
    x, y = (torch.as_tensor(p, dtype=images.dtype, device=images.device) for p in detector.pixel_centers)
    total = images.sum((1, 2))[:, None]
    nonempty = total > 0
    moments = torch.stack((images.sum(2) @ x, images.sum(1) @ y), dim=1)
    center = moments / torch.where(nonempty, total, 1.0)
    center = center + torch.tensor((detector.center_x, 0.0), dtype=center.dtype, device=center.device)
    return torch.where(nonempty, center, torch.nan)


def shower_center(images: Tensor, particles: Tensor, detector: Detector) -> Tensor:
    """Distance between the image's center of gravity and where the primary's straight flight crosses the front face.

    Meant for FoCal-H, which primaries fly straight to; before the ZDC many bend, decay or shower.

    Args:
        images: Photons with shape (B, nx, ny), floating point.
        particles: Features with shape (B, 9).
        detector: The detector.

    Returns:
        Distances in cm with shape (B,); 0 for an image without light.
    """
    x, y = detector.straight_flight(particles)
    expected = torch.stack((x + detector.center_x, y), dim=1).to(images)
    center = center_of_gravity(images, detector)
    return torch.linalg.vector_norm(torch.where(center.isnan(), expected, center) - expected, dim=1)
