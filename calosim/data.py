"""RootDataModule: files of showers to batches, split, filtered and sampled the same way on every process.

The files are read once into a cache of plain arrays that all processes map into memory. A batch is one indexing
operation on those arrays; images stay integers until they are on the model's device.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from calosim import draws, rootio
from calosim.detectors import get_detector
from calosim.particles import particle_code, particle_name
from calosim.rootio import Showers

__all__ = ["EpochSampler", "RootDataModule", "ShowerDataset", "split_rows"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_CACHE_VERSION = 2
_ARRAYS = ("particles", "pdg", "images", "inputs", "photon_sum")


def split_rows(
    inputs: np.ndarray,
    pdg: np.ndarray,
    by: Literal["primary", "response"] = "primary",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> dict[Split, np.ndarray]:
    """Splits rows into training, validation and test.

    Args:
        inputs: Unique-input number of every row, shape (N,), see :attr:`calosim.rootio.Showers.inputs`.
        pdg: PDG code of every row, shape (N,).
        by: ``primary`` keeps all responses of one input together, so that no input is in two splits, and divides the
            inputs of each particle type separately, so that rare types reach every split; ``response`` divides rows
            regardless of their input, as the published studies did.
        fractions: Shares of training, validation and test; they sum to 1.
        seed: Seed of the division.

    Returns:
        Sorted row numbers of each split; together they hold every row once.

    Raises:
        ValueError: If the fractions do not sum to 1 or are negative.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-9:
        raise ValueError(f"expected three split fractions that sum to 1, got {tuple(fractions)}")
    rng = np.random.default_rng(seed)

    def divide(items: np.ndarray) -> list[np.ndarray]:
        # Halves round up, so that a type with five inputs has one for validation.
        held = [int(len(items) * f + 0.5) for f in fractions[1:]]
        kept = max(len(items) - sum(held), 0)
        return np.split(rng.permutation(items), [kept, kept + held[0]])

    if by == "response":
        return {name: np.sort(part) for name, part in zip(SPLITS, divide(np.arange(len(inputs))), strict=True)}
    if by != "primary":
        raise ValueError(f"unknown split {by!r}; expected primary or response")
    of_input = np.zeros(int(inputs.max(initial=-1)) + 1, dtype=np.int8)
    for code in np.unique(pdg):
        for k, part in enumerate(divide(np.unique(inputs[pdg == code]))):
            of_input[part] = k
    return {name: np.flatnonzero(of_input[inputs] == k) for k, name in enumerate(SPLITS)}


