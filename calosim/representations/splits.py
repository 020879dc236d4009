r"""Split coordinates: an image is a tree of splits of its photons, and its probability is exact.

A coarse part, the first levels of the tree, is split step by step by a masked network; below, every occupied cell is
split by a small network that sees its surroundings. The probability of an image given its photon sum is the product of
those of all splits, a number for integer photons without dequantization noise. Back again, the photon sum is conserved
by construction, and a cell without photons costs nothing.

As coordinates of a flow, :math:`k` of :math:`n` photons are any :math:`v \in [k / (n + 1), (k + 1) / (n + 1))`, and
:math:`x = \Phi^{-1}(v)`; back, :math:`k = \lfloor v (n + 1) \rfloor` from the whole face down. A node without photons is
standard normal: the identity of a flow is right where it is dark.

References:
    | Multiscale Poisson intensity models (Kolaczyk and Nowak, 2004), https://doi.org/10.1214/009053604000000076
    | Tree Polya splitting distributions for multivariate count data (2024), https://arxiv.org/abs/2404.19528
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calosim import rng
from calosim.detectors import Detector
from calosim.flows import FlowConfig, InverseSplits, MaskedSplits, Stage, mixture
from calosim.representations.base import Representation
from calosim.representations.local import EventNetwork, LevelSplits
from calosim.representations.tree import Level, SplitTree

__all__ = ["SplitConfig", "SplitRepresentation"]

#: Straight flights end at most this far from the detector's centre, in cm; a soft primary's would end anywhere.
FARTHEST = 30.0

#: Products of fewer rows take other paths in BLAS, whose last bits differ.
_ROWS = 4


@dataclass(frozen=True)
class SplitConfig:
    """Settings of split coordinates.

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
            raise ValueError("expected no settings of a flow with split coordinates, whose own settings say all")

    def build(self, detector: Detector, context: int) -> SplitRepresentation:
        """The coordinates of a detector's images, given so many context features."""
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
    per = 1

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
        """Where the primaries would hit the front face if they flew straight.

        Args:
            particles: Energy (GeV), vx, vy, vz (cm), px, py, pz (GeV/c), mass, charge, with shape (B, 9).

        Returns:
            Distances from the detector's centre along x and y in cm, at most 30, with shape (B, 2).
        """
        _, vx, vy, _, px, py, pz = particles.unbind(1)[:7]
        lever = abs(self.detector.front_z[0]) / pz.abs().clamp(min=1e-3)
        end = torch.stack((vx + px * lever - self.detector.center_x, vy + py * lever), 1)
        return end.clamp(-FARTHEST, FARTHEST)

    def flow(self, context: int, settings: FlowConfig | None = None, inverse: bool = False) -> nn.Module:
        """A masked network that reads counts, or one that reads noise, see :meth:`Representation.flow`."""
        kind = InverseSplits if inverse else MaskedSplits
        return kind(*self.nodes, context, self.config.hidden, self.config.components)

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
        """Counts of the coarse part's cells, (B, *), int64, from coordinates (B, D); undoes :meth:`encode`.

        In float64: float32 may miss counts beyond a thousand photons.
        """
        v, total = torch.special.ndtr(x), photon_sum.to(torch.int64)
        return self._descend(v, total, lambda v, n: torch.minimum((v * (n + 1)).long(), n))

    def expected(self, x: Tensor, photon_sum: Tensor, noise: bool = True) -> Tensor:
        r"""A differentiable image: the middle of what coordinates stand for, spread evenly over a coarse cell's pixels.

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
