"""A wheel that is installed elsewhere trains with the same defaults as a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The content of the wheel, as an installation lays it out."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("calosim", "callbacks", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    # No isolation: nothing is fetched.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "wheel", "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_a_wheel_holds_all_modules_and_all_configurations(installed):
    for folder, inside, pattern in (
        ("calosim", "calosim", "*.py"),
        ("callbacks", "callbacks", "*.py"),
        ("calosim", "calosim", "*.html"),
        ("conf", "calosim/conf", "*.yaml"),
        ("conf", "calosim/conf", "*.csv"),
    ):
        wanted = {path.relative_to(REPOSITORY / folder) for path in (REPOSITORY / folder).rglob(pattern)}
        assert wanted <= {path.relative_to(installed / inside) for path in (installed / inside).rglob(pattern)}


def test_a_wheel_trains_in_another_folder_with_the_same_defaults(installed, root_file, tmp_path):
    # The installed package lies in a foreign git repository, whose commit is not calosim's.
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], cwd=installed, check=True, capture_output=True)
    options = {
        "data.files": f"[{root_file}]",
        "model.hidden": "[8]",
        "trainer.max_epochs": "1",
        "trainer.limit_train_batches": "2",
        "trainer.limit_val_batches": "1",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "calosim", "fit", "-c", "conf/photons.yaml", *words, "--run", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    base = yaml.safe_load((REPOSITORY / "conf" / "base.yaml").read_text())
    assert config["seed_everything"] == base["seed_everything"]
    assert config["trainer"]["gradient_clip_val"] == base["trainer"]["gradient_clip_val"]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["git"] is None
