r"""A conditional generative adversarial network of logarithmic counts, the kind that ALICE's O2 ships for the ZDC.

As there, the generator makes log(1 + n) of ten normal numbers and the primary; here the photon sum is given besides. The
critic has the hinge loss and spectral normalization, without which short trainings diverge more often than not.

Both learn in one step from one sum of losses: the critic sees images cut off from the generator, and the generator a critic
whose weights are held. So there is one optimizer, with one schedule, one clipping and one state to resume from.

References:
    | AliceO2Group/AliceO2, Detectors/ZDC/fastsimulation (ten normals and nine features in, log(1 + n) out)
    | Spectral Normalization for Generative Adversarial Networks (Miyato et al., 2018), https://arxiv.org/abs/1802.05957
    | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting and Raftery, 2007), the energy score
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from calosim import rng
from calosim.models.base import step_keys
from calosim.models.images import Decoder, Encoder, ImageModel, with_sum

__all__ = ["GAN"]

#: ONNX's number of a type.
DOUBLE = 11

#: Subtracted before the softplus, so that images begin dark.
DARK = 2.0


class GAN(ImageModel):
    r"""The adversarial network.

    Its losses in training rank nothing. The validation loss, which chooses the best checkpoint, is the energy score of the
    detector's channels :math:`s` in photons, a proper score that neither blur nor collapse deceives, by two responses to a row:

    .. math:: \tfrac{1}{2} (|s_1 - s| + |s_2 - s| - |s_1 - s_2|)

    Args:
        detector: The detector's name; on the command line it follows ``--data.detector``.
        noise: Normal numbers of a response; ten as in O2.
        width: Channels of the coarsest image in generator and critic.
        physics: Whether log-energy and the spot of a straight flight join the context.
        optimizer: From parameters to an optimizer; Adam with learning rate 2e-4 and momenta 0.5 and 0.9 by default.
        scheduler: From an optimizer to a learning-rate scheduler, stepped once an epoch.
    """

    def __init__(
        self,
        detector: str = "zn",
        noise: int = 10,
        width: int = 32,
        physics: bool = True,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.9), fused=True),
        scheduler: LRSchedulerCallable | None = None,
    ):
        super().__init__(detector, physics, optimizer, scheduler, noise=noise, width=width)
        self.noise, shape, context = noise, self.detector.shape, self.features.width
        self.generator = Decoder(shape, noise + context, width)
        self.critic = Encoder(shape, context, 1, width, wrap=spectral_norm)

    def logarithms(self, z: Tensor, context: Tensor) -> Tensor:
        """Logarithms log(1 + n), not negative, shape (B, nx, ny), of noise (B, Z) and context (B, C)."""
        return softplus(self.generator(z, context) - DARK)

    def answering(self) -> tuple[nn.Module, ...]:
        """The generator."""
        return (self.generator,)

    def parts(self, batch: dict[str, Tensor], step: int = -1) -> dict[str, Tensor]:
        """The losses of ``critic`` and ``generator`` in training, the energy score in validation; see :meth:`loss`."""
        if step < 0:
            return {"loss": self.score(batch)}
        x, context = self.inputs(batch)
        z = rng.normal(step_keys(batch["rows"], rng.NOISE_STREAM, step), self.noise).to(x)
        fake = self.logarithms(z, context)[:, None]
        critic = (1 - self.critic(x, context)).relu() + (1 + self.critic(fake.detach(), context)).relu()
        held = {name: p.detach() for name, p in self.critic.named_parameters()}
        generator = -functional_call(self.critic, held, (fake, context))
        parts = {"critic": critic[:, 0], "generator": generator[:, 0]}
        return {"loss": parts["critic"] + parts["generator"], **parts}

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """The energy score of the channels, the mean of them, in photons, shape (B,)."""
        total, channels = batch["images"].flatten(1).sum(1), self.detector.channels
        true = channels(batch["images"])
        first, second = (channels(self.generate(batch["particles"], total, s, batch["rows"])) for s in (0, 1))
        distances = (first - true).abs() + (second - true).abs() - (first - second).abs()
        return distances.to(self.features.mean).mean(1) / 2

    def counts(self, z: Tensor, context: Tensor, photon_sum: Tensor, keys: Tensor) -> Tensor:
        """Brings the generator's photons to their sum, see :meth:`ImageModel.counts`."""
        return with_sum(self.logarithms(z, context).double().expm1(), photon_sum)

    def not_exportable(self) -> str:
        """Nothing stands against it, see :meth:`ShowerModel.not_exportable`."""
        return ""

    def write(self, graph: Any) -> str:
        """Writes the generator, see :meth:`ShowerModel.write`."""
        g, (nx, ny) = graph.graph, self.detector.shape
        z, total, context = graph.given(np.arange((self.noise + 1) // 2), 0)
        z = g("Reshape", g.split(z, (self.noise, self.noise % 2))[0] if self.noise % 2 else z, np.array([1, -1]))
        x = graph.network(self.generator.layers, g("Concat", z, context, axis=1))
        x = g("Slice", x, np.array([0, 0]), np.array([nx, ny]), np.array([2, 3]))
        x = g("Cast", g("Softplus", g("Sub", x, DARK)), to=DOUBLE)
        return graph.with_sum(g("Sub", g("Exp", x), np.float64(1)), total)
