"""Every file of conf/ runs through the real command, on tiny data."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml

from calosim.__main__ import main
from calosim.data.root import write
from calosim.models.teacher import Teacher
from calosim.representations import SplitConfig
from calosim.runs import Run
from calosim.studies.plan import Study
from calosim.studies.run import simulated

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml"))
#: The command reads 1 as all of them.
LIMITS = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"]
LIMITS += ["--trainer.enable_progress_bar", "false", "--data.batch_size", "16"]
SMALL = {
    "Teacher": [
        "--model.representation.hidden",
        "16",
        "--model.representation.event",
        "8",
        "--model.representation.local_hidden",
        "8",
    ],
    "PhotonSum": ["--model.hidden", "[8]"],
    "Acceptance": ["--model.hidden", "[8]"],
    "FlowMatching": ["--model.widths", "[4,4]", "--model.embedding", "8", "--model.steps", "2"],
    "GAN": ["--model.width", "8"],
    "VAE": ["--model.width", "8", "--model.latent", "2"],
}
PIXELS = ["--model.flow.hidden", "[8,8]", "--model.flow.transforms", "1"]
#: Further files that an overlay of pixel coordinates needs below it, and whose teacher its students need.
BELOW = {
    "demo/pixels.yaml": ["representation/pixels.yaml"],
    "demo/pixels-student.yaml": ["representation/pixels-student.yaml"],
    "student/compact.yaml": ["representation/pixels-student.yaml"],
}
#: Which file an overlay lies on; others stand alone.
BASES = {
    "demo/teacher.yaml": "teacher.yaml",
    "demo/student.yaml": "student.yaml",
    "representation/pixels.yaml": "teacher.yaml",
    "representation/pixels-student.yaml": "student.yaml",
    "demo/pixels.yaml": "teacher.yaml",
    "demo/pixels-student.yaml": "student.yaml",
    "student/compact.yaml": "student.yaml",
    "student/diversity.yaml": "student.yaml",
    "student-focal_h.yaml": "student.yaml",
    "study/plain.yaml": "teacher.yaml",
    "processor_time.yaml": "vae.yaml",
    "finetune/individual.yaml": "teacher.yaml",
    "finetune/baseline_long.yaml": "teacher.yaml",
}
#: Files of other verbs, and what makes them quick.
TOOLS = {
    "demo/simulate.yaml": ["--primaries", "20", "--out", "x.root"],
    "demo/evaluate.yaml": ["--rows", "4", "--runs", "1", "--responses", "1", "--out", "out"],
    "demo/explain.yaml": [
        "--rows",
        "2",
        "--background",
        "3",
        "--uncertainty_rows",
        "10",
        "--posterior",
        "2",
        "--out",
        "out",
    ],
}
TOOLS["demo/explain.yaml"] += ["--surrogate_rows", "100", "--surrogate_epochs", "1", "--compare_rows", "0"]
#: Plans of `calosim compare`, and what they have in common.
PLANS = [name for name in FILES if "trainings" in yaml.safe_load((CONF / name).read_text())]
COMMON = [name for name in FILES if name.startswith("study/common/")]


@pytest.fixture(scope="session")
def showers_of(make_showers, root_file, dark_file, once):
    """The ROOT file of a detector's showers, or of attempts with and without a response."""

    def get(detector):
        if detector == "dark":
            return dark_file
        if detector == "zn":
            return root_file
        make = lambda folder: write(folder / "showers.root", make_showers(detector, responses=3))  # noqa: E731
        return once(detector, make) / "showers.root"

    return get


@pytest.fixture(scope="session")
def teacher_of(showers_of, run_folders, once, fit):
    """The run folder of a detector's teacher."""

    def get(detector, pixels):
        if detector == "zn":
            return run_folders["teacher" if pixels else "splits"]
        few = {"limit_train_batches": 1, "limit_val_batches": 1}
        teacher = Teacher(detector, representation=SplitConfig(hidden=16, event=8, local_hidden=8))
        make = lambda folder: fit(teacher, showers_of(detector), folder, detector=detector, trainer=few)  # noqa: E731
        return once(f"{detector}-teacher", make)

    return get


def last_callback(layers):
    """The class of the last callback of files of settings, one on top of the other."""
    classes = []
    for layer in layers:
        trainer = yaml.safe_load((CONF / layer).read_text()).get("trainer", {})
        classes = [entry["class_path"] for entry in trainer.get("callbacks", [])] if "callbacks" in trainer else classes
        classes += [entry["class_path"] for entry in trainer.get("callbacks+", [])]
    return classes[-1] if classes else None


