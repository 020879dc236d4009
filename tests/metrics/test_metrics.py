"""The metrics against plain loops over their definitions, scipy, and two processes against one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calosim.detectors import DETECTORS
from calosim.metrics.bootstrap import contrast, resample, resampled_mean, resampled_wasserstein
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError, channel_metrics
from calosim.metrics.diversity import diversity, particle_diversity
from calosim.metrics.wasserstein import CheckerboardWasserstein, wasserstein

ROUNDING = 1e-9  # relative: the same formula, summed in another order
PDG = {22: "gamma", 2112: "neutron", 310: "k0s"}


def make_rows(rows=400, generations=3, seed=0, integers=True):
    """Channel values with ties and zeros, unequal numbers of responses per input, some inputs with a single one."""
    rng = np.random.default_rng(seed)
    input = np.sort(rng.choice(60, rows, p=rng.dirichlet(np.full(60, 0.5))))
    particle = np.array([22, 2112, 310])[(input % 7).clip(0, 2)]
    scale = (1 + input % 5)[:, None] * np.array([3, 1, 1, 0.3, 9])
    reference = rng.poisson(scale).astype(float)
    generated = rng.poisson(1.3 * scale[:, None], (rows, generations, 5)).astype(float)
    if not integers:
        reference, generated = reference + rng.random(reference.shape), generated + rng.random(generated.shape)
    return tuple(torch.as_tensor(x) for x in (generated, reference, particle, input))


def compute(metric, rows):
    metric.update(*rows)
    return {key: float(value) for key, value in metric.compute().items()}


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


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 50), (200, 200), (137, 1000)])
@pytest.mark.parametrize("ties", [False, True])
def test_wasserstein_equals_scipy(n, m, ties):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(n + m)
    u, v = rng.gamma(1.0, 30.0, (n, 5)), rng.gamma(1.2, 30.0, (m, 5))
    if ties:
        u, v = np.floor(u), np.floor(v)
    expected = [stats.wasserstein_distance(u[:, i], v[:, i]) for i in range(5)]
    np.testing.assert_allclose(wasserstein(u, v), expected, rtol=ROUNDING)
    np.testing.assert_allclose(wasserstein(u[:, 0], v[:, 0]), expected[0], rtol=ROUNDING)


def test_wasserstein_laws():
    rng = np.random.default_rng(0)
    u = rng.poisson(5, 300).astype(float)
    assert wasserstein(u, np.repeat(rng.permutation(u), 5)) == 0  # copies change no distribution
    assert wasserstein(u, u + 2.5) == pytest.approx(2.5, rel=ROUNDING)
    assert wasserstein(u, 3 * u) == wasserstein(3 * u, u) == pytest.approx(2 * u.mean(), rel=ROUNDING)


def test_checkerboard_wasserstein_pools_within_each_particle_and_channel():
    rows = make_rows()
    generated, reference, particle, _ = (x.numpy() for x in rows)
    names = DETECTORS["zn"].channel_names("o2")
    result = compute(CheckerboardWasserstein("zn", "o2"), rows)
    channels = wasserstein(reference, generated.reshape(-1, 5))
    expected = {"all": channels.mean(), **dict(zip(names, channels, strict=True))}
    for pdg, name in PDG.items():
        mine = particle == pdg
        expected[name] = wasserstein(reference[mine], generated[mine].reshape(-1, 5)).mean()
    assert result == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("weights", ["log", "count"])
def test_conditional_mae_by_loop(weights):
    rows = make_rows()
    values = []
    for pdg, _, reference, generated in responses(rows):
        weight = math.log(1 + len(reference)) if weights == "log" else len(reference)
        values.append((pdg, weight, np.abs(reference.mean(0) - generated.mean(0)).mean()))
    assert compute(ConditionalMAE(weights), rows) == pytest.approx(mean_by_particle(values), rel=ROUNDING)


@pytest.mark.parametrize("generations", [1, 4])
def test_jaccard_error_by_loop(generations):
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
def test_dispersion_ratio_by_loop(generations):
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


def test_dispersion_ratio_without_well_known_inputs_takes_all():
    """Two inputs with three responses each: the prior is the mean of their MADs, kappa is 3, alpha is 1/2."""
    reference = torch.tensor([[0.0], [1.0], [5.0], [0.0], [3.0], [9.0]]).expand(6, 5)  # MAD 1 and 3, prior 2
    generated = torch.tensor([[0.0], [0.0], [0.0], [0.0], [3.0], [9.0]]).expand(6, 5)  # MAD 0 and 3
    rows = generated, reference, torch.full((6,), 22), torch.tensor([0, 0, 0, 1, 1, 1])
    # Reference (1 + 2) / 2, generated (0 + 2) / 2: 0.5 / 2.5 = 0.2 for the first input, 0 for the second.
    assert compute(DispersionRatio(), rows)["gamma"] == pytest.approx(0.1, rel=1e-6)


def test_metrics_vanish_for_perfect_copies():
    _, reference, particle, input = make_rows()
    result = compute(channel_metrics(), (reference[:, None].repeat(1, 5, 1), reference, particle, input))
    medians = {key for key in result if key.startswith("delta")}  # copies do not change a median either
    assert medians
    assert result == dict.fromkeys(result, pytest.approx(0, abs=1e-12))


def test_jaccard_and_dispersion_ignore_what_they_should():
    """The Jaccard error sees only zero or not; the dispersion ratio sees no shift."""
    _, reference, particle, input = make_rows()
    copies = reference[:, None]
    assert compute(JaccardError(), (copies * 7, reference, particle, input))["all"] == 0
    assert compute(DispersionRatio(), (copies + 7, reference, particle, input))["all"] == 0
    assert compute(ConditionalMAE(), (copies + 7, reference, particle, input))["all"] == pytest.approx(7)


@pytest.mark.parametrize("integers", [True, False])
def test_batches_and_order_do_not_change_a_bit(integers):
    rows = make_rows(integers=integers)
    whole, parts = channel_metrics("zp", "o2"), channel_metrics("zp", "o2")
    whole.update(*rows)
    order = torch.randperm(len(rows[1]), generator=torch.Generator().manual_seed(1))
    for part in order.split(37):
        parts.update(*(x[part] for x in rows))
    assert whole.compute() == parts.compute()


def test_two_dimensional_generations_equal_one_generation():
    generated, *rest = make_rows(generations=1)
    assert compute(channel_metrics(), (generated, *rest)) == compute(channel_metrics(), (generated[:, 0], *rest))


def test_per_input_values_give_the_mean():
    rows = make_rows()
    for metric in (ConditionalMAE(), DispersionRatio(), JaccardError()):
        result = compute(metric, rows)
        ids, particle, weight, value = metric.per_input()
        assert len(set(zip(particle, ids, strict=True))) == len(value)
        assert np.average(value, weights=weight) == pytest.approx(result["all"], rel=ROUNDING)
        mine = particle == 2112
        assert np.average(value[mine], weights=weight[mine]) == pytest.approx(result["neutron"], rel=ROUNDING)


def test_nothing_gives_nan():
    metrics = channel_metrics()
    metrics.update(torch.zeros(0, 5, 5), torch.zeros(0, 5), torch.zeros(0), torch.zeros(0))
    result = metrics.compute()
    assert len(result) == 5 + 5  # `all` of each, and the channels
    assert all(value.isnan() for value in result.values())
    assert all(len(x) == 0 for x in DispersionRatio().per_input())


def test_single_responses_have_no_dispersion():
    generated, reference, particle, _ = make_rows(generations=2)
    result = compute(DispersionRatio(), (generated, reference, particle, torch.arange(len(particle))))
    assert all(math.isnan(value) for value in result.values())


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 2, 4), (4, 5), (4,), (4,)],
        [(4, 0, 5), (4, 5), (4,), (4,)],
        [(3, 2, 5), (4, 5), (4,), (4,)],
        [(4, 5), (4, 5), (3,), (4,)],
        [(4, 5), (4, 5), (4,), (4, 1)],
        [(5,), (5,), (), ()],
    ],
)
def test_bad_shapes_are_named(shapes):
    with pytest.raises(ValueError, match=r"expected generated .* got"):
        ConditionalMAE().update(*(torch.zeros(shape) for shape in shapes))


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="unknown weights 'linear'"):
        ConditionalMAE("linear")
    with pytest.raises(ValueError, match="positive tau"):
        DispersionRatio(tau=0.0)


# Two processes ------------------------------------------------------------------------------------------------------

#: Rows of the first process; the second has the others. Equal, unequal, none at all, everything in one input.
SPLITS = {"half": 200, "unequal": 131, "all": 400, "none": 0}


def process(rank, store, out):
    """What each process does: its share of the rows, then the metrics of all."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    result = {}
    for name, first in SPLITS.items():
        rows = make_rows(integers=False)
        share = slice(first) if rank == 0 else slice(first, None)
        metrics = channel_metrics()
        metrics.update(*(x[share] for x in rows))
        metrics.update(*(x[:0] for x in rows))
        result[name] = {key: float(value).hex() for key, value in metrics.compute().items()}
        result[f"{name} per input"] = [x.tolist() for x in metrics["delta"].per_input()]
    never_updated = DispersionRatio()
    if rank == 0:
        never_updated.update(*make_rows(integers=False))
    result["never updated"] = [x.tolist() for x in never_updated.per_input()]
    Path(out).write_text(json.dumps(result))


