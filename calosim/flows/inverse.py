r"""Photons split in one pass: the conditioner reads noise where that of the masked network reads counts.

Node :math:`j` has a number :math:`z_j` of standard normal noise, and :math:`k_j = \lfloor v (n_j + 1) \rfloor` with
:math:`F(\operatorname{logit} v; \theta_j) = \Phi(z_j)`, where :math:`F` is the mixture of :mod:`calosim.flows.mixture`. The
parameters :math:`\theta_j` of all nodes follow from the noise of earlier steps and the context in one pass; what is left to
do level by level is to hand photons down.

References:
    | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
      https://arxiv.org/abs/1606.04934
    | CaloFlow II (Krause and Shih, 2021), https://arxiv.org/abs/2110.11377
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import mixture
from .config import Stage

__all__ = ["InverseSplits", "log_density", "share_of_noise"]


def log_density(y: Tensor, parameters: Tensor) -> Tensor:
    """The log-density of the mixture at :math:`y = logit(v)` with shape (*,), given parameters (*, 3 K); nats (*,)."""
    logits, location, log_scale = mixture.unpack(parameters)
    a = (y.unsqueeze(-1) - location) * torch.exp(-log_scale)
    return torch.logsumexp(logits.log_softmax(-1) - log_scale + F.logsigmoid(a) + F.logsigmoid(-a), -1)


def share_of_noise(u: Tensor, parameters: Tensor) -> Tensor:
    """Inverts the mixture's distribution function, differentiably.

    Args:
        u: Uniform numbers in (0, 1), float64, with shape (*,).
        parameters: With shape (*, 3 K).

    Returns:
        y = logit(v) with shape (*,), float64; its gradient is that of the implicit function.
    """
    parameters = parameters.double()
    with torch.no_grad():
        y = mixture.inverse(u, parameters)
        slope = log_density(y, parameters).exp().clamp(min=1e-12)
    off = mixture.cdf(y, parameters)
    return y - (off - off.detach()) / slope


class InverseSplits(nn.Module):
    """The splits of M nodes as functions of noise.

    Args:
        source: The node whose child a node is, -1 for the whole, shape (M,), int64.
        child: 0 if it is the first child of that, else 1, shape (M,).
        steps: The step of every node, from 0, not descending, shape (M,); noise of earlier steps is seen.
        context: The number of context features.
        hidden: Hidden units of each of the two masked layers, and of the context's network.
        components: Components of a mixture K.
    """

    _source: Tensor
    _mask_first: Tensor
    _mask_second: Tensor
    _mask_output: Tensor

    def __init__(
        self, source: Tensor, child: Tensor, steps: Tensor, context: int, hidden: int = 256, components: int = 4
    ) -> None:
        super().__init__()
        self.nodes, self.hidden, self.components = len(source), hidden, components
        units = steps[torch.arange(hidden) * len(source) // hidden]
        outputs = steps.repeat_interleave(3 * components)
        tables = {
            "_source": torch.where(source < 0, 0, 1 + 2 * source + child),
            "_mask_first": (steps < units[:, None]).float(),
            "_mask_second": (units <= units[:, None]).float(),
            "_mask_output": (units <= outputs[:, None]).float(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        # Nodes whose photons are known at the same time: the whole first, then by generation.
        depth = torch.zeros_like(source)
        for node in range(len(source)):
            depth[node] = 0 if source[node] < 0 else depth[source[node]] + 1
        self.generations = int(depth.max()) + 1
        for d in range(self.generations):
            self.register_buffer(f"_generation{d}", (depth == d).nonzero()[:, 0], persistent=False)
        self.first, self.second = nn.Linear(self.nodes, hidden), nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, self.nodes * 3 * components)
        self.context = nn.Sequential(nn.Linear(context, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.from_context = nn.Linear(hidden, 2 * hidden + self.nodes * 3 * components)
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()
            self.from_context.weight[2 * hidden :].zero_()
            self.from_context.bias[2 * hidden :] = mixture.initial_bias(self.nodes, components).flatten()

    def stages(self) -> list[Stage]:
        """All of it as one, for fine-tuning."""
        seeing = [*self.context.parameters(), *self.from_context.parameters()]
        known = set(seeing)
        return [Stage([p for p in self.parameters() if p not in known], seeing)]

    def parameters_of(self, z: Tensor, context: Tensor) -> Tensor:
        """The mixtures of all nodes in one pass.

        Args:
            z: Noise with shape (B, M).
            context: With shape (B, C).

        Returns:
            Parameters with shape (B, M, 3 K); those of a node depend on the noise of earlier steps only.
        """
        h = self.from_context(self.context(context))
        first, second, output = h.split((self.hidden, self.hidden, h.shape[1] - 2 * self.hidden), 1)
        x = F.silu(first + F.linear(z.to(context.dtype), self.first.weight * self._mask_first, self.first.bias))
        x = F.silu(second + F.linear(x, self.second.weight * self._mask_second, self.second.bias))
        return (output + F.linear(x, self.output.weight * self._mask_output, self.output.bias)).unflatten(
            1, (self.nodes, -1)
        )

    @torch.no_grad()
    def hand_down(self, total: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Turns shares into counts, from the whole down.

        Args:
            total: Photons of the whole with shape (B,), int64.
            v: Which share of a node's photons its first child has, in (0, 1), with shape (B, M), float64.

        Returns:
            Photons of the first children and of the nodes, each (B, M), int64.
        """
        counts = total.new_empty(total.shape[0], 1 + 2 * self.nodes)
        counts[:, 0] = total
        for nodes in (getattr(self, f"_generation{d}") for d in range(self.generations)):
            n = counts.index_select(1, self._source[nodes])
            k = torch.minimum((v.index_select(1, nodes) * (n + 1)).long(), n)
            counts[:, 1 + 2 * nodes], counts[:, 2 + 2 * nodes] = k, n - k
        return counts[:, 1::2], counts[:, 1::2] + counts[:, 2::2]

    @torch.no_grad()
    def sample(self, total: Tensor, context: Tensor, uniforms: Tensor) -> Tensor:
        """Splits photons.

        Args:
            total: Photons of the whole with shape (B,), int64.
            context: With shape (B, C).
            uniforms: Uniform numbers in (0, 1), float64, with shape (B, *, M), of which the first of each node is used.

        Returns:
            Photons of the first children with shape (B, M), int64.
        """
        u = uniforms[:, 0]
        parameters = self.parameters_of(torch.special.ndtri(u), context)
        return self.hand_down(total, torch.sigmoid(mixture.inverse(u, parameters)))[0]
