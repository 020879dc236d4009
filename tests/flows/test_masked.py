"""The masked network of splits: what a node sees, and that sampling is the likelihood's conditional, step by step."""

from __future__ import annotations

import pytest
import torch

from calosim.flows import mixture
from calosim.flows.splits import MaskedSplits

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
