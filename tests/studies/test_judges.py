"""Judges' areas in a comparison: means over trainings, beside the floor of the mode, and nothing where nobody judged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from calosim.evaluation.definitions import TITLES
from calosim.studies.layout import Row
from calosim.studies.statistics import judge_cells, judge_table


def evaluation(images=None, features=None, **controls):
    """An evaluation whose judges found these areas, and controls by name."""

    def verdicts(*areas):
        names = ("images", "features")
        return {"verdicts": {n: {"auc": a, "error": 0.02} for n, a in zip(names, areas, strict=True) if a is not None}}

    test = {"candidates": {TITLES["shape"]: verdicts(images, features)}} if images else {}
    test |= {"controls": {name: verdicts(*areas) for name, areas in controls.items()}} if controls else {}
    return SimpleNamespace(record={"classifier": test} if test else {}, metrics={TITLES["shape_floor"]: {}})


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


def test_no_judge_no_table(rows):
    cells = judge_cells(rows[2:3], ["shape"])
    assert not cells
    assert judge_table(rows, cells, "shape") == ""
