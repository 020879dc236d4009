"""The command line: the main job from a ROOT file to tables, overrides, resuming, and errors in one line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from calosim.__main__ import VERBS, main

TINY = ["--model.hidden", "[8,8]", "--model.transforms", "1", "--model.bins", "4", "--data.batch_size", "64"]
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
CONF = Path(__file__).resolve().parents[2] / "conf"


def run(*words: object) -> int:
    return main([str(w) for w in words])


def error_of(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a failing command prints."""
    capfd.readouterr()
    assert run(*words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def runs(root_file, tmp_path_factory) -> Path:
    """Run folders ``teacher`` and ``photons``, trained by the command for one epoch."""
    folder = tmp_path_factory.mktemp("commands")
    common = ["--data.files", root_file, "--trainer.max_epochs", 1, *QUICK]
    teacher = [*TINY, "--trainer.callbacks", CALLBACKS, "--run", folder / "teacher"]
    assert run("fit", "-c", CONF / "teacher.yaml", *common, *teacher) == 0
    photons = ["--model.hidden", "[8]", "--model.posterior_samples", 2, "--run", folder / "photons"]
    assert run("fit", "-c", CONF / "photons.yaml", *common, *photons) == 0
    return folder


#: base.yaml's checkpoints and a small checkerboard validation.
CALLBACKS = json.dumps(
    [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {
                "monitor": "val/loss",
                "filename": "best",
                "save_last": True,
                "enable_version_counter": False,
            },
        },
        {"class_path": "callbacks.CheckerboardValidation", "init_args": {"rows": 8, "pictures": 2}},
    ]
)


def test_a_run_folder_explains_itself(runs, root_file):
    folder = runs / "teacher"
    assert {"config.yaml", "run.json", "metrics.csv", "checkpoints", "pictures"} <= set(os.listdir(folder))
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 1
    assert record["data"]["files"] == [str(root_file)]
    assert len(record["data"]["data_hash"]) == 32
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["hidden"] == [8, 8]
    assert config["data"]["batch_size"] == 64
    metrics = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert any(row["val/loss"] for row in metrics)
    assert any(row["val/ws"] for row in metrics)
    assert (folder / "pictures" / "epoch=000.png").stat().st_size > 1000


def test_checkpoints_load_without_pickles(runs):
    for model in ("teacher", "photons"):
        torch.load(runs / model / "checkpoints" / "best.ckpt", weights_only=True)


