r"""Conditional flow matching of logarithmic counts, after arXiv 2507.18811.

A network is taught the velocity of the straight way from noise z to an image x of log(1 + n):

.. math:: \| v(x_t, t, c) - (x - z) \|^2, \quad x_t = (1 - t) z + t x, \quad t \sim U(0, 0.99)

and a response is ten steps of Euler from noise, negative values cut. As published: a U-Net of about 70,000 parameters with
three levels of 8, 12 and 16 channels and two residual blocks each, attention with two heads on which the primary is a
token, Adam with momenta 0.7 and 0.88, averaged weights. Not as published: the photon sum, which all peers are given, and the
straight flight's end are among the features, which the residual blocks see too; attention is at the coarsest level only;
batches are smaller, and the learning rate falls with the time that there is.

References:
    | Even Faster Simulations with Flow Matching (Wojnar, 2025), https://arxiv.org/abs/2507.18811
    | Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calosim.data.record import Showers
from calosim.detectors import Detector

from .protocol import Batch, Batches, RealImagePeer, descend

__all__ = ["FlowMatching", "Velocity"]

#: Latest time of training, momenta of Adam, and decay of the averaged weights, as published.
LATEST, MOMENTA, DECAY = 0.99, (0.7, 0.88), 0.999


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
        widths: Channels of the levels, the finest first.
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
            for block in blocks:
                x = block(x, e)
                kept.append(x)
        for block, attention in zip(self.middle, self.attention, strict=True):
            x = block(attention(x, e), e)
        for blocks in self.up:
            for block in blocks:
                beside = kept.pop()
                if x.shape[2:] != beside.shape[2:]:
                    x = functional.interpolate(x, size=beside.shape[2:])
                x = block(torch.cat([x, beside], 1), e)
        return self.last(x)


class FlowMatching(RealImagePeer):
    """The flow.

    Args:
        detector: The detector.
        lr: The learning rate of Adam; 4.4e-4 as published.
        batch_size: Rows of a training batch; 256 as published, which on a processor would leave short trainings few steps.
        steps: Steps of Euler.
    """

    def __init__(self, detector: Detector, lr: float, batch_size: int = 64, steps: int = 10):
        super().__init__(detector, lr, batch_size)
        self.steps = steps
        self.module["velocity"] = Velocity(self.context).to(memory_format=torch.channels_last)

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the velocity."""
        x, c = self.seen(batch)
        z, t = torch.randn_like(x), LATEST * torch.rand(len(x))
        mixed = t[:, None, None, None]
        return functional.mse_loss(self.trained((1 - mixed) * z + mixed * x, t, c), x - z)

    def fit(self, showers: Showers, minutes: float, seed: int) -> int:
        budget = self.begin(minutes, seed)
        self.fit_features(showers)
        self.trained = copy.deepcopy(self.module["velocity"])
        optimizer = torch.optim.Adam(self.trained.parameters(), lr=self.lr, betas=MOMENTA, fused=True)
        averaged = list(self.module["velocity"].parameters())

        @torch.no_grad()
        def average(step: int) -> None:
            # The decay begins lower, or a short training would remember its random beginning.
            weight = 1 - min(DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(averaged, list(self.trained.parameters()), weight)

        batches = Batches(showers, self.batch_size, seed)
        return descend(budget, optimizer, lambda batch, step: self.loss(batch), batches, self.clip, average)

    def photons(self, particles: np.ndarray, photon_sum: np.ndarray, seed: int) -> np.ndarray:
        shape = self.detector.shape

        def euler(z: Tensor, c: Tensor) -> Tensor:
            x = z.reshape(-1, 1, *shape)
            for step in range(self.steps):
                x = x + self.module["velocity"](x, torch.full((len(x),), step / self.steps), c) / self.steps
            return x[:, 0].relu()

        return np.expm1(self.answered(particles, photon_sum, seed, shape[0] * shape[1], euler))