def test_two_processes_equal_one_exactly(tmp_path):
    rows = make_rows(integers=False)
    metrics = channel_metrics()
    metrics.update(*rows)
    expected = {key: float(value).hex() for key, value in metrics.compute().items()}
    per_input = [x.tolist() for x in metrics["delta"].per_input()]

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), str(tmp_path / f"{rank}.json")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(errors)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in SPLITS:
            assert result[name] == expected, name
            assert result[f"{name} per input"] == per_input, name
        assert result["never updated"] == per_input


# Diversity ----------------------------------------------------------------------------------------------------------


def make_images(rows=90, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.choice([3, 5, 8, 13], rows, p=[0.6, 0.25, 0.1, 0.05])
    inputs[0] = 21  # an input with one response
    return rng.poisson(0.3 * inputs[:, None, None], (rows, 6, 4)).astype(np.int16), inputs


@pytest.mark.parametrize("chunk", [1, 7, 30, 4096])
def test_diversity_by_loop(chunk):
    images, inputs = make_images()
    result = diversity(images, inputs, chunk=chunk)
    expected = [images[inputs == key].std(axis=0).sum() for key in result.input]
    np.testing.assert_array_equal(result.input, np.unique(inputs))
    np.testing.assert_array_equal(result.responses, [(inputs == key).sum() for key in result.input])
    np.testing.assert_allclose(result.value, expected, rtol=ROUNDING)
    assert result.value[-1] == 0


def test_diversity_reads_memory_mapped_images(tmp_path):
    images, inputs = make_images()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(diversity(mapped, inputs, chunk=16).value, diversity(images, inputs).value)


def test_normalized_diversity_and_artefacts():
    images, inputs = make_images()
    plain, scaled = diversity(images, inputs).value, diversity(images, inputs, normalized=True).value
    np.testing.assert_allclose(scaled, (plain - plain.min()) / (plain.max() - plain.min()), rtol=ROUNDING)
    images[np.flatnonzero(inputs == 3)[0]] += 10_000
    assert (diversity(images, inputs, normalized=True).value[1:] < 0.01).all()
    robust = diversity(images, inputs, normalized=True, quantile=0.7).value
    assert robust.min() == 0
    assert robust.max() == 1
    assert np.sort(robust)[-2] > 0.3
    assert (diversity(images[:1].repeat(5, axis=0), np.arange(5), normalized=True).value == 0).all()


def test_particle_diversity_weights_by_responses():
    images, inputs = make_images()
    particle = np.where(inputs > 5, 2112, 22)
    _, responses, value = diversity(images, inputs, normalized=True)
    expected = {
        "gamma": np.average(value[:2], weights=responses[:2]),
        "neutron": np.average(value[2:], weights=responses[2:]),
    }
    assert particle_diversity(images, inputs, particle) == pytest.approx(expected, rel=ROUNDING)


def test_diversity_of_nothing_and_of_a_mistake():
    assert len(diversity(np.zeros((0, 6, 4), np.int16), []).value) == 0
    with pytest.raises(ValueError, match="as many inputs as images"):
        diversity(np.zeros((3, 6, 4), np.int16), [1, 2])


# Bootstrap ----------------------------------------------------------------------------------------------------------


def compare(a, b, weights, resamples=4000):
    counts = resample(len(a), resamples)
    means = [resampled_mean(x, weights, counts) for x in (a, b)]
    return contrast(np.average(a, weights=weights), np.average(b, weights=weights), *means)


def test_bootstrap_against_the_normal_limit():
    """With equal weights and many inputs, the interval is the mean +- 1.96 standard errors."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (2, 500))
    result = compare(a, b, np.full(500, 2.0))
    error = (a - b).std() / math.sqrt(500)
    assert result.difference == pytest.approx((a - b).mean(), rel=ROUNDING)
    interval = (a - b).mean() + 1.96 * error * np.array([-1, 1])
    # The ends of 4,000 resamples scatter by about 0.04 standard errors.
    np.testing.assert_allclose([result.low, result.high], interval, atol=0.2 * error)
    expected_share = 0.5 * math.erfc((a - b).mean() / error / math.sqrt(2))
    assert result.share == pytest.approx(expected_share, abs=0.04)
    assert result.p_value == pytest.approx(2 * min(result.share, 1 - result.share))
    assert result == compare(a, b, np.full(500, 2.0))


def test_bootstrap_resamples_inputs_with_their_weights():
    """With two inputs there are three outcomes, a quarter, half and a quarter of the resamples."""
    result = compare(np.array([1.0, 0.0]), np.array([0.0, 5.0]), np.array([3.0, 1.0]))
    assert result.difference == pytest.approx((3 * 1 - 5) / 4)
    assert (result.low, result.high) == (-5.0, 1.0)
    assert result.share == pytest.approx(0.75, abs=0.04)


def test_bootstrap_extremes():
    x, ones = np.arange(1.0, 6.0), np.ones(5)
    same, better = compare(x, x, ones, 100), compare(x - 1, x, ones, 100)
    assert same == (0.0, 0.0, 0.0, 1.0, 0.5)
    assert (better.p_value, better.share) == (2 / 100, 1.0)
    nothing = np.full(100, np.nan)
    assert all(math.isnan(value) for value in contrast(1.0, 2.0, nothing, nothing))
    # An input without weight is left out; a resample of such inputs only has no mean.
    counts = resample(2, 1000)
    means = resampled_mean([7.0, 1.0], [0.0, 1.0], counts)
    assert set(means[counts[:, 1] > 0]) == {1.0}
    assert np.isnan(means[counts[:, 1] == 0]).all()
    with pytest.raises(ValueError, match="K inputs"):
        resampled_mean(x, x[1:], counts)


def test_resampled_wasserstein_is_the_distance_of_the_resampled_rows():
    generated, reference, _, input = (x.numpy() for x in make_rows())
    _, group = np.unique(input, return_inverse=True)
    counts = resample(group.max() + 1, 20, seed=4)
    distances = resampled_wasserstein(reference, generated, group, counts, chunk=8)
    for count, distance in zip(counts, distances, strict=True):
        rows = np.repeat(np.arange(len(group)), count[group].astype(int))
        expected = wasserstein(reference[rows], generated[rows].reshape(-1, 5)).mean()
        assert distance == pytest.approx(expected, rel=1e-5)  # float32 sums


if __name__ == "__main__":
    process(int(sys.argv[1]), sys.argv[2], sys.argv[3])
