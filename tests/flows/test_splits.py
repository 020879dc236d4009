"""The masked network of splits: what a node sees, and that sampling is the likelihood's conditional, step by step."""

from __future__ import annotations

import pytest
import torch

from calosim.flows import InverseSplits, mixture
from calosim.flows.splits import MaskedSplits, log_density, share_of_noise
from calosim.representations.splits import SplitTree

NODES, CONTEXT = 15, 3
SOURCE = torch.tensor([-1] + [(j - 1) // 2 for j in range(1, NODES)])
CHILD = torch.tensor([0] + [(j - 1) % 2 for j in range(1, NODES)])
EACH = torch.arange(NODES)
LEVELS = (torch.arange(NODES) + 1).log2().floor().long()


def network(steps, hidden=32, seed=0):
    torch.manual_seed(seed)
    net = MaskedSplits(SOURCE, CHILD, steps, CONTEXT, hidden)
    with torch.no_grad():  # away from the start, where the output hardly depends on anything
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def random_counts(net, rows=7, most=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    total = torch.randint(0, most, (rows,), generator=generator)
    context = torch.randn(rows, CONTEXT, generator=generator)
    uniforms = torch.rand(rows, 2, NODES, generator=generator, dtype=torch.float64)
    return total, context, uniforms, net.sample(total, context, uniforms)


def photons(total, k):
    n = torch.empty_like(k)
    for j in range(NODES):
        s = int(SOURCE[j])
        n[:, j] = total if s < 0 else (n[:, s] - k[:, s] if CHILD[j] else k[:, s])
    return n


both = pytest.mark.parametrize("steps", [EACH, LEVELS], ids=["each", "levels"])


@both
def test_a_node_depends_on_earlier_steps_only_and_on_all_of_them(steps):
    net = network(steps)
    k = torch.randint(0, 50, (1, NODES))
    n, context = k + 7, torch.randn(1, CONTEXT)
    before = net.parameters_of(k, n, context)[0]
    for node in range(NODES):
        changed = k.clone()
        changed[0, node] += 5
        moved = (net.parameters_of(changed, n, context)[0] != before).any(1)
        assert torch.equal(moved, steps > steps[node])
    assert bool((net.parameters_of(k, n, context + 1)[0] != before).any(1).all())


@both
def test_sampling_draws_from_the_mixtures_of_the_likelihood(steps):
    net = network(steps)
    total, context, uniforms, k = random_counts(net)
    n = photons(total, k)
    assert bool(((k >= 0) & (k <= n)).all())
    again = mixture.draw(uniforms[:, 0], torch.logit(uniforms[:, 1]), n, net.parameters_of(k, n, context))
    assert float((again == k).double().mean()) > 0.99  # the order of sums differs in the last bits


def test_sampling_follows_a_step_of_the_optimizer():
    net = network(EACH)
    total, context, uniforms, before = random_counts(net)
    net.log_mass(before, photons(total, before), context).sum().backward()
    torch.optim.Adam(net.parameters(), lr=1.0, fused=True).step()
    after = net.sample(total, context, uniforms)
    assert not torch.equal(before, after)
    again = network(EACH)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.sample(total, context, uniforms), after)


def test_gradients_reach_every_parameter():
    net = network(LEVELS)
    total, context, _, k = random_counts(net, rows=32)
    net.log_mass(k, photons(total, k), context).sum().backward()
    for name, parameter in net.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("steps", [LEVELS.flip(0), LEVELS * 2, torch.zeros(NODES, dtype=torch.int64)], ids=str)
def test_bad_steps_are_refused(steps):
    with pytest.raises(ValueError, match="expected"):
        MaskedSplits(SOURCE, CHILD, steps, CONTEXT)


CONTEXT = 3


@pytest.fixture
def splits() -> InverseSplits:
    tree = SplitTree((4, 4))
    steps = torch.cat([torch.full((len(level.nodes),), i) for i, level in enumerate(tree.levels)])
    torch.manual_seed(0)
    module = InverseSplits(tree.source, tree.child, steps, CONTEXT, hidden=24, components=3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def test_a_node_depends_on_noise_of_earlier_steps_only(splits):
    z, c = torch.randn(1, splits.nodes), torch.randn(1, CONTEXT)
    jacobian = torch.autograd.functional.jacobian(lambda x: splits.parameters_of(x, c)[0].sum(1), z)[:, 0]
    steps = torch.tensor([0, 1, 1, *[2] * 4, *[3] * 8])
    assert (jacobian[steps[:, None] <= steps] == 0).all()
    assert (jacobian[3:, 0] != 0).any()


def test_photons_are_conserved_and_draws_follow_the_mixtures(splits):
    rows = 4000
    total, c = torch.full((rows,), 40), torch.randn(1, CONTEXT).expand(rows, -1)
    u = torch.rand(rows, 2, splits.nodes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k = splits.sample(total, c, u)
    assert (k >= 0).all()
    _, n = splits.hand_down(
        total, torch.sigmoid(share_of_noise(u[:, 0], splits.parameters_of(torch.special.ndtri(u[:, 0]), c)))
    )
    assert (k <= n).all()
    assert (n[:, 0] == 40).all()
    # The first node sees no noise: its counts have one distribution, the mixture's.
    parameters = splits.parameters_of(torch.zeros(1, splits.nodes), c[:1])[0, 0].double()
    p = mixture.log_mass(torch.arange(41), torch.full((41,), 40), parameters.expand(41, -1)).exp()
    found = torch.bincount(k[:, 0], minlength=41) / rows
    assert (found - p).abs().max() < 5 * (p * (1 - p) / rows).sqrt().max()


def test_shares_invert_the_distribution_function_with_the_implicit_gradient():
    torch.manual_seed(0)
    parameters = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    u = torch.rand(6, dtype=torch.float64)
    y = share_of_noise(u, parameters)
    torch.testing.assert_close(mixture.cdf(y, parameters), u, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(y.sum(), parameters)
    step = 1e-6
    for j in range(9):
        moved = parameters.detach().clone()
        moved[:, j] += step
        numeric = (share_of_noise(u, moved) - y.detach()) / step
        torch.testing.assert_close(gradient[:, j], numeric, rtol=1e-4, atol=1e-4)


def test_the_density_is_the_derivative_of_the_distribution_function():
    torch.manual_seed(1)
    parameters, y = torch.randn(20, 9, dtype=torch.float64), torch.randn(20, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mixture.cdf(y, parameters).sum(), y)
    torch.testing.assert_close(log_density(y.detach(), parameters).exp(), slope)
