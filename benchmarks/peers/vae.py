r"""A conditional variational autoencoder of photon counts.

Given the photon sum, the counts of an image are multinomial with probabilities that the decoder makes of a latent vector:
the images are integer and have their sums without rounding, and the bound of the likelihood is one of the images' exact
probability, to be compared with that of split coordinates.

.. math:: -\log P(k \mid N, c) \le -\mathbb{E}_{q(z \mid k, c)} \log \mathrm{Mult}(k \mid N, p(z, c)) +
    \mathrm{KL}(q(z \mid k, c) \,\|\, N(0, 1))

References:
    | Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calosim.data.record import Showers
from calosim.detectors import Detector

from .networks import Decoder, Encoder
from .protocol import Batch, Batches, ImagePeer, descend

__all__ = ["VAE"]


class VAE(ImagePeer):
    """The variational autoencoder.

    Args:
        detector: The detector.
        lr: The learning rate of Adam.
        batch_size: Rows of a training batch.
        latent: Latent dimensions.
    """

    nll_unit = "nats per image (upper bound)"

    def __init__(self, detector: Detector, lr: float, batch_size: int = 64, latent: int = 16):
        super().__init__(detector, lr, batch_size)
        self.latent = latent
        self.module["encoder"] = Encoder(detector.shape, self.context, 2 * latent)
        self.module["decoder"] = Decoder(detector.shape, latent + self.context)

    @property
    def parameters(self) -> int:
        # A response needs no encoder.
        return sum(p.numel() for p in self.module["decoder"].parameters())

    def bound(self, batch: Batch) -> Tensor:
        """Upper bound of the negative log-likelihood of each image in nats, shape (B,)."""
        x, c = self.seen(batch)
        mean, log_variance = self.module["encoder"](x, c).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        log_p = self.module["decoder"](z, c).flatten(1).log_softmax(1)
        counts = batch["images"].flatten(1).float()
        ways = (counts.sum(1) + 1).lgamma() - (counts + 1).lgamma().sum(1)
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return divergence - ways - (counts * log_p).sum(1)

    def fit(self, showers: Showers, minutes: float, seed: int) -> int:
        budget = self.begin(minutes, seed)
        self.fit_features(showers)
        optimizer = torch.optim.Adam(self.module.train().parameters(), lr=self.lr, fused=True)
        batches = Batches(showers, self.batch_size, seed)
        # Nats of an image are hundreds; the clipping is made for losses of order one.
        return descend(budget, optimizer, lambda batch, step: self.bound(batch).mean() / 100, batches, self.clip)

    def nll(self, showers: Showers) -> np.ndarray:
        self.module.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            return np.concatenate([self.bound(b).numpy() for b in Batches(showers, len(showers), 0).in_order()])

    def generate(self, particles: np.ndarray, pdg: np.ndarray, photon_sum: np.ndarray, seed: int) -> np.ndarray:
        decoder = self.module["decoder"]
        logits = self.answered(particles, photon_sum, seed, self.latent, decoder)
        p = torch.from_numpy(logits).double().flatten(1).softmax(1).numpy()
        # The multinomial refuses sums above one by a rounding.
        counts = np.random.default_rng(seed).multinomial(photon_sum, p / (p.sum(1, keepdims=True) * (1 + 1e-12)))
        return counts.reshape(-1, *self.detector.shape)
