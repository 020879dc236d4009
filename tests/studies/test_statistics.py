"""Rows, cells and winners: who is better is told with certainty where there are enough primaries, on the same rows alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from calosim.evaluation.stored import TITLES, Evaluation
from calosim.io import read_npz, write_json, write_npz
from calosim.studies.plan import Study, Table
from calosim.studies.statistics import Cell, Row, cells_of_tests, evaluated_rows, fill_cells, mean_ranks, winners
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
    path = tmp_path / "out" / "same" / "evaluation" / Evaluation.SAMPLES
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

    test = {"candidates": {"shape": verdicts(images, features)}} if images else {}
    test |= {"controls": {name: verdicts(*areas) for name, areas in controls.items()}} if controls else {}
    record = {"c2st": test} if test else {}
    record |= {"likelihood": {"per": "image", "monte_carlo": nll}} if nll else {}
    return SimpleNamespace(record=record, metrics={"shape_floor": {}})


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


def test_only_seeds_and_particles_are_pooled(make_plan):
    each = {"lr": [1, 2], "seed": [1, 2]}
    options = {"model.optimizer.lr": "{lr}", "seed_everything": "{seed}"}
    config = {"config": ["conf/photons.yaml"]}
    trainings = {"sweep": {**config, "each": each, "options": options, "title": "S"}, "one": config}
    plan = Study(make_plan(trainings=trainings, evaluate={"runs": 2}))
    for step in plan.steps.values():
        if step.subcommand == "evaluate":
            write_json(step.result, {"images": {}})
    rows = {row.label: (row.title, len(row.evaluations)) for row in evaluated_rows(plan)}
    assert rows == {"sweep-1": ("S (lr 1)", 2), "sweep-2": ("S (lr 2)", 2), "one": ("one", 1)}


CALLED = {"a": "A", "b": "B", "c": "C"}


def test_ranks():
    """A metric that one of the models lacks ranks none of them; a model that lacks all is not in the race."""
    values = np.array([[1.0, 2.0, 2.0, np.nan], [5.0, 4.0, np.nan, np.nan]])
    np.testing.assert_equal(mean_ranks(values), [1, 2.5, 2.5, np.nan])
    np.testing.assert_equal(mean_ranks(values[:, :2]), [1.5, 1.5])
    np.testing.assert_equal(mean_ranks(np.stack([values, values[:, ::-1]], 2))[:, 1], [np.nan, 2.5, 2.5, 1])


def resampled(metric, particle, shifts, noise, sampled=True):
    return {
        ("shape", metric, particle, label): Cell(10.0 + x, 0.1, 1, 0.0, 50, 10 + x + noise[i] if sampled else None)
        for i, (label, x) in enumerate(zip("abc", shifts, strict=True))
    }


def test_winners_are_named_with_their_certainty():
    """Of two models that differ by noise alone neither wins often; one that is better in every resample always wins."""
    noise = np.random.default_rng(0).normal(size=(3, 4000))
    cells = resampled("ws", "gamma", (0, 0.1, 20), noise) | resampled("ws", "neutron", (20, 20, 0), noise)
    # What cannot be resampled, or is not known for all, has no say.
    cells |= resampled("center", "gamma", (9, 9, 0), noise, sampled=False)
    cells |= resampled("delta", "gamma", (9, 0, np.nan), noise) | resampled("delta", "k0s", (np.nan,) * 3, noise)
    table = Table(["gamma", "neutron", "k0s"], ["center", "ws", "delta"], ["shape"])
    gamma, neutron = winners(table, cells, CALLED).splitlines()[-2:]
    share = int(gamma.split("|")[4].strip(" %"))
    assert "**A** (1.00)" in gamma
    assert 50 < share < 60
    assert f"B ({100 - share} %)" in gamma
    assert "**C** (1.00) | 100 %" in neutron


def test_centers_are_best_where_the_monte_carlo_has_them():
    """Closer to the straight flight than the Monte Carlo is as wrong as farther."""
    noise = np.random.default_rng(0).normal(size=(3, 100)) / 100
    cells = resampled("center", "gamma", (-9, 0.5, 3), noise)
    for cell in cells.values():
        cell.target = 10.0
    table = Table(["gamma"], ["center"], ["shape"])
    assert "**B** (1.00) | 100 % | " in winners(table, cells, CALLED).splitlines()[-1]


def test_without_resamples_nobody_wins():
    cells = resampled("ws", "gamma", (0, 1, 2), np.zeros((3, 1)), sampled=False)
    assert winners(Table(["gamma"], ["ws"], ["shape"]), cells, CALLED) == ""
