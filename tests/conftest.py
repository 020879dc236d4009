"""Shared fixtures: tiny showers made with numpy, a ROOT file of them, and run folders of tiny trained models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from calosim.detectors import DETECTORS
from calosim.showers.record import Showers
from calosim.showers.root import write

#: PDG code -> mass in MeV, charge in e, number of inputs: two frequent types, a rare one and a very rare one.
SPECIES = {22: (0.0, 0.0, 30), 2112: (939.5654, 0.0, 20), 3122: (1115.683, 0.0, 10), 3222: (1189.37, 1.0, 5)}


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


@pytest.fixture(autouse=True)
def _clean_process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a training leaves behind in the process must not reach the next test."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CALOSIM_RUN", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it, whatever the test does
        monkeypatch.delenv(name)
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


@pytest.fixture(scope="session")
def make_showers() -> Callable[..., Showers]:
    """Makes tiny showers: ``make_showers(detector="zn", responses=6, seed=0, artefact=0)``, about 400 rows."""
    return _make_showers


@pytest.fixture(scope="session")
def showers() -> Showers:
    """About 400 ZN rows: 65 inputs of four types."""
    return _make_showers()


@pytest.fixture(scope="session")
def root_file(showers: Showers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ROOT file of ``showers``."""
    path = tmp_path_factory.mktemp("data") / "zn.root"
    write(path, showers)
    return path


@pytest.fixture(scope="session")
def fit() -> Callable[..., object]:
    """Fits a module in this process, quietly: ``fit(module, file, folder, epochs=1, ckpt_path=None, **data)``."""
    from lightning import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from calosim.showers.datamodule import RootDataModule

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
def run_folders(root_file: Path, tmp_path_factory: pytest.TempPathFactory, fit) -> dict[str, Path]:
    """Run folders of a tiny teacher and a tiny photon-sum model, one epoch each: keys ``teacher`` and ``photons``."""
    from calosim.models.photons import PhotonSum
    from calosim.models.teacher import Teacher

    folders = {name: tmp_path_factory.mktemp("runs") / name for name in ("teacher", "photons")}
    torch.manual_seed(0)
    fit(Teacher("zn", transforms=1, hidden=(8, 8), bins=4), root_file, folders["teacher"])
    fit(PhotonSum("zn", hidden=(8,), components=2, posterior_samples=3), root_file, folders["photons"])
    return folders
