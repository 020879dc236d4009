r"""A conditional variational autoencoder of photon counts.

Given the photon sum, the counts of an image are multinomial with probabilities that the decoder makes of a latent vector:
images are integer and have their sums without rounding, and the bound of the likelihood is one of the images' exact
probability, to be compared with that of the splits.

.. math:: -\log P(k \mid N, c) \le -\mathbb{E}_{q(z \mid k, c)} \log \mathrm{Mult}(k \mid N, p(z, c)) +
    \mathrm{KL}(q(z \mid k, c) \,\|\, N(0, 1))

References:
    | Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from calosim import rng
from calosim.models.base import step_keys
from calosim.models.images import Decoder, Encoder, ImageModel

__all__ = ["VAE", "multinomial"]

#: Photons of a row that are drawn at once.
PHOTONS = 4096


def multinomial(probabilities: Tensor, total: Tensor, keys: Tensor) -> Tensor:
    """Draws counts photon by photon, so that a row's do not depend on the other rows.

    Args:
        probabilities: Of each pixel, not negative, in any unit, shape (B, P), float64.
        total: Photons with shape (B,), int64.
        keys: Row keys with shape (B,).

    Returns:
        Counts with shape (B, P), int64.
    """
    steps = probabilities.cumsum(1)
    steps = steps / steps[:, -1:]
    counts = torch.zeros_like(probabilities, dtype=torch.int64)
    for photons in torch.arange(int(total.max()), device=total.device).split(PHOTONS):
        pixel = torch.searchsorted(steps, rng.uniform_at(keys[:, None], photons))
        counts.scatter_add_(1, pixel, (photons < total[:, None]).long())
    return counts


class VAE(ImageModel):
    """The variational autoencoder.

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        latent: Latent dimensions.
        width: Channels of the coarsest image in encoder and decoder.
        physics: Whether log-energy and the spot of a straight flight join the context.
        optimizer: From parameters to an optimizer; Adam with learning rate 1e-3 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.
    """

    nll_unit = "nats an image (bound)"

    def __init__(
        self,
        detector: str = "zn",
        latent: int = 16,
        width: int = 32,
        physics: bool = True,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(detector, physics, optimizer, scheduler, latent=latent, width=width)
        self.noise, shape, context = latent, self.detector.shape, self.features.width
        self.encoder = Encoder(shape, context, 2 * latent, width)
        self.decoder = Decoder(shape, latent + context, width)

    def answering(self) -> tuple[nn.Module, ...]:
        """The decoder."""
        return (self.decoder,)

    def loss(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """The bound of the negative log-likelihood."""
        return -self.log_likelihood(batch, step)

    def log_likelihood(self, batch: dict[str, Tensor], step: int = -1) -> Tensor:
        """A lower bound in nats, shape (B,), by one latent vector a row, see :meth:`ShowerModel.log_likelihood`."""
        x, context = self.inputs(batch)
        mean, log_variance = self.encoder(x, context).chunk(2, 1)
        noise = rng.normal(step_keys(batch["rows"], rng.NOISE_STREAM, step), self.noise).to(x)
        log_p = self.decoder(mean + noise * (log_variance / 2).exp(), context).flatten(1).double().log_softmax(1)
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2
        counts = batch["images"].flatten(1).double()
        ways = (counts.sum(1) + 1).lgamma() - (counts + 1).lgamma().sum(1)
        return (ways + (counts * log_p).sum(1) - divergence).to(x)

    def counts(self, z: Tensor, context: Tensor, photon_sum: Tensor, keys: Tensor) -> Tensor:
        """Draws the photons one by one, see :meth:`ImageModel.counts`."""
        logits = self.decoder(z, context).flatten(1).double()
        return multinomial(logits.softmax(1), photon_sum, keys).view(-1, *self.detector.shape)

    def not_exportable(self) -> str:
        """What the graph has no operations for, see :meth:`ShowerModel.not_exportable`."""
        return "photons are drawn one by one, as many as there are"
