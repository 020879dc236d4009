r"""Splits: an image is a tree of splits of its photons, and its probability is exact.

A coarse part, the first levels of the tree, is split step by step by a masked network; below, every occupied cell is
split by a small network that sees its surroundings. The probability of an image given its photon sum is the product of
those of all splits, a number for integer photons without dequantization noise. Back again, the photon sum is conserved
by construction, and a cell without photons costs nothing.

As coordinates of points, :math:`k` of :math:`n` photons are any :math:`v \in [k / (n + 1), (k + 1) / (n + 1))`, and
:math:`x = \Phi^{-1}(v)`; back, :math:`k = \lfloor v (n + 1) \rfloor` from the whole face down. A node without photons is
standard normal: the identity of a flow is right where it is dark.

The network of a level sees the logarithms of the counts in the cells around at its level, how neighbors of an earlier
phase were split, the cell's place and size, its distance from the end of the primary's straight flight, and what another
network makes of the coarse cells and the context. A cell without photons is not split: cost follows photons.

Cells of a level are split in two phases, like the fields of a chessboard: those of the second see how their neighbors
were split. Given the counts of their own level alone, neighbors are not independent: a narrow spot on a border leans on
it from both sides.

The first half of a side of :math:`w` pixels has :math:`\lfloor w / 2 \rfloor` of them; a side of one pixel is not halved
any more. A cell that is halved is a *node*; there are (pixels - 1) of them, numbered level by level, within a level by x,
then y. Node :math:`j` has :math:`n_j` photons, :math:`k_j` of them in its first child. A cell that a level leaves whole
counts as one whose first child has all its photons.

References:
    | Multiscale Poisson intensity models (Kolaczyk and Nowak, 2004), https://doi.org/10.1214/009053604000000076
    | Bayesian multiscale estimation of photon-limited images (Lefkimmiatis et al., 2009),
      https://doi.org/10.1109/TIP.2009.2022008
    | Tree Polya splitting distributions for multivariate count data (2024), https://arxiv.org/abs/2404.19528
    | Parallel Multiscale Autoregressive Density Estimation (Reed et al., 2017), https://arxiv.org/abs/1703.03664
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calosim import rng
from calosim.detectors import Detector
from calosim.flows import FlowChanges, FlowConfig, InverseSplits, MaskedSplits, Stage, mixture
from calosim.representations.base import Representation
from calosim.representations.distillation import CountPairing

__all__ = ["EventNetwork", "Level", "LevelSplits", "Nodes", "SplitConfig", "SplitRepresentation", "SplitTree"]


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


#: Products of fewer rows take other paths in BLAS, whose last bits differ.
_ROWS = 4


@dataclass(frozen=True)
class SplitConfig:
    """Settings of a representation by splits.

    Attributes:
        coarse_levels: Levels of the coarse part; four are 4 x 4 cells and 15 nodes.
        coarse_steps: Steps of a coarse level at most; nodes of one step do not see each other. 0: each has its own.
        hidden: Hidden units of the coarse part's layers.
        components: Logistics of a coarse node's mixture.
        event: Features of an event that local networks see.
        local_hidden: Hidden units of local networks.
        local_components: Logistics of a local mixture.
        reach: Cells that a local network sees in every direction.
        phases: Phases of a local level, 1 or 2.
        local_share: Share of the rows of a training batch whose local part is evaluated, for all.
    """

    coarse_levels: int = 4
    coarse_steps: int = 4
    hidden: int = 256
    components: int = 4
    event: int = 128
    local_hidden: int = 96
    local_components: int = 3
    reach: int = 2
    phases: int = 2
    local_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("coarse_levels", "hidden", "components", "event", "local_hidden", "local_components", "reach"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.coarse_steps < 0:
            raise ValueError(f"expected coarse_steps of at least 0, got {self.coarse_steps}")
        if not 0 < self.local_share <= 1:
            raise ValueError(f"expected local_share of more than 0 and at most 1, got {self.local_share}")
        if self.phases not in (1, 2):
            raise ValueError(f"expected phases of 1 or 2, got {self.phases}")

    def flow_settings(self, given: FlowConfig | dict[str, Any] | None) -> None:
        """There is no flow of points.

        Raises:
            ValueError: If settings of one are given.
        """
        if given is not None:
            raise ValueError("expected no settings of a flow with splits, whose own settings say all")

    def student_settings(self, known: Any, changes: FlowChanges | dict[str, Any] | None) -> None:
        """There is no flow of points.

        Raises:
            ValueError: If settings of one are given.
        """
        if changes not in (None, FlowChanges()):
            raise ValueError("expected no settings of a flow with splits: a student has its teacher's size")

    def build(self, detector: Detector, context: int) -> SplitRepresentation:
        """The representation of a detector's images, given so many context features."""
        return SplitRepresentation(detector, context, self)


