"""The ensemble takes for each particle what ranks first on validation rows, the default where nothing is better."""

from __future__ import annotations

import shutil

import pytest
import yaml

from calosim.options import Execution
from calosim.studies.ensemble import _best, make_ensemble
from calosim.studies.plan import Study


@pytest.fixture
def joined(evaluated):
    """The finished study with an ensemble of `bright` and, where they are better, the others."""
    entries = yaml.safe_load(evaluated.read_text())
    entries["table"]["ensemble"] = {"default": "bright", "members": ["good", "same"]}
    evaluated.write_text(yaml.safe_dump({**entries, "validate": {}}, sort_keys=False))
    plan = Study(evaluated)
    return plan


def test_without_validation_there_is_none(joined):
    assert "the plan needs `validate`" in make_ensemble(joined, execution=Execution(), quiet=True)


def test_the_best_on_validation_rows_is_chosen(joined):
    plan = joined
    for label in plan.runs:
        folder = plan.steps[f"{label}-evaluation"].folder
        shutil.copytree(folder, folder.with_name("validation"))
    best = {p: _best(plan, p) for p in ("gamma", "neutron", "lambda", "k0s")}
    assert {p: (found.step.label, found.requantization) for p, found in best.items() if found} == {
        "gamma": ("bright", 3),
        "neutron": ("good", 1),
        "lambda": ("bright", 3),
    }
