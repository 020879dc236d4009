"""The ensemble takes for each particle what ranks first on validation rows, the default where nothing is better."""

from __future__ import annotations

import shutil

import pytest
import yaml

from calosim.options import Execution
from calosim.studies.ensemble import _best, make_ensemble
from calosim.studies.layout import Table
from calosim.studies.plan import load_plan


@pytest.fixture
def joined(judged):
    """The finished study with an ensemble of `bright` and, where they are better, the others."""
    entries = yaml.safe_load(judged.read_text())
    entries["table"]["ensemble"] = {"default": "bright", "members": ["good", "same"]}
    judged.write_text(yaml.safe_dump({**entries, "validate": {}}, sort_keys=False))
    plan = load_plan(judged)
    return plan, Table.of(plan)


def test_without_validation_there_is_none(joined):
    assert "the plan needs `validate`" in make_ensemble(*joined, execution=Execution(), quiet=True)


def test_the_best_on_validation_rows_is_chosen(joined):
    plan, table = joined
    for label in plan.trainings:
        folder = plan.steps[f"{label}-evaluation"].folder
        shutil.copytree(folder, folder.with_name("validation"))
    assert {p: _best(plan, table, p)[::2] for p in ("gamma", "neutron")} == {
        "gamma": ("bright", 3),
        "neutron": ("good", 1),
    }
    assert _best(plan, table, "lambda").label == "bright"
    assert _best(plan, table, "k0s") is None
