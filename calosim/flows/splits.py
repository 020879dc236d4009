r"""The flows of counts: a masked network that reads them, and its inverse that reads noise.

The conditioner of node :math:`j` sees the logarithms of both children's counts of the nodes of earlier *steps*, and the
context; its output is the discretized mixture of :mod:`calosim.flows.mixture`. The likelihood takes one pass. Sampling
visits the steps in turn; units are sorted by the step that completes their inputs, so that each is computed once: a
step adds what the counts before it made possible, and no more.

Node :math:`j` has a number :math:`z_j` of standard normal noise, and :math:`k_j = \lfloor v (n_j + 1) \rfloor` with
:math:`F(\operatorname{logit} v; \theta_j) = \Phi(z_j)`, where :math:`F` is the mixture of :mod:`calosim.flows.mixture`. The
parameters :math:`\theta_j` of all nodes follow from the noise of earlier steps and the context in one pass; what is left to
do level by level is to hand photons down.

References:
    | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509
    | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057
    | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
      https://arxiv.org/abs/1606.04934
    | CaloFlow II (Krause and Shih, 2021), https://arxiv.org/abs/2110.11377
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import mixture
from .config import Stage

__all__ = ["InverseSplits", "MaskedSplits", "log_density", "share_of_noise"]


class _Step(NamedTuple):
    """What a step computes: nodes, inputs known before it, hidden units up to and including it; and its weights."""

    start: int
    stop: int
    known: int
    old: int
    new: int
    weights: tuple[Tensor, ...]


class MaskedSplits(nn.Module):
    """The splits of M nodes, each of which has its photons from the whole or from an earlier node.

    Args:
        source: The node whose child a node is, -1 for the whole, shape (M,), int64.
        child: 0 if it is the first child of that, else 1, shape (M,).
        steps: The step every node is split in, from 0, not descending, shape (M,). A source is split before its children.
        context: The number of context features.
        hidden: Hidden units of each of the two masked layers, and of the context's network.
        components: Components of a mixture K.

    Raises:
        ValueError: If there is no node, steps descend or skip one, or a node is not later than its source.
    """

    source: Tensor
    child: Tensor
    _steps: Tensor
    _units: Tensor
    _mask_first: Tensor
    _mask_second: Tensor
    _mask_output: Tensor
    _mask_skip: Tensor

    def __init__(
        self, source: Tensor, child: Tensor, steps: Tensor, context: int, hidden: int = 256, components: int = 4
    ) -> None:
        super().__init__()
        last = int(steps[-1]) if len(steps) else 0
        if not torch.equal(steps.unique_consecutive(), torch.arange(last + 1)):
            raise ValueError(f"expected steps 0, 1, 2, ... that do not descend, got {steps.tolist()}")
        late = steps[source.clamp(min=0)] >= steps
        if bool((late & (source >= 0)).any()):
            raise ValueError("expected every node in a later step than the node it is a child of")
        self.nodes, self.hidden, self.components, self.steps = len(source), hidden, components, last + 1
        for name, table in (("source", source), ("child", child), ("_steps", steps)):
            self.register_buffer(name, table.clone(), persistent=False)
        self._mask(steps)
        outputs = self.nodes * 3 * components
        self.first, self.second = nn.Linear(2 * self.nodes, hidden), nn.Linear(hidden, hidden)
        self.output, self.skip = nn.Linear(hidden, outputs), nn.Linear(2 * self.nodes, outputs, bias=False)
        self.context = nn.Sequential(nn.Linear(context, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.from_context = nn.Linear(hidden, 2 * hidden + outputs)
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()
            self.skip.weight.zero_()
            self.from_context.weight[2 * hidden :].zero_()
            self.from_context.bias[2 * hidden :] = mixture.initial_bias(self.nodes, components).flatten()
        self._cache: tuple[tuple, list[_Step]] | None = None

    def stages(self) -> list[Stage]:
        """All of it as one, for fine-tuning."""
        seeing = [*self.context.parameters(), *self.from_context.parameters()]
        known = set(seeing)
        return [Stage([p for p in self.parameters() if p not in known], seeing)]

    def _mask(self, steps: Tensor) -> None:
        """Registers what may see what; units are spread evenly over the nodes, and have the degrees of those."""
        units = steps[torch.arange(self.hidden) * self.nodes // self.hidden]
        inputs, outputs = steps.repeat_interleave(2), steps.repeat_interleave(3 * self.components)
        self.register_buffer("_units", units, persistent=False)
        for name, allowed in (
            ("_mask_first", inputs < units[:, None]),
            ("_mask_second", units <= units[:, None]),
            ("_mask_output", units <= outputs[:, None]),
            ("_mask_skip", inputs < outputs[:, None]),
        ):
            self.register_buffer(name, allowed.float(), persistent=False)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            self.first.weight * self._mask_first,
            self.second.weight * self._mask_second,
            self.output.weight * self._mask_output,
            self.skip.weight * self._mask_skip,
        )

    def parts(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the context adds to both hidden layers (B, H) and to the outputs (B, 3 K M), biases included."""
        h = self.from_context(self.context(context))
        first, second, output = h.split((self.hidden, self.hidden, h.shape[1] - 2 * self.hidden), 1)
        return first + self.first.bias, second + self.second.bias, output + self.output.bias

    def parameters_of(self, k: Tensor, n: Tensor, context: Tensor) -> Tensor:
        """The mixtures of all nodes in one pass.

        Args:
            k: Photons of the first children with shape (B, M).
            n: Photons of the nodes with shape (B, M).
            context: With shape (B, C).

        Returns:
            Parameters with shape (B, M, 3 K); those of a node depend on nodes of earlier steps only.
        """
        x = torch.stack((k, n - k), 2).flatten(1).to(context.dtype).log1p()
        (first, second, output), (w1, w2, w3, w4) = self.parts(context), self._weights()
        h = F.silu(torch.addmm(first, x, w1.T))
        h = F.silu(torch.addmm(second, h, w2.T))
        return torch.addmm(torch.addmm(output, x, w4.T), h, w3.T).unflatten(1, (self.nodes, -1))

    def log_mass(self, k: Tensor, n: Tensor, context: Tensor) -> Tensor:
        """The logarithm of the probability of every split given those of earlier steps.

        Args:
            k: Photons of the first children with shape (B, M).
            n: Photons of the nodes with shape (B, M).
            context: With shape (B, C).

        Returns:
            Nats with shape (B, M); their sum is the logarithm of the probability of all counts given the whole.
        """
        return mixture.log_mass(k, n, self.parameters_of(k, n, context))

    def plan(self) -> list[_Step]:
        """Weights cut for the steps, transposed; made anew when a weight has changed."""
        tensors = [layer.weight for layer in (self.first, self.second, self.output, self.skip)]
        # Fused optimizers leave no trace in a tensor's version; the norms do not miss their steps.
        norms = torch.stack(torch._foreach_norm([t.detach() for t in tensors])).tolist()
        key = (*norms, *((t.data_ptr(), t._version) for t in tensors))
        if self._cache is not None and self._cache[0] == key:
            return self._cache[1]
        w1, w2, w3, w4 = (w.detach() for w in self._weights())
        plan, width = [], 3 * self.components
        for step in range(self.steps):
            start, stop = torch.searchsorted(self._steps, torch.tensor([step, step + 1], device=w1.device)).tolist()
            old, new = torch.searchsorted(self._units, torch.tensor([step, step + 1], device=w1.device)).tolist()
            known, out = 2 * start, slice(start * width, stop * width)
            cut = (w1[old:new, :known], w2[old:new, :new], w3[out, :new], w4[out, :known])
            plan.append(_Step(start, stop, known, old, new, tuple(w.T.contiguous() for w in cut)))
        self._cache = (key, plan)
        return plan

    @torch.no_grad()
    def sample(self, total: Tensor, context: Tensor, uniforms: Tensor) -> Tensor:
        """Splits photons.

        Args:
            total: Photons of the whole with shape (B,), int64.
            context: With shape (B, C).
            uniforms: Uniform numbers in (0, 1), float64, two of every node, with shape (B, 2, M).

        Returns:
            Photons of the first children with shape (B, M), int64.
        """
        first, second, output = self.parts(context)
        u, y = uniforms[:, 0], torch.logit(uniforms[:, 1])
        rows = total.shape[0]
        x, a, b = context.new_zeros(rows, 2 * self.nodes), torch.empty_like(first), torch.empty_like(second)
        # Both children of every node, after the whole: a node finds its photons at 1 + 2 source + child.
        counts = total.new_empty(rows, 1 + 2 * self.nodes)
        counts[:, 0] = total
        where = torch.where(self.source < 0, 0, 1 + 2 * self.source + self.child)
        for s in self.plan():
            w1, w2, w3, w4 = s.weights
            inputs, new = x[:, : s.known], slice(s.old, s.new)
            if s.new > s.old:
                a[:, new] = F.silu(torch.addmm(first[:, new], inputs, w1), inplace=True)
                b[:, new] = F.silu(torch.addmm(second[:, new], a[:, : s.new], w2), inplace=True)
            width = 3 * self.components
            out = torch.addmm(output[:, s.start * width : s.stop * width], inputs, w4).addmm_(b[:, : s.new], w3)
            n = counts.index_select(1, where[s.start : s.stop])
            k = mixture.draw(
                u[:, s.start : s.stop], y[:, s.start : s.stop], n, out.unflatten(1, (s.stop - s.start, width))
            )
            both = torch.stack((k, n - k), 2).flatten(1)
            counts[:, 1 + 2 * s.start : 1 + 2 * s.stop] = both
            x[:, 2 * s.start : 2 * s.stop] = torch.log1p(both.to(x.dtype))
        return counts[:, 1::2]


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
