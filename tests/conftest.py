"""Shared fixtures: tiny showers made with numpy, ROOT files of them, and run folders of tiny models by the real command."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from calosim.data.record import Showers
from calosim.data.root import write
from calosim.detectors import DETECTORS

# Tests are small operations: threads would wait for each other, all the more beside a second worker. Also in subprocesses.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

#: PDG code -> mass in MeV, charge in e, number of inputs: two frequent types, a rare one and a very rare one.
SPECIES = {22: (0.0, 0.0, 30), 2112: (939.5654, 0.0, 20), 3122: (1115.683, 0.0, 10), 3222: (1189.37, 1.0, 5)}
#: The sizes of the tiny models, and what keeps their training quiet.
TEACHER = ["--model.flow.hidden", "[8,8]", "--model.flow.transforms", "1", "--model.flow.bins", "4"]
CALLBACK = ["--trainer.callbacks.rows", "8", "--trainer.callbacks.pictures", "2", "--data.batch_size", "64"]
SPLITS = [f"--model.representation.{k}={v}" for k, v in {"hidden": 16, "event": 8, "local_hidden": 8}.items()]
PHOTONS = ["--model.hidden", "[8]", "--model.components", "2", "--model.members", "3"]
QUICK = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
QUICK += ["--trainer.enable_model_summary", "false"]


def _make_showers(detector: str = "zn", responses: int = 6, seed: int = 0, artefact: int = 0) -> Showers:
    """Showers with a spot at the primary's straight-flight position and at least 10 photons; rows shuffled."""
    rng = np.random.default_rng(seed)
    geometry = DETECTORS[detector]
    pdg = np.repeat(list(SPECIES), [n for *_, n in SPECIES.values()]).astype(np.int32)
    particles = np.zeros((len(pdg), 9))
    particles[:, 0] = rng.uniform(50.0, 3000.0, len(pdg))
    particles[:, 1:4] = rng.normal(0.0, [4e-6, 4e-6, 0.02], (len(pdg), 3))
    particles[:, 4:6] = rng.normal(0.0, 0.1, (len(pdg), 2))
    particles[:, 6] = particles[:, 0] * rng.choice([-1.0, 1.0], len(pdg))
    particles[:, 7] = [SPECIES[int(c)][0] for c in pdg]
    particles[:, 8] = [SPECIES[int(c)][1] for c in pdg]
    # Numbers of responses differ between inputs, and no order in the file helps a split.
    chosen = rng.permutation(np.repeat(np.arange(len(pdg)), rng.integers(responses - 2, responses + 3, len(pdg))))
    x, y = geometry.pixel_centers
    lever = abs(geometry.front_z[0]) / np.abs(particles[chosen, 6])
    center = particles[chosen, 4:6] * lever[:, None]
    squared = (x[None, :, None] - center[:, 0, None, None]) ** 2 + (y[None, None, :] - center[:, 1, None, None]) ** 2
    profile = 1.0 / (1.0 + squared / 0.3**2) ** 1.5
    profile /= profile.sum((1, 2), keepdims=True)
    images = rng.poisson(profile * (20.0 + 0.3 * particles[chosen, 0])[:, None, None]).astype(np.int16)
    images[:, geometry.shape[0] // 2, geometry.shape[1] // 2] += 10
    if artefact:
        images = images.astype(np.int32)
        images[len(images) // 2, 3, 4] = artefact
    return Showers(particles[chosen], pdg[chosen], images, detector)


@contextmanager
def _restored() -> Iterator[None]:
    """Puts back what a training leaves behind in its process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CALOSIM_RUN", "TQDM_DISABLE"):
            patch.setenv(name, "")  # so that it is restored, whatever happens in between
            patch.delenv(name)
        patch.setattr(sys, "argv", [*sys.argv])
        state = torch.random.get_rng_state()
        exact = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        yield
        if exact != (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ):  # the call alone imports a compiler, which takes seconds
            torch.use_deterministic_algorithms(exact[0], warn_only=exact[1])
        torch.random.set_rng_state(state)


@pytest.fixture(autouse=True)
def _clean_process_state() -> Iterator[None]:
    """What a training leaves behind in the process must not reach the next test."""
    with _restored():
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder once for all processes of a test run: ``once(name, make)`` returns it after ``make(folder)``."""
    base = tmp_path_factory.getbasetemp()
    # Under pytest-xdist every worker has its own session; their folders have one parent.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        done.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(shared / f"{name}.lock"), _restored():
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def make_showers() -> Callable[..., Showers]:
    """Makes tiny showers: ``make_showers(detector="zn", responses=6, seed=0, artefact=0)``, about 400 rows."""
    return _make_showers


@pytest.fixture(scope="session")
def showers() -> Showers:
    """About 400 ZN rows: 65 inputs of four types."""
    return _make_showers()


@pytest.fixture(scope="session")
def root_file(showers: Showers, once) -> Path:
    """The ROOT file of ``showers``."""
    return once("zn", lambda folder: write(folder / "zn.root", showers)) / "zn.root"


@pytest.fixture(scope="session")
def dark_file(once) -> Path:
    """A ROOT file of all attempts of the Monte Carlo at 60 primaries, most of them without a response."""
    from calosim.montecarlo import simulate

    return (
        once("dark", lambda folder: write(folder / "dark.root", simulate(60, 2, "zn", 3, min_photons=0))) / "dark.root"
    )


@pytest.fixture(scope="session")
def fit() -> Callable[..., object]:
    """Fits a module in this process, quietly: ``fit(module, file, folder, epochs=1, ckpt_path=None, **data)``."""
    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from calosim.data.datamodule import RootDataModule

    def run(module, file, folder, epochs=1, ckpt_path=None, batch_size=32, trainer=None, **data):
        checkpoints = ModelCheckpoint(
            dirpath=Path(folder) / "checkpoints",
            filename="best",
            monitor="val/loss",
            save_last=True,
            enable_version_counter=False,
        )
        result = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=[checkpoints],
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **(trainer or {}),
        )
        result.fit(module, RootDataModule(str(file), batch_size=batch_size, **data), ckpt_path=ckpt_path)
        return result

    return run


@pytest.fixture(scope="session")
def command() -> Callable[..., int]:
    """Runs the real command in this process: ``command("fit", "-c", "conf/teacher.yaml", ...)`` returns its status."""
    from calosim.__main__ import main

    return lambda *words: main([str(word) for word in words])


@pytest.fixture(scope="session")
def run_folders(root_file: Path, dark_file: Path, once, command) -> dict[str, Path]:
    """Run folders of a tiny teacher and a tiny photon-sum model, one epoch each by the real command; not to be changed.

    Keys ``teacher`` (of pixels), ``splits`` (a teacher of split coordinates), ``photons`` and, of other data, ``acceptance``.
    """

    def train(name: str, files: list[str], words: list[str], data: Path = root_file) -> Path:
        configs = [word for file in files for word in ("-c", f"conf/{file}.yaml")]
        start = ["fit", *configs, "--data.files", data, *QUICK, *words, "--run"]

        def make(folder: Path) -> None:
            assert command(*start, folder) == 0

        return once(name, make)

    return {
        "teacher": train("teacher", ["teacher", "representation/pixels"], [*TEACHER, *CALLBACK]),
        "splits": train("splits", ["teacher"], [*SPLITS, *CALLBACK]),
        "photons": train("photons", ["photons"], PHOTONS),
        "acceptance": train(
            "acceptance", ["acceptance"], ["--model.hidden", "[8]", "--data.batch_size", "64"], dark_file
        ),
    }


@pytest.fixture(scope="session")
def train_on() -> Callable[[Path], None]:
    """Gives a run's best checkpoint other weights, as a training that goes on does: ``train_on(folder)``."""

    def change(folder: Path) -> None:
        path = folder / "checkpoints" / "best.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        weight = next(
            value for value in checkpoint["state_dict"].values() if value.is_floating_point() and value.ndim > 1
        )
        weight.view(-1)[0] += 1e-3
        torch.save(checkpoint, path)

    return change


@pytest.fixture
def error_of(command, capfd) -> Callable[..., str]:
    """The one line that a failing command prints."""

    def run(*words: object) -> str:
        capfd.readouterr()
        assert command(*words) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: error:")]
        assert len(lines) == 1
        return lines[0]

    return run
