"""RootDataModule: files of showers to batches, split, filtered and sampled the same way on every process.

The files are read once into a cache of plain arrays that all processes map into memory. A batch is one indexing
operation on those arrays, so that worker processes would not pay; images stay integers until they are on the model's
device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from calosim import rng
from calosim.data.record import Showers
from calosim.data.root import read_made
from calosim.data.splits import ShowerData, Split

__all__ = ["EpochSampler", "InOrder", "RootDataModule", "ShowerDataset", "generated"]


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
        arrays: What all rows have, see :attr:`calosim.data.splits.ShowerData.arrays`.
        rows: The rows that belong to this data set, shape (M,).
        with_images: Whether batches hold images, which cost most of the reading.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray, with_images: bool = True):
        self.arrays = {name: values for name, values in arrays.items() if with_images or name != "images"}
        self.arrays |= {"particles": arrays["particles"].astype(np.float32), "pdg": arrays["pdg"].astype(np.int64)}
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: np.ndarray) -> dict[str, torch.Tensor]:
        """One batch.

        Args:
            positions: Positions within this data set, shape (B,).

        Returns:
            ``particles`` (B, 9) float32, ``pdg`` (B,) int64, ``images`` (B, nx, ny) integers, ``primary_ids`` (B,)
            and ``photon_sum`` (B,) int64, ``rows`` (B,) int64: the row in the files, which keys the row's random draws.
        """
        rows = self.rows[positions]
        arrays = {name: values[rows] for name, values in self.arrays.items()} | {"rows": rows}
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


class ResumableLoader(DataLoader):
    """A loader whose state Lightning need not keep: where to go on follows from the trainer's progress."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class RootDataModule(LightningDataModule):
    """Showers from files: split, filter, sampling and batches.

    Args:
        files: One file of showers or several, in any form that ``calosim convert`` reads; ROOT is the usual one.
        detector: The detector the files must hold: its name in calosim/detectors.py, such as zn, zp or focal_h.
        batch_size: Rows of a batch on one process.
        particle: Keep only this particle type, by name (``lambda``) or PDG code (``3122``); all if not given. The split
            is made before the filter, so that a test row of one selection is never a training row of another.
        split_by: ``primary``: no primary in two splits; ``response``: rows are split regardless of theirs, as published.
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
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.data = ShowerData(
            files, detector, particle, split_by, fractions, min_photons, seed, cache_dir, tree, columns
        )
        self.files, self.detector, self.batch_size = list(self.data.files), self.data.geometry, batch_size
        self.power = {"natural": 1.0, "balanced": 0.0, "power": sampling_power}[sampling]

    def prepare_data(self) -> None:
        """Builds the cache; Lightning calls it on one process of a machine."""
        self.data.cache()

    def setup(self, stage: str | None = None) -> None:
        """Maps the cache and makes the split, once.

        Raises:
            ValueError: If the selection leaves no training row, or a file is bad.
        """
        _ = self.data.splits

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What all rows of the files have, see :attr:`calosim.data.splits.ShowerData.arrays`."""
        return self.data.arrays

    def rows(self, split: Split) -> np.ndarray:
        """Row numbers of a split within the files, ascending, shape (M,)."""
        return self.data.rows(split)

    def primary_ids(self, split: Split) -> np.ndarray:
        """Numbers of the primaries of a split's rows, shape (M,), int64."""
        return self.data.primary_ids(split)

    def showers(self, split: Split, positions: np.ndarray | None = None) -> Showers:
        """The rows of a split in memory, see :meth:`calosim.data.splits.ShowerData.showers`."""
        return self.data.showers(split, positions)

    def _loader(self, split: Split) -> DataLoader:
        rows = self.rows(split)
        world = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if len(rows) < world[0]:
            raise ValueError(
                f"{', '.join(self.files)}: expected at least one {split} row for each of {world[0]} processes, got {len(rows)}; "
                "more primaries or other data.fractions give more"
            )
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        sampler = EpochSampler(
            self.arrays["pdg"][rows],
            self.batch_size,
            power=self.power,
            shuffle=split == "train" and not overfit,
            seed=self.data.seed,
            num_replicas=world[0],
            rank=world[1],
        )
        if split == "train":
            sampler.seen = self._batches_done
        # A model of the photon sum needs no images.
        model = self.trainer.lightning_module if self.trainer else None
        return ResumableLoader(
            ShowerDataset(self.arrays, rows, getattr(model, "with_images", True)),
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
    return [name for name in files if "models" in (read_made(name) or {})]
