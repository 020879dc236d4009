"""The discretized mixture of logistics: it sums to one, to the last photon, and its gradients are right everywhere."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from calosim.flows.mixture import cdf, draw, initial_bias, inverse, log_mass

COMPONENTS = 4
#: Rounding of a sum of thousands of masses.
EXACT = {torch.float64: 1e-12, torch.float32: 2e-6}
P_MIN = 1e-4


def random_parameters(rows, spread=3.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, 3 * COMPONENTS, generator=generator, dtype=torch.float64)).to(dtype)


def handed_down(y, n):
    """Photons that the share sigmoid(y) stands for."""
    return torch.minimum((torch.sigmoid(y) * (n + 1)).long(), n)


def masses(n, parameters):
    """P(k | n) of all k for one row of parameters."""
    return log_mass(torch.arange(n + 1), torch.full((n + 1,), n), parameters.expand(n + 1, -1)).exp()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 100, 1000, 5000])
def test_masses_sum_to_one(n, dtype):
    for parameters in random_parameters(8, dtype=dtype):
        assert abs(masses(n, parameters).double().sum().item() - 1) < EXACT[dtype]


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_masses_are_differences_of_the_distribution_function(n):
    for parameters in random_parameters(4, spread=1.0):
        y = torch.logit(torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))
        steps = torch.cat((torch.zeros(1), cdf(y, parameters.expand(n, -1)), torch.ones(1))).diff()
        torch.testing.assert_close(masses(n, parameters), steps, rtol=1e-7, atol=1e-13)


def test_no_photons_cost_nothing_and_teach_nothing():
    parameters = random_parameters(5).requires_grad_()
    mass = log_mass(torch.zeros(5), torch.zeros(5), parameters)
    assert bool((mass.abs() < 1e-12).all())
    mass.sum().backward()
    assert float(parameters.grad.abs().max()) < 1e-12


CASES = [(0, 0), (0, 1), (1, 1), (0, 40), (40, 40), (13, 40), (0, 10**6), (10**6, 10**6), (500_000, 10**6), (1, 10**6)]


@pytest.mark.parametrize(("k", "n"), CASES)
def test_gradients_agree_with_finite_differences(k, n):
    parameters = random_parameters(6, spread=1.5).requires_grad_()

    def mass(p):
        return log_mass(torch.full((6,), k), torch.full((6,), n), p)

    assert torch.autograd.gradcheck(mass, parameters, eps=1e-6, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("k", "n"), CASES)
@pytest.mark.parametrize("spread", [1.0, 30.0, 1000.0])
def test_masses_and_gradients_are_finite(k, n, spread):
    parameters = random_parameters(64, spread=spread, dtype=torch.float32).requires_grad_()
    mass = log_mass(torch.full((64,), k), torch.full((64,), n), parameters)
    mass.sum().backward()
    assert bool(mass.isfinite().all())
    assert bool((mass <= 1e-5).all())
    assert bool(parameters.grad.isfinite().all())


def test_single_precision_keeps_the_digits_of_narrow_intervals():
    k, n = torch.tensor([1, 1000, 499_999, 999_999]), torch.full((4,), 10**6)
    parameters = random_parameters(4, spread=0.5)
    wide, narrow = log_mass(k, n, parameters), log_mass(k, n, parameters.float())
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, 5, 300])
def test_drawn_frequencies_agree_with_the_masses(n):
    rows = 6000
    generator = torch.Generator().manual_seed(n)
    for parameters in random_parameters(2, spread=1.0, seed=n):
        u, v = torch.rand(2, rows, generator=generator, dtype=torch.float64)
        many, photons = parameters.expand(rows, -1), torch.full((rows,), n)
        for k in (draw(u, torch.logit(v), photons, many), handed_down(inverse(v, many), photons)):
            assert bool(((k >= 0) & (k <= n)).all())
            expected = rows * masses(n, parameters)
            seen = torch.bincount(k, minlength=n + 1)
            usual = expected >= 8
            seen = torch.cat((seen[usual], seen[~usual].sum()[None])).double()
            expected = torch.cat((expected[usual], expected[~usual].sum()[None] + 1e-9))
            if len(expected) > 2:
                assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > P_MIN


@pytest.mark.parametrize("spread", [0.3, 1.5, 8.0])
def test_the_inverse_undoes_the_distribution_function_in_any_batch(spread: float):
    parameters = random_parameters(500, spread=spread)
    u = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = inverse(u, parameters)
    # Where a component is narrow, the last digit of y is seen.
    torch.testing.assert_close(cdf(y, parameters.double()), u, rtol=0, atol=1e-9)
    torch.testing.assert_close(y[:3], inverse(u[:3], parameters[:3]), rtol=1e-12, atol=1e-12)


def test_a_start_is_close_to_uniform():
    torch.manual_seed(0)
    for parameters in initial_bias(5, COMPONENTS):
        assert 0.2 < float(masses(9, parameters).min() * 10) < float(masses(9, parameters).max() * 10) < 3
