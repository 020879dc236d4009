"""In which order the rows of a split are drawn, on one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DistributedSampler, SequentialSampler

from calosim import rng

__all__ = ["EpochSampler", "InOrder"]


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
