"""Pruning: what is superfluous goes without a trace, what is not goes with the least error, the structure stays."""

from __future__ import annotations

import sys

import pytest
import torch

from calosim.flows import iaf, maf, prune
from calosim.flows.build import trace, units

D, C, ROWS = 12, 3, 600
SIZES = {"transforms": 2, "bins": 3, "bound": 6.0, "chunk": 4}
#: The ridge's bias on exactly representable functions, and rounding, in float64.
EXACT = 1e-10


@pytest.fixture(params=[maf, iaf], ids=["maf", "iaf"])
def build(request):
    """Makes a flow in float64 whose hidden units matter: the output layer starts almost at zero otherwise."""

    def make(hidden, seed=0, **options):
        torch.manual_seed(seed)
        flow = request.param(D, C, hidden=hidden, dropout=0.0, **{**SIZES, **options}).double().eval()
        with torch.no_grad():
            for _, unit in units(flow):
                for weight in unit.conditioner.output.weights:
                    weight *= 3
        return flow

    return make


@pytest.fixture
def given():
    torch.manual_seed(9)
    return torch.randn(ROWS, D).double(), torch.randn(ROWS, C).double()


def distance(a, b, start, c):
    with torch.no_grad():
        return float((trace(a, start, c).states[-1] - trace(b, start, c).states[-1]).square().mean().sqrt()) + float(
            (trace(a, start, c).states[0] - trace(b, start, c).states[0]).square().mean().sqrt()
        )


def test_a_flow_as_wide_becomes_the_same(build, given):
    wide, other = build((24, 24)), build((24, 24), seed=1)
    assert distance(wide, other, *given) > 0.01
    prune(wide, other, *given)
    assert distance(wide, other, *given) < EXACT


def test_dead_units_are_not_missed(build, given):
    """Half of the units of every chunk and layer feed nothing; the flow without them is the same function."""
    wide = build((24, 24), context_share=0.25)
    with torch.no_grad():
        for _, unit in units(wide):
            made = unit.conditioner
            for degrees, layer in zip(made.degrees, (*made.layers[1:], made.output), strict=True):
                for i, weight in enumerate(layer.weights):
                    weight[: layer.prefix[i]][1 : len(degrees) : 2] = 0
    narrow = build((12, 12), seed=1, context_share=0.25)
    prune(wide, narrow, *given)
    assert distance(wide, narrow, *given) < EXACT


@pytest.mark.parametrize("options", [{"chunk": 4}, {"chunk": 6}, {"chunk": 3}, {"context_share": 0.5}])
def test_the_fit_makes_good_for_much_of_what_is_lost(options, build, given, monkeypatch):
    """On rows it was not fitted to; with other chunks too, whose local inputs move to hidden units."""
    wide, fitted, cut = build((48, 48)), build((32, 32), seed=1, **options), build((32, 32), seed=1, **options)
    half = [x[: ROWS // 2] for x in given]
    prune(wide, fitted, *half)
    # The package's `prune` is the function.
    monkeypatch.setattr(sys.modules["calosim.flows.prune"], "_fit", lambda h, y, first, bias, *_: (first, bias))
    prune(wide, cut, *half)
    rest = [x[ROWS // 2 :] for x in given]
    assert distance(wide, fitted, *rest) < 0.75 * distance(wide, cut, *rest)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_no_kept_unit_loses_an_input(share, build, given):
    """Whatever the share of context units: the first layer of the narrow flow is a selection of the wide one's units."""
    wide, narrow = build((40, 40), context_share=0.5), build((39, 20), seed=1, context_share=share)
    prune(wide, narrow, *given)
    start, c = given
    with torch.no_grad():
        for (_, a), (_, b) in zip(units(wide), units(narrow), strict=True):
            x = torch.cat((c, start), dim=1)
            theirs, ours = (unit.conditioner.layers[0](x) for unit in (a, b))
            assert ((ours[:, :, None] - theirs[:, None]).abs().amax(0).amin(1) < EXACT).all()


def test_what_a_chunk_passes_to_itself_moves_along(build, given):
    """With hidden units that say nothing, chunks that are unions of the wide flow's leave no error."""
    wide = build((24, 24))
    with torch.no_grad():
        for _, unit in units(wide):
            layer = unit.conditioner.output
            for weight, prefix in zip(layer.weights, layer.prefix, strict=True):
                weight[:prefix] = 0
    narrow = build((16, 16), seed=1, chunk=8)
    prune(wide, narrow, *given)
    assert distance(wide, narrow, *given) < EXACT


def test_the_structure_stays(build, given):
    narrow = build((16, 16), seed=1)
    prune(build((24, 24)), narrow, *given)
    narrow.load_state_dict(narrow.state_dict())  # refuses weights outside the autoregressive structure
    start, c = (x[0] for x in given)
    for _, unit in units(narrow):
        jacobian = torch.autograd.functional.jacobian(unit(c), start)[unit.order][:, unit.order]
        assert torch.equal(jacobian.triu(1), torch.zeros_like(jacobian))


@pytest.mark.parametrize(
    "options", [{"transforms": 1}, {"bins": 4}, {"bound": 5.0}, {"hidden": (32, 24)}, {"hidden": (9,)}]
)
def test_flows_of_another_form_are_refused(options, build, given):
    narrow = build(**{"hidden": (16, 16), **options})
    with pytest.raises(ValueError, match="same transforms, pixel orders, bins and bound"):
        prune(build((24, 24)), narrow, *given)
