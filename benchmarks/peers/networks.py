"""Small convolutional networks of images for the peers: an encoder and a decoder, for any detector's shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Decoder", "Encoder"]


def coarse(shape: tuple[int, int]) -> tuple[int, int]:
    """The shape after two halvings, rounded up."""
    return -(-shape[0] // 4), -(-shape[1] // 4)


class Decoder(nn.Module):
    """From noise and features to an image of real numbers, by two doublings of a quarter of its size.

    Args:
        shape: Shape of the image.
        inputs: Noise and features together.
        width: Channels of the coarsest image.
    """

    def __init__(self, shape: tuple[int, int], inputs: int, width: int = 32):
        super().__init__()
        self.shape, (nx, ny) = shape, coarse(shape)
        self.coarse = nn.Sequential(
            nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, width * nx * ny), nn.Unflatten(1, (width, nx, ny))
        )
        half = width // 2
        self.fine = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(width, half, 4, stride=2, padding=1),
            nn.BatchNorm2d(half),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(half, half // 2, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(half // 2, 1, 3, padding=1),
        )

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """Real numbers (B, nx, ny) from noise (B, Z) and features (B, C)."""
        return self.fine(self.coarse(torch.cat([z, c], 1)))[:, 0, : self.shape[0], : self.shape[1]]


class Encoder(nn.Module):
    """From an image and features to some numbers, by two halvings.

    Args:
        shape: Shape of the image.
        context: The number of features.
        outputs: The number of outputs.
        width: Channels of the coarsest image.
        wrap: Applied to every layer with weights.
    """

    def __init__(self, shape: tuple[int, int], context: int, outputs: int, width: int = 32, wrap=lambda layer: layer):
        super().__init__()
        (nx, ny), half = coarse(shape), width // 2
        self.image = nn.Sequential(
            wrap(nn.Conv2d(1, half, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            wrap(nn.Conv2d(half, width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d((nx, ny)),
            nn.Flatten(),
            wrap(nn.Linear(width * nx * ny, 128)),
        )
        self.both = nn.Sequential(
            nn.LeakyReLU(0.2), wrap(nn.Linear(128 + context, 128)), nn.LeakyReLU(0.2), wrap(nn.Linear(128, outputs))
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Outputs (B, outputs) from images (B, 1, nx, ny) and features (B, C)."""
        return self.both(torch.cat([self.image(x), c], 1))
