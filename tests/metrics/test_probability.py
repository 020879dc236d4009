"""Scores of probabilities: by hand, and nothing to object to where the probabilities are true."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.metrics.probability import brier_score, calibration_error, reliability


def test_by_hand():
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
