"""A schedule that knows how long the training is."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from torch import nn

from calosim.models import Muon
from calosim.models.optim import WarmupCosine, orthogonal
from calosim.models.photon_sum import PhotonSum


def rates(steps: int, **settings) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = WarmupCosine(optimizer, **settings)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_it_rises_linearly_and_falls_to_what_is_to_be_left():
    found = rates(101, warmup_steps=9, final=0.1, total_steps=100)
    # Before the cosine bends, the rise is a straight line.
    assert found[0] == pytest.approx(2.0 / 10, rel=1e-3)
    assert found[4] == pytest.approx(2.0 * 5 / 10, rel=1e-2)
    assert max(found) == max(found[:15])
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))
    assert found[50] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert found[100] == pytest.approx(2.0 * 0.1)


def test_a_training_of_few_steps_still_reaches_its_rate():
    found = rates(12, warmup_steps=50, total_steps=12)
    assert max(found) > 0.8 * 2.0
    assert found[:3] == sorted(found[:3])


def test_without_an_end_it_stays():
    assert rates(20, warmup_steps=3)[3:] == [2.0] * 17


@pytest.mark.parametrize("settings", [{"warmup_steps": -1}, {"final": 1.5}, {"total_steps": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected warmup_steps of at least 0"):
        rates(1, **settings)


def test_a_training_tells_it_its_length_and_it_is_stepped_after_every_batch(root_file, tmp_path, fit):
    module = PhotonSum(hidden=(4,), components=2, scheduler=lambda optimizer: WarmupCosine(optimizer, warmup_steps=2))
    trainer = fit(module, root_file, tmp_path, epochs=2, trainer={"limit_train_batches": 4, "limit_val_batches": 1})
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert (schedule.total_steps, schedule.last_epoch) == (8, 8)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.04)


def test_by_epochs_it_is_the_usual_cosine():
    rates = []
    for kind in (
        lambda o: WarmupCosine(o, warmup_steps=0, final=0.0, total_steps=6, every="epoch"),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=6),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule = kind(optimizer)
        own = []
        for _ in range(7):
            own.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append(own)
    assert rates[0] == pytest.approx(rates[1], abs=1e-12)
    with pytest.raises(ValueError, match="expected every step or epoch, got 'day'"):
        WarmupCosine(optimizer, every="day")


def test_a_resumed_schedule_follows_its_new_length():
    def made(total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        return optimizer, WarmupCosine(optimizer, warmup_steps=0, final=0.0, total_steps=total)

    optimizer, old = made(4)
    for _ in range(3):
        optimizer.step()
        old.step()
    optimizer, new = made(12)
    new.load_state_dict(old.state_dict())
    assert (new.last_epoch, new.total_steps) == (3, 12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * new.factor(3))
    assert new.factor(3) > 2 * old.factor(3)


class Net(nn.Module):
    """Hidden layers that lie and stand, and what is not one: narrow, named, with one or three axes."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.Linear(3, 32)
        self.wide = nn.Linear(32, 64)
        self.back = nn.Linear(64, 32)
        self.output = nn.Linear(32, 20)
        self.conditioner = nn.Linear(20, 20)  # of a pixel flow: masked
        self.cube = nn.Parameter(torch.randn(16, 16, 16))

    def forward(self, x):
        h = self.back(self.wide(self.narrow(x).tanh()).tanh()).tanh()
        return self.conditioner(self.output(h)).sum() + (self.cube**2).sum()


HIDDEN = {"wide.weight", "back.weight"}


def stepped(make, steps=1, named=True, net=None):
    torch.manual_seed(3)
    net = net or Net()
    optimizer = make(net.named_parameters() if named else net.parameters())
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for seed in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))).backward()
        optimizer.step()
    return net, optimizer, {name: p.detach() - before[name] for name, p in net.named_parameters()}


