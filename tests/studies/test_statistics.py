"""Cells: the better model is told with certainty where there are enough primaries, and only on the same rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from calosim.evaluation.stored import TITLES, Evaluation
from calosim.io import read_npz, write_npz
from calosim.studies.layout import Row, Table, judged_rows
from calosim.studies.plan import load_plan
from calosim.studies.statistics import fill_cells, judge_cells, judge_table


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
    path = tmp_path / "out" / "same" / "evaluation" / Evaluation.SAMPLES
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


def evaluation(images=None, features=None, **controls):
    """An evaluation whose classifiers found these areas, and controls by name."""

    def verdicts(*areas):
        names = ("images", "features")
        return {"verdicts": {n: {"auc": a, "error": 0.02} for n, a in zip(names, areas, strict=True) if a is not None}}

    test = {"candidates": {"shape": verdicts(images, features)}} if images else {}
    test |= {"controls": {name: verdicts(*areas) for name, areas in controls.items()}} if controls else {}
    return SimpleNamespace(record={"c2st": test} if test else {}, metrics={"shape_floor": {}})


@pytest.fixture
def rows():
    first = evaluation(0.7, 0.8, mc=(0.49, 0.51), mc_sums=(0.5, 0.52))
    return [
        Row("good", "good", [(first, None), (evaluation(0.6, 0.9), None)]),
        Row("one", "one", [(evaluation(0.55, 0.65), None), (evaluation(0.9, 0.9), "gamma")]),
        Row("unasked", "unasked", [(evaluation(), None)]),
        Row("floor", "", [(first, None)]),
        Row("trivial", "", [(first, None)]),
    ]


def test_areas_are_means_over_trainings_beside_the_floor_of_the_mode(rows):
    cells = judge_cells(rows, ["shape", "chain"])
    found = {(mode, metric, label): (c.mean, c.std, c.seeds) for (mode, metric, _, label), c in cells.items()}
    assert found["shape", "auc_images", "good"] == pytest.approx((0.65, 0.0707, 2), abs=1e-4)
    # A model of one particle is not judged on all.
    assert found["shape", "auc_features", "one"] == (0.65, 0.02, 1)
    assert found["shape", "auc_images", "floor"][0] == 0.5
    assert found["chain", "auc_images", "floor"][0] == 0.49
    assert {label for _, _, label in found} == {"good", "one", "floor"}
    lines = judge_table(rows, cells, "shape").splitlines()
    assert lines[4].split(" | ") == ["| ", "AUC images", "AUC features |"]
    assert [line.split(" | ")[0] for line in lines[6:]] == ["| good (2 seeds)", "| one", f"| {TITLES['shape_floor']}"]


def test_no_classifier_no_table(rows):
    cells = judge_cells(rows[2:3], ["shape"])
    assert not cells
    assert judge_table(rows, cells, "shape") == ""
