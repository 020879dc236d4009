"""Cells: the better model is told with certainty where there are enough primaries, and only on the same rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from calosim.evaluation.definitions import TITLES
from calosim.evaluation.stored import Evaluation
from calosim.io import read_npz, write_npz
from calosim.studies.plan import Study, Table
from calosim.studies.statistics import Row, cells_of_tests, evaluated_rows, fill_cells
from calosim.studies.tables import Comparison


def cells_of(path, resamples):
    plan = Study(path)
    return fill_cells(evaluated_rows(plan), plan.table, resamples, quiet=True)


def test_the_better_model_is_told_with_certainty(evaluated):
    cells = cells_of(evaluated, 2000)
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


def test_models_evaluated_on_other_rows_are_not_compared(evaluated, tmp_path):
    path = tmp_path / "out" / "same" / "evaluation" / Evaluation.ANSWERS
    stored = read_npz(path)
    write_npz(path, **{**stored, "rows": stored["rows"] + 1})
    with pytest.raises(ValueError, match="evaluated on other rows of all than good"):
        cells_of(evaluated, 10)


def test_few_primaries_give_no_certainty(evaluated, monkeypatch):
    monkeypatch.setattr("calosim.studies.statistics.LEAST_PRIMARIES", 1000)
    cells = cells_of(evaluated, 100)
    assert all(cell.samples is None and cell.versus is None for cell in cells.values())


def test_an_evaluation_is_read_once(evaluated, monkeypatch):
    read = []
    original = np.load
    monkeypatch.setattr(np, "load", lambda path, *a, **k: read.append(path) or original(path, *a, **k))
    cells_of(evaluated, 10)
    # Names, and each of the five arrays that all columns share, and the row's own two.
    assert len(read) <= 3 * 8


def evaluation(images=None, features=None, nll=None, **controls):
    """An evaluation whose classifiers found these areas, and controls by name; and a likelihood."""

    def verdicts(*areas):
        names = ("images", "features")
        return {"verdicts": {n: {"auc": a, "error": 0.02} for n, a in zip(names, areas, strict=True) if a is not None}}

    test = {"candidates": {TITLES["shape"]: verdicts(images, features)}} if images else {}
    test |= {"controls": {name: verdicts(*areas) for name, areas in controls.items()}} if controls else {}
    record = {"classifier": test} if test else {}
    record |= {"likelihood": {"per": "image", "monte_carlo": nll}} if nll else {}
    return SimpleNamespace(record=record, metrics={TITLES["shape_floor"]: {}})


@pytest.fixture
def rows():
    first = evaluation(0.7, 0.8, mc=(0.49, 0.51), mc_sums=(0.5, 0.52))
    return [
        Row("good", "good", [(first, None), (evaluation(0.6, 0.9), None)]),
        Row("one", "one", [(evaluation(0.55, 0.65, 283.64), None), (evaluation(0.9, 0.9), "gamma")]),
        Row("unasked", "unasked", [(evaluation(), None)]),
        Row("floor", "", [(first, None)]),
        Row("trivial", "", [(first, None)]),
    ]


def summary(rows, cells):
    """The table of all particles together, without metrics."""
    study = SimpleNamespace(table=Table(metrics=[]))
    return Comparison(study, rows, cells, {}, {})._summary("shape")


def test_areas_are_means_over_trainings_beside_the_floor_of_the_mode(rows):
    cells = cells_of_tests(rows, ["shape", "chain"])
    found = {(mode, metric, label): (c.mean, c.std, c.seeds) for (mode, metric, _, label), c in cells.items()}
    assert found["shape", "auc_images", "good"] == pytest.approx((0.65, 0.0707, 2), abs=1e-4)
    # A model of one particle is not evaluated on all.
    assert found["shape", "auc_features", "one"] == (0.65, 0.02, 1)
    assert found["shape", "auc_images", "floor"][0] == 0.5
    assert found["chain", "auc_images", "floor"][0] == 0.49
    assert {label for _, _, label in found} == {"good", "one", "floor"}
    lines = [line.split(" | ") for line in summary(rows, cells).splitlines()]
    assert lines[4] == ["| ", "AUC images", "AUC features", "NLL |"]
    assert [line[0] for line in lines[6:]] == ["| good (2 seeds)", "| one", f"| {TITLES['shape_floor']}"]
    assert lines[7][1:] == ["0.550 ± 0.020", "0.650 ± 0.020", "283.6 nats per image |"]


def test_no_test_no_table(rows):
    assert not cells_of_tests(rows[2:3], ["shape"])
    assert summary(rows[2:3], {}) == ""