@pytest.mark.parametrize("shape", [(32, 32), (20, 64), (96, 128)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape):
    torch.manual_seed(1)
    u, s, vh = torch.linalg.svd(torch.randn(3, *shape, dtype=torch.float64), full_matrices=False)
    turned = u.mT @ orthogonal(u * s.unsqueeze(1) @ vh) @ vh.mT
    values = turned.diagonal(dim1=1, dim2=2)
    assert torch.allclose(turned, torch.diag_embed(values), atol=1e-9)
    weak = s / s.norm(dim=1, keepdim=True) < 2e-3
    assert values[~weak].min() > 0.6
    assert values.max() < 1.3
    assert (values > 0).all()


def test_zeros_have_no_direction():
    assert torch.equal(orthogonal(torch.zeros(2, 14, 20)), torch.zeros(2, 14, 20))


def test_a_first_step_of_a_hidden_layer_goes_along_the_orthogonal_factor_of_its_gradient():
    net, _optimizer, moved = stepped(functools.partial(Muon, lr=0.01, matrix_factor=2.0, momentum=0.9))
    for name in HIDDEN:
        layer = dict(net.named_parameters())[name]
        u, s, vh = torch.linalg.svd(layer.grad, full_matrices=False)
        assert ((u @ vh) * moved[name]).sum() < 0  # downhill
        values = torch.linalg.svdvals(moved[name]) / 0.02 / max(1, layer.shape[0] / layer.shape[1]) ** 0.5
        strong = s / s.norm() > 2e-3
        assert values[: strong.sum()].min() > 0.6
        assert values.max() < 1.3


@pytest.mark.parametrize("fused", [True, False])
def test_all_else_moves_as_by_adam(fused):
    others = functools.partial(Muon, lr=0.01, others=("output", "wide", "back", "conditioner"), fused=fused)
    _, _, found = stepped(others, steps=4)
    _, _, expected = stepped(functools.partial(torch.optim.Adam, lr=0.01, fused=fused), steps=4)
    for name, moved in expected.items():
        assert torch.equal(found[name], moved), name
    _, _, mixed = stepped(functools.partial(Muon, lr=0.01, fused=fused))
    _, _, first = stepped(functools.partial(torch.optim.Adam, lr=0.01, fused=fused))
    assert {name for name in mixed if not torch.equal(mixed[name], first[name])} == HIDDEN


def test_names_decide_and_without_them_shapes_alone():
    for named, more in ((True, set()), (False, {"output.weight", "conditioner.weight"})):
        net, optimizer, _ = stepped(Muon, named=named)
        names = {id(p): name for name, p in net.named_parameters()}
        (_, hidden) = optimizer.param_groups
        assert {names[id(p)] for p in hidden["params"]} == HIDDEN | more
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
        assert hidden["lr"] == pytest.approx(6e-3 * 3.3)


def test_one_without_a_gradient_stays():
    net = Net()

    def make(parameters):
        optimizer = Muon(parameters)
        net.wide.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        return optimizer

    _, optimizer, moved = stepped(make, net=net)
    assert not moved["wide.weight"].any()
    assert moved["back.weight"].any()
    assert net.wide.weight not in optimizer.state


def test_a_state_that_is_loaded_goes_on():
    net, optimizer, _ = stepped(Muon, steps=3)
    twin = Net()
    twin.load_state_dict(net.state_dict())
    other = Muon(twin.named_parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        for one, steps in ((net, optimizer), (twin, other)):
            steps.zero_grad()
            one(torch.ones(4, 3)).backward()
            steps.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_steps_have_their_hooks_once():
    """A callback that scales rates around a step would scale them twice if one optimizer's step called another's."""
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])  # patches the class's step, as torch does
    called = []

    def make(parameters):
        optimizer = Muon(parameters)
        optimizer.register_step_pre_hook(lambda *_: called.append("before"))
        optimizer.register_step_post_hook(lambda *_: called.append("after"))
        return optimizer

    stepped(make, steps=2)
    assert called == ["before", "after"] * 2


def test_it_minimizes():
    """Of a badly scaled quadratic, where gradients are mostly of one direction."""
    torch.manual_seed(0)
    scale, goal = torch.logspace(-1, 0, 16), torch.randn(16, 16)
    weight = torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([("hidden.weight", weight)], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=150)
    for _ in range(150):
        optimizer.zero_grad()
        (((weight - goal) * scale) ** 2).sum().backward()
        optimizer.step()
        schedule.step()
    assert (weight - goal).abs().max() < 0.2


def test_hidden_layers_decay_and_what_does_not_move_stays():
    torch.manual_seed(3)
    start = {name: p.detach().clone() for name, p in Net().named_parameters()}
    _, _, free = stepped(functools.partial(Muon, lr=0.01, matrix_factor=2.0))
    _, _, decayed = stepped(functools.partial(Muon, lr=0.01, matrix_factor=2.0, matrix_decay=0.3))
    for name, moved in decayed.items():
        shrunk = 0.02 * 0.3 * start[name] if name in HIDDEN else torch.zeros(())
        assert torch.allclose(moved, free[name] - shrunk, atol=1e-6), name

    net = Net()
    net.wide.weight.requires_grad_(False)
    _, _, frozen = stepped(functools.partial(Muon, matrix_decay=0.3), net=net)
    assert not frozen["wide.weight"].any()


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0},
        {"matrix_factor": -1.0},
        {"matrix_decay": -1.0},
        {"momentum": 1.0},
        {"betas": (0.9, 1.0)},
        {"eps": -1e-8},
    ],
)
def test_numbers_out_of_range_are_refused(settings):
    expected = r"expected lr, matrix_factor, matrix_decay and eps of at least 0, momentum and betas in \[0, 1\)"
    with pytest.raises(ValueError, match=expected):
        Muon([nn.Parameter(torch.zeros(2))], **settings)


def test_no_parameters_are_refused():
    with pytest.raises(ValueError, match="expected parameters"):
        Muon([])
