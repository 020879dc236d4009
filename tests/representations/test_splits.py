"""Local splits: what a cell sees of its surroundings, and of its neighbors' splits."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats

from calosim import rng
from calosim.detectors import DETECTORS
from calosim.flows import FlowConfig, stages
from calosim.representations.splits import EventNetwork, LevelSplits, SplitConfig, SplitRepresentation, SplitTree

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


CONTEXT = 3
SMALL = SplitConfig(coarse_levels=2, hidden=16, event=8, local_hidden=16, reach=1)
SHAPES = [("zn", (44, 44)), ("zp", (56, 30)), ("focal_h", (30, 30)), ("zn", (7, 5)), ("zn", (1, 6))]
shapes = pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)
P_MIN = 1e-4


class Model(torch.nn.Module):
    """Coordinates with their flow."""

    def __init__(self, detector, config):
        super().__init__()
        self.representation = SplitRepresentation(detector, CONTEXT, config)
        self.flow = self.representation.flow(CONTEXT)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.representation, name)

    def log_mass(self, images, context, particles):
        return self.representation.log_likelihood(self.flow, images, context, particles, torch.arange(len(images)))

    def generate(self, photon_sum, context, particles, keys):
        return self.representation.generate(self.flow, photon_sum, context, particles, keys)


def representation(name="zn", shape=(6, 5), config=SMALL, spread=0.1, seed=0):
    torch.manual_seed(seed)
    model = Model(DETECTORS[name].replace(shape=shape), config)
    with torch.no_grad():  # away from the start, where splits hardly depend on anything
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model


def conditions(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    particles = torch.randn(rows, 9, generator=generator)
    particles[:, 6] *= 1000
    return torch.randn(rows, CONTEXT, generator=generator), particles


def random_images(shape, rows=6, most=10**6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, most + 1, (rows, *shape), generator=generator)
    images *= torch.rand(images.shape, generator=generator) < 0.3
    images[0] = 0
    images[-1, 0, 0] = most
    return images


def compositions(photons, cells):
    """All ways to spread photons over cells."""
    if cells == 1:
        return [(photons,)]
    return [(k, *rest) for k in range(photons + 1) for rest in compositions(photons - k, cells - 1)]


@pytest.mark.parametrize(
    ("shape", "photons"), [((2, 2), 0), ((2, 2), 1), ((2, 2), 6), ((3, 3), 1), ((3, 3), 4), ((1, 3), 9)], ids=str
)
@pytest.mark.parametrize("coarse", [1, 2, 4])
@pytest.mark.parametrize("phases", [1, 2])
def test_probabilities_of_all_images_sum_to_one(shape, photons, coarse, phases):
    config = SplitConfig(coarse_levels=coarse, hidden=16, event=8, local_hidden=16, reach=1, phases=phases)
    model = representation(shape=shape, config=config, spread=0.5).double()
    images = torch.tensor(compositions(photons, shape[0] * shape[1])).view(-1, *shape)
    context, particles = (t.expand(len(images), -1).double() for t in conditions(1))
    total = model.log_mass(images, context, particles).exp().sum().item()
    assert abs(total - 1) < 1e-9


@shapes
def test_coordinates_lead_back_to_the_image(name, shape):
    model, images = representation(name, shape, SplitConfig()), random_images(shape)
    total = images.sum((1, 2))
    grid = model.tree.grids(images)[model.coarse_levels]
    x, _ = model.encode(images, rng.row_keys(torch.arange(len(images)), 1))
    assert x.shape == (len(images), model.size)
    assert x.dtype == torch.float64
    assert bool(x.isfinite().all())
    assert torch.equal(model.decode(x, total), grid)


def test_all_levels_can_be_coarse_and_then_coordinates_lead_back_to_every_pixel():
    model = representation(shape=(7, 5), config=SplitConfig(coarse_levels=99, hidden=16))
    images = random_images((7, 5))
    x, _ = model.encode(images, torch.arange(len(images)))
    assert torch.equal(model.decode(x, images.sum((1, 2))), images)


def test_coordinates_of_dark_nodes_are_standard_normal():
    model = representation(config=SplitConfig())
    x, _ = model.encode(torch.zeros(2000, 6, 5, dtype=torch.int64), rng.row_keys(torch.arange(2000), 1))
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > P_MIN


@shapes
def test_photon_sums_are_conserved(name, shape):
    model = representation(name, shape, SplitConfig(hidden=32, local_hidden=16))
    total = torch.tensor([0, 1, 2, 300, 10**6])
    images = model.generate(total, *conditions(5), rng.row_keys(torch.arange(5), 1))
    assert images.shape == (5, *shape)
    assert bool((images >= 0).all())
    assert torch.equal(images.sum((1, 2)), total)
    assert bool(model.log_mass(images, *conditions(5)).isfinite().all())


def test_a_row_is_drawn_the_same_in_any_batch_and_order():
    model = representation("zn", (44, 44), SplitConfig(), spread=0.02)
    rows = torch.arange(40)
    total, (context, particles), keys = 10 + 20 * rows, conditions(40), rng.row_keys(rows, 1, 7)
    together = model.generate(total, context, particles, keys)
    for part in (rows[:1], rows[5:7], rows[3:20], rows.flip(0)):
        alone = model.generate(total[part], context[part], particles[part], keys[part])
        assert torch.equal(alone, together[part])
    others = model.generate(total, context, particles, rng.row_keys(rows, 1, 8))
    assert not bool((others == together).all((1, 2))[1:].any())


def test_drawn_frequencies_agree_with_the_probabilities():
    model, rows, photons = representation(shape=(2, 2), spread=0.5), 20_000, 4
    images = torch.tensor(compositions(photons, 4)).view(-1, 2, 2)
    context, particles = conditions(1)
    expected = rows * model.log_mass(images, *(t.expand(len(images), -1) for t in (context, particles))).exp()
    many = (t.expand(rows, -1) for t in (context, particles))
    drawn = model.generate(torch.full((rows,), photons), *many, rng.row_keys(torch.arange(rows), 1))
    code = (photons + 1) ** torch.arange(4)
    names = (images.flatten(1) * code).sum(1)
    seen = ((drawn.flatten(1) * code).sum(1)[:, None] == names).sum(0).double()
    usual = expected > 5
    seen = torch.cat((seen[usual], seen[~usual].sum()[None]))
    expected = torch.cat((expected[usual], expected[~usual].sum()[None])).detach().double()
    assert stats.chisquare(seen, expected * rows / expected.sum()).pvalue > P_MIN


def test_no_split_depends_on_finer_ones():
    """Moving a photon between two pixels of one cell changes nothing that is coarser than their common cell."""
    model = representation(
        shape=(8, 8), config=SplitConfig(coarse_levels=3, hidden=16, event=8, local_hidden=16, reach=1)
    )
    images = random_images((8, 8), rows=1, most=40, seed=1) + 1
    conditioned = conditions(1)
    for level, cells in enumerate(model.tree.levels):
        moved = images.clone()
        moved[0, 0, 0] += 1
        corner = (cells.size[0] - 1).tolist()
        moved[0, corner[0], corner[1]] -= 1
        grids = [model.tree.grids(i) for i in (images, moved)]
        assert all(torch.equal(a, b) for a, b in zip(grids[0][: level + 1], grids[1][: level + 1], strict=True))
        coarse = [_coarse_masses(model, g, conditioned) for g in grids]
        before = min(model.tree.starts[level], model.size)
        assert torch.equal(coarse[0][:before], coarse[1][:before])
        fine = [_local_parameters(model, g, conditioned) for g in grids]
        for q in range(max(0, level - model.coarse_levels)):
            assert torch.equal(fine[0][q], fine[1][q])


def _coarse_masses(model, grids, conditioned):
    k, n = (t[:, model.order] for t in model.tree.counts(grids, model.coarse_levels))
    return model.flow.log_mass(k, n, conditioned[0])[0, model.rank]


def _local_parameters(model, grids, conditioned):
    below, (context, particles) = grids[model.coarse_levels :], conditioned
    views, end = model.event(below[0], context), model.flight_end(particles)
    result = []
    for local, event, grid, children in zip(model.local, views, below[:-1], below[1:], strict=True):
        nodes, light = local.occupied(grid), local.light(grid, context.dtype)
        k = local.level.first_counts(children).take(nodes.place)
        result.append(local(nodes, light, local.lean(nodes, k, light), event, end))
    return result


def test_expected_images_keep_sums_and_gradients():
    model, images = representation("zn", (44, 44), SplitConfig()), random_images((44, 44), most=500)
    total = images.sum((1, 2))
    x = model.encode(images, torch.arange(len(images)))[0].requires_grad_()
    expected = model.expected(x, total)
    torch.testing.assert_close(expected.sum((1, 2)), total.double(), rtol=1e-9, atol=1e-9)
    coarse = model.tree.grids(expected.detach())[model.coarse_levels]
    # The middle of an interval stands for its count: what is off by halves adds up level by level.
    error = (coarse - model.tree.grids(images)[model.coarse_levels]).abs()
    assert float(error.max()) <= 0.5 * model.coarse_levels
    (gradient,) = torch.autograd.grad(expected[:, :22].sum(), x)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[2:, 0] > 0).all())


@shapes
def test_stages_hold_every_parameter_once(name, shape):
    model = representation(name, shape, SplitConfig())
    found = [*stages(model.flow), *model.representation.stages()]
    held = [id(p) for stage in found for p in (*stage.parameters, *stage.context)]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_the_local_part_of_some_rows_stands_for_that_of_all():
    model = representation(config=SplitConfig(**{**SMALL.__dict__, "local_share": 0.5}))
    images, conditioned = random_images((6, 5), rows=8, most=50), conditions(8)
    whole = model.eval().log_mass(images, *conditioned)
    first = model.train().log_mass(images, *conditioned)
    last = model.log_mass(images.flip(0), *(t.flip(0) for t in conditioned)).flip(0)
    # Each half counts twice and the other nothing: together they are twice the whole.
    torch.testing.assert_close(first + last, 2 * whole)


def test_an_independent_multinomial_is_learned_to_its_entropy():
    """Every photon falls on pixels by one profile: the entropy is that of the multinomial distribution."""
    torch.manual_seed(0)
    shape, rows, photons = (8, 8), 16384, 60
    x, y = (torch.arange(8.0) - c for c in (2.5, 4.0))
    profile = 1 / (1 + (x[:, None] ** 2 + y[None] ** 2) / 2) ** 1.5
    profile /= profile.sum()
    images = torch.distributions.Multinomial(photons, profile.flatten()).sample((rows,)).view(-1, *shape)
    truth = torch.distributions.Multinomial(photons, profile.flatten()).log_prob(images.flatten(1))
    model = representation(
        shape=shape, config=SplitConfig(coarse_levels=3, hidden=16, event=8, local_hidden=16), spread=0.0
    )
    context, particles = (t.expand(rows, -1) for t in conditions(1))
    steps, batch = 450, 128
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        some = torch.arange(step * batch, (step + 1) * batch) % (rows // 2)
        loss = -model.log_mass(images[some], context[some], particles[some]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = model.log_mass(images[rows // 2 :], context[rows // 2 :], particles[rows // 2 :])
    assert abs(float(found.mean() / truth[rows // 2 :].mean()) - 1) < 0.005


@pytest.mark.parametrize(
    ("name", "value"), [("hidden", 0), ("reach", 0), ("phases", 3), ("coarse_levels", 0), ("local_share", 0)]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"expected {name} of .* got {value}"):
        SplitConfig(**{name: value})


def test_other_requests_are_refused():
    model = representation()
    with pytest.raises(ValueError, match="counts come out exactly"):
        model.points(None, *conditions(2)[:1], torch.arange(2))
    with pytest.raises(ValueError, match="no settings of a flow"):
        SplitConfig().flow_settings(FlowConfig())
    with pytest.raises(ValueError, match="expected images"):
        model.log_mass(torch.zeros(2, 5, 6), *conditions(2))


def test_exhaustive_images_are_exhaustive():
    assert len(compositions(6, 4)) == 84
    assert all(sum(c) == 4 for c in itertools.islice(compositions(4, 9), 100))
