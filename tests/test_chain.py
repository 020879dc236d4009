"""The whole way through the real command, for every kind of coordinates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from calosim import FastSimulator, Student, Teacher, read
from calosim.models.checkpoints import load_module
from calosim.runs import Run

#: Configuration files and options that make a tiny teacher of each kind.
KINDS = {
    "splits": (
        ["conf/teacher.yaml"],
        {"coarse_steps": 2, "hidden": 16, "event": 8, "local_hidden": 8},
    ),
    "pixels": (
        ["conf/teacher.yaml", "conf/representation/pixels.yaml"],
        {},
    ),
}
#: Files of settings of other kinds of model, and options that make them tiny.
WHOLE_IMAGES = {
    "flow_matching": {"widths": "[4,4]", "embedding": 8, "steps": 2},
    "gan": {"width": 8},
    "vae": {"width": 8},
}
FLOW = ["--model.flow.hidden", "[8,8]", "--model.flow.transforms", "2", "--model.flow.bins", "3"]


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def fit_words(root_file):
    """The beginning of every training here."""
    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "enable_model_summary": "false"}
    options = [word for key, value in limits.items() for word in (f"--trainer.{key}", value)]
    return ["--data.files", root_file, "--data.batch_size", 32, *options, "--quiet"]


def test_the_whole_chain(kind, fit_words, run_folders, root_file, command, tmp_path, monkeypatch, capfd):
    def run(*words) -> None:
        assert command(*words) == 0, capfd.readouterr().err

    files, sizes = KINDS[kind]
    configs = [word for file in files for word in ("-c", file)]
    size = FLOW if kind == "pixels" else [w for k, v in sizes.items() for w in (f"--model.representation.{k}", v)]
    teacher, tuned, student = (tmp_path / name for name in ("teacher", "tuned", "student"))
    callback = ["--trainer.callbacks.rows", 4, "--trainer.callbacks.pictures", 1]
    run("fit", *configs, *fit_words, *size, *callback, "--run", teacher)
    stages = len(Teacher.load(teacher).stages("gauss"))
    assert stages == (2 if kind == "pixels" else 1 + len(Teacher.load(teacher).representation.local))
    for order in ("gd", "dg"):
        words = ["--data.particle", "gamma", "--model.init_from", teacher, "--trainer.max_epochs", stages]
        run("fit", "-c", f"conf/finetune/{order}.yaml", *fit_words, *words, *callback, "--run", f"{tuned}-{order}")
        assert Run(f"{tuned}-{order}").record["ancestors"] == Teacher.load(teacher).lineage
    words = ["--model.losses.channel.weight", 0.005, "--model.losses.center", 0.01, "--model.init_from", teacher]
    overlay = ["-c", "conf/student/diversity.yaml"]
    run("fit", "-c", "conf/student.yaml", *overlay, *fit_words, *words, "--run", student)
    assert isinstance(Student.load(student), Student)
    # The checkpoint says what it is made of, and the resolved settings can be run again.
    stored = torch.load(Run(teacher).checkpoint, weights_only=True)["calosim"]
    assert (stored["format"], stored["class"], stored["init"]["representation"]["kind"]) == (2, "Teacher", kind)
    assert yaml.safe_load((teacher / "config.yaml").read_text())["model"]["init_args"]["representation"]
    run("fit", "-c", teacher / "config.yaml", "--quiet", "--run", tmp_path / "again")
    again, first = (torch.load(Run(f).last, weights_only=True)["state_dict"] for f in (tmp_path / "again", teacher))
    assert all(torch.equal(again[name], first[name]) for name in first)
    run(
        "ensemble",
        "--folder",
        tmp_path / "best",
        "--default",
        teacher,
        "--members",
        f"{{gamma: {tuned}-gd}}",
        "--photons",
        run_folders["photons"],
    )
    run("generate", "--shower", tmp_path / "best", "--primaries", root_file, "--out", tmp_path / "fast.root", "--quiet")
    for shape in (teacher, student):
        words = ["--rows", 30, "--runs", 1, "--responses", 2, "--classifier", "false", "--quiet"]
        run(
            "evaluate",
            "--shower",
            shape,
            "--photons",
            f"[{run_folders['photons']}]",
            *words,
            "--out",
            shape / "evaluation",
        )
        assert json.loads((shape / "evaluation" / "evaluation.json").read_text())["images"]
    run("report", "--runs", f"[{tmp_path}]", "--out", tmp_path / "report.html", "--quiet")
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_rows_do_not_depend_on_their_batch_and_sums_are_conserved_by_splits(kind, run_folders, root_file):
    simulator = FastSimulator.load(run_folders["splits" if kind == "splits" else "teacher"])
    showers = read(root_file)
    particles, pdg, total = showers.particles[:40], showers.pdg[:40], showers.photon_sum[:40]
    whole = simulator.sample(particles, pdg, 3, photon_sum=total)
    some = np.array([5, 17, 30])
    alone = simulator.sample(particles[some], pdg[some], 3, rows=some, photon_sum=total[some])
    np.testing.assert_array_equal(alone, whole[some])
    if kind == "splits":
        np.testing.assert_array_equal(whole.sum((1, 2)), total)


def test_noise_removals_belong_to_pixels(run_folders, root_file, command, tmp_path, capfd):
    words = ["--shower", run_folders["splits"], "--photons", run_folders["photons"], "--primaries", root_file]
    assert command("generate", *words, "--out", tmp_path / "x.root", "--requantization", 3) == 2
    assert "counts come out exactly" in capfd.readouterr().err
    assert not (tmp_path / "x.root").exists()


@pytest.mark.parametrize("name", WHOLE_IMAGES)
def test_every_kind_of_model_goes_the_whole_way(name, fit_words, run_folders, root_file, command, tmp_path, capfd):
    def run(*words) -> None:
        assert command(*words) == 0, capfd.readouterr().err

    size = [word for key, value in WHOLE_IMAGES[name].items() for word in (f"--model.{key}", value)]
    trained, tuned, exported = (tmp_path / folder for folder in ("trained", "tuned", "exported"))
    callback = ["--trainer.callbacks.rows", 4, "--trainer.callbacks.pictures", 1]
    run("fit", "-c", f"conf/{name}.yaml", *fit_words, *size, *callback, "--run", trained)
    words = ["-c", "conf/finetune/full.yaml", *fit_words, "--data.particle", "gamma", "--model.init_from", trained]
    run("fit", *words, *callback, "--run", tuned)
    kind = torch.load(Run(trained).checkpoint, weights_only=True)["calosim"]["class"]
    assert torch.load(Run(tuned).checkpoint, weights_only=True)["calosim"]["class"] == kind
    run("test", "-c", trained / "config.yaml", "--ckpt_path", trained / "checkpoints/best.ckpt", "--quiet")
    chain = ["--shower", trained, "--photons", run_folders["photons"]]
    run("generate", *chain, "--primaries", root_file, "--out", tmp_path / "fast.root", "--quiet")
    assert (read(tmp_path / "fast.root").photon_sum >= 10).all()
    few = ["--rows", 20, "--runs", 1, "--responses", 2, "--classifier", "false", "--quiet"]
    run(
        "evaluate",
        "--shower",
        trained,
        "--photons",
        f"[{run_folders['photons']}]",
        *few,
        "--out",
        trained / "evaluation",
    )
    found = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    assert found["images"]
    out = ["export", *chain, "--to", "onnx", "--out", exported]
    if not load_module(trained).not_exportable():
        run(*out)
        assert (exported / "simulator.onnx").is_file()
    else:
        assert command(*out) == 2
        assert "expected a shower model that can be exported, but" in capfd.readouterr().err
    # It has no stages in which it could thaw.
    words[1] = "conf/finetune/gd.yaml"
    assert command("fit", *words, *callback, "--run", tmp_path / "gd") == 2
    assert f"GradualUnfreezing: {kind} has no stages" in capfd.readouterr().err
