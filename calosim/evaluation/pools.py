"""Monte Carlo responses that rows may be answered with: at random among those of a key, or those with the nearest sums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from calosim import rng
from calosim.evaluation.selection import rank_within

__all__ = ["Nearest", "Pool"]


class Pool:
    """Answers a row with random responses that share a key with it.

    With the unique input as key, and responses simulated with another seed, this is the floor; with the particle type as
    key, and the training split as responses, it is the trivial model.

    Args:
        keys: The responses' keys with shape (M,).
        fallback: A second key with shape (M,), for rows whose first key no response has.
        wanted: The rows' keys with shape (N,).
        wanted_fallback: The rows' second keys with shape (N,).
    """

    def __init__(self, keys: np.ndarray, fallback: np.ndarray, wanted: np.ndarray, wanted_fallback: np.ndarray):
        self.keys, self.wanted = keys, (wanted, wanted_fallback)
        self.orders = [np.argsort(k, kind="stable") for k in (keys, fallback)]
        self.sorted = [k[o] for k, o in zip((keys, fallback), self.orders, strict=True)]

    @property
    def known(self) -> np.ndarray:
        """The rows whose first key some response has, shape (N,)."""
        return np.isin(self.wanted[0], self.sorted[0])

    def draw(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Positions of answers to rows (B,), the draws keyed by numbers (B,); any response where none has either key."""
        row_keys = rng.row_keys(torch.from_numpy(numbers), rng.EVALUATION_STREAM, seed)
        u = rng.uniform(row_keys, 1)[:, 0].numpy().astype(np.float64)
        position = (u * len(self.orders[0])).astype(np.int64)
        for wanted, order, present in zip(self.wanted[::-1], self.orders[::-1], self.sorted[::-1], strict=True):
            low, high = (np.searchsorted(present, wanted[rows], side=s) for s in ("left", "right"))
            found = high > low
            position[found] = order[(low + u * (high - low)).astype(np.int64)[found]]
        return position

    def distinct(self, seed: int) -> np.ndarray:
        """Positions of one answer to each row, none twice, of its first key, shape (N,); -1 where none was left."""
        shuffled = np.random.default_rng(seed).permutation(len(self.keys))
        order = shuffled[np.argsort(self.keys[shuffled], kind="stable")]
        low, high = (np.searchsorted(self.sorted[0], self.wanted[0], side=s) for s in ("left", "right"))
        place = low + rank_within(self.wanted[0])
        return np.where(place < high, order[np.minimum(place, len(order) - 1)], -1)


class Nearest:
    """Answers a row with responses to its primary that have nearly its photon sum: a floor for given sums.

    Args:
        keys: The responses' unique inputs with shape (M,), -1 for others than the rows'.
        pdg: Their PDG codes with shape (M,).
        photon_sum: Their photon sums with shape (M,).
        rows: Unique inputs, PDG codes and photon sums of the rows to answer, each with shape (N,).
        most: How many of the nearest take turns.
    """

    def __init__(
        self,
        keys: np.ndarray,
        pdg: np.ndarray,
        photon_sum: np.ndarray,
        rows: tuple[np.ndarray, np.ndarray, np.ndarray],
        most: int,
    ):
        inputs, types, sums = rows
        self.near, self.counts = np.zeros((len(inputs), most), np.int64), np.zeros(len(inputs), np.int64)
        self.known = np.isin(inputs, keys)
        for wanted, present, mine in ((types, pdg, ~self.known), (inputs, keys, self.known)):
            for key in np.unique(wanted[mine]):
                # Of a type that has no responses at all, any answer.
                own = np.flatnonzero(present == key) if (present == key).any() else np.arange(len(keys))
                own = own[np.argsort(photon_sum[own], kind="stable")]
                here = np.flatnonzero(mine & (wanted == key))
                for row, nearest in zip(here, _nearest(photon_sum[own], sums[here], most), strict=True):
                    self.near[row, : len(nearest)], self.counts[row] = own[nearest], len(nearest)
        self.differences = np.abs(photon_sum[self.near] - sums[:, None]) / np.maximum(sums, 1)[:, None]

    def draw(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Positions of answers to rows (B,): one after the other, so that neighboring numbers get different ones."""
        first = np.random.default_rng(seed).integers(0, 2**31, len(self.near))[rows]
        return self.near[rows, (first + numbers) % self.counts[rows]]

    def distinct(self, seed: int) -> np.ndarray:
        """Positions of one answer to each row, none twice, shape (N,); -1 where none was left."""
        taken: set[int] = set()
        chosen = np.full(len(self.near), -1, dtype=np.int64)
        for row in np.random.default_rng(seed).permutation(np.flatnonzero(self.known)):
            free = next((int(p) for p in self.near[row, : self.counts[row]] if int(p) not in taken), -1)
            chosen[row] = free
            taken.add(free)
        return chosen

    def quantile(self, share: float) -> float:
        """The quantile of relative differences between photon sums of responses and rows; NaN without any."""
        there = np.arange(self.near.shape[1]) < self.counts[:, None]
        known = self.differences[there & self.known[:, None]]
        return float(np.quantile(known, share)) if len(known) else float("nan")


def _nearest(found: np.ndarray, wanted: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Positions of the values nearest to each wanted one, the nearest first, among found ones that rise."""
    for value, place in zip(wanted, np.searchsorted(found, wanted), strict=True):
        window = np.arange(max(place - most, 0), min(place + most, len(found)))
        yield window[np.argsort(np.abs(found[window] - value), kind="stable")][:most]
