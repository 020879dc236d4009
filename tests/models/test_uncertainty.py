"""Several networks that answer for one: each is itself alone, and bins tell what one column hides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calosim.models.uncertainty import BayesianNetworks, Ensemble, PiecewiseLinear

#: Batched products sum in another order.
REORDERED = 1e-6


def test_members_alone_are_members_side_by_side():
    torch.manual_seed(0)
    ensemble, x = Ensemble((5, 7, 6, 2), 3), torch.randn(11, 5)
    together = ensemble(x)
    assert together.shape == (3, 11, 2)
    for outputs, member in zip(together, ensemble.draw(99), strict=True):
        torch.testing.assert_close(member(x), outputs, rtol=0, atol=REORDERED)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("networks", [Ensemble((4, 8, 3), 2), BayesianNetworks((4, 8, 3))])
def test_outputs_start_where_they_are_told(networks):
    start = torch.tensor([5.0, -5.0, 0.0])
    for member in range(networks.members):
        networks.start_from(member, start)
    outputs = networks(torch.zeros(2, 4))
    assert outputs.shape == (networks.members, 2, 3)
    assert (outputs - start).abs().max() < 2


def test_only_the_posterior_of_a_bayesian_network_is_trained():
    networks = BayesianNetworks((4, 8, 3))
    trained = {name for name, p in networks.named_parameters() if p.requires_grad}
    assert trained
    assert not any(name.startswith("model.base") for name in trained)
    (networks(torch.randn(5, 4)).sum() + networks.penalty()).backward()
    assert all(p.grad is not None for name, p in networks.named_parameters() if name in trained)


def test_bins_are_quantiles_or_the_distinct_values():
    encoding, values = PiecewiseLinear(3, (0, 2), 4), torch.zeros(100, 3)
    values[:, 0] = torch.arange(100.0)
    values[:, 2] = torch.tensor([0.0, 0.5, 9.0, 9.1]).repeat(25)
    encoding.fit(values)
    assert encoding.width == 3 + 2 * 4
    bins = encoding(torch.tensor([[49.5, 1.0, 0.5], [1000.0, 1.0, 9.1], [-5.0, 1.0, -3.0]]))[:, 3:]
    # Half of the first column's range is passed by half of the values; of four distinct values one bin is left over.
    assert bins.flatten().tolist() == pytest.approx([1, 1, -1, -1, 1, -1, -1, -1, *[1] * 7, -1, *[-1] * 8], abs=1e-5)
    steep = encoding(torch.tensor([[0.0, 0.0, 9.05]]))[0, 3 + 4 + 2]
    assert float(steep) == pytest.approx(0.0, abs=1e-4)


def test_without_columns_nothing_is_added():
    encoding, values = PiecewiseLinear(3, (), 4), torch.randn(5, 3)
    encoding.fit(values)
    assert encoding.width == 3
    assert encoding(values) is values


def test_a_network_with_bins_finds_an_edge():
    """A step within a hundredth of the range, which a perceptron of one standardized column smears."""
    torch.manual_seed(1)
    x = torch.randn(4000, 1) * torch.tensor([1.0])
    y = ((x[:, 0] > 0.3) & (x[:, 0] < 0.34)).float()
    losses = []
    for columns in ((), (0,)):
        encoding = PiecewiseLinear(1, columns, 64)
        encoding.fit(x)
        network = nn.Sequential(encoding, nn.Linear(encoding.width, 16), nn.SiLU(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(200):
            loss = nn.functional.binary_cross_entropy_with_logits(network(x)[:, 0], y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < 0.5 * losses[0]
