r"""Photons split one node after the other: a masked autoregressive network that reads counts.

The conditioner of node :math:`j` sees the logarithms of both children's counts of the nodes of earlier *steps*, and the
context; its output is the discretized mixture of :mod:`calosim.flows.mixture`. The likelihood takes one pass. Sampling
visits the steps in turn; units are sorted by the step that completes their inputs, so that each is computed once: a
step adds what the counts before it made possible, and no more.

References:
    | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509
    | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import mixture
from .config import Stage

__all__ = ["MaskedSplits"]


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
