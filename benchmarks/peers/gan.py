"""A conditional generative adversarial network of logarithmic counts, the kind that ALICE's O2 ships for the ZDC.

As there, the generator makes log(1 + n) of ten normal numbers and the primary; here the photon sum is given besides, as it
is to all peers. The critic is trained with the hinge loss and spectral normalization, without which the short trainings
of this benchmark diverge more often than not.

References:
    | AliceO2Group/AliceO2, Detectors/ZDC/fastsimulation (ten normals and nine features in, log(1 + n) out)
    | Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018), https://arxiv.org/abs/1802.05957
    | Selectively Increasing the Diversity of GAN-Generated Samples (Dubinski et al., 2022), https://arxiv.org/abs/2207.01561
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from calosim.data.record import Showers
from calosim.detectors import Detector

from .networks import Decoder, Encoder
from .protocol import Batches, RealImagePeer

__all__ = ["GAN"]

#: Normal numbers of a response, as in O2.
NOISE = 10


class Generator(Decoder):
    """A decoder whose images are logarithms log(1 + n), which are not negative."""

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """Logarithms (B, nx, ny) from noise (B, Z) and features (B, C)."""
        return nn.functional.softplus(super().forward(z, c) - 2)


class GAN(RealImagePeer):
    """The adversarial network.

    Args:
        detector: The detector.
        lr: The learning rate of both Adams, whose first momentum is 0.5.
        batch_size: Rows of a training batch.
    """

    def __init__(self, detector: Detector, lr: float, batch_size: int = 64):
        super().__init__(detector, lr, batch_size)
        self.module["generator"] = Generator(detector.shape, NOISE + self.context)

    def fit(self, showers: Showers, minutes: float, seed: int) -> int:
        budget = self.begin(minutes, seed)
        self.fit_features(showers)
        generator = self.module["generator"].train()
        critic = Encoder(self.detector.shape, self.context, 1, wrap=spectral_norm)
        adams = [
            torch.optim.Adam(m.parameters(), lr=self.lr, betas=(0.5, 0.9), fused=True) for m in (generator, critic)
        ]
        made = 0
        for step, batch in zip(budget.steps(*adams), Batches(showers, self.batch_size, seed), strict=False):
            x, c = self.seen(batch)
            fake = generator(torch.randn(len(x), NOISE), c)[:, None]
            adams[1].zero_grad()
            hinge = (1 - critic(x, c)).relu() + (1 + critic(fake.detach(), c)).relu()
            hinge.mean().backward()
            adams[1].step()
            adams[0].zero_grad()
            (-critic(fake, c)).mean().backward()
            adams[0].step()
            made = step + 1
        return made

    def photons(self, particles: np.ndarray, photon_sum: np.ndarray, seed: int) -> np.ndarray:
        return np.expm1(self.answered(particles, photon_sum, seed, NOISE, self.module["generator"]))
