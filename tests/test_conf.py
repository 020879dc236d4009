"""Every file of conf/ runs through the real command, on tiny data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from calosim.__main__ import main
from calosim.models.teacher import Teacher
from calosim.showers.root import write
from calosim.studies.layout import Table
from calosim.studies.plan import load_plan
from calosim.studies.settings import simulated

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml"))
LIMITS = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
LIMITS += ["--trainer.enable_progress_bar", "false", "--data.batch_size", "16"]
SMALL = {
    "calosim.models.teacher.Teacher": ["--model.hidden", "[8,8]", "--model.transforms", "1"],
    "calosim.models.photons.PhotonSum": ["--model.hidden", "[8]"],
    "calosim.models.student.Student": ["--model.hidden", "[8,8]"],
    "calosim.models.finetune.FineTune": [],
}
#: Which file an overlay lies on; others stand alone.
BASES = {
    "base.yaml": "photons.yaml",
    "data/zn.yaml": "photons.yaml",
    "data/zp.yaml": "photons.yaml",
    "data/focal_h.yaml": "photons.yaml",
    "logger/wandb.yaml": "photons.yaml",
    "demo/photons.yaml": "photons.yaml",
    "demo/teacher.yaml": "teacher.yaml",
    "demo/student.yaml": "student.yaml",
    "student/compact.yaml": "student.yaml",
    "student/diversity.yaml": "student.yaml",
    "student-focal_h.yaml": "student.yaml",
    "study/short.yaml": "student.yaml",
    "study/plain.yaml": "teacher.yaml",
    "finetune/individual.yaml": "teacher.yaml",
    "finetune/baseline_long.yaml": "teacher.yaml",
}
#: Files of other verbs; the commands that take them are tried in test_cli.py with the options named here.
TOOLS = {"demo/simulate.yaml": "simulate", "demo/evaluate.yaml": "evaluate", "demo/explain.yaml": "explain"}
#: Overlays after which the checkerboard callback is not the last one.
NOT_LAST = {"short.yaml", "plain.yaml", "diversity.yaml"}
#: Plans of `calosim compare`, and what they have in common.
PLANS = [name for name in FILES if "trainings" in yaml.safe_load((CONF / name).read_text())]
COMMON = [name for name in FILES if name.startswith("study/common/")]


@pytest.mark.parametrize("name", [f for f in FILES if f not in {*TOOLS, *PLANS, *COMMON}])
def test_training_configuration(name, make_showers, tmp_path, monkeypatch, fit, run_folders):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    base = BASES.get(name, name)
    detector = yaml.safe_load((CONF / name).read_text()).get("data", {}).get("detector", "zn")
    write(tmp_path / "showers.root", make_showers(detector, responses=3))
    model = yaml.safe_load((CONF / base).read_text())["model"]["class_path"]
    files = ["-c", str(CONF / base)] + (["-c", str(CONF / name)] if name != base else [])
    # The checkerboard callback generates; its default of 512 rows is for real trainings.
    words = [*LIMITS, *SMALL[model], "--data.files", str(tmp_path / "showers.root"), "--run", str(tmp_path / "run")]
    if model.endswith("FineTune"):
        words += ["--model.init_from", str(run_folders["teacher"])]
    if model.endswith("Student"):
        teacher = Teacher(detector, transforms=2, hidden=(8, 8), bins=4)
        one = {"limit_train_batches": 1, "limit_val_batches": 1}
        fit(teacher, tmp_path / "showers.root", tmp_path / "teacher", detector=detector, trainer=one)
        words += ["--model.init_from", str(tmp_path / "teacher")]
    # The option reaches the last callback of the list.
    if "CheckerboardValidation" in (CONF / base).read_text() and name.split("/")[-1] not in NOT_LAST:
        words += ["--trainer.callbacks.rows", "4"]
    assert main(["fit", *files, *words]) == 0
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    if name == "logger/wandb.yaml":
        assert list(tmp_path.rglob("run-*.wandb")), "no offline W&B run was written"


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_tool_configuration(name, tmp_path, monkeypatch, run_folders, root_file, capfd):
    monkeypatch.chdir(tmp_path)
    if name == "demo/simulate.yaml":
        words = ["--primaries", "20", "--out", "x.root", "--quiet", "true"]
        assert main(["simulate", "-c", str(CONF / name), *words]) == 0
        assert (tmp_path / "x.root").exists()
    else:
        # The fixture's folders were not made by the command, so the data cannot be known: the settings are read, then refused.
        words = ["--photons", str(run_folders["photons"])] if TOOLS[name] == "explain" else []
        words += ["--shape", str(run_folders["teacher"]), "--out", "e"]
        assert main([TOOLS[name], "-c", str(CONF / name), *words]) == 2
        assert "config.yaml" in capfd.readouterr().err


@pytest.mark.parametrize("name", PLANS)
def test_plan(name, tmp_path):
    plan = load_plan(CONF / name, out=str(tmp_path / "out"))
    Table.of(plan)
    # Every training's options are understood by the real command, and so are those of what judges it.
    for label in plan.trainings:
        step = plan.runs(label)[0]
        assert step.settings["model"]["class_path"].startswith("calosim."), label
        assert step.settings["data"]["files"] == step.options["data.files"]
    judging = next(step for step in plan.steps.values() if step.verb == "evaluate")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["evaluate", *judging.words, "--print_config"])
    for step in plan.steps.values():
        assert step.verb != "simulate" or simulated(step.options).items() >= dict(step.options).items()


@pytest.mark.parametrize("name", COMMON)
def test_what_plans_have_in_common_is_included(name):
    by = [
        plan
        for plan in PLANS
        if name.removeprefix("study/") in yaml.safe_load((CONF / plan).read_text()).get("include", [])
    ]
    assert len(by) > 1, "one plan alone needs no file for what it has in common with others"


def test_the_baseline_of_several_plans_is_one_training():
    labels = {"ablation": "teacher", "compact": "teacher", "compare": "base", "imbalance": "natural"}
    folders = {load_plan(CONF / "study" / f"{name}.yaml").runs(label)[0].folder for name, label in labels.items()}
    assert len(folders) == 1
    assert folders.pop().parent == Path("runs/shared")
