r"""Conditional flow matching of logarithmic counts, after arXiv 2507.18811.

A network is taught the velocity of the straight way from noise z to an image x of log(1 + n):

.. math:: \| v(x_t, t, c) - (x - z) \|^2, \quad x_t = (1 - t) z + t x, \quad t \sim U(0, 0.99)

and a response is ten steps of Euler from noise, negative values cut. As published: a U-Net of about 70,000 parameters with
three levels of 8, 12 and 16 channels and two residual blocks each, attention with two heads on which the primary is a
token, Adam with momenta 0.7 and 0.88, averaged weights. Not as published: the photon sum, which is given, and the straight
flight's end are among the features, which the residual blocks see too; attention is at the coarsest level only.

References:
    | Even Faster Simulations with Flow Matching (Wojnar, 2025), https://arxiv.org/abs/2507.18811
    | Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from calosim import rng
from calosim.models.base import step_keys
from calosim.models.images import ImageModel, with_sum

__all__ = ["FlowMatching", "Velocity"]

#: Latest time of training and decay of the averaged weights, as published.
LATEST, DECAY = 0.99, 0.999


class Residual(nn.Module):
    """Two convolutions beside a shortcut, the embedding added in between."""

    def __init__(self, inputs: int, outputs: int, embedding: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.shift = nn.Linear(embedding, outputs)
        self.second = nn.Sequential(nn.GroupNorm(4, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Images (B, outputs, h, w) from images (B, inputs, h, w) and embeddings (B, E)."""
        return self.shortcut(x) + self.second(self.first(x) + self.shift(e)[:, :, None, None])


class Attention(nn.Module):
    """Attention among the pixels of a coarse image and one token of the embedding."""

    def __init__(self, width: int, embedding: int, heads: int = 2):
        super().__init__()
        self.heads, self.norm, self.token = heads, nn.GroupNorm(1, width), nn.Linear(embedding, width)
        self.queries, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Images (B, width, h, w) from images and embeddings (B, E)."""
        tokens = torch.cat([self.norm(x).flatten(2).mT, self.token(e)[:, None]], 1)
        parts = self.queries(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2).flatten(2)
        return x + self.out(found)[:, :-1].mT.unflatten(2, x.shape[2:])


class Velocity(nn.Module):
    """The U-Net.

    Args:
        context: The number of features.
        widths: Channels of the levels, multiples of four, the finest first.
        embedding: Size of the embedding of time and features.
    """

    def __init__(self, context: int, widths: tuple[int, ...] = (8, 12, 16), embedding: int = 32):
        super().__init__()
        self.frequencies = embedding // 2
        self.time = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.primary = nn.Sequential(nn.Linear(context, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.first = nn.Conv2d(1, widths[0], 3, padding=1)
        self.down, self.up, inputs, kept = nn.ModuleList(), nn.ModuleList(), widths[0], []
        for width in widths:
            self.down.append(nn.ModuleList([Residual(inputs, width, embedding), Residual(width, width, embedding)]))
            inputs = width
            kept += [width, width]
        self.middle = nn.ModuleList([Residual(inputs, inputs, embedding) for _ in range(2)])
        self.attention = nn.ModuleList([Attention(inputs, embedding) for _ in range(2)])
        for width in widths[::-1]:
            blocks = []
            for _ in range(2):
                blocks.append(Residual(inputs + kept.pop(), width, embedding))
                inputs = width
            self.up.append(nn.ModuleList(blocks))
        self.last = nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(), nn.Conv2d(inputs, 1, 1))

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Velocities (B, 1, nx, ny) at images (B, 1, nx, ny) and times (B,), given features (B, C)."""
        scales = torch.exp(-math.log(1e4) * torch.arange(self.frequencies, device=x.device) / self.frequencies)
        # Times from 0 to 1 are spread over the waves as steps from 0 to 1000 are in diffusion models.
        angles = 1000 * t[:, None] * scales
        e = self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.primary(c)
        x, kept = self.first(x), []
        for level, blocks in enumerate(self.down):
            x = functional.avg_pool2d(x, 2, ceil_mode=True) if level else x
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, e)
                kept.append(x)
        for block, attention in zip(self.middle, self.attention, strict=True):
            x = block(attention(x, e), e)
        for blocks in self.up:
            for block in blocks:  # type: ignore[attr-defined]
                beside = kept.pop()
                if x.shape[2:] != beside.shape[2:]:
                    x = functional.interpolate(x, size=beside.shape[2:])
                x = block(torch.cat([x, beside], 1), e)
        return self.last(x)


