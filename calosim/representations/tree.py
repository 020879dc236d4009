r"""The detector's face halved along x, then y, and so on: photon counts of all cells, and back to images.

The first half of a side of :math:`w` pixels has :math:`\lfloor w / 2 \rfloor` of them; a side of one pixel is not halved
any more. A cell that is halved is a *node*; there are (pixels - 1) of them, numbered level by level, within a level by x,
then y. Node :math:`j` has :math:`n_j` photons, :math:`k_j` of them in its first child. A cell that a level leaves whole
counts as one whose first child has all its photons.

References:
    | Multiscale Poisson intensity models (Kolaczyk and Nowak, 2004), https://doi.org/10.1214/009053604000000076
    | Bayesian multiscale estimation of photon-limited images (Lefkimmiatis et al., 2009),
      https://doi.org/10.1109/TIP.2009.2022008
    | Tree Polya splitting distributions for multivariate count data (2024), https://arxiv.org/abs/2404.19528
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Level", "SplitTree"]


def _halve(edges: list[int]) -> list[int]:
    """Edges of the halves of all intervals longer than a pixel."""
    inner = [[a, a + (b - a) // 2] if b - a > 1 else [a] for a, b in pairwise(edges)]
    return [edge for part in inner for edge in part] + edges[-1:]


class Level(nn.Module):
    """One level: a grid of cells, of which those longer than a pixel along one axis are halved along it.

    Args:
        edges: Pixel numbers where the cells begin, and the end, along x and along y.
        axis: The axis that is halved, 0 for x or 1 for y.

    Attributes:
        shape: Cells along x and y.
        halves: Edges of the next level's cells along x and y.
        first: The first child of every interval along the axis, shape (shape[axis],).
        last: The last child of the same: the first once more where an interval stays whole.
        long: Intervals along the axis that are halved, ascending.
        nodes: Cells that are halved, as positions in the flattened grid, ascending.
        low: The first pixel of every cell along x and y, shape (cells, 2).
        size: Pixels of every cell along x and y, shape (cells, 2).
    """

    first: Tensor
    last: Tensor
    long: Tensor
    nodes: Tensor
    low: Tensor
    size: Tensor

    def __init__(self, edges: tuple[list[int], list[int]], axis: int):
        super().__init__()
        self.axis, self.shape = axis, (len(edges[0]) - 1, len(edges[1]) - 1)
        self.halves = (_halve(edges[0]), edges[1]) if axis == 0 else (edges[0], _halve(edges[1]))
        sides = [torch.tensor(e) for e in edges]
        long = sides[axis].diff() > 1
        first = (1 + long.long()).cumsum(0) - 1 - long.long()
        size = torch.cartesian_prod(*(s.diff() for s in sides))
        tables = {"first": first, "last": first + long.long(), "long": long.nonzero()[:, 0]}
        tables |= {"low": torch.cartesian_prod(*(s[:-1] for s in sides)), "size": size}
        tables["nodes"] = (size[:, axis] > 1).nonzero()[:, 0]
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    @property
    def cells(self) -> int:
        """The number of cells."""
        return self.shape[0] * self.shape[1]

    @property
    def whole(self) -> bool:
        """Whether a cell stays whole."""
        return len(self.long) < self.shape[self.axis]

    def first_counts(self, children: Tensor) -> Tensor:
        """Photons of every cell's first child, or of the cell itself if it stays whole.

        Args:
            children: Counts of the next level's cells with shape (B, *), a grid.

        Returns:
            Counts with shape (B, *shape).
        """
        return children.index_select(self.axis + 1, self.first)

    def merge(self, children: Tensor) -> Tensor:
        """Photons of every cell.

        Args:
            children: Counts of the next level's cells with shape (B, *), a grid.

        Returns:
            Counts with shape (B, *shape).
        """
        total = self.first_counts(children)
        if not self.whole:
            return total + children.index_select(self.axis + 1, self.last)
        second = children.index_select(self.axis + 1, self.last.index_select(0, self.long))
        return total.index_add(self.axis + 1, self.long, second)

    def divide(self, counts: Tensor, first: Tensor) -> Tensor:
        """Undoes :meth:`merge`.

        Args:
            counts: Photons of every cell with shape (B, *shape).
            first: Photons of their first children with the same shape; all of them where a cell stays whole.

        Returns:
            Counts of the next level's cells with shape (B, *).
        """
        axis = self.axis + 1
        if not self.whole:
            return torch.stack((first, counts - first), dim=axis + 1).flatten(axis, axis + 1)
        shape = (counts.shape[0], *(len(e) - 1 for e in self.halves))
        second = (counts - first).index_select(axis, self.long)
        children = counts.new_empty(shape).index_copy_(axis, self.first, first)
        return children.index_copy_(axis, self.last.index_select(0, self.long), second)


class SplitTree(nn.Module):
    """All levels of a face.

    Args:
        shape: Pixels along x and y.

    Attributes:
        shape: The same.
        levels: The levels from the whole face to cells that are halved into pixels.
        source: Where a node's photons come from: the node it is a child of, -1 for the whole face, shape (M,).
        child: 0 if it is the first child of that, else 1, shape (M,).
        starts: The first node of every level, and the number of nodes.

    Raises:
        ValueError: If a side has no pixel.
    """

    source: Tensor
    child: Tensor
    levels: Sequence[Level]

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"expected a face of at least 1 x 1 pixels, got {tuple(shape)}")
        self.shape = (int(shape[0]), int(shape[1]))
        edges: tuple[list[int], list[int]] = ([0, self.shape[0]], [0, self.shape[1]])
        levels, axis = [], 0
        while any(len(e) - 1 < side for e, side in zip(edges, self.shape, strict=True)):
            if len(edges[axis]) - 1 < self.shape[axis]:
                levels.append(Level(edges, axis))
                edges = levels[-1].halves
            axis = 1 - axis
        self.levels = nn.ModuleList(levels)  # type: ignore[assignment]
        self.starts = [0]
        owner, which = torch.full((1, 1, 1), -1), torch.zeros(1, 1, 1, dtype=torch.int64)
        sources, children = [owner[0, 0, :0]], [owner[0, 0, :0]]
        for level in levels:
            sources.append(owner.flatten()[level.nodes])
            children.append(which.flatten()[level.nodes])
            new, one = owner.clone().flatten(), which.clone().flatten()
            new[level.nodes] = self.starts[-1] + torch.arange(len(level.nodes))
            one[level.nodes] = 1
            # A whole cell has one child, which is still the child of whom it was: `divide` as a selection.
            halved = torch.zeros(level.cells, dtype=torch.int64).index_fill(0, level.nodes, 1)
            new, one, halved = (t.view(1, *level.shape) for t in (new, one, halved))
            owner = level.divide(new + new, new)
            which = level.divide(torch.where(halved == 1, one, which), torch.where(halved == 1, 0, which))
            self.starts.append(self.starts[-1] + len(level.nodes))
        self.register_buffer("source", torch.cat(sources), persistent=False)
        self.register_buffer("child", torch.cat(children), persistent=False)

    @property
    def nodes(self) -> int:
        """The number of nodes, one less than pixels."""
        return self.starts[-1]

    def grids(self, images: Tensor) -> list[Tensor]:
        """Counts of all cells.

        Args:
            images: Photon counts with shape (B, nx, ny), int64, or float64 to stay exact beyond 10^7 photons.

        Returns:
            The grid of every level and the images, each with shape (B, *), of the type of the images.

        Raises:
            ValueError: If the images do not have the face's shape.
        """
        if images.ndim != 3 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"expected images (B, {self.shape[0]}, {self.shape[1]}), got {tuple(images.shape)}")
        grids = [images]
        for level in reversed(self.levels):
            grids.append(level.merge(grids[-1]))
        return grids[::-1]

    def counts(self, grids: list[Tensor], levels: int | None = None) -> tuple[Tensor, Tensor]:
        """Photons of the nodes and of their first children.

        Args:
            grids: As :meth:`grids` returns them.
            levels: How many levels, from the whole face on; all if not given.

        Returns:
            k and n, each with shape (B, nodes of these levels).
        """
        ks, ns = [grids[0].flatten(1)[:, :0]], [grids[0].flatten(1)[:, :0]]
        for level, grid, children in zip(self.levels[:levels], grids[:-1], grids[1:], strict=False):
            n, k = grid.flatten(1), level.first_counts(children).flatten(1)
            ns.append(n.index_select(1, level.nodes) if level.whole else n)
            ks.append(k.index_select(1, level.nodes) if level.whole else k)
        return torch.cat(ks, 1), torch.cat(ns, 1)

    def compose(self, photon_sum: Tensor, k: Tensor, levels: int | None = None) -> Tensor:
        """Counts of the cells that splits lead to: images, if all levels are given.

        Args:
            photon_sum: Photons of the whole face with shape (B,).
            k: Photons of the nodes' first children with shape (B, nodes of these levels), of the same type.
            levels: How many levels; all if not given.

        Returns:
            Counts with shape (B, *): the grid of the level that comes next.
        """
        grid = photon_sum.view(-1, 1, 1)
        for level, start, stop in zip(self.levels[:levels], self.starts, self.starts[1:], strict=False):
            first = k[:, start:stop]
            if level.whole:
                first = grid.flatten(1).index_copy(1, level.nodes, first)
            grid = level.divide(grid, first.reshape(-1, *level.shape))
        return grid
