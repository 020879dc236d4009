"""Photons split in one pass by a network that reads noise."""

from __future__ import annotations

import pytest
import torch

from calosim.flows import InverseSplits, mixture
from calosim.flows.splits import log_density, share_of_noise
from calosim.representations.tree import SplitTree

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
