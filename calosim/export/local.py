"""Local splits in a graph: the networks of :mod:`calosim.representations.local`, at occupied cells only, or at all of a few."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from calosim.export.builder import Builder, Value
from calosim.export.coarse import linear
from calosim.export.splitting import drawn, rows
from calosim.representations import SplitRepresentation
from calosim.representations.local import OUTSIDE, PLACE_SCALE, EventNetwork, LevelSplits

__all__ = ["DENSE", "children", "local_level", "places_of", "views"]

#: Phases of at most so many cells are split whole, dark cells too: that is cheaper than finding the others.
DENSE = 16

#: What is outside the face: the number whose logarithm, after adding one, is the mark of the outside.
_BORDER = np.float32(np.exp(OUTSIDE) - 1)


def places_of(g: Builder, levels: list[LevelSplits], end: str) -> list[str]:
    """Where cells are from the end of the straight flight.

    Args:
        g: The graph.
        levels: The local levels.
        end: The name of where the flight ends in cm, (1, 2).

    Returns:
        One name a level: the hyperbolic area sines of the distances in cm of its columns, then of its rows, (a + b,).
    """
    centers = [_centers(level, axis) for level in levels for axis in range(2)]
    axis = np.repeat(np.tile([0, 1], len(levels)), [len(c) for c in centers])
    away = g("Sub", np.concatenate(centers), g("Gather", g("Reshape", end, np.array([-1])), axis))
    return g.split(g("Asinh", away), [sum(level.level.shape) for level in levels])


def _centers(level: LevelSplits, axis: int) -> np.ndarray:
    """Centers of columns or rows in cm from the face's center, float32, rounded as in Python."""
    a, b = level.level.shape
    return (level.place[:, axis].view(a, b) * PLACE_SCALE).select(1 - axis, 0).numpy()


def views(g: Builder, event: EventNetwork, light: str, context: str) -> list[str]:
    """What local networks know of the event, one view (1, H) a level; `light` has the coarse cells' logarithms, (1, *)."""
    h = g("Concat", light, context, axis=1)
    for layer in (event.shared[0], event.shared[2]):
        h = g.silu(linear(g, h, layer))
    heads: list[nn.Linear] = list(event.heads)  # type: ignore[arg-type]
    joined = nn.Linear(heads[0].in_features, sum(head.out_features for head in heads))
    joined.weight.data = torch.cat([head.weight.detach() for head in heads])
    joined.bias.data = torch.cat([head.bias.detach() for head in heads])
    return g.split(linear(g, h, joined), [head.out_features for head in heads], axis=1)


def children(g: Builder, first: Value, second: Value, where: np.ndarray, border: int = 0) -> tuple[str, str]:
    """The next level's cells, and the logarithms of one plus their counts inside a border.

    Args:
        g: The graph.
        first: Photons of first children, (cells,).
        second: Photons of second children, (cells,).
        where: The next level's cells among first, then second children; a grid (a, b).
        border: The border's width.

    Returns:
        Names: counts (a b,) and logarithms ((a + 2 border) (b + 2 border),).
    """
    both = g("Concat", first, second, np.array([_BORDER]), axis=0)
    wide = np.pad(where, border, constant_values=-1)  # the last one
    return g.pick(both, where.flatten()), g("Log", g("Add", g.pick(both, wide.flatten()), 1.0))


