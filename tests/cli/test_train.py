"""The training verbs: models by their short names, overrides, the run folder, shipped settings, one-line refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from calosim.detectors import DETECTORS
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


def test_what_a_model_says_of_its_settings_is_the_whole_refusal(root_file, tmp_path, capsys, command):
    for option, said in {
        "--data.detector=zem": f"unknown detector 'zem'; expected one of {', '.join(DETECTORS)}",
        "--model.representation.phases=7": "expected phases of 1 or 2, got 7",
    }.items():
        words = ["-c", "conf/teacher.yaml", "--data.files", root_file, "--run", tmp_path / "r", option]
        assert command("fit", *words) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"calosim: error: {said}"
