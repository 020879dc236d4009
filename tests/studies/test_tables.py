"""A dry run counts samples as the real command would see them, and takes the speed from what it knows."""

from __future__ import annotations

import itertools
import re
import shlex

import pytest

from calosim.data.datamodule import RootDataModule
from calosim.io import read_csv
from calosim.models.shower import ShowerModel
from calosim.options import Compare
from calosim.studies import tables
from calosim.studies.compare import compare
from calosim.studies.plan import load_plan
from calosim.studies.tables import generation_times, speed_table


@pytest.fixture
def listed(root_file, make_plan, monkeypatch, capsys):
    """The line of a dry run for the training ``base``; ``listed(before=..., **options)``."""
    monkeypatch.setattr(tables, "_probe", lambda step, files: 0.5)

    def line(before=lambda plan: None, **options):
        base = {"config": ["conf/photons.yaml"]}
        data = {"data.files": [str(root_file)], "trainer.max_epochs": 2, "data.batch_size": 8}
        plan = load_plan(make_plan(trainings={"first": base, "base": base}, common=data), options=options)
        before(plan)
        tables.print_plan(plan)
        return re.search(r"^base .*", capsys.readouterr().out, re.MULTILINE)[0]

    return line


def test_samples_are_those_of_the_command(listed, root_file, tmp_path):
    rows = len(RootDataModule(str(root_file)).rows("train"))
    assert f"to do  about {0.5 * 2 * rows / 60:.1f} min for {2 * rows} samples" in listed()
    # Limits in a configuration file count as well as those among the options.
    assert "for 48 samples" in listed(**{"trainer.limit_train_batches": 3})
    assert f"for {2 * (rows // 2)} samples" in listed(**{"trainer.limit_train_batches": 0.5})
    assert f"for {2 * len(RootDataModule(str(root_file), particle='gamma').rows('train'))} samples" in listed(
        **{"data.particle": "gamma"}
    )
    assert "unknown before its data are made" in listed(**{"data.files": [str(tmp_path / "later.root")]})
    assert "will fail: unknown particle" in listed(**{"data.particle": "muon2"})
    assert "will fail: " in listed(**{"trainer.max_epochs": "many"})


def test_data_that_are_still_to_be_made_are_tried_on_a_small_simulation(make_plan, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    tried: list[str] = []
    monkeypatch.setattr(tables, "_probe", lambda step, files: tried.extend(files) or 0.5)
    later = {"later.root": {"detector": "zn", "primaries": 2000, "responses_per_primary": 2, "seed": 1}}
    trainings = {"base": {"config": ["conf/photons.yaml"]}}
    common = {"data.files": ["later.root"], "trainer.max_epochs": 2}
    plan = load_plan(make_plan(trainings=trainings, common=common, simulate=later))
    tables.print_plan(plan)
    line = re.search(r"^base .*", capsys.readouterr().out, re.MULTILINE)[0]
    # About two responses to each of 2000 primaries, 70 % of them in training, twice.
    assert 0.5 < int(re.search(r"for (\d+) samples", line)[1]) / (2000 * 2 * 0.7 * 2) < 1.5
    assert len(tried) == 1
    assert not list(tmp_path.glob("*.root"))
    # What is printed can be run as it is.
    assert shlex.split(line[line.index("calosim fit") :])[2:] == list(plan.steps["base"].words)


def test_speed_is_that_of_a_finished_training(listed, pretend, root_file):
    rows = len(RootDataModule(str(root_file)).rows("train"))
    line = listed(lambda plan: pretend(plan.steps["first"]))  # 60 s for 1,000 samples
    assert f"about {0.06 * 2 * rows / 60:.1f} min" in line


def test_the_cost_table_counts_what_a_training_starts_from(make_plan, pretend):
    base = {"config": ["conf/photons.yaml"]}
    plan = load_plan(make_plan(trainings={"base": base, "tuned": {**base, "options": {"model.heads": "{base}"}}}))
    for step in plan.steps.values():
        vars(step)["settings"] = {"data": {"files": ["none.root"]}}
        pretend(step)
    assert tables.cost_table(plan).splitlines()[2:] == [
        "| base | 1 | 1,000 | 1,000 | 1.0 |",
        "| tuned | 1 | 1,000 | 2,000 | 1.0 |",
    ]


@pytest.mark.parametrize("name", ["teacher", "splits"])
def test_generation_times_are_per_response(name, run_folders, showers):
    times = generation_times(ShowerModel.load(run_folders[name]), showers, (1, 4), repeats=1)
    # Only points have an inverse that others take feature by feature.
    assert set(times) == {"batch 1", "batch 4"} | ({"sequential"} if name == "teacher" else set())
    assert all(0 < t < 60 for t in times.values())


def test_what_was_not_measured_stays_empty(judged):
    from calosim.studies.plan import load_plan

    speeds = {"good": {"parameters": 5, "batch 256": 0.1}, "bright": {"parameters": 1234, "batch 1": 0.5}}
    text = speed_table(load_plan(judged), speeds, {})
    assert text.endswith("| too bright | 1,234 |  | 500.00 |  |\n")


@pytest.fixture
def written(judged, tmp_path, capsys):
    compare(Compare(str(judged), resamples=2000, quiet=True))
    return tmp_path / "out"


def test_tables_show_who_is_better(written):
    text = (written / "comparison.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| too bright"))
    assert "**" not in line.split("|")[4]
    assert "**" in next(line for line in text.splitlines() if line.startswith("| good")).split("|")[4]
    assert "p 0.001, 0 %" in text  # what 2,000 resamples can tell
    assert "| too bright | 1 | 1,000 | 1,000 | 1.0 |" in text
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


def test_few_primaries_are_said(judged, tmp_path, monkeypatch, capsys):
    for module in ("cells", "tables"):
        monkeypatch.setattr(f"calosim.studies.{module}.LEAST_PRIMARIES", 1000)
    compare(Compare(str(judged), resamples=100, quiet=True))
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "With fewer than 1000 there are no intervals" in text
    assert "## Winners" not in text
    assert "Difference from" not in text
