"""Intervals by bootstrap over primaries hold the value, shrink with the number of primaries, and need ten of them."""

from __future__ import annotations

import numpy as np

from calosim.evaluation.samples import LEAST_PRIMARIES, Answers, ask, measure, metric_intervals


def found(showers, resamples=200):
    """Metrics and intervals of showers that are a tenth too bright."""
    bright = {"": lambda run, n: (1.1 * showers.images[n]).astype(np.int64)}
    answers: Answers = ask(showers, bright, runs=1, responses=1, quiet=True)[""]
    data = {"reference": showers.geometry.channels(showers.images), "pdg": showers.pdg, "inputs": showers.inputs}
    natural = np.ones(len(showers), dtype=bool)
    mean = measure(answers, **data, detector=showers.geometry, natural=natural)["mean"]
    return mean, metric_intervals(answers, mean, data, natural, showers.geometry, resamples)


def test_intervals_hold_the_value_and_need_primaries(showers):
    mean, intervals = found(showers)
    low, high = intervals["low"], intervals["high"]
    assert set(low) == set(high)
    assert {key.rpartition("_")[0] for key in low if key.endswith("_all")} == {
        "ws",
        "mae_cond",
        "mae_w",
        "delta",
        "jacc",
        "center",
    }
    assert all(0 <= low[key] <= mean[key] <= high[key] for key in low)
    assert low["ws_all"] < mean["ws_all"] < high["ws_all"]
    counts = {
        name: len(np.unique(showers.inputs[showers.pdg == code]))
        for name, code in (("gamma", 22), ("sigma_plus", 3222))
    }
    assert counts["sigma_plus"] < LEAST_PRIMARIES <= counts["gamma"]
    assert "ws_gamma" in low
    assert "ws_sigma_plus" not in low


def test_no_resamples_no_intervals(showers):
    assert found(showers, resamples=0)[1] == {"low": {}, "high": {}}
