"""Photon sums: perfect samples are calibrated, coverage is nominal for the truth alone, types have their own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calosim.data.splits import ShowerData
from calosim.evaluation.sums import (
    ACCEPTANCE,
    INTERVALS,
    LEVELS,
    PHOTON_SUMS,
    acceptance_report,
    brier_score,
    calibration_error,
    interval_contents,
    judge_acceptance,
    photon_report,
    photon_uncertainty,
    reliability,
)
from calosim.models.photon_sum import PhotonSum

#: Standard deviations that a share may lie off its expectation.
SIGMAS = 5.0


def test_predictive_samples_from_the_truth_are_calibrated():
    rng = np.random.default_rng(1)
    rows, samples = 4000, 400
    scale = rng.uniform(20, 200, rows)
    truth = np.round(rng.normal(1000, scale)).astype(np.int64)
    report = photon_report(rng.normal(1000, scale[:, None], (rows, samples)), truth, np.full(rows, 2112))
    for p in INTERVALS:
        # Quantiles of a finite number of samples and rounded sums blur the limits a little beyond the binomial error.
        error = SIGMAS * np.sqrt(p * (1 - p) / rows) + 2 / samples
        assert report["neutron"][f"coverage_{100 * p:.0f}"] == pytest.approx(p, abs=error)
    assert report["all"]["rows"] == rows
    assert report["all"]["w1"] < 5
    assert report["all"]["rmse"] == pytest.approx(np.sqrt(np.mean(scale**2)), rel=0.1)


def test_a_point_prediction_covers_nothing():
    report = photon_report(np.full((100, 10), 7.5), np.arange(100), np.full(100, 22))
    assert report["gamma"]["coverage_95"] == 0


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_coverage_is_nominal_for_the_truth_alone(width):
    rng = np.random.default_rng(4)
    observed = np.round(rng.normal(1000, 100, 4000)).astype(np.int64)
    contents = interval_contents(np.round(rng.normal(1000, width * 100, (4000, 200))).astype(np.int64), observed)
    for level in LEVELS:
        error = SIGMAS * np.sqrt(level * (1 - level) / 4000) + 1 / 200
        share = (contents <= level).mean()
        assert (
            (abs(share - level) < error)
            if width == 1
            else ((share > level) == (width > 1) or abs(share - level) < error)
        )
    assert width == 1 or abs((contents <= 0.5).mean() - 0.5) > 0.1


def test_the_parts_of_all_are_those_of_its_rows(run_folders, data):
    rows, model = data.rows("test"), PhotonSum.load(run_folders["photons"])
    report, by_row = photon_uncertainty(model, data, rows, seed=1)
    assert np.array_equal(by_row["observed"], data.arrays["images"][rows].sum((1, 2)))
    types = [values for name, values in report.items() if name != "all"]
    count = np.array([values["rows"] for values in types])
    assert len(types) == len(np.unique(by_row["pdg"])) > 1
    assert count.sum() == report["all"]["rows"] == len(rows)
    for part in ("aleatoric", "epistemic"):
        squares = np.array([values[part] for values in types]) ** 2
        assert report["all"][part] ** 2 == pytest.approx((count * squares).sum() / count.sum())
        assert report["all"][part] ** 2 == pytest.approx(by_row[f"{part}_variance"].mean())
    inside = np.array([values["coverage"]["0.5"] for values in types])
    assert report["all"]["coverage"]["0.5"] == pytest.approx((count * inside).sum() / count.sum())


def test_distances_have_intervals_over_primaries_and_quantiles_stand_beside_the_truth():
    rng = np.random.default_rng(2)
    mean = rng.uniform(50, 1000, 60)
    inputs = np.repeat(np.arange(60), 8)
    truth = rng.poisson(mean[inputs])
    pdg = np.where(inputs < 55, 22, 2112)
    report = photon_report(rng.poisson(mean[inputs][:, None], (480, 50)), truth, pdg, inputs, 200)
    assert report["gamma"]["w1_low"] <= report["gamma"]["w1"] <= report["gamma"]["w1_high"]
    assert "w1_low" not in report["neutron"]  # five primaries tell nothing
    assert report["all"]["true_quantile_50"] == np.median(truth)
    assert report["all"]["true_largest"] == truth.max()
    _, quantiles = PHOTON_SUMS.tables({"model": report, "halves": report})
    rows = [line.strip("| ").split(" | ") for line in quantiles.splitlines()[2:]]
    assert [row[:2] for row in rows[:3]] == [["all", "Monte Carlo"], ["all", "model"], ["all", "floor of halves"]]
    assert rows[0][-1] == str(truth.max())


CPU = torch.device("cpu")


def test_the_model_is_judged_on_all_held_out_attempts_and_the_floor_on_half(run_folders, dark_file):
    photons = str(run_folders["photons"]), PhotonSum.load(run_folders["photons"])
    report = judge_acceptance(str(run_folders["acceptance"]), photons, "test", 1, CPU)
    data = ShowerData(str(dark_file), min_photons=0)
    total = data.showers("test").photon_sum
    every = report["model"]["all"]
    assert every["rows"] == len(total)
    assert every["share"] == pytest.approx((total >= 10).mean())
    assert sum(v["rows"] for name, v in report["model"].items() if name != "all") == len(total)
    # Photon sums of another data set are not to be judged here.
    assert "w1" not in every
    assert report["floor"]["all"]["rows"] == pytest.approx(len(total) / 2, rel=0.1)
    assert report["floor"]["all"]["auc"] > 0.8
    (table,) = ACCEPTANCE.tables(report)
    assert {line.split(" | ")[1] for line in table.splitlines()[2:]} == {
        "acceptance model",
        "floor (other attempts of the Monte Carlo)",
    }


def test_true_probabilities_score_best():
    rng = np.random.default_rng(1)
    probability = rng.beta(0.5, 0.5, 20_000)
    nonempty, total = rng.random(20_000) < probability, rng.integers(0, 100, 20_000)
    pdg = rng.choice([22, 2112], 20_000)
    true, drawn = acceptance_report(probability, nonempty, total, pdg, total), rng.permutation(probability)
    blind = acceptance_report(drawn, nonempty, total, pdg, None)
    for name in ("all", "gamma", "neutron"):
        assert true[name]["brier"] < blind[name]["brier"]
        assert true[name]["auc"] > 0.8 > 0.55 > blind[name]["auc"]
        assert true[name]["ece"] < 0.02
        assert true[name]["w1"] == 0
    assert np.sum(true["all"]["reliability"]["rows"]) == 20_000


def test_scores_of_probabilities_by_hand():
    probability, happened = np.array([0.1, 0.1, 0.9, 1.0]), np.array([False, True, True, True])
    assert brier_score(probability, happened) == pytest.approx((0.01 + 0.81 + 0.01) / 4)
    curve = reliability(probability, happened, 2)
    assert curve["predicted"].tolist() == pytest.approx([0.1, 0.95])
    assert curve["observed"].tolist() == [0.5, 1.0]
    assert curve["rows"].tolist() == [2, 2]
    assert calibration_error(probability, happened, 2) == pytest.approx((0.4 + 0.05) / 2)


def test_true_probabilities_are_calibrated_and_others_are_not():
    rng = np.random.default_rng(0)
    probability = rng.random(100_000)
    happened = rng.random(100_000) < probability
    assert calibration_error(probability, happened) < 0.01
    assert calibration_error(probability**2, happened) > 0.1
    assert brier_score(probability, happened) == pytest.approx(1 / 6, abs=0.005)
