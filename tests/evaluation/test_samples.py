"""Samples: the Monte Carlo itself scores zero, brighter candidates are worse, and profiles are about the center."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from calosim.detectors import get_detector
from calosim.evaluation.samples import best_requantizations, measure, packed, radial_profile, sample
from calosim.metrics.bootstrap import LEAST_PRIMARIES
from calosim.metrics.registry import METRICS
from calosim.models.shower import ShowerModel


def judge(few, candidates, natural=None, **settings):
    reference = few.geometry.channels(few.images)
    samples = sample(few, candidates, quiet=True, **settings)
    known = reference, few.pdg, few.primary_ids, few.geometry
    return {name: measure(some.runs(*known), natural) for name, some in samples.items()}


def test_the_monte_carlo_itself_scores_zero(showers):
    few = showers.select(slice(0, 120))
    results = judge(few, {"itself": lambda run, n: few.images[n]}, runs=2, responses=1)
    mean = results["itself"]["mean"]
    assert set(mean) >= {"ws_all", "mae_cond_all", "mae_w_gamma", "delta_all", "jacc_all"}
    assert all(v == 0 or np.isnan(v) for k, v in mean.items() if not k.startswith("center"))
    assert results["itself"]["std"]["center_all"] == 0
    assert results["itself"]["std"]["ws_all"] == 0


def test_a_brighter_candidate_is_worse(showers):
    few = showers.select(slice(0, 120))
    candidates = {f"{k} times": lambda run, n, k=k: k * few.images[n // 2] for k in (2, 3)}
    results = judge(few, candidates, runs=1, responses=2)
    twice, thrice = (results[name]["mean"] for name in candidates)
    channels = few.geometry.channels(few.images)
    assert twice["center_all"] == pytest.approx(thrice["center_all"], abs=1e-5)
    # W1 between a positive variable and twice itself is its mean.
    assert twice["ws_all"] == pytest.approx(channels.mean(), rel=1e-9)
    assert thrice["ws_all"] == pytest.approx(2 * channels.mean(), rel=1e-9)


def test_all_is_of_the_natural_mix_and_types_of_all_their_rows(showers):
    reference = showers.geometry.channels(showers.images)
    natural = np.arange(len(showers)) % 2 == 0
    twice = judge(showers, {"x": lambda run, n: 2 * showers.images[n]}, natural, runs=1, responses=1)["x"]["mean"]
    assert twice["ws_all"] == pytest.approx(reference[natural].mean(), rel=1e-9)
    assert twice["ws_gamma"] == pytest.approx(reference[showers.pdg == 22].mean(), rel=1e-9)


def test_the_profile_is_about_the_center_of_gravity():
    detector = get_detector("zn")
    images = np.zeros((3, 44, 44), dtype=np.int64)
    images[0, 40, 3] = 7  # one pixel is its own center
    images[1, 10, 10] = images[1, 10, 20] = 2  # two pixels, each five from the middle
    shares = radial_profile(images[:2], detector)
    assert shares[0] == 0.5
    assert shares[5] == 0.5
    assert radial_profile(images, detector).sum() == pytest.approx(2 / 3)  # a dark image has no share


def test_metrics_of_some_rows_are_those_of_samples_of_them_alone(showers):
    few, bright = showers.select(slice(0, 80)), np.arange(80) % 2 == 0
    reference = few.geometry.channels(few.images)
    samples = sample(few, {"x": lambda run, n: 2 * few.images[n]}, runs=1, responses=1, quiet=True)["x"]
    some = measure([rows.of(bright) for rows in samples.runs(reference, few.pdg, few.primary_ids, few.geometry)])
    alone = few.select(bright)
    expected = judge(alone, {"x": lambda run, n: 2 * alone.images[n]}, runs=1, responses=1)["x"]["mean"]
    assert some["mean"] == pytest.approx(expected, nan_ok=True)


def test_samples_are_packed_by_name(showers):
    few = showers.select(slice(0, 20))
    arrays = packed(sample(few, {"chain": lambda run, n: few.images[n // 2]}, 3, 2, quiet=True))
    assert {name: array.shape for name, array in arrays.items()} == {
        "chain_channels": (3, 20, 2, 5),
        "chain_offsets": (3, 20, 2),
        "chain_profile": (40,),
    }


def found(showers, resamples=200):
    """Metrics and intervals of showers that are a tenth too bright."""
    bright = {"": lambda run, n: (1.1 * showers.images[n]).astype(np.int64)}
    samples = sample(showers, bright, runs=1, responses=1, quiet=True)[""]
    known = showers.geometry.channels(showers.images), showers.pdg, showers.primary_ids, showers.geometry
    return measure(samples.runs(*known), resamples=resamples)


def test_intervals_hold_the_value_and_need_primaries(showers):
    mean, low, high = (found(showers)[what] for what in ("mean", "low", "high"))
    assert set(low) == set(high)
    assert {key.removesuffix("_all") for key in low if key.endswith("_all")} == {
        key for key, metric in METRICS.items() if metric.resampled
    }
    assert all(0 <= low[key] <= mean[key] <= high[key] for key in low)
    assert low["ws_all"] < mean["ws_all"] < high["ws_all"]
    counts = {
        name: len(np.unique(showers.primary_ids[showers.pdg == code]))
        for name, code in (("gamma", 22), ("sigma_plus", 3222))
    }
    assert counts["sigma_plus"] < LEAST_PRIMARIES <= counts["gamma"]
    assert "ws_gamma" in low
    assert "ws_sigma_plus" not in low


def test_no_resamples_no_intervals(showers):
    assert not any(found(showers, resamples=0)[what] for what in ("low", "high"))


def test_requantization_is_chosen_on_validation_rows_by_distance(run_folders, data):
    methods, distances = best_requantizations(ShowerModel.load(run_folders["teacher"]), data, 1000, 0, quiet=True)
    assert set(distances) <= {"all", "gamma", "neutron", "lambda", "sigma_plus"}
    assert distances["all"][methods[0]] == min(distances["all"].values())
    assert len(set(distances["all"].values())) > 1


def test_there_is_nothing_to_choose_where_counts_come_out_exactly(data):
    exact = SimpleNamespace(requantizations={})
    with pytest.raises(ValueError, match="this model's counts come out exactly; there is no requantization to choose"):
        best_requantizations(exact, data, 10, 0)