def test_overrides_reach_the_run(root_file, tmp_path):
    words = [*TINY, "--trainer.max_epochs", 2, "--model.optimizer.lr", "3e-4", "--data.sampling", "balanced"]
    words += ["--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1, "--data.files", root_file]
    assert (
        run("fit", "-c", CONF / "teacher.yaml", *words, *QUICK, "--trainer.callbacks", "null", "--run", tmp_path) == 0
    )
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert config["data"]["sampling"] == "balanced"


def test_run_folders_are_unique_by_default(root_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--data.files", root_file, "--trainer.max_epochs", 1, "--model.hidden", "[8]"]
    for _ in range(2):
        assert run("fit", "-c", CONF / "photons.yaml", *words, *QUICK) == 0
    assert len(list(Path("runs/photonsum").iterdir())) == 2


def test_a_second_run_in_one_folder_is_refused_but_resumes(runs, root_file, tmp_path, capfd):
    words = ["-c", CONF / "photons.yaml", "--data.files", root_file, "--model.hidden", "[8]", "--run", tmp_path, *QUICK]
    assert run("fit", *words, "--trainer.max_epochs", 1) == 0
    before = [(tmp_path / name).read_text() for name in ("config.yaml", "metrics.csv")]
    assert "holds a run already" in error_of(capfd, "fit", *words, "--trainer.max_epochs", 2)
    assert run("fit", *words, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    assert [(tmp_path / name).read_text() for name in ("config.yaml", "metrics.csv")] == before
    assert "val/loss" in (tmp_path / "fit-1" / "metrics.csv").read_text()
    assert (tmp_path / "config.resumed-1.yaml").exists()
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_training_verbs(verb, runs, root_file):
    words = ["--ckpt_path", runs / "photons/checkpoints/best.ckpt", "--data.files", root_file]
    words += ["--model.hidden", "[8]", "--model.posterior_samples", 2]
    assert run(verb, "-c", CONF / "photons.yaml", *words, *QUICK[:2]) == 0
    if verb == "predict":
        with np.load(runs / "photons" / "predictions.npz") as made:
            assert made["photon_sum"].shape == made["rows"].shape
            assert (made["photon_sum"] > 0).all()
        return
    logged = (runs / "photons" / f"{verb}-1" / "metrics.csv").read_text()
    assert verb[:3] in logged
    if verb == "validate":
        # The checkpoint's weights, not random ones: the loss it had in training.
        trained = csv.DictReader((runs / "photons" / "metrics.csv").read_text().splitlines())
        before = [row["val/loss"] for row in trained if row["val/loss"]][-1]
        after = next(csv.DictReader(logged.splitlines()))["val/loss"]
        assert float(after) == pytest.approx(float(before), rel=1e-5)


def test_a_checkpoint_must_be_named(runs, root_file, tmp_path, capfd):
    words = ["-c", CONF / "photons.yaml", "--data.files", root_file, "--model.hidden", "[8]", *QUICK[:2]]
    assert "expected --ckpt_path, a checkpoint to test" in error_of(capfd, "test", *words)
    assert "expected --run RUN_FOLDER" in error_of(capfd, "test", *words, "--ckpt_path", "best")
    other = ["-c", CONF / "photons.yaml", "--data.files", root_file, "--model.hidden", "[9]", *QUICK[:2]]
    assert "loading state_dict" in error_of(capfd, "test", *other, "--run", runs / "photons", "--ckpt_path", "best")


def test_a_run_resumes_from_its_own_configuration(root_file, tmp_path):
    words = ["-c", CONF / "photons.yaml", "--data.files", root_file, "--model.hidden", "[8]", "--run", tmp_path, *QUICK]
    assert run("fit", *words, "--trainer.max_epochs", 1) == 0
    words = ["-c", tmp_path / "config.yaml", "--trainer.max_epochs", 2, "--ckpt_path", "last"]
    assert run("fit", *words) == 0
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_generate_then_evaluate(runs, root_file, tmp_path, capsys):
    from calosim.showers.reading import read

    primaries = tmp_path / "primaries.csv"
    primaries.write_text("pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0,0,0,100\n2112,1000,0,0,0,0.1,0,-999.99955\n")
    models = ["--shape", runs / "teacher", "--photons", runs / "photons"]
    out = tmp_path / "generated.root"
    assert run("generate", *models, "--primaries", primaries, "--responses", 3, "--out", out, "--batch_size", 4) == 0
    generated = read(out, "zn")
    assert generated.pdg.tolist() == [22, 22, 22, 2112, 2112, 2112]
    models[3] = f"[{runs / 'photons'}]"
    words = [*models, "--rows", 12, "--runs", 2, "--responses", 2, "--out", tmp_path / "evaluation", "--quiet", "true"]
    capsys.readouterr()
    assert run("evaluate", *words) == 0
    printed = capsys.readouterr().out
    for word in ("WS", "MAE_cond", "δ", "JaccErr", "floor", "trivial", "full chain", "mixture", "Pictures"):
        assert word in printed
    results = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert 5 <= results["rows"] <= 24
    assert results["data"]["data_hash"]
    assert {"evaluation.csv", "evaluation.md", "responses.png", "channels.png"} <= set(
        os.listdir(tmp_path / "evaluation")
    )


def test_evaluate_refuses_a_model_that_may_have_seen_the_rows(runs, root_file, tmp_path, capfd):
    words = ["-c", CONF / "photons.yaml", "--data.files", root_file, "--model.hidden", "[8]", "--data.seed", 7, *QUICK]
    assert run("fit", *words, "--trainer.max_epochs", 1, "--run", tmp_path / "other") == 0
    judged = ["--shape", runs / "teacher", "--photons", f"[{tmp_path}/other]", "--rows", 5, "--out", tmp_path / "e"]
    assert "lest it has seen the rows it is judged on; it has seed 7, not" in error_of(capfd, "evaluate", *judged)
    assert not (tmp_path / "e").exists()


def test_evaluate_refuses_changed_data(runs, tmp_path, make_showers, capfd):
    from calosim.showers.root import write

    other = tmp_path / "other.root"
    write(other, make_showers(seed=5))
    words = ["--shape", runs / "teacher", "--files", f"[{other}]", "--out", tmp_path / "e"]
    assert "not the data of" in error_of(capfd, "evaluate", *words)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "unknown verb 'train'"),
        (["fit", "-c", CONF / "photons.yaml", "--data.files", "nowhere.root"], "nowhere.root: no such file"),
        (
            ["fit", "-c", CONF / "photons.yaml", "--data.files", "{root}", "--data.particle", "k0s"],
            "no row of particle k0s",
        ),
        (
            ["fit", "-c", CONF / "photons.yaml", "--data.files", "{root}", "--data.particle", "xyz"],
            "unknown particle 'xyz'",
        ),
        (
            ["fit", "-c", CONF / "photons.yaml", "--data.files", "{root}", "--data.detector", "zp"],
            "holds ZN responses; expected ZP",
        ),
        (["fit", "-c", CONF / "photons.yaml", "--data.files", "{root}", "--data.batch_size", "0"], "batch size"),
        (["simulate", "--detector", "xx", "--out", "x.root"], "unknown detector 'xx'"),
        (["simulate", "--primaries", "5", "--out", "/proc/x/zn.root"], "/proc/x"),
        (["generate", "--shape", "nowhere", "--photons", "nowhere", "--primaries", "p", "--out", "o.root"], "nowhere"),
        (["evaluate", "--out", "e"], "nothing to evaluate"),
    ],
)
def test_errors_are_one_line(words, said, root_file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    line = error_of(capfd, *[str(w).format(root=root_file) if "{root}" in str(w) else w for w in words])
    assert said in line
    assert not list(tmp_path.glob("*.root"))


def test_help_lists_every_verb(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_the_installed_command_answers():
    command = Path(sys.executable).with_name("calosim")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("calosim ")


@pytest.mark.slow
def test_two_processes_train_as_one(root_file, tmp_path):
    """Half the batch size on two processes: the same global batches, the same loss, one run folder."""
    command = [sys.executable, "-m", "calosim", "fit", "-c", CONF / "teacher.yaml", "--data.files", root_file, *QUICK]
    command += [*TINY[:-2], "--model.dropout", "0", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    command += ["--trainer.callbacks", CALLBACKS]
    losses = []
    for processes, batch in ((1, 64), (2, 32)):
        words = ["--run", tmp_path / str(processes), "--data.batch_size", batch, "--trainer.devices", processes]
        if processes > 1:
            words += ["--trainer.strategy", "ddp"]
        done = subprocess.run([*map(str, [*command, *words])], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader((tmp_path / str(processes) / "metrics.csv").read_text().splitlines()))
        losses.append([float(next(r[key] for r in rows if r.get(key))) for key in ("val/loss", "val/ws")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not list(tmp_path.glob("2/config.resumed*"))


def test_what_a_model_says_of_its_arguments_is_one_clear_line(tmp_path, root_file, capfd):
    words = [
        "--data.files",
        str(root_file),
        "--model.hidden",
        "[8,8]",
        "--model.bins",
        "-1",
        "--run",
        str(tmp_path / "run"),
    ]
    assert main(["fit", "-c", str(CONF / "teacher.yaml"), *words]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == "calosim: error: expected a number of bins, or 0 for affine maps, got -1"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("silence", [[], ["--quiet"], ["--quiet", "false"]])
def test_a_log_without_a_terminal_gets_a_line_an_epoch(silence, root_file, tmp_path, capfd):
    words = ["-c", CONF / "photons.yaml", "--data.files", root_file, "--model.hidden", "[8]", "--run", tmp_path]
    assert run("fit", *words, *QUICK, "--trainer.enable_progress_bar", "null", "--trainer.max_epochs", 2, *silence) == 0
    said = capfd.readouterr().out
    assert said.count("epoch ") == (0 if silence == ["--quiet"] else 2)
    assert ("epoch 2 of 2: train/loss" in said) == (silence != ["--quiet"])
    assert "\r" not in said


@pytest.mark.parametrize(("words", "shown"), [(["--quiet"], False), (["--quiet=true"], False), ([], True)])
def test_switches_need_no_value_and_options_take_hyphens(words, shown, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # where progress would be shown
    out = tmp_path / "zn.root"
    assert run("simulate", "--primaries", 20, "--responses-per-primary=2", *words, "--out", out) == 0
    assert out.exists()
    assert ("showers" in capfd.readouterr().err) == shown
