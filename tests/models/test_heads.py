"""Heads of the photon sum: masses that sum to one, draws that follow them, bounds that hold, moments that are sums."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from calosim import rng
from calosim.models.photon_sum import HEADS, GaussianHead, Head, MixtureHead, build_head

#: Sums of exact masses; of densities at integers.
EXACT, QUADRATURE = 1e-9, 1e-3
#: The quadrature of a moment and the fractions of photons, relative.
MOMENT = 2e-3
#: The same where the sums are a few photons above the smallest, in photons and photons squared.
FRACTION = {1: 0.1, 2: 3.0}
#: Chi-squared tests fail by chance less often than this, and with fixed seeds never.
P_MIN = 1e-4
heads = pytest.mark.parametrize("name", HEADS)
ENERGY = 500.0


def make(name: str = "mixture", upper: float = 0.0, weight: float = 1e-12) -> Head:
    """With the scales of the published data: at least 10 photons, up to about 700 at 500 GeV."""
    head = build_head(name, 3)
    if isinstance(head, MixtureHead):
        head.lower.fill_(10)
        head.light_yield.fill_(1.2)
        head.weight.fill_(weight)
        head.upper.fill_(upper)
    else:
        head.center.fill_(234.0)
        head.spread.fill_(150.0)
        head.upper.fill_(upper or math.inf)
    return head.double()


def outputs_of(name: str) -> torch.Tensor:
    """Four distributions: near the centre, two apart, one at the smallest sum, one wide."""
    if name == "gaussian":
        rows = [[0.0, 0.0], [1.0, -2.0], [-1.0, -1.0], [5.0, 0.5]]
    else:
        rows = [
            [0.0, 0.0, 0.0, -1.0, -0.5, 0.0, -1.2, -1.5, -2.0],
            [2.0, 1.0, -9.0, -2.5, 1.0, 0.0, -2.5, -3.0, -1.0],
            [0.0, -9.0, -9.0, -7.0, 0.0, 0.0, -0.7, 0.0, 0.0],
            [0.0, -9.0, 0.0, 0.0, 0.0, -3.0, 1.0, 0.0, 0.3],
        ]
    return torch.tensor(rows, dtype=torch.float64)


def support(head: Head) -> torch.Tensor:
    if isinstance(head, MixtureHead):
        return torch.arange(10, int(head.capacity(torch.tensor([ENERGY]))) + 1)
    return torch.arange(-3000, 4000)


def masses(head: Head, output: torch.Tensor, photons: torch.Tensor) -> torch.Tensor:
    return head.log_prob(output.expand(len(photons), -1), torch.full((len(photons),), ENERGY), photons).exp()


def draw(head: Head, output: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    numbers = rng.uniform(rng.row_keys(torch.arange(count), 1, seed), head.numbers).double()
    return head.draw(output.expand(count, -1), torch.full((count,), ENERGY), numbers)


@heads
@pytest.mark.parametrize("row", range(4))
def test_masses_sum_to_one(name, row):
    head = make(name)
    total = masses(head, outputs_of(name)[row], support(head)).sum()
    assert float(total) == pytest.approx(1.0, abs=EXACT if name == "mixture" else QUADRATURE)


def test_artefacts_have_the_weight_that_the_usual_sums_lack():
    head = make(weight=0.01)
    usual = masses(head, outputs_of("mixture")[0], support(head)).sum()
    beyond = torch.arange(int(support(head)[-1]) + 1, 2_000_000)
    assert float(usual) == pytest.approx(0.99, abs=EXACT)
    # What is beyond two millions, by the law itself.
    rest = 0.01 * beyond[0].double() / 2_000_000
    assert float(masses(head, outputs_of("mixture")[0], beyond).sum() + rest) == pytest.approx(0.01, abs=EXACT)


@heads
@pytest.mark.parametrize("row", range(4))
def test_draws_follow_the_masses(name, row):
    head, count = make(name), 40_000
    drawn, photons = draw(head, outputs_of(name)[row], count, row), support(make(name))
    assert drawn.dtype == torch.int64
    expected = masses(head, outputs_of(name)[row], photons)
    if name == "gaussian":  # no image has fewer than no photons
        expected = torch.cat([expected[photons <= 0].sum()[None], expected[photons > 0]])
        photons = photons[photons >= 0]
    # Bins of at least 200 expected draws.
    bins = (expected.cumsum(0) * count / 200).long().unique(return_inverse=True)[1]
    wanted = torch.zeros(int(bins.max()) + 1, dtype=torch.float64).index_add_(0, bins, expected)
    got = bins[(drawn - photons[0]).clamp(max=len(bins) - 1)].bincount(minlength=len(wanted))
    keep = wanted * count > 20
    wanted = torch.cat([wanted[keep], wanted[~keep].sum()[None] + 1e-9])
    got = torch.cat([got[keep], got[~keep].sum()[None]])
    assert stats.chisquare(got.numpy(), (wanted / wanted.sum() * count).numpy()).pvalue > P_MIN


def test_the_gaussian_is_the_textbook_one():
    expected = stats.norm(234 + 150, 150 * (0.01 + math.exp(-2.0))).logpdf(400.0)
    got = make("gaussian").log_prob(outputs_of("gaussian")[1:2], torch.ones(1), torch.tensor([400]))
    assert float(got) == pytest.approx(expected, abs=1e-9)


@heads
def test_draws_stay_within_bounds_whatever_the_outputs(name):
    head = make(name, upper=3360)
    numbers = rng.uniform(rng.row_keys(torch.arange(500), 1), head.numbers)
    numbers = torch.cat([numbers, torch.full((1, head.numbers), 1 - 2.0**-24)]).double()
    highest = int(support(head)[-1]) if name == "mixture" else 3360
    for scale in (1.0, 50.0, 1e4):
        outputs = scale * torch.randn(len(numbers), head.outputs, generator=torch.manual_seed(0)).double()
        drawn = head.draw(outputs, torch.full((len(numbers),), ENERGY), numbers)
        assert drawn.min() >= (10 if name == "mixture" else 0)
        assert drawn.max() <= highest


@pytest.mark.parametrize("upper", [0.0, 177_940.0])
def test_artefacts_are_drawn_as_often_as_seen_and_never_larger(upper):
    head = make(weight=0.02, upper=upper)
    drawn, largest = draw(head, outputs_of("mixture")[0], 40_000), int(support(head)[-1])
    assert int(drawn.max()) == upper if upper else drawn.max() <= largest
    share = float((drawn > largest).double().mean())
    assert share == pytest.approx(0.02 if upper else 0.0, abs=0.002)
    # Half of them are below twice the capacity.
    if upper:
        assert float((drawn > 2 * largest).double().mean()) == pytest.approx(0.01, abs=0.002)


@heads
def test_masses_are_finite_with_finite_gradients_far_out(name):
    head = make(name).float()
    outputs = (100 * torch.randn(64, head.outputs, generator=torch.manual_seed(0))).requires_grad_()
    log_prob = head.log_prob(outputs, torch.full((64,), ENERGY), torch.tensor([10, 177_940]).repeat(32))
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert torch.isfinite(outputs.grad).all()


@heads
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("row", range(4))
def test_moments_are_sums_over_the_masses(name, power, row):
    head, output = make(name, upper=0 if name == "mixture" else 300), outputs_of(name)[row]
    photons = support(head)
    values = photons.double() if name == "mixture" else photons.double().clamp(0, 300)
    moment = head.moment(output[None], torch.tensor([ENERGY]), power)
    expected = float(masses(head, output, photons) @ values.pow(power))
    assert float(moment) == pytest.approx(expected, rel=MOMENT, abs=FRACTION[power])


def test_the_mean_depends_on_the_energy_smoothly():
    """An explainer follows gradients: a capacity of whole photons must not hide the energy from it."""
    head, energy = make(), torch.tensor([ENERGY], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(head.moment(outputs_of("mixture")[:1], energy).sum(), energy)
    with torch.no_grad():
        two = head.moment(outputs_of("mixture")[:1].expand(2, -1), torch.tensor([ENERGY - 100, ENERGY + 100]))
    assert float(slope) == pytest.approx(float(two[1] - two[0]) / 200, rel=0.02)


def test_an_unknown_head_is_named():
    with pytest.raises(ValueError, match="unknown head 'poisson'; expected mixture or gaussian"):
        build_head("poisson", 3)


@pytest.mark.parametrize("artefact", [0, 177_940])
def test_one_artefact_is_told_from_the_usual_sums_and_decides_no_scale(artefact):
    energy = torch.linspace(50, 3000, 2000)
    total = (0.7 * energy + 3 * (energy % 7)).round().long()
    if artefact:
        total[100] = artefact
    mixture, gaussian = MixtureHead(2), GaussianHead()
    for head in (mixture, gaussian):
        head.fit(total, energy)
    assert mixture.lower == 38
    assert float(mixture.light_yield) == pytest.approx(0.93, rel=0.02)
    assert mixture.upper == artefact
    assert float(mixture.weight) == pytest.approx((bool(artefact) + 0.5) / 2001)
    assert float(gaussian.center) == pytest.approx(float(total.float().median()), rel=0.01)
    assert gaussian.upper == total.max()
