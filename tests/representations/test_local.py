"""Local splits: what a cell sees of its surroundings, and of its neighbors' splits."""

from __future__ import annotations

import pytest
import torch

from calosim.detectors import DETECTORS
from calosim.representations.splits import EventNetwork, LevelSplits
from calosim.representations.tree import SplitTree

HIDDEN, ROWS = 16, 3


def level_splits(shape=(12, 10), level=4, reach=1, phases=2):
    torch.manual_seed(0)
    detector = DETECTORS["zn"].replace(shape=shape)
    net = LevelSplits(SplitTree(shape).levels[level], detector, reach, phases, HIDDEN, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def inputs(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randint(1, 30, (ROWS, *net.level.shape), generator=generator)
    first = (grid * torch.rand(grid.shape, generator=generator)).long()
    return grid, first, torch.randn(ROWS, HIDDEN, generator=generator), torch.randn(ROWS, 2, generator=generator)


def changed_cells(net, which, row, i, j):
    """The cells whose mixtures change when the count, or the split, of one cell does."""
    grid, first, event, end = inputs(net)
    nodes = net.occupied(grid)
    k, light = first.take(nodes.place), net.light(grid, torch.float32)
    lean = net.lean(nodes, k, light)
    before = net(nodes, light, lean, event, end)
    (grid if which == "grid" else first)[row, i, j] += 1
    if which == "grid":
        light = net.light(grid, torch.float32)
    else:
        lean = net.lean(nodes, first.take(nodes.place), light)
    after = net(nodes, light, lean, event, end)
    moved = (before != after).any(1)
    cells = torch.stack((nodes.row, nodes.cell // net.level.shape[1], nodes.cell % net.level.shape[1]), 1)[moved]
    return {tuple(c) for c in cells.tolist()}


@pytest.mark.parametrize("reach", [1, 2])
def test_a_cell_sees_the_counts_within_reach(reach):
    net = level_splits(reach=reach, phases=1)
    a, b = net.level.shape
    for i, j in ((0, 0), (2, 1), (a - 1, b - 1)):
        seen = {(x, y) for x in range(a) for y in range(b) if abs(x - i) <= reach and abs(y - j) <= reach}
        assert changed_cells(net, "grid", 1, i, j) == {(1, x, y) for x, y in seen}


def test_cells_of_the_second_phase_see_splits_of_the_first_and_no_other():
    net = level_splits(reach=2)
    a, b = net.level.shape
    seen = {(x, y) for x in range(a) for y in range(b) if abs(x - 2) <= 2 and abs(y - 2) <= 2 and (x + y) % 2}
    assert changed_cells(net, "first", 1, 2, 2) == {(1, x, y) for x, y in seen}
    assert changed_cells(net, "first", 1, 2, 1) == set()
    assert changed_cells(level_splits(reach=2, phases=1), "first", 1, 2, 2) == set()


def test_dark_cells_and_cells_of_a_pixel_are_not_split():
    net = level_splits((7, 5), level=4)
    grid, *_ = inputs(net)
    grid[1] = 0
    grid[2, 0, 0] = 0
    nodes = net.occupied(grid)
    expected = (grid > 0) & net.chosen[-1].view(1, *net.level.shape)
    assert torch.equal(nodes.place, expected.flatten().nonzero()[:, 0])
    assert torch.equal(nodes.n, grid[expected])
    phases = [net.occupied(grid, phase).place for phase in range(2)]
    assert torch.equal(torch.cat(phases).sort().values, nodes.place)
    assert not len(net.occupied(torch.zeros_like(grid), at_least=4).place)


def test_a_few_cells_are_repeated_to_make_enough():
    net = level_splits()
    grid = torch.zeros(ROWS, *net.level.shape, dtype=torch.int64)
    grid[1, 1, 1] = 5
    nodes = net.occupied(grid, at_least=4)
    assert nodes.row.tolist() == [1] * 4
    assert nodes.n.tolist() == [5] * 4


def test_places_are_of_order_one_whatever_the_detector():
    for name in ("zn", "zp"):
        for level in SplitTree(DETECTORS[name].shape).levels[4:]:
            net = LevelSplits(level, DETECTORS[name], 2, 2, HIDDEN, 2)
            assert float(net.place.abs().max()) < 8
            assert bool(net.place.isfinite().all())


def test_the_event_network_has_a_view_for_every_level():
    net = EventNetwork(4 + 2, 8, HIDDEN, 3)
    views = net(torch.randint(0, 9, (ROWS, 2, 2)), torch.randn(ROWS, 2))
    assert [tuple(v.shape) for v in views] == [(ROWS, HIDDEN)] * 3
