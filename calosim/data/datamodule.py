"""RootDataModule: files of showers to batches, split, filtered and sampled the same way on every process.

The files are read once into a cache of plain arrays that all processes map into memory. A batch is one indexing
operation on those arrays, so that worker processes would not pay; images stay integers until they are on the model's
device.
"""

from __future__ import annotations
from collections.abc import Sequence
from typing import Literal
import numpy as np
from collections.abc import Callable, Iterator
from torch.utils.data import DistributedSampler, SequentialSampler
from calosim import rng
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from calosim.detectors import get_detector
from calosim.particles import particle_code, particle_name
from calosim.data.cache import cached_arrays, open_cache
from calosim.data.record import Showers
from calosim.data.root import Names, read_made

__all__ = ['EpochSampler', 'InOrder', 'RootDataModule', 'SPLITS', 'ShowerDataset', 'Split', 'describe', 'generated', 'split_rows']


Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_rows(
    inputs: np.ndarray,
    pdg: np.ndarray,
    by: Literal["primary", "response"] = "primary",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> dict[Split, np.ndarray]:
    """Splits rows into training, validation and test.

    Args:
        inputs: Unique-input number of every row, shape (N,), see :attr:`calosim.data.record.Showers.inputs`.
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
        #: Asked when an epoch begins: how many of its batches a training has seen before it was interrupted.
        self.seen: Callable[[], int] = lambda: 0

    def order(self) -> np.ndarray:
        """The positions of the whole epoch, the same on every process, shape (N,)."""
        if not self.shuffle:
            return np.arange(len(self.groups))
        random = np.random.default_rng((self.seed, rng.training_seed(), self.epoch))
        if self.power == 1.0:
            return random.permutation(len(self.groups))
        _, group, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        share = sizes**self.power / np.sum(sizes**self.power) * len(self.groups)
        quota = np.floor(share).astype(int)
        remainder = len(self.groups) - quota.sum()
        quota[random.permutation(len(sizes))[:remainder]] += 1
        drawn = []
        for g, q in enumerate(quota):
            members = np.flatnonzero(group == g)
            drawn += [random.permutation(members)[: q - done] for done in range(0, q, len(members))]
        return random.permutation(np.concatenate(drawn))

    def __iter__(self) -> Iterator[np.ndarray]:
        order, step = self.order(), self.batch_size * self.num_replicas
        for k in range(self.seen(), len(self)):
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


class InOrder(SequentialSampler):
    """Batches of a sampler that does not shuffle, of the kind that Lightning takes for `overfit_batches`.

    Args:
        batches: The sampler.
    """

    def __init__(self, batches: EpochSampler):
        super().__init__(batches.groups)
        self.batches = batches

    def __iter__(self) -> Iterator[np.ndarray]:  # type: ignore[override]
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ShowerDataset(Dataset):
    """Rows of the cache; indexed with an array of positions, it returns a whole batch.

    Args:
        particles: Features with shape (N, 9).
        pdg: PDG codes with shape (N,).
        images: Photon counts with shape (N, nx, ny), usually memory mapped.
        inputs: Unique-input numbers with shape (N,).
        photon_sum: Photons with shape (N,).
        rows: The rows that belong to this data set, shape (M,).
        with_images: Whether batches hold images, which cost most of the reading.
    """

    def __init__(
        self,
        particles: np.ndarray,
        pdg: np.ndarray,
        images: np.ndarray,
        inputs: np.ndarray,
        photon_sum: np.ndarray,
        rows: np.ndarray,
        with_images: bool = True,
    ):
        self.arrays: dict[str, np.ndarray] = {
            "particles": particles.astype(np.float32),
            "pdg": pdg.astype(np.int64),
            **({"images": images} if with_images else {}),
            "inputs": inputs,
            "photon_sum": photon_sum,
        }
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            positions: Positions within this data set, shape (B,).

        Returns:
            ``particles`` (B, 9) float32, ``pdg`` (B,) int64, ``images`` (B, nx, ny) integers, ``inputs`` (B,) and
            ``photon_sum`` (B,) int64, ``rows`` (B,) int64: the row in the files, which keys the row's random draws.
        """
        rows = self.rows[positions]
        arrays = {name: values[rows] for name, values in self.arrays.items()} | {"rows": rows}
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


class ResumableLoader(DataLoader):
    """A loader whose state Lightning need not keep: where to go on follows from the trainer's progress."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


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
        min_photons: Keep only rows with at least that many photons, again after the split. Images and sums are of responses; 0
            keeps attempts that left none.
        seed: Seed of the split; the order of training depends on ``seed_everything`` too.
        cache_dir: Where the cache lies; by default ``.calosim_cache`` beside the first file, or the user's cache folder if
            that is not writable.
        tree: The tree of ROOT files, such as ``events/tracks``; ``showers`` or ``o2sim`` if not given.
        columns: Branches of other names, by ours: ``{energy: E, px: p.fX, response: cells}``.
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
        min_photons: int = 10,
        seed: int = 0,
        cache_dir: str | None = None,
        tree: str | None = None,
        columns: dict[str, str] | None = None,
    ):
        super().__init__()
        self.files = [files] if isinstance(files, str) else list(files)
        if not self.files:
            raise ValueError("expected at least one data file (--data.files FILE), got none")
        if twice := [name for name, times in Counter(map(os.path.realpath, self.files)).items() if times > 1]:
            raise ValueError(f"{twice[0]}: given twice as a data file; expected each once")
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.detector = get_detector(detector)
        self.batch_size, self.split_by, self.fractions = batch_size, split_by, tuple(fractions)
        self.particle = None if particle is None else particle_code(particle)
        self.power = {"natural": 1.0, "balanced": 0.0, "power": sampling_power}[sampling]
        self.min_photons, self.seed, self.cache_dir = min_photons, seed, cache_dir
        self.names = Names(tree, columns or {})
        self._splits: dict[Split, np.ndarray] | None = None

    # -- reading ------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Builds the cache; Lightning calls it on one process of a machine."""
        cached_arrays(self.files, self.detector.name, self.cache_dir, self.names)

    def setup(self, stage: str | None = None) -> None:
        """Maps the cache and makes the split, once.

        Raises:
            ValueError: If the selection leaves no training row, or a file is bad.
        """
        if self._splits is not None:
            return
        folder = cached_arrays(self.files, self.detector.name, self.cache_dir, self.names)
        self.arrays, self.data_hash = open_cache(folder)
        pdg = self.arrays["pdg"]
        splits = split_rows(self.arrays["inputs"], pdg, self.split_by, self.fractions, self.seed)
        nonempty = self.arrays["photon_sum"] >= self.min_photons
        splits = {name: rows[nonempty[rows]] for name, rows in splits.items()}
        if self.particle is not None:
            splits = {name: rows[pdg[rows] == self.particle] for name, rows in splits.items()}
            if not sum(map(len, splits.values())):
                present = ", ".join(particle_name(int(c)) for c in np.unique(pdg))
                raise ValueError(
                    f"{', '.join(self.files)}: no row of particle {particle_name(self.particle)}; the files hold {present}"
                )
        if not len(splits["train"]):
            selected = sum(map(len, splits.values()))
            if not selected:
                raise ValueError(
                    f"{', '.join(self.files)}: no row has {self.min_photons} photons or more; expected responses with light"
                )
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
            raise ValueError(
                f"{', '.join(self.files)}: expected at least one {split} row for each of {world[0]} processes, got {len(rows)}; "
                "more primaries or other data.fractions give more"
            )
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        sampler = EpochSampler(
            a["pdg"][rows],
            self.batch_size,
            power=self.power,
            shuffle=split == "train" and not overfit,
            seed=self.seed,
            num_replicas=world[0],
            rank=world[1],
        )
        if split == "train":
            sampler.seen = self._batches_done
        # A model of the photon sum needs no images.
        model = self.trainer.lightning_module if self.trainer else None
        held = a["particles"], a["pdg"], a["images"], a["inputs"], a["photon_sum"]
        dataset = ShowerDataset(*held, rows, getattr(model, "with_images", True))
        return ResumableLoader(
            dataset,
            batch_size=None,  # the sampler yields whole batches
            sampler=InOrder(sampler) if overfit else sampler,
            pin_memory=torch.cuda.is_available(),
        )

    def _batches_done(self) -> int:
        """Batches of the current epoch that a training took before its checkpoint, where it resumes inside of an epoch."""
        loop: Any = None if self.trainer is None else self.trainer.fit_loop
        if loop is None or not loop.restarting or loop.epoch_loop.batch_progress.is_last_batch:
            return 0
        return loop.epoch_loop.batch_progress.current.processed

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


def generated(files: Sequence[str]) -> list[str]:
    """Those of some data files that models have generated, by what they say themselves."""
    return [name for name in files if name.endswith(".root") and "models" in (read_made(Path(name)) or {})]


def describe(datamodule: RootDataModule) -> dict[str, Any]:
    """What a run folder says of its data: files, hash, counts, and all that decides the split."""
    return {
        "files": datamodule.files,
        "data_hash": datamodule.data_hash,
        "detector": datamodule.detector.name,
        "rows": {split: len(datamodule.rows(split)) for split in SPLITS},
        "split_by": datamodule.split_by,
        "fractions": list(datamodule.fractions),
        "particle": datamodule.particle,
        "seed": datamodule.seed,
    }
