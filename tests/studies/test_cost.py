"""A dry run counts samples as the real command would see them, and takes the speed from what it knows."""

from __future__ import annotations

import re
import shlex

import pytest

from calosim.data.datamodule import RootDataModule
from calosim.studies import cost
from calosim.studies.plan import load_plan


@pytest.fixture
def listed(root_file, make_plan, monkeypatch, capsys):
    """The line of a dry run for the training ``base``; ``listed(before=..., **options)``."""
    monkeypatch.setattr(cost, "_probe", lambda step, files: 0.5)

    def line(before=lambda plan: None, **options):
        base = {"config": ["conf/photons.yaml"]}
        data = {"data.files": [str(root_file)], "trainer.max_epochs": 2, "data.batch_size": 8}
        plan = load_plan(make_plan(trainings={"first": base, "base": base}, common=data), options=options)
        before(plan)
        cost.print_plan(plan)
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
    monkeypatch.setattr(cost, "_probe", lambda step, files: tried.extend(files) or 0.5)
    later = {"later.root": {"detector": "zn", "primaries": 2000, "responses_per_primary": 2, "seed": 1}}
    trainings = {"base": {"config": ["conf/photons.yaml"]}}
    common = {"data.files": ["later.root"], "trainer.max_epochs": 2}
    plan = load_plan(make_plan(trainings=trainings, common=common, simulate=later))
    cost.print_plan(plan)
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
    assert cost.cost_table(plan).splitlines()[2:] == [
        "| base | 1 | 1,000 | 1,000 | 1.0 |",
        "| tuned | 1 | 1,000 | 2,000 | 1.0 |",
    ]
