"""Tables show who is better, what a model costs and how fast it is; a sweep is drawn along its values."""

from __future__ import annotations

import itertools
import re

import pytest

from calosim.io import read_csv
from calosim.models.shower import ShowerModel
from calosim.options import Compare
from calosim.studies import tables
from calosim.studies.compare import compare
from calosim.studies.plan import Study
from calosim.studies.statistics import Cell, Row
from calosim.studies.tables import Comparison, generation_times, speed_table


def test_the_cost_table_counts_what_a_training_starts_from(make_plan, pretend):
    base = {"config": ["conf/photons.yaml"]}
    plan = Study(make_plan(trainings={"base": base, "tuned": {**base, "options": {"model.heads": "{base}"}}}))
    for step in plan.steps.values():
        vars(step)["settings"] = {"data": {"files": ["none.root"]}}
        pretend(step)
    assert tables.cost_table(plan).splitlines()[2:] == [
        "| base | 1 | 10 | 1,000 | 1,000 | 1.0 |",
        "| tuned | 1 | 10 | 1,000 | 2,000 | 1.0 |",
    ]


@pytest.mark.parametrize("name", ["teacher", "splits"])
def test_generation_times_are_per_response(name, run_folders, showers):
    times = generation_times(ShowerModel.load(run_folders[name]), showers, (1, 4), repeats=1)
    assert set(times) == {"batch 1", "batch 4"}
    assert all(0 < t < 60 for t in times.values())


def test_speeds_are_milliseconds(evaluated):
    text = speed_table(Study(evaluated), {"bright": {"parameters": 1234, "batch 1": 0.5, "batch 256": 0.001}})
    assert text.endswith("| too bright | 1,234 | 500.00 | 1.00 |\n")


@pytest.fixture
def written(evaluated, tmp_path, capsys):
    compare(Compare(str(evaluated), resamples=2000, quiet=True))
    return tmp_path / "out"


def test_tables_show_who_is_better(written):
    text = (written / "comparison.md").read_text()
    everything, _, by_particle = text.partition("### WS, photons")
    line = next(line for line in by_particle.splitlines() if line.startswith("| too bright"))
    assert "**" not in line.split("|")[4]
    assert "**" in next(line for line in by_particle.splitlines() if line.startswith("| good")).split("|")[4]
    # All particles together stand in one table, with intervals.
    line = next(line for line in everything.splitlines() if line.startswith("| too bright"))
    assert re.search(r"\| \d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\] \|", line)
    assert "p 0.001, 0 %" in text  # what 2,000 resamples can tell
    assert "| too bright | 1 | 10 | 1,000 | 1,000 | 1.0 |" in text
    # Every table stands alone between empty lines.
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        assert not (line.startswith("|") and before and not before.startswith("|"))
    cells = {(r["metric"], r["particle"], r["model"]): r for r in read_csv(written / "comparison.csv")}
    worse = cells["ws", "neutron", "bright"]
    assert (float(worse["versus_p_value"]), float(worse["versus_share"])) == (2 / 2000, 0)
    assert float(worse["low"]) < float(worse["high"])
    assert cells["ws", "neutron", "good"]["versus_p_value"] == ""
    assert (written / "comparison-shape.png").stat().st_size > 10_000


def test_few_primaries_are_said(evaluated, tmp_path, monkeypatch, capsys):
    for module in ("statistics", "tables"):
        monkeypatch.setattr(f"calosim.studies.{module}.LEAST_PRIMARIES", 1000)
    compare(Compare(str(evaluated), resamples=100, quiet=True))
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "With fewer than 1000 there are no intervals" in text
    assert "## Winners" not in text
    assert "Difference from" not in text


def test_a_sweep_is_drawn_along_its_values(make_plan, monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(
        "calosim.plots.comparison", lambda panels, columns, path: drawn.update(panels=panels, columns=columns)
    )
    sweep = {"config": ["conf/photons.yaml"], "each": {"n": [1, 3]}, "options": {"trainer.max_epochs": "{n}"}}
    study = Study(make_plan(trainings={"sweep": sweep, "one": {}}, table={"particles": ["all"], "metrics": ["ws"]}))
    rows = [Row(label, label) for label in ("sweep-1", "sweep-3", "one")]
    cells = {("shape", "ws", "all", row.label): Cell(2.0 + n, 0.5) for n, row in enumerate(rows)}
    cells["shape", "auc_images", "all", "sweep-3"] = Cell(0.6, 0.1)
    Comparison(study, rows, cells, {}, {}).draw(tmp_path / "x.png", "shape")
    assert drawn["columns"] == ["n 1", "n 3"]
    one = (4.0, 3.5, 4.5)
    assert drawn["panels"]["WS, photons"] == {"sweep": [(2.0, 1.5, 2.5), (3.0, 2.5, 3.5)], "one": [one, one]}
    assert drawn["panels"]["AUC images"]["sweep"] == [None, (0.6, 0.5, pytest.approx(0.7))]
