r"""All random numbers of a response from ten normals: the counter-based generator of :mod:`calosim.draws` in a graph.

The ten normals :math:`z_i` are hashed to one 64-bit row number,

.. math:: r = \sum_i \operatorname{mix}(\lfloor 2^{40} z_i \rfloor + i \gamma) \bmod 2^{64},

and row :math:`r` with seed 0 has the numbers that :class:`~calosim.simulation.simulator.FastSimulator` gives it. So a graph's
response is that of ``FastSimulator.sample(..., seed=0, rows=rows_of(noise))``, photon for photon up to rounding.

References:
    | Fast Splittable Pseudorandom Number Generators (Steele et al., 2014), https://doi.org/10.1145/2660193.2660195
"""

from __future__ import annotations

import numpy as np

from calosim import draws
from calosim.export.builder import Builder

__all__ = ["NORMALS", "SEED", "Numbers", "rows_of"]

#: How many normals a response is given, and the seed of what they are expanded to.
NORMALS, SEED = 10, 0

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

#: Steps that normals are cut into: none of a float32 beyond 2^-17 is lost. Beyond 2^20 there are no normals.
_STEPS, _FAR = 2.0**40, 2.0**20


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def rows_of(noise: np.ndarray) -> np.ndarray:
    """The row numbers that the noise stands for.

    Args:
        noise: Normals with shape (N, 10), float32.

    Returns:
        Rows with shape (N,), int64.
    """
    words = np.floor(np.clip(noise.astype(np.float64), -_FAR, _FAR) * _STEPS).astype(np.int64).view(np.uint64)
    counters = np.arange(1, noise.shape[1] + 1, dtype=np.uint64) * _GOLDEN
    return _mix(words + counters).sum(1, dtype=np.uint64).view(np.int64)


def _signed(value: int) -> np.int64:
    return np.int64((int(value) & 0xFFFFFFFFFFFFFFFF) - (1 << 64) * (int(value) >> 63 & 1))


class Numbers:
    """The generator in a graph; products and sums of int64 wrap, shifts are those of uint64.

    Args:
        graph: The graph.
        noise: The name of the normals, (1, 10) float32.
    """

    def __init__(self, graph: Builder, noise: str):
        self.graph = graph
        wide = graph("Clip", graph("Cast", noise, to=_DOUBLE), np.float64(-_FAR), np.float64(_FAR))
        words = graph("Cast", graph("Floor", graph("Mul", wide, np.float64(_STEPS))), to=_INT64)
        hashed = self._mixed(graph("Add", words, self._counters(NORMALS)))
        # A product with ones wraps; ONNX Runtime's sum of int64 goes by way of float64.
        row = graph("MatMul", graph("Cast", hashed, to=_INT64), np.ones(NORMALS, np.int64))
        # The keys of photon sum and shape side by side: `draws.row_keys` of both streams.
        streams = np.array([draws.PHOTON_STREAM, draws.BASE_STREAM], np.int64)
        key = graph("Add", graph("Mul", row, np.array(_signed(int(_GOLDEN)))), streams)
        key = graph("Mul", graph("Cast", self._mixed(key), to=_INT64), np.array(_signed(int(_GOLDEN))))
        key = graph("Add", graph("Cast", self._mixed(graph("Add", key, np.int64(SEED))), to=_INT64), np.array(_signed(int(_GOLDEN))))
        self.keys = graph("Cast", self._mixed(key), to=_INT64)

    def _counters(self, n: int) -> np.ndarray:
        return (np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN).view(np.int64)

    def _mixed(self, z: str) -> str:
        """SplitMix64's finalizer of int64; the result is uint64."""
        g = self.graph
        z = g("Cast", z, to=_UINT64)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            z = g("BitwiseXor", z, g("BitShift", z, np.uint64(shift), direction="RIGHT"))
            z = g("Cast", g("Mul", g("Cast", z, to=_INT64), np.array(_signed(int(factor)))), to=_UINT64)
        return g("BitwiseXor", z, g("BitShift", z, np.uint64(31), direction="RIGHT"))

    def uniform(self, few: int, counters: np.ndarray) -> tuple[str, str]:
        """All uniform numbers.

        Args:
            few: How many the photon sum takes, of 23 bits, as :func:`calosim.draws.uniform` makes them.
            counters: Which of those of the shape, of 52 bits, as :func:`calosim.draws.uniform_at` makes them; (M,) int64.

        Returns:
            Names of both, (few,) and (M,), float64.
        """
        g = self.graph
        which = np.repeat(np.arange(2, dtype=np.int64), (few, len(counters)))
        counter = np.concatenate([np.arange(few), counters]).astype(np.uint64) + np.uint64(1)
        bits = self._mixed(g("Add", g("Gather", self.keys, which), (counter * _GOLDEN).view(np.int64)))
        parts = g.split(bits, (few, len(counters)))
        made = []
        for part, drop in zip(parts, (41, 12), strict=True):
            steps = g("Cast", g("BitShift", part, np.uint64(drop), direction="RIGHT"), to=_DOUBLE)
            made.append(g("Mul", g("Add", steps, np.float64(0.5)), np.float64(2.0 ** (drop - 64))))
        return made[0], made[1]


#: ONNX's numbers of types.
_INT64, _DOUBLE, _UINT64 = 7, 11, 13
