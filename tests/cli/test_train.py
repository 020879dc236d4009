"""The training verbs: models by their short names, overrides, the run folder, shipped settings, one-line refusals."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from calosim.io import read_json, write_json
from calosim.runs import Run

#: A few batches of everything (the command reads 1 as all of them), quietly.
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.max_epochs", 1]
QUICK += ["--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 2, "--data.batch_size", 16]
PIXELS = ["-c", "conf/teacher.yaml", "-c", "conf/representation/pixels.yaml"]
SPLITS = [
    "--model.representation.hidden",
    16,
    "--model.representation.event",
    8,
    "--model.representation.local_hidden",
    8,
]
TINY = ["--model.flow.hidden", "[8,8]", "--model.flow.transforms", 1, "--model.flow.bins", 4]
#: A small checkerboard validation instead of the configuration's.
CALLBACKS = json.dumps([{"class_path": "callbacks.CheckerboardValidation", "init_args": {"rows": 8, "pictures": 2}}])


@pytest.fixture
def resolved(command, capsys):
    """The settings that ``calosim fit`` would train with: ``resolved(*words)``."""

    def get(*words: object) -> dict:
        capsys.readouterr()
        assert command("fit", *words, "--print_config") == 0
        return yaml.safe_load(capsys.readouterr().out)

    return get


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Teacher", "calosim.models.Teacher"])
def test_models_have_short_names(name, resolved, tmp_path):
    init = "{flow: {bins: 3}, coordinates: {class_path: PixelConfig}}"
    (tmp_path / "own.yaml").write_text(f"model:\n  class_path: {name}\n  init_args: {init}\n")
    pixels = ["--model", name, "--model.representation", "PixelConfig", "--model.flow.bins", 3]
    for words in (pixels, ["-c", tmp_path / "own.yaml"]):
        model = resolved(*words)["model"]
        assert model["class_path"].endswith(".Teacher")
        assert model["init_args"]["flow"]["bins"] == 3
        assert model["init_args"]["flow"]["transforms"] == 4  # the default, once
        assert _values(model["init_args"]["representation"]) == {"noise": 0.5, "alpha": 1e-6, "standardize": True}


def _values(settings: dict) -> dict:
    return settings.get("init_args", settings)


def test_every_setting_can_be_overridden_one_by_one(resolved):
    words = ["-c", "conf/student.yaml", "--model.flow.hidden", "[9]", "--model.losses.channel.weight", 0.5]
    words += ["--model.flow.dropout", 0]
    settings = resolved(*words, "--model.losses.x.parameters", 0, "--best.monitor", "val/ws", "--data.detector", "zp")
    model = settings["model"]["init_args"]
    assert model["flow"]["hidden"] == [9]
    assert model["flow"]["dropout"] == 0.0
    assert model["flow"]["bins"] is None  # the teacher's
    assert model["losses"]["channel"] == {"weight": 0.5, "warmup_steps": 0, "scale": "poisson", "convention": "paper"}
    assert model["losses"]["x"] == {"outputs": 1.0, "intermediate": 1.0, "parameters": 0.0}
    assert (settings["best"]["monitor"], settings["last"]["filename"]) == ("val/ws", "last")


def test_shipped_settings_are_found_from_anywhere(resolved, tmp_path, monkeypatch, command, capsys):
    monkeypatch.chdir(tmp_path)
    assert resolved("-c", "conf/photons.yaml")["trainer"]["gradient_clip_val"] == 5.0  # base.yaml's
    # A local file of that name comes first.
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "teacher.yaml").write_text("model: {class_path: Teacher}\ntrainer: {max_epochs: 7}\n")
    assert resolved("-c", "conf/teacher.yaml")["trainer"]["max_epochs"] == 7
    assert command("fit", "-c", "conf/nothing.yaml") == 2
    assert "calosim: error: conf/nothing.yaml: no such file" in capsys.readouterr().err


def test_overrides_reach_the_run(root_file, tmp_path, command):
    words = [*TINY, "--model.optimizer.lr", "3e-4", "--data.sampling", "balanced", "--data.files", root_file, *QUICK]
    words += ["--trainer.max_epochs", 2, "--trainer.callbacks", "null", "--run", tmp_path]
    assert command("fit", *PIXELS, *words) == 0
    config = Run(tmp_path).config
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert config["data"]["sampling"] == "balanced"


def test_run_folders_are_unique_by_default(root_file, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    words = ["--data.files", root_file, "--model.hidden", "[8]", *QUICK]
    for _ in range(2):
        assert command("fit", "-c", "conf/photons.yaml", *words) == 0
    assert len(list(Path("runs/photonsum").iterdir())) == 2


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_must_be_named(photons, again, error_of):
    words = again[:-2]
    assert "expected --ckpt_path, a checkpoint to test" in error_of("test", *words)
    assert "expected --run RUN_FOLDER" in error_of("test", *words, "--ckpt_path", "best")
    other = [*again, "--model.hidden", "[9]", "--ckpt_path", "best"]
    assert "loading state_dict" in error_of("test", *other)


def test_what_a_model_says_of_its_arguments_is_one_clear_line(tmp_path, root_file, error_of):
    words = ["--data.files", root_file, *TINY, "--model.flow.bins", -1, "--run", tmp_path / "run"]
    line = error_of("fit", *PIXELS, *words)
    assert line == "calosim: error: expected a number of bins, or 0 for affine maps, got -1"
    words = ["--data.files", root_file, "--model.representation.phases", 5, "--run", tmp_path / "run"]
    assert error_of("fit", "-c", "conf/teacher.yaml", *words) == "calosim: error: expected phases of 1 or 2, got 5"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.files", "nowhere.root"], "nowhere.root: no such file"),
        (["--data.particle", "k0s"], "no row of particle k0s"),
        (["--data.particle", "xyz"], "unknown particle 'xyz'"),
        (["--data.detector", "zp"], "holds ZN responses; expected ZP"),
        (["--data.batch_size", "0"], "batch size"),
    ],
)
def test_errors_are_one_line(words, said, root_file, tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    assert said in error_of("fit", "-c", "conf/photons.yaml", "--data.files", root_file, *words)


# -- logs and processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silence", [[], ["--quiet"], ["--quiet", "false"]])
def test_a_log_without_a_terminal_gets_a_line_an_epoch(silence, root_file, tmp_path, capfd, command):
    words = ["-c", "conf/photons.yaml", "--data.files", root_file, "--model.hidden", "[8]", "--run", tmp_path, *QUICK]
    more = ["--trainer.enable_progress_bar", "null", "--trainer.max_epochs", 2, *silence]
    assert command("fit", *words, *more) == 0
    said = capfd.readouterr().out
    assert said.count("epoch ") == (0 if silence == ["--quiet"] else 2)
    assert ("epoch 2 of 2: train/loss" in said) == (silence != ["--quiet"])
    assert "\r" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        ["-c", "conf/representation/pixels.yaml", *TINY, "--model.flow.dropout", "0"],
        # All rows count below the coarse part: which rows come first in a batch depends on the number of processes.
        [*SPLITS, "--model.representation.local_share", "1"],
    ],
    ids=["pixels", "splits"],
)
def test_two_processes_train_as_one(sizes, root_file, tmp_path):
    """Half the batch size on two processes: the same global batches, the same loss, one run folder."""
    command = [sys.executable, "-m", "calosim", "fit", "-c", "conf/teacher.yaml", *sizes, *QUICK[:4]]
    command += ["--data.files", root_file, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    command += ["--trainer.callbacks", CALLBACKS]
    losses = []
    for processes, batch in ((1, 64), (2, 32)):
        words = ["--run", tmp_path / str(processes), "--data.batch_size", batch, "--trainer.devices", processes]
        if processes > 1:
            words += ["--trainer.strategy", "ddp"]
        done = subprocess.run([*map(str, [*command, *words])], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader((tmp_path / str(processes) / Run.METRICS).read_text().splitlines()))
        losses.append([float(next(r[key] for r in rows if r.get(key))) for key in ("val/loss", "val/ws")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert "sessions" not in Run(tmp_path / "2").record


@pytest.mark.parametrize(
    ("environment", "one"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3", "SLURM_NTASKS": "2"}, True),
    ],
)
def test_only_tasks_of_one_slurm_step_share_a_folder(environment, one, monkeypatch, tmp_path):
    """Two trainings in one job are two runs; the tasks of a step cannot talk to each other before they have a folder."""
    from jsonargparse import Namespace

    from calosim.cli.train import folder_of

    monkeypatch.chdir(tmp_path)
    for name in ("CALOSIM_RUN", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = Namespace(model=Namespace(class_path="calosim.Teacher"), run=None)
    folders = [folder_of("fit", config, None, ["a"]) for _ in range(2)]
    assert (folders[0] == folders[1]) == one
    assert all(folder.startswith("runs/teacher/slurm-7-") for folder in folders) == bool(environment)
    assert folder_of("fit", config, None, ["b"]) not in folders
    # One that has come to its end is not begun again.
    write_json(Run(folders[1]) / Run.TRAINING, {"steps": 1})
    assert folder_of("fit", config, None, ["a"]) not in folders


def test_a_job_that_starts_again_finds_its_runs(monkeypatch, tmp_path, run_folders):
    from jsonargparse import Namespace

    from calosim.cli.train import folder_of, newest

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    config = Namespace(model=Namespace(class_path="calosim.PhotonSum"), run=None)
    run = Run(folder_of("fit", config, None, ["a"]))
    shutil.copytree(run_folders["photons"], run.folder, dirs_exist_ok=True)
    write_json(run / Run.RECORD, {"format": 2, "job": {"cluster": "", "job": "7"}})
    assert folder_of("fit", config, None, ["a"]) != str(run.folder)
    assert newest(run) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert folder_of("fit", config, None, ["a"]) == str(run.folder)
    assert newest(run) == str(run.last)
    # What it was gone on with last counts.
    write_json(run / Run.RECORD, read_json(run / Run.RECORD) | {"sessions": [{"job": {"cluster": "", "job": "8"}}]})
    assert newest(run) is None
