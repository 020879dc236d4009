"""Drawing a split in a graph: the discretized mixture of :mod:`calosim.flows.mixture`, in float32."""

from __future__ import annotations

import numpy as np

from calosim.export.builder import Builder
from calosim.flows.mixture import LOG_SCALE

__all__ = ["drawn", "rows"]


def rows(table: np.ndarray, components: int) -> np.ndarray:
    """Outputs in the order in which a draw wants them: logits, then location and scale of one component after the other.

    Locations are negated and raw scales divided by their bound here, in the weights, rather than in every draw.

    Args:
        table: Weights or biases of mixtures, laid out (3, K) along the first axis.
        components: Components K.

    Returns:
        The same, float32.
    """
    logits, location, raw = table.reshape(3, components, *table.shape[1:])
    pairs = np.stack((-location, raw / LOG_SCALE), 1)
    return np.concatenate((logits, pairs.reshape(-1, *table.shape[1:]))).astype(np.float32)


def drawn(g: Builder, outputs: str, components: int, u: str, y: str, n: str) -> str:
    """How many of n photons go the first way, as :func:`calosim.flows.mixture.draw` says.

    Args:
        g: The graph.
        outputs: Rows of the mixtures, in the order of :func:`rows`, with shape (3 K, P).
        components: Components K.
        u: Uniform numbers that choose the component, float32, with shape (P,).
        y: Negated logits of other uniform numbers, float32, with shape (P,).
        n: Photons, whole numbers as float32, with shape (P,).

    Returns:
        The name of k, float32, with shape (P,).
    """
    logits, *each = g.split(outputs, (components, *(2,) * components))
    chosen = each[0]
    if components > 1:
        # The sums of the first 1, 2 ... K - 1 shares.
        first = np.tril(np.ones((components - 1, components), np.float32))
        passed = g("Less", g("MatMul", first, g("Softmax", logits, axis=0)), u)
        for one, component in zip(g.split(passed, (1,) * (components - 1)), each[1:], strict=True):
            chosen = g("Where", one, component, chosen)
    location, raw = (g("Gather", chosen, np.int64(row)) for row in (0, 1))
    scale = g("Exp", g("Mul", g("Softsign", raw), LOG_SCALE))
    # k = floor(v (n + 1)) with v = 1 / (1 + e^-t): relatively exact at both ends.
    against = g("Exp", g("Add", g("Mul", y, scale), location))
    return g("Min", g("Floor", g("Div", g("Add", n, 1.0), g("Add", against, 1.0))), n)
