r"""Laws of the flow engine: structure, exact inverse, gradients, and every way a flow is copied, saved or exported."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest
import torch
import zuko
from torch import Tensor, nn
from zuko.lazy import Flow

from calosim.flows import AutoregressiveSpline, cast, feature_orders, iaf, maf, trace, units
from calosim.flows.made import BlockTriangularLinear, spread_degrees
from calosim.flows.spline import affine, rqs

EXACT = {"rtol": 0.0, "atol": 1e-9}  # float64, after several transformations
SINGLE = {"rtol": 0.0, "atol": 2e-4}  # float32, after several transformations
BUILDERS = [maf, iaf]
BINS = [8, 0]  # 0: affine
# features, context, hidden, chunk: wide, narrower than the features, very narrow, ragged chunks, one feature
SHAPES = [(6, 2, (16, 16), 4), (20, 0, (7, 12), 8), (33, 3, (5,), 4), (12, 1, (12, 30, 9), 5), (1, 2, (4, 4), 8)]


def build(
    builder, features: int, context: int, hidden: tuple[int, ...], chunk: int, gain: float = 5.0, **kwargs
) -> Flow:
    """A small double precision flow far from the identity."""
    torch.manual_seed(0)
    kwargs = {"transforms": 2, "dropout": 0.0, **kwargs}
    flow = builder(features, context, hidden=hidden, chunk=chunk, **kwargs).double()
    with torch.no_grad():
        for _, unit in units(flow):
            for p in unit.conditioner.output.parameters():
                p *= gain
    return flow


def univariate(unit: AutoregressiveSpline, phi: Tensor, x: Tensor, inverse: bool = False) -> Tensor:
    return (rqs(phi, x, unit.bound, inverse) if unit.bins else affine(phi, x, inverse))[0]


def draws(flow: Flow, context: int, rows: int = 5) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(1)
    features = flow.base().event_shape[0]
    return torch.randn(rows, features).double() * 2, torch.randn(rows, context).double() if context else None


def jacobian(unit: AutoregressiveSpline, u: Tensor, c: Tensor | None) -> Tensor:
    """The Jacobian of one transformation's fast direction, features in the order they are visited."""
    full = torch.autograd.functional.jacobian(lambda v: unit.evaluate(v[None], c)[0][0], u)
    return full[unit.order][:, unit.order]


@torch.no_grad()
def dependencies(unit: AutoregressiveSpline, context: int) -> Tensor:
    """Whether the spline parameters of feature i depend on feature j, both in the order visited.

    Every weight that may be there is one and nothing is negative, so that no unit is dead and nothing cancels.
    """
    unit = copy.deepcopy(unit)
    for module in unit.modules():
        if isinstance(module, BlockTriangularLinear):
            module.bias.fill_(1.0)
            for i, weight in enumerate(module.weights):
                module.clean(i, weight.fill_(1.0))
    made = unit.conditioner
    features = made.features
    u = torch.ones(features + 1, features).double()
    u[torch.arange(features), unit.order] += 1.0
    _, _, phi = unit.evaluate(u, torch.ones(features + 1, context).double(), parameters=True)
    blocks = [phi[:, made.output.rows(i)].unflatten(1, (-1, b - a)) for i, (a, b) in enumerate(pairwise(made.edges))]
    moved = torch.cat(blocks, dim=-1)
    return (moved[:-1] != moved[-1]).any(1).T


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("builder", BUILDERS)
def test_jacobian_is_triangular_and_its_determinant_is_reported(builder, shape, bins: int) -> None:
    flow = build(builder, *shape, bins=bins)
    x, c = draws(flow, shape[1])
    row = None if c is None else c[:1]
    for _, unit in units(flow):
        full = jacobian(unit, x[0], row)
        assert torch.equal(full.triu(1), torch.zeros_like(full))
        assert (full.diagonal() > 0).all()
        _, diagonal, _ = unit.evaluate(x[:1], row)
        torch.testing.assert_close(diagonal[0][unit.order], full.diagonal().log(), **EXACT)

    noise, ladj = flow(c).transform.call_and_ladj(x)
    full = torch.autograd.functional.jacobian(flow(None if c is None else c[0]).transform, x[0])
    torch.testing.assert_close(torch.linalg.slogdet(full)[1], ladj[0], rtol=0, atol=1e-7)
    expected = -0.5 * (noise**2).sum(-1) - 0.5 * shape[0] * math.log(2 * math.pi) + ladj
    torch.testing.assert_close(flow(c).log_prob(x), expected, **EXACT)