@pytest.mark.parametrize("name", [f for f in FILES if f not in {*TOOLS, *PLANS, *COMMON}])
def test_training_configuration(name, tmp_path, monkeypatch, showers_of, teacher_of, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    called: list[object] = []
    if name == "logger/mlflow.yaml":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **_: called.append(words) or [])
    own = yaml.safe_load((CONF / name).read_text()).get("model") or {}
    base = BASES.get(name, name if "class_path" in own else "photons.yaml")
    detector = yaml.safe_load((CONF / name).read_text()).get("data", {}).get("detector", "zn")
    model = yaml.safe_load((CONF / base).read_text())["model"]["class_path"]
    layers = [base, *BELOW.get(name, []), *([name] if name != base else [])]
    pixels = any("pixels" in layer for layer in layers)
    files = [word for layer in layers for word in ("-c", str(CONF / layer))]
    small = (PIXELS if model == "Teacher" else PIXELS[:2]) if pixels else SMALL.get(model, [])
    words = [*LIMITS, *small, "--data.files", str(showers_of("dark" if model == "Acceptance" else detector))]
    words += ["--run", str(tmp_path / "run")]
    if model in ("FineTune", "Student"):
        # Of pixels, whose one transformation is one stage of an unfreezing; those of splits need more epochs.
        words += ["--model.init_from", str(teacher_of(detector, pixels or model == "FineTune"))]
    # The checkerboard callback generates; its default of 512 rows is for real trainings. The option reaches the last
    # callback of the list.
    if last_callback(layers) == "callbacks.CheckerboardValidation":
        words += ["--trainer.callbacks.rows", "2", "--trainer.callbacks.pictures", "1"]
    if name == "processor_time.yaml":
        words[words.index("--trainer.max_epochs") + 1] = "-1"
        words += ["--trainer.callbacks.minutes", "0.001"]
    if name == "cluster/slurm.yaml":
        assert main(["fit", *files, *words]) == 2  # outside of Slurm
        for key, value in {"STEP_ID": 0, "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
            monkeypatch.setenv(f"SLURM_{key}", str(value))
    assert main(["fit", *files, *words]) == 0
    assert Run(tmp_path / "run").best.exists()
    if name == "logger/wandb.yaml":
        import wandb

        wandb.finish()
        assert main(["fit", *files, *words, "--ckpt_path", "last"]) == 0
        written = [path.stem for path in tmp_path.rglob("run-*.wandb")]
        assert written == [f"run-{Run(tmp_path / 'run').wandb}"] * 2, "expected two sessions of one offline W&B run"
    if name == "logger/mlflow.yaml":
        from mlflow import MlflowClient
        from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

        words[words.index("--trainer.max_epochs") + 1] = "2"
        assert main(["fit", *files, *words, "--ckpt_path", "last"]) == 0
        client = MlflowClient(f"file:{tmp_path / 'runs' / 'mlflow'}")
        (run,) = client.search_runs([client.get_experiment_by_name("calosim").experiment_id])
        assert run.info.run_id == Run(tmp_path / "run").mlflow, "expected two sessions of one MLflow run"
        assert run.info.status == "FINISHED"
        assert run.data.params["config/trainer/max_epochs"] == "1"
        assert run.info.run_name == str(tmp_path / "run")
        assert [metric.value for metric in client.get_metric_history(run.info.run_id, "epoch")] == [0, 1]
        assert MLFLOW_DISABLE_TELEMETRY.get()  # which it does not send from tests anyway
        assert called == [], "expected no call of anything outside"
        assert "WARNING" not in caplog.text


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_tool_configuration(name, tmp_path, monkeypatch, run_folders):
    monkeypatch.chdir(tmp_path)
    verb = Path(name).stem
    words = [*TOOLS[name], "--quiet"]
    if verb != "simulate":
        words += ["--shower", str(run_folders["teacher"])]
        words += ["--photons", f"[{run_folders['photons']}]" if verb == "evaluate" else str(run_folders["photons"])]
    assert main([verb, "-c", str(CONF / name), *words]) == 0
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PLANS)
def test_plan(name, tmp_path):
    plan = Study(CONF / name, out=str(tmp_path / "out"))
    assert plan.table.columns
    # Every training's options are understood by the real command, and so are those of its evaluation.
    for label, (step, *_) in plan.runs.items():
        assert step.settings["model"]["class_path"].startswith("calosim."), label
        assert step.settings["data"]["files"] == step.options["data.files"]
    evaluation = next(step for step in plan.steps.values() if step.subcommand == "evaluate")
    assert main(["evaluate", *evaluation.words, "--print_config"]) == 0
    for step in plan.steps.values():
        assert step.subcommand != "simulate" or simulated(step.options).items() >= dict(step.options).items()


@pytest.mark.parametrize("name", COMMON)
def test_what_plans_have_in_common_is_included(name):
    by = [
        plan
        for plan in PLANS
        if name.removeprefix("study/") in yaml.safe_load((CONF / plan).read_text()).get("include", [])
    ]
    assert len(by) > 1, "one plan alone needs no file for what it has in common with others"


def test_the_baselines_of_several_plans_are_those_of_one():
    used = {"ablation": "teacher", "compact": "default", "compare": "base_long", "imbalance": "natural"}
    folders = {Study(CONF / "study" / f"{name}.yaml").runs[label][0].folder for name, label in used.items()}
    assert folders == {
        step.folder for label in ("base", "long") for step in Study(CONF / "study/baseline.yaml").runs[label][:1]
    }
