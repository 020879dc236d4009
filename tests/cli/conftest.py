"""What tests of the command share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from calosim.runs import Run


@pytest.fixture
def photons(run_folders, tmp_path) -> Run:
    """A finished run of the photon-sum model that a test may go on with, as if it had been trained in this folder."""
    run = Run(shutil.copytree(run_folders["photons"], tmp_path / "photons"))
    config: Path = run / Run.CONFIG
    config.write_text(config.read_text().replace(str(run_folders["photons"]), str(run.folder)))
    return run


@pytest.fixture
def again(photons, root_file) -> list[object]:
    """The words that train, judge or resume that run: its files, sizes and folder."""
    sizes = ["--model.hidden", "[8]", "--model.components", 2, "--model.members", 3]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.limit_train_batches", 2]
    return ["-c", "conf/photons.yaml", "--data.files", root_file, *sizes, *quiet, "--run", photons.folder]