class SplitRepresentation(Representation):
    """The tree of splits: its coarse nodes for a flow of counts, and the local splits below.

    Args:
        detector: The detector: shape, pitch and where its front face is.
        context: The number of context features.
        config: The settings.

    Attributes:
        tree: The tree of halves.
        coarse_levels: Levels of the coarse part, at most those of the tree.
        event: What local networks know of the event, or None without local levels.
        local: One network a level.

    Raises:
        ValueError: If a setting is out of range.
    """

    order: Tensor
    rank: Tensor
    nodes: tuple[Tensor, Tensor, Tensor]
    local: Sequence[LevelSplits]
    nll_unit = "nats an image"
    not_exportable = ""

    def __init__(self, detector: Detector, context: int, config: SplitConfig | None = None):
        super().__init__(detector)
        self.detector, self.config = detector, config or SplitConfig()
        config = self.config
        self.tree = SplitTree(detector.shape)
        self.coarse_levels = min(config.coarse_levels, len(self.tree.levels))
        self.size = m = self.tree.starts[self.coarse_levels]
        steps = self._steps()
        order = steps.argsort(stable=True)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("rank", order.argsort(), persistent=False)
        source = self.tree.source[:m][order]
        source = torch.where(source < 0, source, self.rank[source.clamp(min=0)])
        self.nodes = source, self.tree.child[:m][order], steps[order]
        below = self.tree.levels[self.coarse_levels :]
        self.event = None
        if below:
            self.event = EventNetwork(below[0].cells + context, config.event, config.local_hidden, len(below))
        self.local = nn.ModuleList(  # type: ignore[assignment]
            LevelSplits(level, detector, config.reach, config.phases, config.local_hidden, config.local_components)
            for level in below
        )

    def _steps(self) -> Tensor:
        """The step of every coarse node; neighbors are of different steps where there are four."""
        steps, done = [torch.zeros(0, dtype=torch.int64)], 0
        for level in self.tree.levels[: self.coarse_levels]:
            number = torch.arange(len(level.nodes))
            if self.config.coarse_steps:
                number = _coloring(level, self.config.coarse_steps)
            steps.append(done + number)
            done += int(number.max()) + 1
        return torch.cat(steps)

    def flight_end(self, particles: Tensor) -> Tensor:
        """Where the straight flights of primaries (B, 9) end, bounded, in cm with shape (B, 2)."""
        end = torch.stack(self.detector.straight_flight(particles), 1)
        return end.clamp(-self.detector.farthest, self.detector.farthest)

    def flow(self, context: int, settings: FlowConfig | None = None, inverse: bool = False) -> nn.Module:
        """A masked network that reads counts, or one that reads noise, see :meth:`Representation.flow`."""
        kind = InverseSplits if inverse else MaskedSplits
        return kind(*self.nodes, context, self.config.hidden, self.config.components)

    def pairing(self, teacher: Any, student: Any) -> CountPairing:
        """Node by node, see :meth:`Representation.pairing`."""
        return CountPairing(self, teacher, student)

    def fit(self, images: Tensor, keys: Tensor) -> None:
        """Nothing is standardized."""

    def counts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the flow of counts models.

        Args:
            images: Photon counts with shape (B, nx, ny), whole numbers from 0.

        Returns:
            Photons of the first children and of the nodes, each (B, D), int64, in the order of :attr:`nodes`.
        """
        return self._ordered(self.tree.grids(images.to(torch.int64)))

    def _ordered(self, grids: list[Tensor]) -> tuple[Tensor, Tensor]:
        k, n = (t.index_select(1, self.order) for t in self.tree.counts(grids, self.coarse_levels))
        return k, n

    def log_likelihood(self, flow: Any, images: Tensor, context: Tensor, particles: Tensor, keys: Tensor) -> Tensor:
        """The logarithm of the probability of images given their photon sums, see :meth:`Representation.log_likelihood`.

        A row has a few hundred local splits and one coarse part, which learns from more rows at little cost: in training,
        the local part of some rows, the first, stands for that of all, and the expectation over batches stays what it is.
        """
        rows = len(images)
        some = max(1, round(rows * self.config.local_share)) if self.training and rows else rows
        grids = self.tree.grids(images.to(torch.int64))
        coarse = flow.log_mass(*self._ordered(grids), context).sum(1)
        if some == rows:
            return coarse + self.local_log_mass(grids, context, particles)
        local = self.local_log_mass([grid[:some] for grid in grids], context[:some], particles[:some])
        return coarse + F.pad(local * (rows / some), (0, rows - some))

    def local_log_mass(self, grids: list[Tensor], context: Tensor, particles: Tensor) -> Tensor:
        """The local part of :meth:`log_mass`, given the counts of the coarse part's cells.

        Args:
            grids: Counts of all cells, int64, from :meth:`SplitTree.grids`.
            context: With shape (B, C).
            particles: With shape (B, 9).

        Returns:
            Nats with shape (B,).
        """
        if self.event is None:
            return context.new_zeros(len(context))
        below = grids[self.coarse_levels :]
        end, events = self.flight_end(particles).to(context.dtype), self.event(below[0], context)
        parts = []
        for local, event, grid, children in zip(self.local, events, below[:-1], below[1:], strict=True):
            nodes, light = local.occupied(grid), local.light(grid, context.dtype)
            k = local.level.first_counts(children).take(nodes.place)
            parts.append((nodes.row, k, nodes.n, local(nodes, light, local.lean(nodes, k, light), event, end)))
        row, k, n = (torch.cat(part) for part in list(zip(*parts, strict=True))[:3])
        # Columns first, as they come.
        parameters = torch.cat([part[3].T for part in parts], 1).T
        mass = mixture.log_mass(k, n, parameters)
        return mass.new_zeros(len(context)).index_add(0, row, mass)

    def generate(
        self,
        flow: Any,
        photon_sum: Tensor,
        context: Tensor,
        particles: Tensor,
        keys: Tensor,
        requantization: int | Tensor | None = None,
    ) -> Tensor:
        """Draws images, see :meth:`Representation.generate`; they sum to the photon sums.

        Every split of every row has random numbers of its own, so that a row's image does not depend on its batch.
        """
        rows = photon_sum.shape[0]
        photon_sum, context, particles, keys = _enough(photon_sum, context, particles, keys)
        # Faster than without gradients only; the clone is a tensor like any other.
        with torch.inference_mode():
            total = photon_sum.to(torch.int64)
            counters = torch.arange(2 * self.size, device=keys.device)
            uniforms = rng.uniform_at(keys.unsqueeze(1), counters).unflatten(1, (2, -1))
            k = flow.sample(total, context, uniforms).index_select(1, self.rank)
            grid = self.tree.compose(total.view(-1, 1, 1), k, self.coarse_levels)
            images = self._refine(grid, context, particles, keys)[:rows]
        return images.clone()

    def _refine(self, grid: Tensor, context: Tensor, particles: Tensor, keys: Tensor) -> Tensor:
        """Draws the local splits below the coarse part's cells (B, *), int64; counts (B, nx, ny), int64."""
        if self.event is None:
            return grid
        end, events = self.flight_end(particles).to(context.dtype), self.event(grid, context)
        # Of half the size, these numbers are read twice as fast.
        counter, grid = 2 * self.size, grid.to(torch.int32)
        for local, event in zip(self.local, events, strict=True):
            first, light = grid.clone(), local.light(grid, context.dtype)
            lean = torch.zeros_like(light)
            for phase in range(self.config.phases):
                nodes = local.occupied(grid, phase, at_least=_ROWS)
                at = counter + 2 * nodes.cell
                u, v = rng.uniform_at(keys.index_select(0, nodes.row), torch.stack((at, at + 1)))
                k = mixture.draw(u, v.logit(), nodes.n, local(nodes, light, lean, event, end))
                first.view(-1).index_copy_(0, nodes.place, k)
                if phase + 1 < self.config.phases:
                    lean = local.lean(nodes, k, light)
            counter += 2 * local.level.cells
            grid = local.level.divide(grid, first)
        return grid.to(torch.int64)

    def encode(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of the coarse nodes.

        Args:
            images: Photon counts with shape (B, nx, ny); whole numbers from 0.
            keys: Row keys with shape (B,) of where in its interval a coordinate lies.

        Returns:
            x with shape (B, D), float64: standard normal where a node has no photons. And zeros with shape (B,): the volume
            of an interval is part of its probability.
        """
        k, n = self.tree.counts(self.tree.grids(images.to(torch.int64)), self.coarse_levels)
        u = rng.uniform_at(keys.unsqueeze(1), torch.arange(self.size, device=k.device))
        x = torch.special.ndtri((k.double() + u) / (n + 1))
        return x, x.new_zeros(len(x))

    def decode(self, x: Tensor, photon_sum: Tensor, requantization: int | Tensor | None = None) -> Tensor:
        """Counts of the coarse part's cells, (B, *), int64, from points (B, D); undoes :meth:`encode`.

        In float64: float32 may miss counts beyond a thousand photons.
        """
        v, total = torch.special.ndtr(x), photon_sum.to(torch.int64)
        return self._descend(v, total, lambda v, n: torch.minimum((v * (n + 1)).long(), n))

    def expected(self, x: Tensor, photon_sum: Tensor, noise: bool = True) -> Tensor:
        r"""A differentiable image: the middle of what points stand for, spread evenly over a coarse cell's pixels.

        Args:
            x: Coordinates with shape (B, D).
            photon_sum: Photons with shape (B,).
            noise: There is none.

        Returns:
            Photons with shape (B, nx, ny), of the type of x, that sum to the photon sums. Within rounding by half a photon
            a split, sums over coarse cells are those of :meth:`decode`.
        """
        v, total = torch.special.ndtr(x), photon_sum.to(x)
        grid = self._descend(v, total, lambda v, n: torch.minimum((v * (n + 1) - 0.5).clamp(min=0), n))
        for local in self.local:
            area = local.level.size[:, local.level.axis].view(local.level.shape)
            share = torch.where(area > 1, area.div(2, rounding_mode="floor") / area, 1.0)
            grid = local.level.divide(grid, grid * share.to(grid))
        return grid

    def _descend(self, v: Tensor, total: Tensor, count: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """From the whole face to coarse cells, with the first child's photons a function of v and n."""
        grid = total.view(-1, 1, 1)
        for level, start, stop in zip(
            self.tree.levels[: self.coarse_levels], self.tree.starts, self.tree.starts[1:], strict=False
        ):
            flat = grid.flatten(1)
            n = flat.index_select(1, level.nodes)
            first = flat.index_copy(1, level.nodes, count(v[:, start:stop], n))
            grid = level.divide(grid, first.view(-1, *level.shape))
        return grid

    def stages(self) -> list[Stage]:
        """Every local level with its view of the event; what all levels know of the event comes with the first of them."""
        if self.event is None:
            return []
        found = []
        for i, local in enumerate(self.local):
            shared = self.event.shared.parameters() if i == 0 else ()
            found.append(Stage(list(local.parameters()), [*shared, *self.event.heads[i].parameters()]))
        return found


def _coloring(level: Level, steps: int) -> Tensor:
    """Steps of a level's nodes: neighbors get different ones, in tiles of 2 x 2, then of 4 x 4 and so on."""
    i, j = torch.div(level.nodes, level.shape[1], rounding_mode="floor"), level.nodes % level.shape[1]
    # Bits of the place, the finest first: number 0, 1, 2, 3 within each tile is a diagonal, then the other.
    number, weight = torch.zeros_like(i), 1
    while bool((i > 0).any() or (j > 0).any()):
        number += weight * ((i + j) % 2) + 2 * weight * (j % 2)
        i, j, weight = i // 2, j // 2, 4 * weight
    return (number % steps).unique(return_inverse=True)[1]


def _enough(*tensors: Tensor) -> list[Tensor]:
    """Repeats rows until products with them have the same last bits as in any larger batch."""
    rows = len(tensors[0])
    if not 0 < rows < _ROWS:
        return list(tensors)
    again = torch.arange(_ROWS, device=tensors[0].device) % rows
    return [t.index_select(0, again) for t in tensors]
