"""The metrics with a value for each unique input, against plain loops over their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calosim.detectors import DETECTORS
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError
from calosim.metrics.wasserstein import CheckerboardWasserstein

ROUNDING = 1e-9  # relative: the same formula, summed in another order
PDG = {22: "gamma", 2112: "neutron", 310: "k0s"}


def responses(rows):
    """Yields (particle, input, reference (n, 5), generated (m, 5)) of every unique input."""
    generated, reference, particle, input = (x.numpy() for x in rows)
    for pdg, key in sorted(set(zip(particle, input, strict=True))):
        mine = (particle == pdg) & (input == key)
        yield pdg, key, reference[mine], generated[mine].reshape(-1, 5)


def mean_by_particle(values):
    """{name: weighted mean} of a list of (particle, weight, value)."""
    groups = {"all": values} | {name: [v for v in values if v[0] == pdg] for pdg, name in PDG.items()}
    return {name: sum(w * v for _, w, v in group) / sum(w for _, w, _ in group) for name, group in groups.items()}


@pytest.mark.parametrize("weights", ["log", "count"])
def test_conditional_mae_by_loop(make_rows, compute, weights):
    rows = make_rows()
    values = []
    for pdg, _, reference, generated in responses(rows):
        weight = math.log(1 + len(reference)) if weights == "log" else len(reference)
        values.append((pdg, weight, np.abs(reference.mean(0) - generated.mean(0)).mean()))
    assert compute(ConditionalMAE(weights), rows) == pytest.approx(mean_by_particle(values), rel=ROUNDING)


@pytest.mark.parametrize("generations", [1, 4])
def test_jaccard_error_by_loop(make_rows, compute, generations):
    rows = make_rows(generations=generations)
    pairs = DETECTORS["zn"].channel_neighbors("paper")

    def index(responses, a, b):
        a, b = responses[:, a] > 0, responses[:, b] > 0
        return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0

    values = [
        (pdg, math.log(1 + len(ref)), np.mean([abs(index(ref, *p) - index(gen, *p)) for p in pairs]))
        for pdg, _, ref, gen in responses(rows)
    ]
    assert compute(JaccardError("zn"), rows) == pytest.approx(mean_by_particle(values), rel=ROUNDING)


def repeated_median(values, times):
    """A weighted median for whole-number weights."""
    return np.median(np.repeat(values, times, axis=0), axis=0)


@pytest.mark.parametrize("generations", [1, 3])
def test_dispersion_ratio_by_loop(make_rows, compute, generations):
    rows = make_rows(generations=generations)
    mad = lambda r: np.median(np.abs(r - np.median(r, axis=0)), axis=0)  # noqa: E731
    inputs = list(responses(rows))
    assert any(len(r) == 1 for _, _, r, _ in inputs), "the data must hold inputs to leave out"
    values = []
    for pdg, _, reference, generated in inputs:
        n = len(reference)
        if n < 2:
            continue
        same = [r for p, _, r, _ in inputs if p == pdg]
        known = [r for r in same if len(r) >= 5]
        prior = repeated_median([mad(r) for r in known], [len(r) for r in known])
        alpha = n / (n + np.percentile([len(r) for r in same], 10))
        ref, gen = (alpha * mad(r) + (1 - alpha) * prior for r in (reference, generated))
        values.append((pdg, n, (np.abs(gen - ref) / (gen + ref + 1e-6)).mean()))
    assert compute(DispersionRatio("count"), rows) == pytest.approx(mean_by_particle(values), rel=ROUNDING)


def test_dispersion_ratio_without_well_known_inputs_takes_all(compute):
    """Two inputs with three responses each: the prior is the mean of their MADs, kappa is 3, alpha is 1/2."""
    reference = torch.tensor([[0.0], [1.0], [5.0], [0.0], [3.0], [9.0]]).expand(6, 5)  # MAD 1 and 3, prior 2
    generated = torch.tensor([[0.0], [0.0], [0.0], [0.0], [3.0], [9.0]]).expand(6, 5)  # MAD 0 and 3
    rows = generated, reference, torch.full((6,), 22), torch.tensor([0, 0, 0, 1, 1, 1])
    # Reference (1 + 2) / 2, generated (0 + 2) / 2: 0.5 / 2.5 = 0.2 for the first input, 0 for the second.
    assert compute(DispersionRatio(), rows)["gamma"] == pytest.approx(0.1, rel=1e-6)


def test_metrics_vanish_for_perfect_copies(make_rows, compute):
    _, reference, particle, input = make_rows()
    for metric in (CheckerboardWasserstein(), ConditionalMAE(), DispersionRatio(), JaccardError()):
        result = compute(metric, (reference[:, None].repeat(1, 5, 1), reference, particle, input))
        assert result == dict.fromkeys(result, pytest.approx(0, abs=1e-12))  # copies do not change a median either


def test_jaccard_and_dispersion_ignore_what_they_should(make_rows, compute):
    """The Jaccard error sees only zero or not; the dispersion ratio sees no shift."""
    _, reference, particle, input = make_rows()
    copies = reference[:, None]
    assert compute(JaccardError(), (copies * 7, reference, particle, input))["all"] == 0
    assert compute(DispersionRatio(), (copies + 7, reference, particle, input))["all"] == 0
    assert compute(ConditionalMAE(), (copies + 7, reference, particle, input))["all"] == pytest.approx(7)


def test_per_primary_values_give_the_mean(make_rows, compute):
    rows = make_rows()
    for metric in (ConditionalMAE(), DispersionRatio(), JaccardError()):
        result = compute(metric, rows)
        ids, particle, weight, value = metric.per_primary()
        assert len(set(zip(particle, ids, strict=True))) == len(value)
        assert np.average(value, weights=weight) == pytest.approx(result["all"], rel=ROUNDING)
        mine = particle == 2112
        assert np.average(value[mine], weights=weight[mine]) == pytest.approx(result["neutron"], rel=ROUNDING)


def test_nothing_gives_nan(compute):
    nothing = torch.zeros(0, 5, 5), torch.zeros(0, 5), torch.zeros(0), torch.zeros(0)
    for metric in (CheckerboardWasserstein(), ConditionalMAE(), DispersionRatio(), JaccardError()):
        result = compute(metric, nothing)
        assert len(result) == (6 if isinstance(metric, CheckerboardWasserstein) else 1)  # with the channels
        assert all(math.isnan(value) for value in result.values())
    assert all(len(x) == 0 for x in DispersionRatio().per_primary())


def test_single_responses_have_no_dispersion(make_rows, compute):
    generated, reference, particle, _ = make_rows(generations=2)
    result = compute(DispersionRatio(), (generated, reference, particle, torch.arange(len(particle))))
    assert all(math.isnan(value) for value in result.values())


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="unknown weights 'linear'"):
        ConditionalMAE("linear")
    with pytest.raises(ValueError, match="positive tau"):
        DispersionRatio(tau=0.0)


def test_a_type_without_an_input_that_counts_is_named_all_the_same(compute):
    """One response to the only photon: it has no dispersion, the two neutrons have."""
    reference = torch.arange(15.0).reshape(3, 5)
    result = compute(DispersionRatio(), (reference, reference, torch.tensor([22, 2112, 2112]), torch.tensor([0, 1, 1])))
    assert math.isnan(result["gamma"])
    assert result["neutron"] == result["all"] == 0