def euler(velocity: nn.Module, z: Tensor, c: Tensor, steps: int) -> Tensor:
    """Goes from noise (B, 1, nx, ny) to images of the same shape, given features (B, C)."""
    for step in range(steps):
        z = z + velocity(z, z.new_full((len(z),), step / steps), c) / steps
    return z


@torch.no_grad()
def average(averaged: Sequence[Tensor], trained: Sequence[Tensor], steps: Tensor | int) -> None:
    """Moves averaged weights after so many steps; the decay begins lower, or the random beginning would be remembered."""
    torch._foreach_lerp_(list(averaged), list(trained), 1 - min(DECAY, (1 + int(steps)) / (10 + int(steps))))


class FlowMatching(ImageModel):
    """The flow. Images are generated, and validation losses computed, with the averaged weights.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        widths: Channels of the levels of the U-Net, multiples of four, the finest first.
        embedding: Size of the embedding of time and features.
        steps: Steps of Euler.
        physics: Whether log-energy and the spot of a straight flight join the context.
        optimizer: From parameters to an optimizer; Adam with the published learning rate 4.4e-4 and momenta by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.
    """

    def __init__(
        self,
        detector: str = "zn",
        widths: tuple[int, ...] = (8, 12, 16),
        embedding: int = 32,
        steps: int = 10,
        physics: bool = True,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=4.4e-4, betas=(0.7, 0.88), fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        own = {"widths": list(widths), "embedding": embedding, "steps": steps}
        super().__init__(detector, physics, optimizer, scheduler, **own)
        self.noise, self.steps = self.detector.pixels, steps
        self.velocity = Velocity(self.features.width, tuple(widths), embedding)
        self.velocity.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = AveragedModel(self.velocity, multi_avg_fn=average).requires_grad_(False)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes a step, then averages."""
        super().optimizer_step(*args, **kwargs)
        self.averaged.update_parameters(self.velocity)

    def answering(self) -> tuple[nn.Module, ...]:
        """The averaged network."""
        return (self.averaged,)

    def loss(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """Mean squared error of the velocity over the pixels, of the weights in training or the averaged ones in validation."""
        x, context = self.inputs(batch)
        rows, network = batch["rows"], self.averaged if step < 0 else self.velocity
        z = rng.normal(step_keys(rows, rng.NOISE_STREAM, step), self.noise).to(x).view_as(x)
        t = LATEST * rng.uniform(step_keys(rows, rng.TRAINING_STREAM, step), 1).to(x)
        mixed = t[:, :, None, None]
        off = network((1 - mixed) * z + mixed * x, t[:, 0], context) - (x - z)
        return off.square().flatten(1).mean(1)

    def counts(self, z: Tensor, context: Tensor, photon_sum: Tensor, keys: Tensor) -> Tensor:
        """Brings the flow's photons to their sum, see :meth:`ImageModel.counts`."""
        x = euler(self.averaged, z.view(-1, 1, *self.detector.shape), context, self.steps)
        return with_sum(x[:, 0].relu().expm1(), photon_sum)

    def not_exportable(self) -> str:
        """What the graph has no operations for, see :meth:`ShowerModel.not_exportable`."""
        return "a network that attends and normalizes groups is passed several times"
