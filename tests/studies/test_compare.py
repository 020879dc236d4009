"""Comparisons: the better model wins with certainty, equal ones do not, and a whole study runs from its plan."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from calosim.__main__ import main
from calosim.evaluation.answers import TITLES, ask, measure, packed_answers
from calosim.files import write_npz
from calosim.showers.root import write
from calosim.studies.cells import Cell, mean_ranks
from calosim.studies.compare import compare
from calosim.studies.plan import load_plan
from calosim.studies.speed import generation_times
from calosim.studies.tables import _winners

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture
def judged(tmp_path, showers):
    """A finished study of three models: a good one twice under two names, and one that is too bright for neutrons."""
    trainings = {"good": {}, "same": {}, "bright": {"title": "too bright"}}
    path = tmp_path / "plan.yaml"
    table = {
        "particles": ["all", "gamma", "neutron", "sigma_plus"],
        "modes": ["shape"],
        "reference": "good",
        "metrics": ["ws", "mae_cond", "center"],
    }
    settings = {"out": str(tmp_path / "out"), "trainings": trainings, "evaluate": {"runs": 2}, "table": table}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    inputs, geometry = showers.inputs, showers.geometry
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(inputs)), inputs))
    shuffled = np.empty(len(inputs), dtype=int)
    shuffled[order] = np.roll(order, 1)  # another response, mostly of the same input

    def good(run, n):
        return showers.images[shuffled[n]]

    def bright(run, n):
        return good(run, n) * np.where(showers.pdg[n] == 2112, 2, 1)[:, None, None]

    reference = geometry.channels(showers.images)
    for step in load_plan(path).steps.values():
        step.folder.mkdir(parents=True, exist_ok=True)
        if step.verb == "fit":
            step.result.write_text(json.dumps({"seconds": 60.0, "samples": 1000}))
            (step.folder / "run.json").write_text(json.dumps({"command": ["fit", *step.words]}))
            continue
        candidate = bright if step.label == "bright" else good
        answers = ask(showers, {TITLES["shape"]: candidate}, runs=2, responses=1, quiet=True)
        images = {n: measure(a, reference, showers.pdg, inputs, geometry) for n, a in answers.items()}
        arrays = {"rows": np.arange(len(showers)), "pdg": showers.pdg, "inputs": inputs, "reference": reference}
        arrays |= {"natural": np.ones(len(showers), dtype=bool), **packed_answers(answers)}
        write_npz(step.folder / "answers.npz", **arrays)
        facts = {
            "rows": len(showers),
            "inputs": 65,
            "responses": 1,
            "runs": 2,
            "data": {"data_hash": "x", "detector": "zn"},
        }
        step.result.write_text(json.dumps({"arguments": dict(step.options), "images": images, **facts}))
    return path


def test_the_better_model_wins_with_certainty(judged, tmp_path, capsys):
    compare(str(judged), resamples=2000, quiet=True)
    with (tmp_path / "out" / "comparison.csv").open() as file:
        cells = {(r["metric"], r["particle"], r["model"]): r for r in csv.DictReader(file)}
    worse, same = cells["ws", "neutron", "bright"], cells["ws", "neutron", "same"]
    assert float(worse["versus_low"]) > 0
    assert float(worse["versus_difference"]) > 0
    assert float(worse["versus_p_value"]) == 2 / 2000
    assert float(worse["versus_share"]) == 0
    assert (float(same["versus_difference"]), float(same["versus_p_value"]), float(same["versus_share"])) == (0, 1, 0.5)
    # The resamples of the distance scatter around it.
    center = cells["center", "neutron", "bright"]
    assert float(center["low"]) < float(center["mean"]) < float(center["high"])
    # However the plan writes a particle's name.
    assert ("ws", "sigma+", "good") in cells
    # The bright model is the good one but for neutrons.
    assert float(cells["ws", "gamma", "bright"]["versus_difference"]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| too bright"))
    assert "**" not in line.split("|")[4]
    assert "**" in next(line for line in text.splitlines() if line.startswith("| good")).split("|")[4]
    assert "p 0.001, 0 %" in text  # what 2,000 resamples can tell
    assert "| too bright | 1 | 1,000 | 1,000 | 1.0 |" in text
    assert (tmp_path / "out" / "comparison-shape.png").stat().st_size > 10_000


def test_models_judged_on_other_rows_are_not_compared(judged, tmp_path):
    path = tmp_path / "out" / "same" / "evaluation" / "answers.npz"
    stored = dict(np.load(path))
    stored["rows"] = stored["rows"] + 1
    np.savez(path, **stored)
    with pytest.raises(ValueError, match="judged on other rows of all than good"):
        compare(str(judged), resamples=10, quiet=True)


def test_ranks():
    """A metric that one of the models lacks ranks none of them; a model that lacks all is not in the race."""
    values = np.array([[1.0, 2.0, 2.0, np.nan], [5.0, 4.0, np.nan, np.nan]])
    np.testing.assert_equal(mean_ranks(values), [1, 2.5, 2.5, np.nan])
    np.testing.assert_equal(mean_ranks(values[:, :2]), [1.5, 1.5])
    np.testing.assert_equal(mean_ranks(np.stack([values, values[:, ::-1]], 2))[:, 1], [np.nan, 2.5, 2.5, 1])


def cells_of(metric, particle, shifts, noise, sampled=True):
    return {
        ("shape", metric, particle, label): Cell(10.0 + x, 0.1, 1, 0.0, 50, 10 + x + noise[i] if sampled else None)
        for i, (label, x) in enumerate(zip("abc", shifts, strict=True))
    }


def test_winners_are_named_with_their_certainty():
    """Of two models that differ by noise alone neither wins often; one that is better in every resample always wins."""
    noise = np.random.default_rng(0).normal(size=(3, 4000))
    cells = cells_of("ws", "gamma", (0, 0.1, 20), noise) | cells_of("ws", "neutron", (20, 20, 0), noise)
    # What cannot be resampled, or is not known for all, has no say.
    cells |= cells_of("center", "gamma", (9, 9, 0), noise, sampled=False)
    cells |= cells_of("delta", "gamma", (9, 0, np.nan), noise) | cells_of("delta", "k0s", (np.nan,) * 3, noise)
    table = {
        "modes": ["shape"],
        "metrics": ["center", "ws", "delta"],
        "particles": ["gamma", "neutron", "k0s"],
        "reference": None,
    }
    gamma, neutron = _winners(table, cells, {"a": "A", "b": "B", "c": "C"})[-2:]
    share = int(gamma.split("|")[4].strip(" %"))
    assert "**A** (1.00)" in gamma
    assert 50 < share < 60
    assert f"B ({100 - share} %)" in gamma
    assert "**C** (1.00) | 100 %" in neutron


def test_centers_are_best_where_the_monte_carlo_has_them():
    """Closer to the straight flight than the Monte Carlo is as wrong as farther."""
    noise = np.random.default_rng(0).normal(size=(3, 100)) / 100
    cells = cells_of("center", "gamma", (-9, 0.5, 3), noise)
    for cell in cells.values():
        cell.target = 10.0
    table = {"modes": ["shape"], "metrics": ["center"], "particles": ["gamma"], "reference": None}
    assert "**B** (1.00) | 100 % | " in _winners(table, cells, {"a": "A", "b": "B", "c": "C"})[-1]


def test_few_primaries_give_no_certainty(judged, tmp_path, monkeypatch):
    monkeypatch.setattr("calosim.studies.cells.LEAST_PRIMARIES", 1000)
    compare(str(judged), resamples=100, quiet=True)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "With fewer than 1000 there are no intervals" in text
    assert "## Winners" not in text
    assert "Difference from" not in text


def test_generation_times_are_per_response(run_folders, showers):
    from calosim.models.shape import ShapeModule

    times = generation_times(ShapeModule.load(run_folders["teacher"]), showers, (1, 4), repeats=1, sequential=True)
    assert set(times) == {"batch 1", "batch 4", "sequential"}
    assert all(0 < t < 60 for t in times.values())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"metric": []}, "unknown entries metric of table"),
        ({"reference": "x"}, "names x"),
        ({"metrics": ["x"]}, "unknown metric 'x'"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, table, message):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"trainings": {"a": {}}, "table": table}))
    with pytest.raises(ValueError, match=message):
        compare(str(path), quiet=True)


@pytest.mark.slow
def test_a_whole_study_with_its_ensemble(tmp_path, make_showers, capsys):
    write(tmp_path / "zn.root", make_showers(responses=20))
    teacher = {"model.hidden": [8, 8], "model.transforms": 2, "model.bins": 4, "data.batch_size": 64}
    config = [str(CONF / "teacher.yaml"), str(CONF / "study" / "plain.yaml")]
    tune = {"model.init_from": "{base}", "data.particle": "{particle}", "trainer.max_epochs": 2}
    each = {"particle": ["gamma", "neutron"]}
    trainings = {
        "photons": {"config": [str(CONF / "photons.yaml")], "options": {"model.hidden": [8]}, "evaluate": False},
        "base": {"config": config, "options": teacher, "evaluate": {"references": True}},
        "gd": {"each": each, "config": [str(CONF / "finetune" / "gd.yaml")], "options": tune},
        "broken": {"config": config, "options": {**teacher, "data.particle": "muon"}},
    }
    judge = {"runs": 2, "responses": 2, "rows": 30, "rows_of_each": 12, "noise_removal": "best", "references": False}
    settings = {
        "out": str(tmp_path / "out"),
        "common": {"data.files": [str(tmp_path / "zn.root")], "trainer.max_epochs": 1},
        "trainings": trainings,
        "evaluate": {**judge, "photons": ["{photons}"]},
        "validate": {**judge, "runs": 1},
        "table": {
            "particles": ["all", "gamma", "neutron"],
            "reference": "base",
            "ensemble": {"default": "base", "members": ["gd"], "photons": "photons"},
        },
    }
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(settings, sort_keys=False))
    # The broken run fails the command, after everything else was done.
    assert main(["compare", "--plan", str(plan), "--resamples", "200", "--quiet", "true"]) == 2
    error = capsys.readouterr().err
    assert "broken, broken-evaluation, broken-validation" in error
    text = (tmp_path / "out" / "comparison.md").read_text()
    for words in ("## Full chain", "Failed: broken: exit 2: ", "| ensemble of the best |", "| floor (Monte Carlo"):
        assert words in text
    assert (tmp_path / "out" / "ensemble" / "simulator.json").exists()
    assert main(["compare", "--plan", str(plan), "--dry_run", "true"]) == 0
    listing = capsys.readouterr().out
    assert re.search(r"^gd-gamma +finished", listing, re.MULTILINE)
    assert re.search(r"^broken +to do +will fail: unknown particle .muon.", listing, re.MULTILINE)
