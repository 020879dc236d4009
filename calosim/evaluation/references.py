"""What a simulation is held against: the Monte Carlo with another seed (the floor), and a trivial model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from calosim import draws
from calosim.evaluation.selection import Selection, rank_within
from calosim.showers.datamodule import RootDataModule
from calosim.showers.record import Showers

__all__ = ["Pool", "Reference", "find_references", "floor_of_simulation"]


class Pool:
    """Answers a row with random responses from a pool of Monte Carlo responses that share a key with it.

    With the unique input as key, and a pool simulated with another seed, this is the floor; with the particle type as
    key, and the training split as pool, it is the trivial model.

    Args:
        keys: The pool's keys with shape (M,).
        fallback: A second key with shape (M,), for rows whose first key the pool lacks.
    """

    def __init__(self, keys: np.ndarray, fallback: np.ndarray):
        self.orders = [np.argsort(k, kind="stable") for k in (keys, fallback)]
        self.sorted = [k[o] for k, o in zip((keys, fallback), self.orders, strict=True)]

    def has(self, keys: np.ndarray) -> np.ndarray:
        """Whether the pool has each first key, shape (B,)."""
        return np.isin(keys, self.sorted[0])

    def draw(self, keys: np.ndarray, fallback: np.ndarray, seed: int, rows: np.ndarray) -> np.ndarray:
        """Positions in the pool.

        Args:
            keys: Keys of the rows with shape (B,).
            fallback: Second keys of the rows with shape (B,).
            seed: Seed of the draws.
            rows: Row numbers with shape (B,) that key the draws.

        Returns:
            Positions with shape (B,); any of the pool's where it has neither key.
        """
        row_keys = draws.row_keys(torch.from_numpy(rows), draws.EVALUATION_STREAM, seed)
        u = draws.uniform(row_keys, 1)[:, 0].numpy().astype(np.float64)
        position = (u * len(self.orders[0])).astype(np.int64)
        for wanted, order, present in zip((fallback, keys), self.orders[::-1], self.sorted[::-1], strict=True):
            low, high = (np.searchsorted(present, wanted, side=s) for s in ("left", "right"))
            found = high > low
            position[found] = order[(low + u * (high - low)).astype(np.int64)[found]]
        return position


@dataclass(frozen=True)
class Reference:
    """Monte Carlo responses that answer the judged rows in a model's place.

    Attributes:
        pool: Chooses the responses.
        images: From positions in the pool (B,) to photon counts (B, nx, ny).
        keys: The rows' keys in the pool, shape (N,).
        fallback: Their second keys, shape (N,).
        fair: The rows on which the answers may be judged, shape (N,): not those that the pool itself consists of.
    """

    pool: Pool
    images: Callable[[np.ndarray], np.ndarray]
    keys: np.ndarray
    fallback: np.ndarray
    fair: np.ndarray

    @property
    def lacking(self) -> int:
        """How many of the fair rows have a key that the pool lacks."""
        return int((~self.pool.has(self.keys[self.fair])).sum())

    def positions(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Positions in the pool of answers to rows (B,), the draws keyed by numbers (B,); shape (B,)."""
        return self.pool.draw(self.keys[rows], self.fallback[rows], seed, numbers)

    def answers(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Photon counts (B, nx, ny) that answer rows (B,), see :meth:`positions`."""
        return self.images(self.positions(rows, seed, numbers))

    def photon_sums(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Photon sums (B,) of the answers, int64; each image of the pool is read once."""
        distinct, back = np.unique(self.positions(rows, seed, numbers), return_inverse=True)
        parts = np.array_split(distinct, len(distinct) // 4096 + 1)
        return np.concatenate([self.images(part).sum(axis=(1, 2), dtype=np.int64) for part in parts])[back.ravel()]


def floor_of_simulation(pool: Showers, rows: Selection) -> Reference:
    """The floor from showers of the same primaries, simulated with another seed.

    Args:
        pool: The other simulation.
        rows: The judged rows.
    """
    keys, everywhere = _match_inputs(pool, rows), np.ones(len(rows), dtype=bool)
    return Reference(Pool(keys, pool.pdg), pool.images.__getitem__, rows.inputs, rows.showers.pdg, everywhere)


def floor_of_halves(data: RootDataModule, split: Literal["test", "val"], rows: Selection) -> Reference | None:
    """The floor without another simulation: one half of each input's responses, answered from the other half.

    Only that half is fair to judge on. (Each half answered from the other would be a resample of the reference itself,
    which no simulation can match.)

    Args:
        data: The data set.
        split: The split of the judged rows.
        rows: The judged rows.

    Returns:
        The floor; None where every input has a single response, so that there is no other half.
    """
    inputs = data.inputs(split)
    answering = rank_within(inputs) % 2 == 1
    if not answering.any():
        return None
    others = data.rows(split)[answering]
    return Reference(
        Pool(inputs[answering], data.arrays["pdg"][others]),
        lambda positions: data.arrays["images"][others[positions]],
        rows.inputs,
        rows.showers.pdg,
        ~answering[rows.positions],
    )


def trivial_model(data: RootDataModule, rows: Selection) -> Reference:
    """Answers with a random training response of the same particle type.

    Args:
        data: The data set.
        rows: The judged rows.
    """
    train = data.rows("train")
    return Reference(
        Pool(data.arrays["pdg"][train], np.zeros(len(train))),
        lambda positions: data.arrays["images"][train[positions]],
        rows.showers.pdg,
        np.zeros(len(rows)),
        np.ones(len(rows), dtype=bool),
    )


def find_references(
    data: RootDataModule, split: Literal["test", "val"], rows: Selection, other: Showers | None
) -> dict[str, Reference]:
    """Floor, if there can be one, and trivial model by their short names.

    Args:
        data: The data set.
        split: The split of the judged rows.
        rows: The judged rows.
        other: Showers of the same primaries simulated with another seed, if there are any.
    """
    own = floor_of_halves(data, split, rows) if other is None else floor_of_simulation(other, rows)
    return ({} if own is None else {"floor": own}) | {"trivial": trivial_model(data, rows)}


def _match_inputs(pool: Showers, rows: Selection) -> np.ndarray:
    """The pool's unique-input numbers in the numbering of the judged rows, -1 for primaries that are not among them."""
    columns = [np.ascontiguousarray(np.column_stack([s.particles, s.pdg])) for s in (rows.showers, pool)]
    known = {row.tobytes(): number for row, number in zip(columns[0], rows.inputs, strict=True)}
    return np.array([known.get(row.tobytes(), -1) for row in columns[1]], dtype=np.int64)
