"""Plans: names are resolved, finished steps skipped, failures shown while the rest goes on, killed runs resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from calosim.showers.reading import read
from calosim.showers.root import write
from calosim.studies.plan import load_plan
from calosim.studies.runner import run_steps

CONF = Path(__file__).resolve().parents[2] / "conf"


def make_plan(folder, **entries):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({"out": str(folder / "out"), "trainings": {}} | entries, sort_keys=False))
    return path


def test_names_stand_for_values_and_run_folders(tmp_path):
    trainings = {
        "base": {"config": ["a.yaml"], "options": {"trainer.max_epochs": 2}},
        "gd": {
            "each": {"particle": ["gamma", "lambda"], "seed": [1, 2]},
            "config": ["b.yaml"],
            "options": {"model.init_from": "{base}", "data.particle": "{particle}", "seed_everything": "{seed}"},
        },
        "again": {
            "each": {"particle": ["lambda"], "seed": [2]},
            "options": {"model.init_from": "{gd}"},
            "evaluate": False,
        },
    }
    plan = load_plan(
        make_plan(
            tmp_path,
            trainings=trainings,
            common={"data.files": ["x.root"]},
            evaluate={"runs": 2, "photons": ["{base}"]},
        )
    )
    assert plan.trainings == {
        "base": ["base"],
        "gd": ["gd-gamma-1", "gd-gamma-2", "gd-lambda-1", "gd-lambda-2"],
        "again": ["again-lambda-2"],
    }
    step = plan.steps["gd-lambda-2"]
    assert step.after == ("base",)
    assert step.options["seed_everything"] == 2
    words = " ".join(step.words)
    assert words.startswith('-c b.yaml --data.files ["x.root"] --model.init_from ')
    assert f"--model.init_from {tmp_path}/out/base --data.particle lambda --seed_everything 2" in words
    assert plan.steps["again-lambda-2"].options["model.init_from"] == f"{tmp_path}/out/gd-lambda-2"
    assert plan.steps["again-lambda-2"].after == ("gd-lambda-2",)
    judged = plan.steps["gd-gamma-1-evaluation"]
    assert set(judged.after) == {"gd-gamma-1", "base"}
    assert judged.options["photons"] == [f"{tmp_path}/out/base"]
    assert "again-lambda-2-evaluation" not in plan.steps
    # Further options win over the plan's.
    assert (
        load_plan(tmp_path / "plan.yaml", options={"trainer.max_epochs": 1}).steps["base"].options["trainer.max_epochs"]
        == 1
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"training": {}}, "unknown entries training"),
        ({"trainings": {"a": {"option": {}}}}, "training a has unknown entries option"),
        ({"trainings": {"a": {"options": {"x": "{nobody}"}}}}, r"cannot resolve '\{nobody\}'"),
        ({"trainings": None}, "expected a plan with `trainings`"),
    ],
)
def test_a_bad_plan_is_refused(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        load_plan(make_plan(tmp_path, **entries))


def test_failures_are_shown_and_the_rest_goes_on(tmp_path):
    few = {"primaries": 5, "responses_per_primary": 2, "quiet": True}
    good, bad, later = (str(tmp_path / f"{name}.root") for name in ("good", "bad", "later"))
    simulate = {good: few, bad: {**few, "detector": "nowhere"}, later: few}
    plan = load_plan(make_plan(tmp_path, simulate=simulate))
    failed = run_steps(plan, quiet=True)
    assert len(read(good))
    # `later` was to come after `bad`.
    assert set(failed) == {bad, later}
    assert "nowhere" in failed[bad]
    assert "\n" not in failed[bad]
    assert failed[later] == f"needs {bad}, which failed"
    before = Path(good).stat().st_mtime_ns
    assert set(run_steps(plan, quiet=True)) == {bad, later}
    assert Path(good).stat().st_mtime_ns == before


def test_a_finished_run_of_other_settings_is_not_taken(tmp_path):
    trainings = {"base": {"config": ["a.yaml"], "options": {"trainer.max_epochs": 2}}}
    plan = load_plan(make_plan(tmp_path, trainings=trainings))
    step = plan.steps["base"]
    step.folder.mkdir(parents=True)
    step.result.write_text("{}")
    (step.folder / "run.json").write_text(json.dumps({"command": ["fit", *step.words]}))
    assert step.finished()
    changed = load_plan(tmp_path / "plan.yaml", options={"trainer.max_epochs": 3})
    with pytest.raises(ValueError, match="it has 2 instead of 3"):
        changed.steps["base"].finished()


@pytest.mark.parametrize("made", ["something else", "other settings"])
def test_a_folder_that_is_not_the_plans_is_left_alone(made, tmp_path):
    plan = load_plan(make_plan(tmp_path, trainings={"base": {"config": ["a.yaml"]}}))
    step = plan.steps["base"]
    (step.folder / "20260101-run").mkdir(parents=True)
    if made == "other settings":
        (step.folder / "run.json").write_text(
            json.dumps({"command": ["fit", *step.words, "--trainer.max_epochs", "9"]})
        )
    failed = run_steps(plan, quiet=True)
    assert ("begun with other settings" if made == "other settings" else "without run.json") in failed["base"]
    assert (step.folder / "20260101-run").exists()


@pytest.mark.slow
def test_a_killed_study_resumes_to_the_same_weights(tmp_path, make_showers):
    import torch

    write(tmp_path / "zn.root", make_showers(responses=20))
    trainings = {"photons": {"config": [str(CONF / "photons.yaml")]}}
    options = {
        "data.files": [str(tmp_path / "zn.root")],
        "trainer.max_epochs": 6,
        "data.batch_size": 8,
        "model.hidden": [8],
    }
    weights = []
    for name in ("straight", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        path = make_plan(folder, trainings=trainings, common=options)
        last = folder / "out" / "photons" / "checkpoints" / "last.ckpt"
        if name == "killed":
            code = f"from calosim.studies.plan import load_plan; from calosim.studies.runner import run_steps; run_steps(load_plan({str(path)!r}), quiet=True)"
            study = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
            deadline = time.monotonic() + 200
            while not last.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            study.send_signal(signal.SIGTERM)
            study.wait(60)
            assert not (folder / "out" / "photons" / "training.json").exists(), "it was over before it could be killed"
        assert run_steps(load_plan(path), quiet=True) == {}
        record = json.loads((folder / "out" / "photons" / "training.json").read_text())
        assert record["epochs"] == 6
        weights.append(torch.load(last, weights_only=True)["state_dict"])
    assert (tmp_path / "killed" / "out" / "photons" / "config.resumed-1.yaml").exists()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
