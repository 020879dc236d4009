"""A whole study runs from its plan: trainings, evaluations, the ensemble, tables; and a dry run tells what is left."""

from __future__ import annotations

import functools
import re

import pytest

from calosim.__main__ import main
from calosim.data.root import write
from calosim.options import Execution
from calosim.simulation.simulator import FastSimulator
from calosim.slurm import Slurm
from calosim.studies import compare


def test_where_it_runs_is_read_from_options_and_files(tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text('{account: plg, time: "4:00:00", more: [qos=long]}')
    seen = {}
    monkeypatch.setattr(compare, "compare", functools.wraps(compare.compare)(lambda given: seen.update(vars(given))))
    assert main(["compare", "--plan", "x.yaml", "--jobs", "2"]) == 0
    assert seen["execution"] == Execution(jobs=2)
    words = ["--executor", "slurm", "--slurm", str(tmp_path / "cluster.yaml"), "--slurm.gpus", "2", "--retry"]
    assert main(["compare", "--plan", "x.yaml", *words]) == 0
    asked = Slurm(account="plg", time="4:00:00", more=["qos=long"], gpus=2)
    assert seen["execution"] == Execution("slurm", slurm=asked, retry=True)


@pytest.mark.slow
def test_a_whole_study_with_its_ensemble(tmp_path, make_showers, make_plan, capsys):
    write(tmp_path / "zn.root", make_showers(responses=20))
    teacher = {f"model.flow.{key}": value for key, value in {"hidden": [8, 8], "transforms": 2, "bins": 4}.items()}
    teacher["data.batch_size"] = 64
    config = ["conf/teacher.yaml", "conf/representation/pixels.yaml", "conf/study/plain.yaml"]
    tune = {"model.init_from": "{base}", "data.particle": "{particle}", "trainer.max_epochs": 2}
    each = {"particle": ["gamma"]}
    trainings = {
        "photons": {"config": ["conf/photons.yaml"], "options": {"model.hidden": [8]}, "evaluate": False},
        "base": {"config": config, "options": teacher, "evaluate": {"references": True}},
        "gd": {"each": each, "config": ["conf/finetune/gd.yaml"], "options": tune},
        "broken": {"config": config, "options": {**teacher, "data.particle": "muon"}},
    }
    options = {"runs": 2, "responses": 2, "rows": 30, "rows_of_each": 12, "requantization": "best", "references": False}
    plan = make_plan(
        common={"data.files": [str(tmp_path / "zn.root")], "trainer.max_epochs": 1},
        trainings=trainings,
        evaluate={**options, "photons": ["{photons}"]},
        validate={**options, "runs": 1},
        table={
            "particles": ["all", "gamma", "neutron"],
            "reference": "base",
            "ensemble": {"default": "base", "members": ["gd"], "photons": "photons"},
            "speed": True,
        },
    )
    # The broken run fails the command, after everything else was done.
    assert main(["compare", "--plan", str(plan), "--resamples", "200", "--quiet", "true"]) == 2
    error = capsys.readouterr().err
    assert "broken, broken-evaluation, broken-validation" in error
    text = (tmp_path / "out" / "comparison.md").read_text()
    for words in ("## Full chain", "Failed: broken: exit 2: ", "| ensemble of the best |", "| floor (Monte Carlo"):
        assert words in text
    assert "## Size and speed" in text
    assert set(FastSimulator.load(tmp_path / "out" / "ensemble", device="cpu").requantization) >= {0, 22, 2112}
    assert main(["compare", "--plan", str(plan), "--dry_run", "true"]) == 0
    listing = capsys.readouterr().out
    assert re.search(r"^gd-gamma +finished", listing, re.MULTILINE)
    assert re.search(r"^broken +to do +calosim fit", listing, re.MULTILINE)
    # Another study uses the training, under another name, and evaluates it in a folder of its own.
    other = make_plan(
        "other",
        out=str(tmp_path / "second"),
        uses=["plan.yaml"],
        trainings={"teacher": {"use": "base"}},
        evaluate={**options, "runs": 1},
    )
    assert main(["compare", "--plan", str(other), "--dry_run"]) == 0
    listing = capsys.readouterr().out
    assert re.search(r"^teacher +finished", listing, re.MULTILINE)
    assert re.search(r"^teacher-evaluation +to do", listing, re.MULTILINE)


def test_what_an_evaluation_would_refuse_ends_a_study_before_its_trainings(make_plan, error_of):
    plan = make_plan(trainings={"a": {"config": ["conf/photons.yaml"]}}, evaluate={"classifer": False})
    for words in (["--dry_run"], []):
        line = error_of("compare", "--plan", plan, *words)
        assert "step a-evaluation: unknown option --classifer; did you mean --classifier?" in line
