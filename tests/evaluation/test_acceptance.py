"""Acceptance judged: scores on held-out attempts beside what the Monte Carlo's other attempts know."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calosim.data.datamodule import RootDataModule
from calosim.evaluation.sums import acceptance_report, acceptance_table, judge_acceptance

CPU = torch.device("cpu")


def test_the_model_is_judged_on_all_held_out_attempts_and_the_floor_on_half(run_folders, dark_file):
    report = judge_acceptance(str(run_folders["acceptance"]), str(run_folders["photons"]), "test", 1, CPU)
    data = RootDataModule(str(dark_file), min_photons=0)
    total = data.showers("test").photon_sum
    every = report["model"]["all"]
    assert every["rows"] == len(total)
    assert every["share"] == pytest.approx((total >= 10).mean())
    assert sum(v["rows"] for name, v in report["model"].items() if name != "all") == len(total)
    # Photon sums of another data set are not to be judged here.
    assert "w1" not in every
    assert report["floor"]["all"]["rows"] == pytest.approx(len(total) / 2, rel=0.1)
    assert report["floor"]["all"]["auc"] > 0.8
    header, rows = acceptance_table(report)
    assert all(len(row) == len(header) for row in rows)
    assert {row[1] for row in rows} == {"acceptance model", "floor (other attempts of the Monte Carlo)"}


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
