"""The coarse part of split coordinates in a graph: the masked network of :mod:`calosim.flows.masked`, step by step."""

from __future__ import annotations

import numpy as np
from torch import nn

from calosim.export.builder import Builder
from calosim.export.splitting import drawn, rows
from calosim.flows import MaskedSplits

__all__ = ["by_parameter", "coarse", "linear", "places"]


def linear(g: Builder, value: str, layer: nn.Module) -> str:
    """A linear layer of a row (1, n)."""
    assert isinstance(layer, nn.Linear)
    return g("Gemm", value, layer.weight.detach().numpy().T, layer.bias.detach().numpy())


def coarse(g: Builder, flow: MaskedSplits, total: str, context: str, u: list[str], y: list[str]) -> str:
    """Splits photons as :meth:`MaskedSplits.sample` does.

    Args:
        g: The graph.
        flow: The network.
        total: The name of the photon sum, (1, 1) float32.
        context: The name of the context, (1, C) float32.
        u: Names of the uniform numbers of every step, float32, (nodes of the step,).
        y: Names of the negated logits of every step, float32, (nodes of the step,).

    Returns:
        The name of all counts, (1, 1 + 2 M) float32: the whole; then step by step first children and their siblings.
    """
    k = flow.components
    plan, place = flow.plan(), places(flow)
    h = g.silu(linear(g, g.silu(linear(g, context, flow.context[0])), flow.context[2]))
    first, second, output = _from_context(g, flow, h)
    counts, a, b = total, "", ""
    for s, step in enumerate(plan):
        w1, w2, w3, w4 = (w.numpy() for w in step.weights)
        x = g("Log", g("Add", counts, 1.0)) if s else ""
        if step.new > step.old:
            pre = g("Gemm", x, _inputs(w1, place, step.start), first[s]) if s else first[s]
            new = g.silu(pre)
            a = g("Concat", a, new, axis=1) if a else new
            new = g.silu(g("Gemm", a, w2, second[s]))
            b = g("Concat", b, new, axis=1) if b else new
        out = output[s]
        if s:
            out = g("Gemm", x, _inputs(by_parameter(w4, k), place, step.start), out)
        if b:
            out = g("Gemm", b, by_parameter(w3, k), out)
        out = g("Reshape", out, np.array([3 * k, -1]))
        nodes = np.arange(step.start, step.stop)
        source, child = flow.source.numpy()[nodes], flow.child.numpy()[nodes]
        where = np.where(source < 0, 0, place[np.maximum(source, 0), child])
        n = g("Gather", counts, where, axis=1)
        first_children = drawn(g, out, k, u[s], y[s], n)
        counts = g("Concat", counts, first_children, g("Sub", n, first_children), axis=1)
    return counts


def places(flow: MaskedSplits) -> np.ndarray:
    """Where the counts of both children of every node are, with shape (M, 2)."""
    place, done = np.zeros((flow.nodes, 2), np.int64), 1
    for step in flow.plan():
        m = step.stop - step.start
        place[step.start : step.stop] = done + np.stack((np.arange(m), m + np.arange(m)), 1)
        done += 2 * m
    return place


def _inputs(weight: np.ndarray, place: np.ndarray, known: int) -> np.ndarray:
    """Weights (2 known, H) of interleaved children as weights of all counts; the whole has none."""
    table = np.zeros((1 + 2 * known, weight.shape[1]), np.float32)
    table[place[:known].flatten()] = weight
    return table


def by_parameter(table: np.ndarray, components: int, ready: bool = True) -> np.ndarray:
    """Columns (*, m 3 K), node by node, to parameters of all nodes side by side (*, 3 K m).

    Args:
        table: Weights of mixtures, or biases as one row.
        components: Components K.
        ready: As a draw wants them, see :func:`rows`.
    """
    lead = table.shape[0]
    mixtures = np.moveaxis(table.reshape(lead, -1, 3 * components), 2, 0)
    return np.moveaxis(rows(mixtures, components) if ready else mixtures, 1, 0).reshape(lead, -1)


def _from_context(g: Builder, flow: MaskedSplits, h: str) -> tuple[list[str], list[str], list[str]]:
    """What the context adds to both hidden layers and the outputs, step by step, biases included."""
    weight = flow.from_context.weight.detach().numpy().T
    biases = [layer.bias for layer in (flow.first, flow.second, flow.output)]
    bias = flow.from_context.bias.detach().numpy() + np.concatenate([b.detach().numpy() for b in biases])
    table, hidden = np.concatenate((weight, bias[None])), flow.hidden
    parts, sizes, width = [table[:, : 2 * hidden]], [], 3 * flow.components
    plan = flow.plan()
    sizes += [step.new - step.old for step in plan] * 2
    for step in plan:
        out = table[:, 2 * hidden + step.start * width : 2 * hidden + step.stop * width]
        parts.append(by_parameter(out, flow.components))
        sizes.append(parts[-1].shape[1])
    table = np.concatenate(parts, 1)
    all_of_it = g("Gemm", h, table[:-1], table[-1])
    pieces = g.split(all_of_it, sizes, axis=1)
    n = len(plan)
    return pieces[:n], pieces[n : 2 * n], pieces[2 * n :]
