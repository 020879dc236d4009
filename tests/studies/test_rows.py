"""What the tables show: bad entries are refused, particles have one name."""

from __future__ import annotations

import pytest

from calosim.io import write_json
from calosim.studies.plan import Study
from calosim.studies.statistics import evaluated_rows


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"metric": []}, "unknown entries metric of table"),
        ({"reference": "x"}, "names x"),
        ({"metrics": ["x"]}, "unknown metric 'x'"),
        ({"ensemble": {"default": "a"}}, "expected table.ensemble with default, members"),
        ({"ensemble": {"default": "a", "members": ["y"]}}, "names y"),
        ({"ensemble": {"default": "a", "members": ["a"]}}, "table.ensemble: expected each once, got a twice"),
        ({"metrics": ["ws", "ws"]}, "table.metrics: expected each once, got ws twice"),
        ({"modes": ["shape", "shape"]}, "table.modes: expected each once"),
        ({"particles": ["lambda", 3122]}, "table.particles: expected each once, got lambda twice"),
    ],
)
def test_a_bad_table_is_refused(make_plan, table, message):
    with pytest.raises(ValueError, match=message):
        assert Study(make_plan(trainings={"a": {}}, table=table)).table


def test_columns_have_one_name_each(make_plan):
    table = Study(make_plan(table={"particles": ["all", "sigma_plus", 3122]})).table
    assert table.columns == {"all": "all", "sigma+": "Σ⁺", "lambda": "Λ"}


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
