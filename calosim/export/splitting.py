"""Drawing a split in a graph: the discretized mixture of :mod:`calosim.flows.mixture`, in float32."""

from __future__ import annotations

import numpy as np

from calosim.export.builder import Builder
from calosim.flows.mixture import LOG_SCALE

__all__ = ["drawn", "rows"]


def rows(table: np.ndarray, components: int) -> np.ndarray:
    """Outputs as a draw wants them: locations negated and raw scales divided by their bound, once and for all.

    Args:
        table: Weights or biases of mixtures, laid out (3, K) along the first axis.
        components: Components K.

    Returns:
        The same, float32.
    """
    factors = np.repeat([1.0, -1.0, 1.0 / LOG_SCALE], components).reshape(-1, *[1] * (table.ndim - 1))
    return (table * factors).astype(np.float32)


def drawn(g: Builder, outputs: str, components: int, u: str, y: str, n: str) -> str:
    """How many of n photons go the first way, as :func:`calosim.flows.mixture.draw` says.

    Args:
        g: The graph.
        outputs: The mixtures as :func:`rows` has them, with shape (3 K, P).
        components: Components K.
        u: Uniform numbers that choose the component, float32, with shape (P,).
        y: Negated logits of other uniform numbers, float32, with shape (P,).
        n: Photons, whole numbers as float32, with shape (P,).

    Returns:
        The name of k, float32, with shape (1, P).
    """
    logits, location, raw = g.split(outputs, (components,) * 3)
    # Of all components: choosing one first takes more and slower operations.
    scale = g("Exp", g("Mul", g("Softsign", raw), LOG_SCALE))
    each = g("Add", g("Mul", y, scale), location)
    enough = g("LessOrEqual", u, g("CumSum", g("Softmax", logits, axis=0), np.int64(0)))
    chosen = g("ArgMax", g("Cast", enough, to=_FLOAT), axis=0, keepdims=1)
    one = g("GatherElements", each, chosen, axis=0)
    # k = floor(v (n + 1)) with v = 1 / (1 + e^-t): relatively exact at both ends.
    return g("Min", g("Floor", g("Div", g("Add", n, 1.0), g("Add", g("Exp", one), 1.0))), n)


_FLOAT = 1
