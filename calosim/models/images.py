"""What models that make whole images share: two networks, logarithms of counts, and counts of a given sum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from calosim import rng
from calosim.models.base import evaluating
from calosim.models.shower import ShowerModel

__all__ = ["Decoder", "Encoder", "ImageModel", "with_sum"]

#: Rows that a network on a CPU answers at once. Its sums depend on how many there are, in the last digit, but not on which;
#: eight take about as long a row as hundreds.
ROWS = 8


def coarse(shape: tuple[int, int]) -> tuple[int, int]:
    """The shape after two halvings, rounded up."""
    return -(-shape[0] // 4), -(-shape[1] // 4)


class Decoder(nn.Module):
    """From noise and context to an image of real numbers, by two doublings of a quarter of its size.

    Args:
        shape: Shape of the image.
        inputs: Noise and context together.
        width: Channels of the coarsest image.
    """

    def __init__(self, shape: tuple[int, int], inputs: int, width: int = 32):
        super().__init__()
        self.shape, (nx, ny), half = shape, coarse(shape), width // 2
        self.layers = nn.Sequential(
            nn.Linear(inputs, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, width * nx * ny),
            nn.Unflatten(1, (width, nx, ny)),
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
        """Real numbers (B, nx, ny) from noise (B, Z) and context (B, C)."""
        return self.layers(torch.cat([z, c], 1))[:, 0, : self.shape[0], : self.shape[1]]


class Encoder(nn.Module):
    """From an image and its context to some numbers, by two halvings.

    Args:
        shape: Shape of the image.
        context: The number of context features.
        outputs: The number of outputs.
        width: Channels of the coarsest image.
        wrap: Applied to every layer with weights.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        context: int,
        outputs: int,
        width: int = 32,
        wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer,
    ):
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
        """Outputs (B, outputs) from images (B, 1, nx, ny) and context (B, C)."""
        return self.both(torch.cat([self.image(x), c], 1))


def with_sum(images: Tensor, photon_sum: Tensor) -> Tensor:
    """Counts with given sums in proportion to images of real numbers, by largest remainders.

    Pixels below half a photon, which rounding would leave dark, stay dark, or the haze of a smooth model would be lit; only
    an image that has nothing else keeps its haze, and one without any light is lit evenly.

    Args:
        images: Real numbers that are not negative, shape (B, nx, ny).
        photon_sum: Photons with shape (B,).

    Returns:
        Counts with shape (B, nx, ny), int64.
    """
    light = images.flatten(1).double()
    for enough in (0.5, 0.0):
        kept = torch.where(light >= enough, light, 0.0)
        light = torch.where(kept.sum(1, keepdim=True) > 0, kept, light + float(not enough))
    scaled = light * (photon_sum[:, None] / light.sum(1, keepdim=True))
    counts = scaled.floor()
    missing = photon_sum[:, None] - counts.sum(1, keepdim=True)
    # The largest remainders get one photon more each.
    order = torch.argsort(counts - scaled, dim=1, stable=True)
    more = torch.arange(light.shape[1], device=light.device) < missing
    return counts.scatter_add(1, order, more.to(counts)).long().view(images.shape)


class ImageModel(ShowerModel):
    """A model whose networks see or make logarithms log(1 + n) of an image's counts.

    Subclasses say how many normal numbers an image is made of, in ``noise``, and what is made of them.
    """

    noise: int
    #: Convolutions gain from threads.
    small_products = False

    @abstractmethod
    def counts(self, z: Tensor, context: Tensor, photon_sum: Tensor, keys: Tensor) -> Tensor:
        """Makes images.

        Args:
            z: Standard normal numbers with shape (B, noise).
            context: With shape (B, C).
            photon_sum: Photons with shape (B,).
            keys: Row keys with shape (B,), for what else is drawn.

        Returns:
            Photon counts with shape (B, nx, ny), int64.
        """

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logarithms log(1 + n) of a batch's counts, shape (B, 1, nx, ny), and its context (B, C)."""
        images = batch["images"]
        context = self.context(batch["particles"], images.flatten(1).sum(1))
        return images.to(context).log1p()[:, None], context

    def generate(
        self, particles: Tensor, photon_sum: Tensor, seed: int, rows: Tensor, requantization: int | Tensor | None = None
    ) -> Tensor:
        """Generates one photon image per row, see :meth:`~calosim.models.shower.ShowerModel.generate`."""

        def made(particles: Tensor, photon_sum: Tensor, rows: Tensor) -> Tensor:
            context = self.context(particles, photon_sum)
            z = rng.normal(rng.row_keys(rows, rng.BASE_STREAM, seed), self.noise).to(context)
            return self.counts(z, context, photon_sum.long(), rng.row_keys(rows, rng.NOISE_STREAM, seed))

        with evaluating(self):
            if rows.device.type != "cpu" or torch.jit.is_tracing():
                return made(particles, photon_sum, rows)
            # The last row again where the last part lacks some.
            whole = torch.arange(-(-len(rows) // ROWS) * ROWS).clamp(max=len(rows) - 1)
            parts = [made(particles[p], photon_sum[p], rows[p]) for p in whole.split(ROWS)]
            return torch.cat(parts)[: len(rows)]