def zuko_dependencies(features: int, hidden: int) -> Tensor:
    """Whether zuko's masks let feature i depend on feature j, from the product of the masks."""
    unit = zuko.flows.autoregressive.MaskedAutoregressiveTransform(features, hidden_features=(hidden, hidden))
    masks = [layer.mask.double() for layer in unit.hyper if hasattr(layer, "mask")]
    paths = masks[2] @ masks[1] @ masks[0]
    return paths.unflatten(0, (features, -1)).sum(1) > 0


@pytest.mark.parametrize("hidden", [(40, 40), (24, 24), (11, 17), (4, 4)])
def test_every_feature_depends_on_every_earlier_one(hidden: tuple[int, int]) -> None:
    features = 32
    flow = build(maf, features, 2, hidden, chunk=8)
    torch.manual_seed(3)
    earlier = torch.ones(features, features).tril(-1).bool()
    for _, unit in units(flow):
        assert torch.equal(dependencies(unit, context=2), earlier)


def test_the_usual_masks_miss_dependencies_when_hidden_is_narrow() -> None:
    features = 32
    earlier = torch.ones(features, features).tril(-1).bool()
    assert torch.equal(zuko_dependencies(features, 40), earlier)
    assert not zuko_dependencies(features, 24)[-1, 24:-1].any()  # the last pixel is blind to its neighbors


@pytest.mark.parametrize(("units_", "features", "chunk"), [(100, 64, 16), (48, 64, 16), (4, 64, 16), (1452, 1936, 64)])
def test_degrees_are_sorted_spread_and_start_every_chunk(units_: int, features: int, chunk: int) -> None:
    edges = (*range(0, features, chunk), features)
    degrees = spread_degrees(units_, edges)
    assert len(degrees) == units_
    assert (degrees.diff() >= 0).all()
    assert degrees[0] == 0
    assert degrees[-1] < features
    assert set(edges[:-1]) <= set(degrees.tolist())
    assert degrees.diff().max() <= max(chunk, math.ceil(features / units_) + 1)


def sequential(unit: AutoregressiveSpline, v: Tensor, c: Tensor | None) -> Tensor:
    """The textbook inverse: one full pass per feature."""
    made = unit.conditioner
    u = torch.zeros_like(v)
    for _ in range(made.features):
        _, _, phi = unit.evaluate(u, c, parameters=True)
        parts = []
        for i, (start, stop) in enumerate(pairwise(made.edges)):
            block = phi[:, made.output.rows(i)].unflatten(1, (made.parameters_per_feature, -1))
            parts.append(univariate(unit, block, v[:, unit.order][:, start:stop], not unit.inverse))
        u = torch.cat(parts, dim=1)[:, unit.order.argsort()]
    return u


