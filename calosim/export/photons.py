"""The photon sum in a graph, in float64 as in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from calosim.export.builder import Builder
from calosim.export.primary import Primary
from calosim.models.heads import MixtureHead
from calosim.models.photon_sum import PhotonSum

__all__ = ["binned", "layers", "numbers_of", "photon_sum"]

_DOUBLE, _FLOAT, _INT64 = 11, 1, 7


def numbers_of(model: PhotonSum) -> int:
    """How many uniform numbers a photon sum takes.

    Raises:
        ValueError: If its head cannot be exported.
    """
    if not isinstance(model.head, MixtureHead):
        raise ValueError(f"expected a photon-sum model with a mixture head to export, got a {model.head.name} head")
    return 1 + model.head.numbers


def photon_sum(graph: Builder, primary: Primary, model: PhotonSum, numbers: str, seed: int) -> str:
    """Draws the photon sum as :meth:`PhotonSum.sample` does.

    Args:
        graph: The graph.
        primary: The primary.
        model: The photon-sum model.
        numbers: The name of the uniform numbers, float64, as many as :func:`numbers_of` says.
        seed: Seed of the networks.

    Returns:
        The name of the photon sum, (1, 1) float32.
    """
    g, head = graph, model.head
    *drawn, member = g.split(numbers, (1,) * numbers_of(model))
    networks = model.networks(seed)
    h = binned(g, g("Cast", primary.standardized(model.features), to=_DOUBLE), networks[0][0])  # type: ignore[index]
    chosen = g("Cast", g("Mul", member, np.float64(len(networks))), to=_INT64)
    for depth, tables in enumerate(layers(networks)):
        h = g("Gemm", g.silu(h, np.float64(1)) if depth else h, *(_one(g, table, chosen) for table in tables))
    assert isinstance(head, MixtureHead)
    return _drawn(g, head, h, primary.energy, drawn)


def layers(networks: list[nn.Module]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (members, n, m) and biases (members, m) of networks side by side, layer by layer."""
    linear = [[m for m in network.modules() if isinstance(m, nn.Linear)] for network in networks]
    return [
        (
            np.stack([layer.weight.detach().numpy().T for layer in same]),
            np.stack([layer.bias.detach().numpy() for layer in same]),
        )
        for same in zip(*linear, strict=True)
    ]


def _one(g: Builder, table: np.ndarray, chosen: str) -> Any:
    """The chosen member's part of a table (members, *)."""
    if len(table) == 1:
        return table[0]
    return g("Squeeze", g("Gather", table, chosen, axis=0), np.array([0]))


def binned(g: Builder, h: str, encoding: Any) -> str:
    """Bins beside the columns (1, width), see :class:`calosim.models.uncertainty.PiecewiseLinear`."""
    if not encoding.columns:
        return h
    low, size = (t.numpy().reshape(1, -1) for t in (encoding.low, encoding.size))
    number = low.dtype.type
    passed = g("Div", g("Sub", g("Gather", h, np.repeat(encoding.columns, encoding.bins), axis=1), low), size)
    passed = g("Clip", passed, number(0), number(1))
    return g("Concat", h, g("Sub", g("Mul", passed, number(2)), number(1)), axis=1)


def _drawn(g: Builder, head: MixtureHead, outputs: str, energy: str, numbers: list[str]) -> str:
    """The draw of :meth:`MixtureHead.draw` from outputs (1, 3 K)."""
    u, v, artefact = numbers
    one, lower = np.float64(1), np.float64(head.lower)
    expected = g("Mul", g("Cast", energy, to=_DOUBLE), np.float64(head.light_yield))
    wide = g("Add", g("Add", expected, g("Mul", g("Sqrt", expected), np.float64(6))), np.float64(20))
    capacity = g("Ceil", g("Max", wide, lower))
    parameters = g("Reshape", outputs, np.array([3, head.components]))
    logits, rest = g.split(parameters, (1, 2))
    steps = g("CumSum", g("Softmax", logits, axis=1), np.int64(1))
    first = g.split(steps, (head.components - 1, 1), axis=1)[0]
    chosen = g("ReduceSum", g("Cast", g("Less", first, u), to=_INT64), keepdims=0)
    location, raw = g.split(g("Gather", rest, chosen, axis=1), (1, 1))
    scale = g("Exp", g("Div", raw, g("Add", g("Div", g("Abs", raw), np.float64(7)), one)))
    y = g("Log", g("Div", v, g("Sub", one, v)))
    share = g.sigmoid(g("Add", location, g("Mul", scale, y)), one)
    n = g("Sub", capacity, lower)
    usual = g("Add", g("Min", g("Floor", g("Mul", share, g("Add", n, one))), n), lower)
    far = g("Div", artefact, np.float64(head.weight))
    more = g("Div", g("Add", capacity, one), g("Max", far, np.float64(1e-9)))
    more = g("Floor", g("Min", more, np.float64(head.upper)))
    is_artefact = g("And", g("Less", far, one), g("Greater", more, capacity))
    return g("Cast", g("Where", is_artefact, more, usual), to=_FLOAT)
