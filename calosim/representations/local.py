r"""Splits below the coarse part: each occupied cell by a small network that sees what is around it.

The network of a level sees the logarithms of the counts in the cells around at its level, how neighbors of an earlier
phase were split, the cell's place and size, its distance from the end of the primary's straight flight, and what another
network makes of the coarse cells and the context. A cell without photons is not split: cost follows photons.

Cells of a level are split in two phases, like the fields of a chessboard: those of the second see how their neighbors
were split. Given the counts of their own level alone, neighbors are not independent: a narrow spot on a border leans on
it from both sides.

References:
    | Tree Polya splitting distributions for multivariate count data (2024), https://arxiv.org/abs/2404.19528
    | Parallel Multiscale Autoregressive Density Estimation (Reed et al., 2017), https://arxiv.org/abs/1703.03664
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calosim.detectors import Detector
from calosim.flows import mixture
from calosim.representations.tree import Level

__all__ = ["EventNetwork", "LevelSplits", "Nodes"]

#: Stands for the logarithm of one plus a count outside the face, which is not the same as a dark cell.
OUTSIDE = -0.5

#: Centimetres from the face's centre are divided by this.
PLACE_SCALE = 3.0


class Nodes(NamedTuple):
    """Cells to split: places in the flattened grids of all rows, ascending; rows, cells, and photons; each (P,)."""

    place: Tensor
    row: Tensor
    cell: Tensor
    n: Tensor


class EventNetwork(nn.Module):
    """What local networks know of the event: features of coarse cells and context, one linear view of them a level.

    Args:
        inputs: Coarse cells and context features together.
        features: Features of an event; the first layer has twice as many units.
        outputs: Width of a view.
        levels: The number of levels.
    """

    def __init__(self, inputs: int, features: int, outputs: int, levels: int):
        super().__init__()
        wide = 2 * features
        self.shared = nn.Sequential(nn.Linear(inputs, wide), nn.SiLU(), nn.Linear(wide, features), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(features, outputs) for _ in range(levels))

    def forward(self, grid: Tensor, context: Tensor) -> list[Tensor]:
        """Returns the views.

        Args:
            grid: Counts of the coarse part's cells with shape (B, *).
            context: With shape (B, C).

        Returns:
            One a level, each with shape (B, outputs).
        """
        light = torch.log1p(grid.flatten(1).to(context.dtype))
        features = self.shared(torch.cat((light, context), 1))
        return [head(features) for head in self.heads]


class LevelSplits(nn.Module):
    """The splits of one level.

    Args:
        level: The level.
        detector: The detector: shape and pitch.
        reach: How many cells the network sees in every direction.
        phases: 1 or 2.
        hidden: Hidden units of both layers.
        components: Logistics of a mixture K.
    """

    phase: Tensor
    chosen: Tensor
    corner: Tensor
    around: Tensor
    beside: Tensor
    place: Tensor

    def __init__(self, level: Level, detector: Detector, reach: int, phases: int, hidden: int, components: int):
        super().__init__()
        self.level, self.reach, self.phases = level, reach, phases
        i, j = torch.meshgrid(*(torch.arange(side) for side in level.shape), indexing="ij")
        di, dj = torch.meshgrid(*[torch.arange(2 * reach + 1)] * 2, indexing="ij")
        wide = level.shape[1] + 2 * reach
        # Neighbors of another phase are at odd distances; the corner of what is around is at an even one.
        around, odd = (di * wide + dj).flatten(), ((di + dj) % 2 == 1).flatten()
        center = (level.low + level.size / 2 - torch.tensor(detector.shape) / 2) * detector.pitch
        tables = {
            "phase": ((i + j) % phases).flatten(),
            "corner": (i * wide + j).flatten(),
            "around": around,
            "beside": around[odd] if phases > 1 else around[:0],
        }
        tables["place"] = torch.cat((center / PLACE_SCALE, tables["phase"].unsqueeze(1), _sizes(level)), 1)
        long = level.size[:, level.axis] > 1
        tables["chosen"] = torch.stack([long & (tables["phase"] == phase) for phase in range(phases)] + [long])
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.middle = reach * wide + reach
        inputs = len(around) + len(tables["beside"]) + tables["place"].shape[1] + 2
        self.first, self.second = nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, 3 * components)
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.copy_(mixture.initial_bias(1, components)[0])

    def occupied(self, grid: Tensor, phase: int | None = None, at_least: int = 0) -> Nodes:
        """Cells to split: those with photons that are long enough.

        Args:
            grid: Counts with shape (B, a, b), int64.
            phase: Cells of this phase only; of all if not given.
            at_least: Cells are repeated to make so many, if there is one at all.

        Returns:
            The cells.
        """
        chosen = self.chosen[-1 if phase is None else phase]
        place = ((grid.flatten(1) > 0) & chosen).flatten().nonzero()[:, 0]
        if 0 < len(place) < at_least and not torch.jit.is_tracing():
            place = place.repeat(at_least)[:at_least].sort().values
        row = torch.div(place, self.level.cells, rounding_mode="floor")
        return Nodes(place, row, place - row * self.level.cells, grid.take(place))

    def light(self, grid: Tensor, dtype: torch.dtype) -> Tensor:
        """The logarithms of one plus the counts, with a border as wide as the reach.

        Args:
            grid: Counts of all cells with shape (B, a, b).
            dtype: The type of the network.

        Returns:
            A flat tensor: rows one after the other.
        """
        return F.pad(torch.log1p(grid.to(dtype)), [self.reach] * 4, value=OUTSIDE).flatten()

    def lean(self, nodes: Nodes, k: Tensor, light: Tensor) -> Tensor:
        """How cells of the first phase were split: the logarithm of the ratio of their halves' counts, each plus one.

        Args:
            nodes: Cells, of any phase.
            k: Photons of their first halves with shape (P,).
            light: From :meth:`light`, for the layout.

        Returns:
            A flat tensor like `light`, 0 where there is no such cell.
        """
        early = (self.phase.index_select(0, nodes.cell) == 0).nonzero()[:, 0]
        place = self._corner(nodes.row.index_select(0, early), nodes.cell.index_select(0, early)) + self.middle
        one, n = (t.index_select(0, early).to(light.dtype) for t in (k, nodes.n))
        return torch.zeros_like(light).index_copy_(0, place, one.log1p() - (n - one).log1p())

    def _corner(self, row: Tensor, cell: Tensor) -> Tensor:
        """Where what is around a cell begins in :meth:`light`."""
        a, b = (side + 2 * self.reach for side in self.level.shape)
        return row * (a * b) + self.corner.index_select(0, cell)

    def forward(self, nodes: Nodes, light: Tensor, lean: Tensor, event: Tensor, end: Tensor) -> Tensor:
        """The mixtures of some cells.

        Args:
            nodes: The cells, from :meth:`occupied`.
            light: From :meth:`light`.
            lean: From :meth:`lean`, at least of cells of the first phase if these are of the second. Not used if there is
                one phase.
            event: This level's view of the event, with shape (B, hidden).
            end: Where the straight flight ends, in cm from the face's centre, with shape (B, 2).

        Returns:
            Parameters with shape (P, 3 K).
        """
        corner = self._corner(nodes.row, nodes.cell).unsqueeze(1)
        place = self.place.index_select(0, nodes.cell)
        away = _asinh(place[:, :2] * PLACE_SCALE - end.index_select(0, nodes.row))
        parts = [_around(light, corner, self.around), place, away]
        if self.phases > 1:
            parts.append(_around(lean, corner, self.beside))
        # What cells of a row have in common is not computed again for each. ReLU: most of the time goes by here, and
        # smoother functions cost a third more without being better.
        h = event.index_select(0, nodes.row).addmm_(torch.cat(parts, 1), self.first.weight.T).relu_()
        h = self.second(h).relu_()
        # As columns: products with a few rows are twice as fast as with a few columns, and this is how mixtures compute.
        return torch.addmm(self.output.bias.unsqueeze(1), self.output.weight, h.T).T


def _around(grid: Tensor, corner: Tensor, offsets: Tensor) -> Tensor:
    """What is around corners (P, 1) in a flat grid, (P, offsets)."""
    return grid.index_select(0, (corner + offsets).flatten()).view(corner.shape[0], len(offsets))


def _asinh(x: Tensor) -> Tensor:
    """The inverse hyperbolic sine by functions that run several times faster on CPUs than torch's."""
    size = x.abs()
    return torch.log(size + torch.sqrt(size * size + 1)).copysign(x)


def _sizes(level: Level) -> Tensor:
    """Sizes of every cell, its neighbors and its halves, and the parity of its first pixel, of order one; (cells, 8)."""
    size = level.size.float()
    grid = F.pad(size.log2().T.reshape(1, 2, *level.shape), (1, 1, 1, 1), mode="replicate")[0] - 1
    left, right, below, above = grid[0, :-2, 1:-1], grid[0, 2:, 1:-1], grid[1, 1:-1, :-2], grid[1, 1:-1, 2:]
    columns = [grid[0, 1:-1, 1:-1], grid[1, 1:-1, 1:-1], left, right, below, above]
    along = size[:, level.axis]
    columns += [4 * (0.5 - (along / 2).floor() / along), 2.0 * (level.low.sum(1) % 2) - 1]
    return torch.stack([column.flatten() for column in columns], 1)
