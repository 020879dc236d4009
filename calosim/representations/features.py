"""The features that networks see: those of the primary, standardized, and what a straight flight tells of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calosim.detectors import Detector

__all__ = ["FeatureScaler"]


class FeatureScaler(nn.Module):
    r"""Standardizes the features of the primaries, and optionally the photon sum, for a network.

    :math:`p_z` enters by its absolute value, as published (the sign tells only the side of the interaction point), and the
    photon sum as :math:`\log(1 + N)`, so that a single artefact with a hundred thousand photons cannot set the scale.
    Means and scales are buffers, fitted once on the training split.

    With ``physics`` four columns are derived: :math:`\log E`; where the primary would hit the front face if it flew
    straight, :math:`\operatorname{asinh}(v + |z| \, p_T / |p_z|)` in cm; and how far inside the face that is, in units of
    the shower core's width, negative outside. A network would have to learn those ratios, which decide whether there is a
    direct hit at all and how much of it leaks out, from products of inputs.

    Args:
        detector: The detector whose front face is hit.
        photon_sum: Whether the photon sum is the last column.
        physics: Whether the derived columns are added.
    """

    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, detector: Detector, photon_sum: bool = False, physics: bool = True):
        super().__init__()
        self.photon_sum, self.physics = photon_sum, physics
        self.detector = detector
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("scale", torch.ones(self.width))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def width(self) -> int:
        """The number of columns, 9 to 14."""
        return 9 + 4 * self.physics + self.photon_sum

    def _columns(self, particles: Tensor, photon_sum: Tensor | None) -> Tensor:
        energy, vx, vy, vz, px, py, pz, mass, charge = particles.unbind(1)
        columns = [energy, vx, vy, vz, px, py, pz.abs(), mass, charge]
        if self.physics:
            x, y = self.detector.straight_flight(particles)
            width, height = self.detector.size
            inside = torch.minimum(width / 2 - x.abs(), height / 2 - y.abs()) / self.detector.core_width
            columns += [energy.clamp(min=1e-3).log(), x.asinh(), y.asinh(), inside.asinh()]
        if self.photon_sum:
            if photon_sum is None:
                raise ValueError("this scaler needs the photon sum beside the features")
            columns.append(photon_sum.to(energy).clamp(min=0).log1p())
        return torch.stack(columns, dim=1)

    @torch.no_grad()
    def fit(self, particles: Tensor, photon_sum: Tensor | None = None) -> None:
        """Sets means and scales from the training split.

        Args:
            particles: Features with shape (N, 9), in the units of :data:`calosim.data.record.FEATURES`.
            photon_sum: Photons with shape (N,), if the scaler has that column.
        """
        columns = self._columns(particles.double(), photon_sum)
        self.mean.copy_(columns.mean(0))
        scale = columns.std(0, correction=0).to(self.scale)
        # A constant feature (one particle type has one mass) carries no information; scale 1 leaves it at zero.
        self.scale.copy_(torch.where(scale > 1e-6 * self.mean.abs() + 1e-12, scale, 1.0))
        self.fitted.fill_(True)

    def forward(self, particles: Tensor, photon_sum: Tensor | None = None) -> Tensor:
        """Standardizes.

        Args:
            particles: Features with shape (B, 9).
            photon_sum: Photons with shape (B,), if the scaler has that column.

        Returns:
            Columns with shape (B, width), of the type of the scaler's buffers.
        """
        return (self._columns(particles.to(self.mean.dtype), photon_sum) - self.mean) / self.scale
