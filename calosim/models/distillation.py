r"""Distillation of a masked into an inverse autoregressive flow: its losses, their weights, and what can be paired.

Both flows map data :math:`x = s_0` through states :math:`s_1 \dots s_{n-1}` to noise :math:`z = s_n`. The teacher is fast
from data to noise, the student from noise to data, and a step of training uses each in its fast direction only. With
:math:`\theta_k` the conditioners' outputs (spline parameters) of transformation k and :math:`\overline{|\cdot|^2}` the mean
square over features, the two losses of a row are

.. math::
    \text{loss}_x &: \quad x \xrightarrow{\text{teacher}} (s^T, \theta^T), \; z^T = s_n^T
        \xrightarrow{\text{student}} (s^S, \theta^S), \quad s_n^S = z^T \\
    &\phantom{:} \quad L_x = a \, \overline{|x - s_0^S|^2} + b \sum_{k=1}^{n-1} \overline{|s_k^T - s_k^S|^2}
        + c \sum_{k=1}^{n} \overline{|\theta_k^T - \theta_k^S|^2} \\
    \text{loss}_z &: \quad z \sim N(0, 1) \xrightarrow{\text{student}} (s^S, \theta^S), \; x^S = s_0^S
        \xrightarrow{\text{teacher}} (s^T, \theta^T), \quad s_0^T = x^S \\
    &\phantom{:} \quad L_z = a' \, \overline{|z - s_n^T|^2} + b' \sum_{k=1}^{n-1} \overline{|s_k^T - s_k^S|^2}
        + c' \sum_{k=1}^{n} \overline{|\theta_k^T - \theta_k^S|^2}

where each is named after the space its outputs are compared in. In the second, gradients pass through the frozen teacher.

References:
    | CaloFlow II (Krause and Shih, 2021), https://arxiv.org/abs/2110.11377
    | Inverse Autoregressive Flows for Zero Degree Calorimeter fast simulation (Majerz et al., 2025),
      https://arxiv.org/abs/2512.20346
    | Towards Fast, ML-Based Calorimeter Simulations in ALICE (Majerz et al., slides)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from calosim.detectors import Convention

__all__ = ["CHANNEL_POWERS", "ChannelLoss", "ChannelScale", "LossWeights", "StudentLosses", "unpaired_parts"]

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
    """The loss of the five channels, see :func:`calosim.models.losses.channel_loss`.

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
        warmup = self.channel.warmup_steps
        ramp = 1.0 if step is None or step >= warmup else (step + 1) / (warmup + 1)
        found |= {"channel": self.channel.weight * ramp, "center": self.center}
        return {name: w for name, w in found.items() if w}


def unpaired_parts(teacher: list[Any], student: list[Any]) -> dict[str, str]:
    """In words, why intermediate states and parameters cannot be paired; empty where they can."""
    if len(teacher) != len(student):
        return dict.fromkeys(
            ("intermediate", "parameters"), f"{len(student)} transforms for the teacher's {len(teacher)}"
        )
    words = {"intermediate": "", "parameters": ""}
    for t, s in zip(teacher, student, strict=True):
        if not torch.equal(t.order, s.order):
            words = dict.fromkeys(words, "other pixel orders than the teacher's")
        elif t.bins != s.bins or t.conditioner.edges != s.conditioner.edges:
            words["parameters"] = (
                f"{s.bins} bins in {len(s.conditioner.edges) - 1} chunks for the teacher's {t.bins} in "
                f"{len(t.conditioner.edges) - 1}"
            )
    return words
