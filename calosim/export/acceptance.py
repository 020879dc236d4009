"""Whether there is a response, in a graph: the probability in float64 as in Python."""

from __future__ import annotations

import numpy as np

from calosim.export.builder import Builder
from calosim.export.photons import binned, layers
from calosim.export.primary import Primary
from calosim.models.acceptance import Acceptance

__all__ = ["probability"]

_DOUBLE = 11


def probability(g: Builder, primary: Primary, model: Acceptance) -> str:
    """The probability of a response as :meth:`Acceptance.probability` has it.

    Args:
        g: The graph.
        primary: The primary.
        model: The acceptance model.

    Returns:
        Its name, (1, 1) float64.
    """
    h = g("Cast", binned(g, primary.standardized(model.features), model.encoding), to=_DOUBLE)
    for depth, (weight, bias) in enumerate(layers(model.networks.draw(model.networks.members))):
        product = g("MatMul", g.silu(h, np.float64(1)) if depth else h, weight.astype(np.float64))
        h = g("Add", product, bias[:, None].astype(np.float64))
    return g("ReduceMean", g.sigmoid(h, np.float64(1)), np.array([0]), keepdims=0)
