r"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

Protocol of P4: several responses are generated for every test row, several times over; the numbers are means and
standard deviations over those runs. The floor is the Monte Carlo against itself with another seed; the trivial model
answers with a random training response of the same particle type.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from calosim import draws
from calosim.evaluation.selection import rank_within
from calosim.showers.datamodule import RootDataModule
from calosim.showers.reading import read
from calosim.showers.record import Showers

__all__ = ["Pool", "reference_pools"]


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


def reference_pools(
    data: RootDataModule, split: Any, chosen: np.ndarray, test: Showers, inputs: np.ndarray, floor: str | None
) -> tuple[dict[str, Any], np.ndarray, int]:
    """Floor and trivial model as (images of positions, positions of rows).

    And the rows on which the floor is to be judged: all, or without another simulation those of one half of each input's
    responses, answered from the other half. (Each half answered from the other would be a resample of the reference
    itself, which no simulation can match.) And how many of their inputs the floor lacks.
    """
    stored = data.arrays["images"]
    pool_images: Callable[[np.ndarray], np.ndarray]
    if floor:
        pool = read(floor, data.detector.name)
        pool_pdg, pool_images, floor_keys = pool.pdg, pool.images.__getitem__, inputs
        pool_keys, asked = _match_inputs(pool, test, inputs), np.ones(len(test), dtype=bool)
    else:
        split_rows, of_pool = data.rows(split), data.inputs(split)
        half = rank_within(of_pool) % 2
        asked, floor_keys = half[chosen] == 0, inputs
        others, pool_keys = split_rows[half == 1], of_pool[half == 1]
        pool_pdg, pool_images = data.arrays["pdg"][others], lambda positions: stored[others[positions]]
    train = data.rows("train")
    train_pdg = data.arrays["pdg"][train]
    floor_pool, trivial_pool = Pool(pool_keys, pool_pdg), Pool(train_pdg, np.zeros(len(train)))

    def floor_rows(row: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        return floor_pool.draw(floor_keys[row], test.pdg[row], seed, numbers)

    def trivial_rows(row: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        return trivial_pool.draw(test.pdg[row], np.zeros(len(row)), seed, numbers)

    return (
        {
            "floor": (pool_images, floor_rows),
            "trivial": (lambda positions: stored[train[positions]], trivial_rows),
        },
        asked,
        int((~np.isin(floor_keys[asked], pool_keys)).sum()),
    )


def _match_inputs(pool: Showers, test: Showers, inputs: np.ndarray) -> np.ndarray:
    """The pool's unique-input numbers in the numbering of the test rows, -1 for primaries that are not among them."""
    columns = [np.ascontiguousarray(np.column_stack([s.particles, s.pdg])) for s in (test, pool)]
    known = {row.tobytes(): number for row, number in zip(columns[0], inputs, strict=True)}
    return np.array([known.get(row.tobytes(), -1) for row in columns[1]], dtype=np.int64)