class ShowerDataset(Dataset):
    """Rows of the cache; indexed with an array of positions, it returns a whole batch.

    Args:
        particles: Features with shape (N, 9).
        pdg: PDG codes with shape (N,).
        images: Photon counts with shape (N, nx, ny), usually memory mapped.
        inputs: Unique-input numbers with shape (N,).
        rows: The rows that belong to this data set, shape (M,).
    """

    def __init__(
        self, particles: np.ndarray, pdg: np.ndarray, images: np.ndarray, inputs: np.ndarray, rows: np.ndarray
    ):
        self.particles = particles.astype(np.float32)
        self.pdg = pdg.astype(np.int64)
        self.images, self.inputs, self.rows = images, inputs, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            positions: Positions within this data set, shape (B,).

        Returns:
            ``particles`` (B, 9) float32, ``pdg`` (B,) int64, ``images`` (B, nx, ny) integers, ``inputs`` (B,) int64,
            ``rows`` (B,) int64: the row in the files, which keys the row's random draws.
        """
        rows = self.rows[positions]
        arrays = {
            "particles": self.particles[rows],
            "pdg": self.pdg[rows],
            "images": self.images[rows],
            "inputs": self.inputs[rows],
            "rows": rows,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


class EpochSampler(DistributedSampler):
    """Yields the batches of an epoch, as arrays of positions, for one process.

    Every process draws the same order and takes every ``num_replicas``-th position of each global batch of
    ``batch_size * num_replicas``: processes are disjoint, together they are the epoch, and training on two processes
    sees the global batches that one process with twice the batch size would see.

    A subclass of :class:`~torch.utils.data.DistributedSampler`, so that Lightning keeps it and calls ``set_epoch``.

    Args:
        groups: A group number (particle type) for every position, shape (N,).
        batch_size: Rows of a batch on one process.
        power: Groups are drawn in proportion to (their size) to this power: 1 is the natural mix, 0 is balanced.
            Rows of a group are repeated only after all of them were used.
        shuffle: Whether the order is random; else positions ascend and ``power`` is ignored.
        seed: Seed of the order, together with the epoch and the seed of the training (``seed_everything``).
        num_replicas: Number of processes.
        rank: This process.
    """

    def __init__(
        self,
        groups: np.ndarray,
        batch_size: int,
        power: float = 1.0,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ):
        super().__init__(groups, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.groups, self.batch_size, self.power = groups, batch_size, power

    def order(self) -> np.ndarray:
        """The positions of the whole epoch, the same on every process, shape (N,)."""
        if not self.shuffle:
            return np.arange(len(self.groups))
        rng = np.random.default_rng((self.seed, draws.training_seed(), self.epoch))
        if self.power == 1.0:
            return rng.permutation(len(self.groups))
        _, group, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        share = sizes**self.power / np.sum(sizes**self.power) * len(self.groups)
        quota = np.floor(share).astype(int)
        remainder = len(self.groups) - quota.sum()
        quota[rng.permutation(len(sizes))[:remainder]] += 1
        drawn = []
        for g, q in enumerate(quota):
            members = np.flatnonzero(group == g)
            drawn += [rng.permutation(members)[: q - done] for done in range(0, q, len(members))]
        return rng.permutation(np.concatenate(drawn))

    def __iter__(self) -> Iterator[np.ndarray]:
        order, step = self.order(), self.batch_size * self.num_replicas
        for k in range(len(self)):
            yield order[k * step : (k + 1) * step][self.rank :: self.num_replicas]

    def __len__(self) -> int:
        """Batches of this process."""
        step = self.batch_size * self.num_replicas
        full, rest = divmod(len(self.groups), step)
        if self.shuffle:
            # Processes must take equally many steps, or DDP waits forever: a rest that not every process gets a share
            # of is dropped in training. Evaluation drops nothing.
            return full + (rest >= self.num_replicas)
        return full + (rest > self.rank)


class RootDataModule(LightningDataModule):
    """Showers from files: split, filter, sampling and batches.

    Args:
        files: One file of showers or several, in any form that ``calosim convert`` reads; ROOT is the usual one.
        detector: The detector the files must hold: zn, zp or focal_h.
        batch_size: Rows of a batch on one process.
        particle: Keep only this particle type, by name (``lambda``) or PDG code (``3122``); all if not given. The split
            is made before the filter, so that a test row of one selection is never a training row of another.
        split_by: ``primary``: no input in two splits; ``response``: rows are split regardless of their input, as published.
        fractions: Shares of training, validation and test.
        sampling: ``natural``; ``balanced``: particle types equally often; ``power``: in proportion to (number of rows)
            to the power of ``sampling_power``.
        sampling_power: The exponent of ``sampling: power``; 1 is natural, 0 is balanced.
        seed: Seed of the split; the order of training depends on ``seed_everything`` too.
        num_workers: Worker processes that prepare batches; 0 is best for local files, a batch being one indexing operation.
        cache_dir: Where the cache lies; by default ``.calosim_cache`` beside the first file, or the user's cache folder if
            that is not writable.
    """

    def __init__(
        self,
        files: str | list[str],
        detector: str = "zn",
        batch_size: int = 64,
        particle: str | int | None = None,
        split_by: Literal["primary", "response"] = "primary",
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        sampling: Literal["natural", "balanced", "power"] = "natural",
        sampling_power: float = 0.5,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ):
        super().__init__()
        self.files = [files] if isinstance(files, str) else list(files)
        if not self.files:
            raise ValueError("expected at least one data file (--data.files FILE), got none")
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.detector = get_detector(detector)
        self.batch_size, self.split_by, self.fractions = batch_size, split_by, tuple(fractions)
        self.particle = None if particle is None else particle_code(particle)
        self.power = {"natural": 1.0, "balanced": 0.0, "power": sampling_power}[sampling]
        self.seed, self.num_workers, self.cache_dir = seed, num_workers, cache_dir
        self._splits: dict[Split, np.ndarray] | None = None

    # -- reading ------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Builds the cache; Lightning calls it on one process of a machine."""
        cached_arrays(self.files, self.detector.name, self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """Maps the cache and makes the split, once.

        Raises:
            ValueError: If the selection leaves no training row, or a file is bad.
        """
        if self._splits is not None:
            return
        folder = cached_arrays(self.files, self.detector.name, self.cache_dir)
        self.data_hash = json.loads((folder / "meta.json").read_text())["data_hash"]
        arrays = {a: np.load(folder / f"{a}.npy", mmap_mode="r") for a in _ARRAYS}
        # All but the images are small and read in pieces all the time.
        self.arrays = {a: v if a == "images" else np.array(v) for a, v in arrays.items()}
        pdg = self.arrays["pdg"]
        splits = split_rows(self.arrays["inputs"], pdg, self.split_by, self.fractions, self.seed)
        if self.particle is not None:
            splits = {name: rows[pdg[rows] == self.particle] for name, rows in splits.items()}
            if not sum(map(len, splits.values())):
                present = ", ".join(particle_name(int(c)) for c in np.unique(pdg))
                raise ValueError(
                    f"{', '.join(self.files)}: no row of particle {particle_name(self.particle)}; the files hold {present}"
                )
        if not len(splits["train"]):
            selected = sum(map(len, splits.values()))
            raise ValueError(
                f"{', '.join(self.files)}: none of the {selected} selected rows is in the training split; expected more "
                "primaries or a larger first fraction"
            )
        self._splits = splits

    def rows(self, split: Split) -> np.ndarray:
        """Row numbers of a split within the files, ascending, shape (M,)."""
        self.setup()
        assert self._splits is not None
        return self._splits[split]

    def inputs(self, split: Split) -> np.ndarray:
        """Unique-input numbers of a split's rows, shape (M,), int64."""
        rows = self.rows(split)  # also maps the arrays
        return self.arrays["inputs"][rows]

    def showers(self, split: Split, rows: np.ndarray | None = None) -> Showers:
        """The rows of a split in memory.

        Args:
            split: ``train``, ``val`` or ``test``.
            rows: Positions within the split; all if not given.
        """
        selected = self.rows(split) if rows is None else self.rows(split)[rows]
        a = self.arrays
        return Showers(a["particles"][selected], a["pdg"][selected], a["images"][selected], self.detector.name)

    # -- batches ------------------------------------------------------------------------------------------------------

    def _loader(self, split: Split) -> DataLoader:
        rows, a = self.rows(split), self.arrays
        world = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if len(rows) < world[0]:
            raise ValueError(f"expected at least one {split} row for each of {world[0]} processes, got {len(rows)}")
        sampler = EpochSampler(
            a["pdg"][rows],
            self.batch_size,
            power=self.power,
            shuffle=split == "train",
            seed=self.seed,
            num_replicas=world[0],
            rank=world[1],
        )
        dataset = ShowerDataset(a["particles"], a["pdg"], a["images"], a["inputs"], rows)
        return DataLoader(
            dataset,
            batch_size=None,  # the sampler yields whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        """Batches of the training split, in an order drawn anew each epoch."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation split; every row once over all processes."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split; every row once over all processes."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """The test split, for ``calosim predict``."""
        return self._loader("test")


def cached_arrays(files: Sequence[str], detector: str, cache_dir: str | None = None) -> Path:
    """Reads files into a folder of plain arrays, unless that was done before.

    Args:
        files: Paths of the files.
        detector: The detector they must hold.
        cache_dir: The folder of caches, see :class:`RootDataModule`.

    Returns:
        A folder with ``particles``, ``pdg``, ``images``, ``inputs`` and ``photon_sum`` as ``.npy`` and ``meta.json``. Its
        name is a hash of the contents, so that changed files never meet an old cache.

    Raises:
        ValueError: If a file is missing or bad, or no folder is writable.
    """
    data_hash = _content_hash(files)
    key = hashlib.blake2b(f"{_CACHE_VERSION} {detector} {data_hash}".encode(), digest_size=10).hexdigest()
    places = [Path(cache_dir)] if cache_dir else [Path(files[0]).resolve().parent / ".calosim_cache", _user_cache()]
    for known in places:
        if (known / key / "meta.json").exists():
            return known / key
    place = next((p for p in places if _writable(p)), None)
    if place is None:
        raise ValueError(f"{places[0]}: the cache folder is not writable; choose another with --data.cache_dir")
    temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=place))
    try:
        parts = [rootio.read(f, detector) for f in files]
        rows = sum(map(len, parts))
        showers = parts[0]
        if len(parts) > 1:
            images = np.concatenate([p.images for p in parts])
            particles, pdg = (
                np.concatenate([p.particles for p in parts]),
                np.concatenate([p.pdg for p in parts]),
            )
            showers = Showers(particles, pdg, images, detector)
        for name in _ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(showers, name))
        meta = {"data_hash": data_hash, "detector": detector, "files": [str(f) for f in files], "rows": rows}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        os.chmod(temporary, 0o755)
        try:
            temporary.rename(place / key)
        except OSError:
            # Another process was faster, and its cache is as good as ours; or a half-deleted cache is in the way.
            if not (place / key / "meta.json").exists():
                shutil.rmtree(place / key)
                temporary.rename(place / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place / key


def _content_hash(files: Sequence[str]) -> str:
    """A hash of the files' contents, the data hash that results are labeled with."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such file; make one with `calosim simulate` or `calosim convert`")
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calosim"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def describe(datamodule: Any) -> dict[str, Any]:
    """What a run folder says of its data: files, hash, split and counts."""
    return {
        "files": datamodule.files,
        "data_hash": datamodule.data_hash,
        "detector": datamodule.detector.name,
        "rows": {split: len(datamodule.rows(split)) for split in SPLITS},
        "split_by": datamodule.split_by,
        "particle": datamodule.particle,
        "seed": datamodule.seed,
    }