# Affine maps amplify without bound along the chain of features: no large gain for them.
@pytest.mark.parametrize(("gain", "bins"), [(1.0, 8), (20.0, 8), (1.0, 0)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("permutation", ["alternate", "random"])
def test_exact_inverse_equals_the_sequential_one(builder, shape, gain: float, bins: int, permutation: str) -> None:
    flow = build(builder, *shape, gain=gain, bins=bins, permutation=permutation)
    v, c = draws(flow, shape[1])
    with torch.no_grad():
        for _, unit in units(flow):
            u, expected = unit.invert(v, c), sequential(unit, v, c)
            # Rounding grows along the chain of features by the map's own condition, which the gain sets.
            torch.testing.assert_close(u, expected, rtol=0, atol=1e-8 if gain == 1 else 1e-4)
            torch.testing.assert_close(unit.evaluate(u, c)[0], v, rtol=0, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
def test_inverse_equals_zuko_on_a_flow_of_zuko_with_the_same_function(chunk: int) -> None:
    flow = build(maf, 10, 2, (16, 16), chunk, transforms=1)
    x, c = draws(flow, 2)
    ((_, unit),) = units(flow)

    def meta(c: Tensor, x: Tensor):
        _, _, phi = unit.evaluate(x, c, parameters=True)
        made = unit.conditioner
        parts = [
            phi[:, made.output.rows(i)].unflatten(1, (made.parameters_per_feature, -1))
            for i in range(len(made.edges) - 1)
        ]
        widths, heights, derivatives = torch.cat(parts, -1)[..., unit.order.argsort()].mT.split([8, 8, 7], -1)
        return zuko.transforms.DependentTransform(
            zuko.transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=unit.bound), 1
        )

    reference = zuko.transforms.AutoregressiveTransform(lambda v: meta(c, v), passes=10)
    z, ladj = reference.call_and_ladj(x)
    ours, our_ladj = flow(c).transform.call_and_ladj(x)
    torch.testing.assert_close(ours, z, **EXACT)
    torch.testing.assert_close(our_ladj, ladj, **EXACT)
    torch.testing.assert_close(flow(c).transform.inv(z), reference.inv(z), **EXACT)


def test_fixed_point_is_bounded_on_an_adversarial_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each feature copies its neighbor's sign into a steep spline: nothing settles before its turn."""
    chunk = 16
    flow = build(maf, chunk, 0, (chunk, chunk), chunk, gain=3000.0, transforms=1)
    ((_, unit),) = units(flow)
    calls = 0
    import calosim.flows.autoregressive as module

    original = module.rqs_apply

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    v, _ = draws(flow, 0, rows=64)
    monkeypatch.setattr(module, "rqs_apply", counted)
    u = unit.invert(v, None)
    monkeypatch.undo()
    assert chunk // 2 < calls <= chunk + 1
    with torch.no_grad():
        torch.testing.assert_close(u, sequential(unit, v, None), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_round_trip_in_single_precision(builder, bins: int) -> None:
    torch.manual_seed(0)
    flow = builder(100, 3, hidden=(80, 80), chunk=16, bins=bins)
    flow.eval()
    x, c = torch.randn(32, 100), torch.randn(32, 3)
    with torch.no_grad():
        torch.testing.assert_close(flow(c).transform.inv(flow(c).transform(x)), x, **SINGLE)
        torch.testing.assert_close(flow(c).transform(flow(c).transform.inv(x)), x, **SINGLE)
        rows = torch.cat([flow(c[i : i + 1]).transform.inv(x[i : i + 1]) for i in range(32)])
        torch.testing.assert_close(flow(c).transform.inv(x), rows, **SINGLE)


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_gradients_of_both_directions_equal_finite_differences(builder, bins: int) -> None:
    flow = build(builder, 7, 2, (9, 11), 3, gain=3.0, bins=bins)
    x, c = draws(flow, 2, rows=3)
    x.requires_grad_()
    c.requires_grad_()
    parameters = [x, c, *flow.parameters()]
    weights = torch.randn_like(x)
    for direction in (lambda: flow(c).transform(x), lambda: flow(c).transform.inv(x), lambda: flow(c).log_prob(x)):

        def scalar(direction=direction) -> Tensor:
            out = direction()
            return (out * weights).sum() if out.shape == weights.shape else out.sum()

        grads = torch.autograd.grad(scalar(), parameters, allow_unused=True)
        torch.manual_seed(5)
        steps = [torch.randn_like(p) * (p != 0) for p in parameters]
        eps = 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -2):
                for p, s in zip(parameters, steps, strict=True):
                    p += sign * eps * s
                values.append(scalar())
            for p, s in zip(parameters, steps, strict=True):
                p += eps * s
        slope = sum(float((g * s).sum()) for g, s in zip(grads, steps, strict=True) if g is not None)
        assert slope == pytest.approx(float(values[0] - values[1]) / (2 * eps), rel=1e-5)


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_every_weight_gets_a_gradient_and_nothing_else_does(builder, bins: int) -> None:
    flow = build(builder, 20, 2, (40, 40), 8, bound=4.0, bins=bins, gain=5.0 if bins else 1.0)  # data in every bin
    with torch.no_grad():  # no unit is dead
        for _, unit in units(flow):
            for layer in unit.conditioner.layers:
                layer.bias += 3.0
    torch.manual_seed(2)
    x, c = torch.randn(4000, 20).double() * 3, torch.randn(4000, 2).double()
    if builder is maf:
        (-flow(c).log_prob(x).mean()).backward()
    else:
        flow(c).transform.inv(x).pow(3).mean().backward()
    for module in flow.modules():
        if isinstance(module, BlockTriangularLinear):
            for i, weight in enumerate(module.weights):
                allowed = module.clean(i, torch.ones_like(weight)) > 0
                assert torch.equal(weight.grad != 0, allowed)
                assert torch.equal(weight != 0, allowed)
            assert (module.bias.grad != 0).any()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=0.1),
    ],
)
def test_training_keeps_the_zeros(optimizer) -> None:
    torch.manual_seed(0)
    flow = maf(20, 2, transforms=2, hidden=(12, 12), chunk=8, dropout=0.1)
    x, c = torch.randn(64, 20), torch.randn(64, 2)
    optim = optimizer(flow.parameters())
    first = None
    for _ in range(20):
        optim.zero_grad()
        loss = -flow(c).log_prob(x).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optim.step()
        first = loss.item() if first is None else first
    assert loss.item() < first
    fresh = maf(20, 2, transforms=2, hidden=(12, 12), chunk=8)
    fresh.load_state_dict(flow.state_dict())  # refuses anything outside the structure
    full = jacobian(units(flow.eval())[0][1], x[0], c[:1])
    assert torch.equal(full.triu(1), torch.zeros_like(full))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_state_dict_outside_the_structure_is_refused(strict: bool, assign: bool) -> None:
    flow = build(maf, 6, 2, (16, 16), 4)
    state = {k: v.clone() for k, v in flow.state_dict().items()}
    key = next(k for k in state if k.endswith("output.weights.0"))
    state[key][-1, 0] = 1e-20
    with pytest.raises(RuntimeError, match="outside the autoregressive structure"):
        flow.load_state_dict(state, strict=strict, assign=assign)
    state = {k: v.clone() for k, v in flow.state_dict().items()}
    key = next(k for k in state if k.endswith("order"))
    state[key][0] = state[key][1]
    with pytest.raises(RuntimeError, match="permutation of 6 features"):
        flow.load_state_dict(state, strict=strict, assign=assign)


