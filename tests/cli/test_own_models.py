"""Models of one's own: trained from a module of the working folder, judged when that module is trusted, told to loggers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml

from calosim.models.checkpoints import load_module
from calosim.models.photon_sum import PhotonSum
from calosim.models.teacher import Teacher
from calosim.runs import Run

MINE = """
from calosim import PhotonSum


class Mine(PhotonSum):
    def __init__(self, detector: str = "zn", factor: float = 1.0, **more):
        super().__init__(detector, hidden=(4,), components=2, members=2)
        self.init = {"detector": self.detector.name, "factor": factor}
"""


def test_own_models_are_trained_and_put_to_use(root_file, tmp_path, monkeypatch, command, error_of):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALOSIM_TRUST", "")
    (tmp_path / "mine_17.py").write_text(MINE)
    words = ["--data.files", root_file, "--quiet", "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2]
    # As the installed script has it: its own folder first in the path, not the working folder.
    script = "import sys; sys.path[0] = '/'; from calosim.__main__ import main; sys.exit(main())"
    line = [
        sys.executable,
        "-c",
        script,
        "fit",
        "--model",
        "mine_17.Mine",
        "--model.factor",
        "2",
        *map(str, words),
        "--run",
        "r",
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "r")
    found = torch.load(run.best, weights_only=True)["calosim"]
    assert (found["class"], found["init"]["factor"]) == ("mine_17.Mine", 2.0)
    judging = ["evaluate", "--photons", "[r]", "--out", "e", "--rows", 10, "--quiet"]
    assert "got one of 'mine_17.Mine'; to run the code of mine_17, say --trust mine_17" in error_of(*judging)
    assert command(*judging, "--trust", "mine_17") == 0
    assert (tmp_path / "e" / "evaluation.json").exists()
    assert "mine_17" in os.environ["CALOSIM_TRUST"]
    (tmp_path / "mine_17.py").unlink()
    sys.modules.pop("mine_17")
    assert "--trust: no module 'mine_17'" in error_of(*judging, "--trust", "mine_17")
    monkeypatch.setenv("CALOSIM_TRUST", "mine_17")
    assert "cannot be imported" in error_of(*judging)


def test_an_installed_package_announces_its_models(run_folders, tmp_path, monkeypatch):
    """By an entry point, as the metadata of an installed distribution has it."""
    checkpoint = torch.load(Run(run_folders["photons"]).best, weights_only=True)
    checkpoint["calosim"]["class"] = "announced_17.Theirs"
    torch.save(checkpoint, tmp_path / "theirs.ckpt")
    (tmp_path / "announced_17.py").write_text("from calosim import PhotonSum\n\n\nclass Theirs(PhotonSum): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"got one of 'announced_17\.Theirs'"):
        load_module(tmp_path / "theirs.ckpt")
    metadata = tmp_path / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[calosim.models]\ntheirs = announced_17:Theirs\n")
    assert type(load_module(tmp_path / "theirs.ckpt")).__name__ == "Theirs"


@pytest.mark.parametrize(("kind", "name"), [(Teacher, "splits"), (Teacher, "teacher"), (PhotonSum, "photons")])
def test_lightning_loads_what_calosim_wrote(kind, name, run_folders):
    run = Run(run_folders[name])
    one, other = kind.load_from_checkpoint(run.best, weights_only=True), kind.load(run.folder)
    assert one.init == other.init == dict(one.hparams)
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in other.state_dict().items())
    assert one.lineage == other.lineage


def test_loggers_have_hyperparameters_and_resolved_settings(run_folders):
    run = Run(run_folders["splits"])
    told = yaml.safe_load((run / "hparams.yaml").read_text())
    assert told["representation"]["hidden"] == 16
    assert told["config"]["model"] == run.config["model"]
    assert told["config"]["trainer"]["max_epochs"] == 1


def test_tensorboard_has_them_too(again, command, tmp_path):
    pytest.importorskip("tensorboard")
    loggers = "[{class_path: TensorBoardLogger, init_args: {save_dir: runs, name: '', version: ''}}]"
    words = [*again[:-1], tmp_path / "run", "--trainer.max_epochs", 1, "--trainer.logger", loggers]
    assert command("fit", *words) == 0
    run = Run(tmp_path / "run")
    told = yaml.safe_load((run / "hparams.yaml").read_text())
    assert told["members"] == 3
    assert told["config"]["model"] == run.config["model"]
    assert list(run.folder.glob("events.out.tfevents.*"))