class _Tables:
    """Constants of a level: what a cell's network reads, as positions in one vector of all that it may read.

    That vector has how neighbors of the first phase were split, a zero for those outside, the logarithms of the counts with
    their border, the distances of columns and rows, and the few values that places and sizes have.

    Attributes:
        zeros: What the vector begins with.
        values: What it ends with.
        read: Positions in it, in the order of the network's inputs, (cells, inputs).
    """

    def __init__(self, level: LevelSplits):
        a, b = level.level.shape
        cells, reach, wide = a * b, level.reach, b + 2 * level.reach
        light = cells + 1
        away = light + (a + 2 * reach) * wide
        i, j = (t.flatten() for t in np.indices((a, b)))
        self.zeros = np.zeros(light, np.float32)
        around = light + level.corner.numpy()[:, None] + level.around.numpy()
        self.values, which = np.unique(level.place.numpy(), return_inverse=True)
        place = away + a + b + which.reshape(cells, -1)
        # Positions beside a cell that are outside of the face read the zero.
        x, y = np.divmod(level.corner.numpy()[:, None] + level.beside.numpy(), wide)
        x, y = x - reach, y - reach
        inside = (x >= 0) & (x < a) & (y >= 0) & (y < b)
        lean = np.where(inside, x * b + y, cells)
        self.read = np.concatenate((around, place, np.stack((away + i, away + a + j), 1), lean), 1).astype(np.int32)


def local_level(g: Builder, level: LevelSplits, counts: tuple[str, str], event: str, away: str, u: str, y: str) -> str:
    """Splits a level's cells as :meth:`SplitRepresentation.generate` does.

    Args:
        g: The graph.
        level: Its network.
        counts: From :func:`children`, with a border of the network's reach.
        event: Its view of the event, (1, H).
        away: Its distances, from :func:`places_of`.
        u: Uniform numbers that choose components, one a cell, float32.
        y: Negated logits of other uniform numbers, one a cell, float32.

    Returns:
        The name of the photons of the first children, (cells,).
    """
    grid, light = counts
    tables, first = _Tables(level), grid
    known = g("Concat", tables.zeros, light, away, tables.values, axis=0)
    components = level.output.out_features // 3
    output, bias = (rows(t.detach().numpy(), components) for t in (level.output.weight, level.output.bias))
    for phase in range(level.phases):
        some = _chosen(g, grid, level.chosen[phase].numpy())
        inputs = tables.read.shape[1] - (0 if phase else len(level.beside))
        read = g("Reshape", _pick(g, tables.read[:, :inputs], some), np.array([-1]))
        seen = g("Reshape", g.pick(known, read), np.array([-1, inputs]))
        h = g("Relu", g("Gemm", seen, level.first.weight.detach().numpy().T[:inputs], event))
        h = g("Relu", g("Gemm", h, level.second.weight.detach().numpy().T, level.second.bias.detach().numpy()))
        n, one, two = (g.pick(value, some) for value in (grid, u, y))
        k = drawn(g, g("Gemm", output, h, bias[:, None], transB=1), components, one, two, n)
        k = g("Reshape", k, np.array([-1]))
        first = g("ScatterElements", first, some, k, axis=0)
        if phase + 1 < level.phases:
            halves = g("Add", k, 1.0), g("Add", g("Sub", n, k), 1.0)
            known = g("ScatterElements", known, some, g("Log", g("Div", *halves)), axis=0)
    return first


def _chosen(g: Builder, grid: str, chosen: np.ndarray) -> str | np.ndarray:
    """Cells to split: those with photons, or all that may have some where they are few."""
    index = np.arange(len(chosen), dtype=np.int64)
    if chosen.sum() <= DENSE:
        return index[chosen]
    return g("Compress", index, g("Greater", grid, np.where(chosen, 0, np.inf).astype(np.float32)), axis=0)


def _pick(g: Builder, table: np.ndarray, some: str | np.ndarray) -> str | np.ndarray:
    return g("Gather", table, some) if isinstance(some, str) else table[some]


def grids_of(representation: SplitRepresentation) -> list[np.ndarray]:
    """Of every local level, where the next level's cells are among first, then second children; grids (a, b)."""
    found = []
    for level in representation.local:
        tree = level.level
        cells = torch.arange(tree.cells).view(1, *tree.shape)
        # Dividing (both, first) numbers the children: the first as their cells, the second after them.
        found.append(tree.divide(cells + cells + tree.cells, cells)[0].numpy())
    return found