@pytest.mark.parametrize("builder", BUILDERS)
def test_state_dicts_and_copies_are_the_same_flow(builder) -> None:
    flow = build(builder, 20, 2, (12, 12), 8, seed=1)
    other = builder(20, 2, transforms=2, hidden=(12, 12), chunk=8, dropout=0.0, seed=2).double()
    x, c = draws(flow, 2)
    expected = flow(c).log_prob(x)
    assert not torch.allclose(other(c).log_prob(x), expected)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other(c).log_prob(x), expected)
    twin = copy.deepcopy(flow)
    twin(c).log_prob(x).sum().backward()
    assert all(p.grad is None for p in flow.parameters())
    assert torch.equal(twin(c).log_prob(x), expected)
    torch.optim.SGD(twin.parameters(), 0.1).step()
    flow.load_state_dict(twin.state_dict())  # the copy's training kept the zeros


@pytest.mark.parametrize("builder", BUILDERS)
def test_zuko_interface_shapes(builder) -> None:
    flow = builder(6, 2, transforms=2, hidden=(8, 8), chunk=4)
    c = torch.randn(5, 2)
    assert flow(c).sample().shape == (5, 6)
    assert flow(c).sample((3,)).shape == (3, 5, 6)
    assert flow(c[0]).sample().shape == (6,)
    assert flow(c[0]).log_prob(torch.randn(4, 6)).shape == (4,)
    flow.eval()
    x, log_prob = flow(c).rsample_and_log_prob((3,))
    assert x.requires_grad
    torch.testing.assert_close(flow(c).log_prob(x), log_prob, rtol=0, atol=1e-3)
    assert builder(6, 0, transforms=1, hidden=(8, 8))().sample((7,)).shape == (7, 6)
    with pytest.raises(ValueError, match="expected 6 features and 2 context"):
        flow(c).log_prob(torch.randn(5, 7))
    with pytest.raises(ValueError, match="expected 6 features and 2 context"):
        flow().log_prob(torch.randn(5, 6))


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_bfloat16_autocast_has_finite_gradients_near_those_of_float32(builder, bins: int) -> None:
    torch.manual_seed(0)
    flow = builder(40, 2, transforms=2, hidden=(32, 32), chunk=16, dropout=0.0, bins=bins)
    x, c = torch.randn(256, 40) * 4, torch.randn(256, 2)

    def loss() -> Tensor:
        return -flow(c).log_prob(x).mean() if builder is maf else flow(c).transform.inv(x).pow(2).mean()

    reference = torch.autograd.grad(loss(), list(flow.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss()
    grads = torch.autograd.grad(value, list(flow.parameters()))
    assert value.dtype == torch.float32
    a, b = (torch.cat([g.flatten() for g in gs]) for gs in (grads, reference))
    assert a.isfinite().all()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_cast_samples_near_the_original_and_leaves_it_alone(builder, bins: int, monkeypatch, request) -> None:
    torch.manual_seed(0)
    flow = builder(40, 2, transforms=2, hidden=(32, 32), chunk=16, bins=bins)
    low = cast(flow, torch.bfloat16)
    # Fresh memory is filled with NaN in this mode, so that nothing may depend on it.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    assert flow.training
    assert all(p.dtype == torch.float32 for p in flow.parameters())
    assert all(p.dtype == torch.bfloat16 for _, u in units(low) for p in u.parameters())
    z, c = torch.randn(64, 40), torch.randn(64, 2)
    flow.eval()
    with torch.no_grad():
        x, y = flow(c).transform.inv(z), low(c).transform.inv(z)
        assert y.dtype == torch.float32
        assert 0 < (x - y).abs().mean() < 0.05
        torch.testing.assert_close(low(c).transform(y), z, rtol=0, atol=5e-2)


@pytest.mark.parametrize("builder", BUILDERS)
def test_dropout_acts_in_training_and_never_in_the_exact_inverse(builder) -> None:
    torch.manual_seed(0)
    flow = builder(20, 2, transforms=1, hidden=(32, 32), chunk=8, dropout=0.5)
    ((_, unit),) = units(flow)
    u, c = torch.randn(8, 20), torch.randn(8, 2)
    with torch.no_grad():
        v = unit.eval().evaluate(u, c)[0]
        unit.train()
        assert not torch.equal(unit.evaluate(u, c)[0], unit.evaluate(u, c)[0])
        torch.testing.assert_close(unit.invert(v, c), u, **SINGLE)


@pytest.mark.parametrize("bins", BINS)
def test_a_student_traces_its_teacher(bins: int) -> None:
    """Equal weights: the states and parameters of trace agree wherever both see the same thing."""
    teacher, student = (build(b, 12, 2, (16, 16), 4, seed=3, bins=bins) for b in BUILDERS)
    x, c = draws(teacher, 2)
    down = trace(teacher, x, c)
    assert len(down.states) == 3
    assert len(down.parameters) == 2
    torch.testing.assert_close(down.states[-1], teacher(c).transform(x), **EXACT)
    torch.testing.assert_close(down.ladj, teacher(c).transform.call_and_ladj(x)[1], **EXACT)
    up = trace(student, down.states[-1], c)
    torch.testing.assert_close(up.states[0], student(c).transform.inv(down.states[-1]), **EXACT)
    assert torch.equal(up.states[-1], down.states[-1])
    torch.testing.assert_close(up.ladj, student(c).transform.call_and_ladj(up.states[0])[1], rtol=0, atol=1e-7)
    # A spline with the student's parameters turns its input into its output: they describe data to noise.
    (_, unit) = units(student)[0]
    made = unit.conditioner
    count = made.parameters_per_feature
    phi = [p.unflatten(1, (count, -1)) for p in up.parameters[0].split([count * 4] * 3, dim=1)]
    mapped = torch.cat(
        [univariate(unit, p, up.states[0][:, unit.order][:, 4 * i : 4 * i + 4]) for i, p in enumerate(phi)], 1
    )
    torch.testing.assert_close(mapped, up.states[1][:, unit.order], **EXACT)
    assert made.edges == (0, 4, 8, 12)
    # Distillation needs gradients through both.
    loss = sum(p.square().mean() for p in up.parameters) + up.states[0].square().mean()
    assert all(g is not None for g in torch.autograd.grad(loss, list(student.parameters())))


@pytest.mark.parametrize("builder", BUILDERS)
def test_units_walk_from_both_sides_and_cover_the_flow(builder) -> None:
    flow = build(builder, 6, 2, (16, 16), 4, transforms=3)
    from_data, from_gauss = units(flow, "data"), units(flow, "gauss")
    assert from_data == from_gauss[::-1]
    named = dict(flow.named_modules())
    assert all(named[name] is unit for name, unit in from_data)
    covered = [p for _, unit in from_data for p in unit.parameters()]
    assert {id(p) for p in covered} == {id(p) for p in flow.parameters()}
    assert len(covered) == len({id(p) for p in covered})
    # The first unit from the data side is the one that touches the data first.
    x, c = draws(flow, 2)
    unit = from_data[0][1]
    first = unit.invert(x, c) if builder is iaf else unit.evaluate(x, c)[0]
    torch.testing.assert_close(flow(c).transform.transforms[0](x), first, **EXACT)
    with pytest.raises(ValueError, match="unknown side"):
        units(flow, "left")


def test_frozen_weights_stay_frozen() -> None:
    flow = build(maf, 20, 2, (12, 12), 8)
    frozen = units(flow, "gauss")[0][1].requires_grad_(False)
    x, c = draws(flow, 2)
    flow(c).log_prob(x).sum().backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for p in units(flow)[0][1].parameters())


def test_orders() -> None:
    start = torch.randperm(9)
    orders = feature_orders(9, 4, start, "alternate")
    assert all(torch.equal(o.sort().values, torch.arange(9)) for o in orders)
    assert torch.equal(orders[0], start.flip(0))
    assert torch.equal(orders[2], orders[1].flip(0))
    assert torch.equal(torch.stack(feature_orders(9, 4, start, "alternate", seed=0)), torch.stack(orders))
    assert not torch.equal(feature_orders(9, 4, start, "alternate", seed=1)[1], orders[1])
    first, second = feature_orders(9, 2)
    assert torch.equal(first, torch.arange(9))
    assert torch.equal(second, first.flip(0))
    with pytest.raises(ValueError, match="unknown permutation"):
        feature_orders(9, 2, permutation="sorted")
    with pytest.raises(ValueError, match="expected an order that is a permutation of 9"):
        feature_orders(9, 2, torch.zeros(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transforms": 0}, "at least one transformation"),
        ({"hidden": ()}, "expected hidden to be positive"),
        ({"chunk": 0}, "expected chunk to be positive"),
        ({"bins": -1}, "number of bins, or 0 for affine"),
        ({"bound": 0.0}, "positive bound"),
        ({"dropout": 1.0}, "dropout probability"),
    ],
)
def test_bad_arguments_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maf(6, 2, **{"hidden": (8,), **change})


class Sampler(nn.Module):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.flow(c).transform.inv(z)


@pytest.mark.parametrize("bins", BINS)
def test_the_student_sampling_path_exports(bins: int) -> None:
    torch.manual_seed(0)
    student = iaf(20, 2, transforms=2, hidden=(12, 12), chunk=8, bins=bins).eval()
    z, c = torch.randn(4, 20), torch.randn(4, 2)
    program = torch.export.export(Sampler(student), (z, c))
    expected = student(c).transform.inv(z)
    torch.testing.assert_close(program.module()(z, c), expected)


@pytest.mark.parametrize("bins", BINS)
def test_training_learns_a_known_density(bins: int) -> None:
    """A correlated Gaussian: the negative log-likelihood approaches its entropy."""
    torch.manual_seed(0)
    features = 4
    mixing = torch.eye(features) + 0.5 * torch.randn(features, features).tril(-1)
    entropy = 0.5 * features * (1 + math.log(2 * math.pi)) + torch.linalg.slogdet(mixing)[1].item()
    flow = maf(features, 0, transforms=2, hidden=(32, 32), bins=bins, chunk=2, bound=8.0, dropout=0.0)
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    for _ in range(400):
        loss = -flow().log_prob(torch.randn(256, features) @ mixing.T).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        test = torch.randn(20_000, features) @ mixing.T
        assert -flow().log_prob(test).mean().item() == pytest.approx(entropy, abs=0.05)
        samples = flow().sample((20_000,))
    torch.testing.assert_close(samples.T.cov(), mixing @ mixing.T, rtol=0, atol=0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("builder", "bins"), [(maf, 3), (iaf, 3), (maf, 0)])
def test_compiled_splines_equal_eager_ones(builder, bins: int) -> None:
    torch.manual_seed(0)
    flow = builder(20, 2, transforms=1, hidden=(12, 12), bins=bins, chunk=8, dropout=0.0)
    compiled = copy.deepcopy(flow)
    for _, unit in units(compiled):
        unit.compile_spline = True
    for rows in (5, 9):
        x, c = torch.randn(rows, 20), torch.randn(rows, 2)
        a, b = (units(f)[0][1].evaluate(x, c) for f in (flow, compiled))
        torch.testing.assert_close(a, b)
        expected = torch.autograd.grad((a[0] * x + a[1]).sum(), list(flow.parameters()))
        for p, q in zip(
            expected, torch.autograd.grad((b[0] * x + b[1]).sum(), list(compiled.parameters())), strict=True
        ):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        z = torch.randn(rows, 20)
        with torch.no_grad():
            expected = flow(c).transform.inv(z)
            torch.testing.assert_close(compiled(c).transform.inv(z), expected, **SINGLE)
            torch.testing.assert_close(cast(flow, torch.float32, compile=True)(c).transform.inv(z), expected, **SINGLE)


DDP = """
import torch, torch.distributed as dist, torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from calosim.flows import maf

class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.flow = maf(20, 2, transforms=2, hidden=(12, 12), chunk=8, dropout=0.0).double()
    def forward(self, x, c):
        return -self.flow(c).log_prob(x).mean()

def data():
    torch.manual_seed(1)
    return torch.randn(8, 20).double(), torch.randn(8, 2).double()

def train(model, x, c):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x, c).backward()
        optimizer.step()

def run(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    model = Loss()
    x, c = data()
    train(DistributedDataParallel(model), x[rank::2], c[rank::2])
    single = Loss()
    train(single, x, c)
    for a, b in zip(model.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    maf(20, 2, transforms=2, hidden=(12, 12), chunk=8).double().load_state_dict(model.flow.state_dict())
    dist.destroy_process_group()

if __name__ == "__main__":
    import sys
    mp.spawn(run, (sys.argv[1],), nprocs=2)
    print("equal")
"""


def test_two_processes_train_as_one(tmp_path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(textwrap.dedent(DDP))
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "rendezvous")], capture_output=True, text=True, timeout=300
    )
    assert "equal" in result.stdout, result.stderr


@pytest.mark.parametrize("builder", BUILDERS)
def test_context_units_keep_the_structure_and_reach_every_feature(builder) -> None:
    flow = build(builder, 33, 3, (24, 16), 8, context_share=0.5)
    v, c = draws(flow, 3)
    for _, unit in units(flow):
        j = jacobian(unit, v[0], c[:1])
        assert torch.equal(j, j.tril())
        assert dependencies(unit, 3).equal(torch.ones(33, 33).tril(-1).bool())
        # The share of the last hidden layer that moves with the context alone is seen by the first feature too.
        with torch.no_grad():
            moved = unit.conditioner(v[:1], c[:1]) != unit.conditioner(v[1:2], c[:1])
        assert not moved[0, :8].any()
        with torch.no_grad():
            torch.testing.assert_close(unit.evaluate(unit.invert(v, c), c)[0], v, **EXACT)


def test_context_share_must_leave_units_for_the_features() -> None:
    with pytest.raises(ValueError, match="share of context units"):
        maf(6, 2, hidden=(8, 8), context_share=1.0)
