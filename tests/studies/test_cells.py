"""Cells: the better model is told with certainty where there are enough primaries, and only on the same rows."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.evaluation.stored import Evaluation
from calosim.io import read_npz, write_npz
from calosim.studies.layout import Table, judged_rows
from calosim.studies.plan import load_plan
from calosim.studies.statistics import fill_cells


def cells_of(path, resamples):
    plan = load_plan(path)
    return fill_cells(judged_rows(plan), Table.of(plan), resamples, quiet=True)


def test_the_better_model_is_told_with_certainty(judged):
    cells = cells_of(judged, 2000)
    worse, same = (cells["shape", "ws", "neutron", label].versus for label in ("bright", "same"))
    assert worse.low > 0
    assert worse.difference > 0
    assert worse.p_value == 2 / 2000
    assert worse.share == 0
    assert (same.difference, same.p_value, same.share) == (0, 1, 0.5)
    # The resamples of the distance scatter around it.
    center = cells["shape", "center", "neutron", "bright"]
    assert center.interval[0] < center.mean < center.interval[1]
    # However the plan writes a particle's name.
    assert ("shape", "ws", "sigma+", "good") in cells
    # The bright model is the good one but for neutrons.
    assert cells["shape", "ws", "gamma", "bright"].versus.difference == 0


def test_models_judged_on_other_rows_are_not_compared(judged, tmp_path):
    path = tmp_path / "out" / "same" / "evaluation" / Evaluation.ANSWERS
    stored = read_npz(path)
    write_npz(path, **{**stored, "rows": stored["rows"] + 1})
    with pytest.raises(ValueError, match="judged on other rows of all than good"):
        cells_of(judged, 10)


def test_few_primaries_give_no_certainty(judged, monkeypatch):
    monkeypatch.setattr("calosim.studies.statistics.LEAST_PRIMARIES", 1000)
    cells = cells_of(judged, 100)
    assert all(cell.samples is None and cell.versus is None for cell in cells.values())


def test_an_evaluation_is_read_once(judged, monkeypatch):
    read = []
    original = np.load
    monkeypatch.setattr(np, "load", lambda path, *a, **k: read.append(path) or original(path, *a, **k))
    cells_of(judged, 10)
    # Names, and each of the five arrays that all columns share, and the row's own two.
    assert len(read) <= 3 * 8
