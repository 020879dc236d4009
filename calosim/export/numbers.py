r"""All random numbers of a response from ten normals: the counter-based generator of :mod:`calosim.rng` in a graph.

The ten normals :math:`z_i` are hashed to one 64-bit row number,

.. math:: r = \sum_i \operatorname{mix}(\lfloor 2^{40} z_i \rfloor + i \gamma) \bmod 2^{64},

and row :math:`r` with seed 0 has the numbers that :class:`~calosim.simulation.simulator.FastSimulator` gives it. So a graph's
response is that of ``FastSimulator.sample(..., seed=0, rows=rows_of(noise))``, photon for photon up to rounding.

References:
    | Fast Splittable Pseudorandom Number Generators (Steele et al., 2014), https://doi.org/10.1145/2660193.2660195
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calosim import rng
from calosim.export.builder import Builder

__all__ = ["NORMALS", "SEED", "Numbers", "Wanted", "row_numbers", "rows_of"]

#: How many normals a response is given, and the seed of what they are expanded to.
NORMALS, SEED = 10, 0

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

#: Steps that normals are cut into: none of a float32 beyond 2^-17 is lost. Beyond 2^20 there are no normals.
_STEPS, _FAR = 2.0**40, 2.0**20


def row_numbers(noise: Tensor) -> Tensor:
    """The row numbers that the noise stands for.

    Args:
        noise: Normals with shape (N, 10), float32.

    Returns:
        Rows with shape (N,), int64.
    """
    words = (noise.double().clamp(-_FAR, _FAR) * _STEPS).floor().long()
    return rng.mix(words + torch.from_numpy(_counted(np.arange(NORMALS)))).sum(1)


def rows_of(noise: np.ndarray) -> np.ndarray:
    """:func:`row_numbers` of arrays."""
    return row_numbers(torch.from_numpy(np.ascontiguousarray(noise))).numpy()


def _counted(counters: np.ndarray) -> np.ndarray:
    """What is added to a key for its numbers 0, 1 ...; int64."""
    return ((counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN).view(np.int64)


@dataclass(frozen=True)
class Wanted:
    """Numbers of a stream.

    Attributes:
        stream: One of the streams of :mod:`calosim.rng`.
        counters: Which of its numbers, (M,), int64.
        bits: How many bits they have: 23 as from :func:`calosim.rng.uniform`, or 52 as from
            :func:`calosim.rng.uniform_at`.
    """

    stream: int
    counters: np.ndarray
    bits: int


class Numbers:
    """The generator in a graph; products and sums of int64 wrap, shifts are those of uint64.

    Args:
        graph: The graph.
        noise: The name of the normals, (1, 10) float32.
    """

    def __init__(self, graph: Builder, noise: str):
        g = self.graph = graph
        wide = g("Clip", g("Cast", noise, to=_DOUBLE), np.float64(-_FAR), np.float64(_FAR))
        words = g("Cast", g("Floor", g("Mul", wide, np.float64(_STEPS))), to=_INT64)
        hashed = self._mixed(g("Add", words, _counted(np.arange(NORMALS))))
        # A product with ones wraps; ONNX Runtime's sum of int64 goes by way of float64.
        self.row = g("MatMul", g("Cast", hashed, to=_INT64), np.ones(NORMALS, np.int64))

    def _mixed(self, z: str) -> str:
        """SplitMix64's finalizer of int64; the result is uint64."""
        g = self.graph
        z = g("Cast", z, to=_UINT64)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            z = g("BitwiseXor", z, g("BitShift", z, np.uint64(shift), direction="RIGHT"))
            z = g("Cast", g("Mul", g("Cast", z, to=_INT64), factor.view(np.int64)), to=_UINT64)
        return g("BitwiseXor", z, g("BitShift", z, np.uint64(31), direction="RIGHT"))

    def uniform(self, wanted: Sequence[Wanted]) -> list[str]:
        """Uniform numbers in (0, 1), of all streams at once.

        Args:
            wanted: What is wanted of each stream.

        Returns:
            Their names, float64, each with the shape of its counters.
        """
        g, golden = self.graph, _GOLDEN.view(np.int64)
        # `draws.row_keys` of the row, for all streams side by side.
        key = self.row
        for word in (np.array([w.stream for w in wanted]), np.int64(SEED)):
            key = g("Cast", self._mixed(g("Add", g("Mul", key, golden), word)), to=_INT64)
        keys = g("Cast", self._mixed(g("Add", key, golden)), to=_INT64)
        sizes = [len(w.counters) for w in wanted]
        each = zip(g.split(keys, (1,) * len(sizes)), wanted, strict=True)
        bits = self._mixed(g("Concat", *(g("Add", k, _counted(w.counters)) for k, w in each), axis=0))
        made = []
        for part, w in zip(g.split(bits, sizes), wanted, strict=True):
            steps = g("Cast", g("BitShift", part, np.uint64(64 - w.bits), direction="RIGHT"), to=_DOUBLE)
            made.append(g("Mul", g("Add", steps, np.float64(0.5)), np.float64(2.0**-w.bits)))
        return made


#: ONNX's numbers of types.
_INT64, _DOUBLE, _UINT64 = 7, 11, 13
