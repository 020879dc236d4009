"""What a simulation is held against: the Monte Carlo with another seed (the floor), and a trivial model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from calosim import rng
from calosim.data.cache import read_recipe
from calosim.data.reading import checked_pieces, read, sources
from calosim.data.record import Showers
from calosim.data.splits import ShowerData
from calosim.evaluation.selection import Selection, rank_within
from calosim.options import FloorOptions

__all__ = [
    "Floors",
    "Nearest",
    "Pool",
    "Reference",
    "floor_of_halves",
    "floor_of_simulation",
    "floor_of_sums",
    "trivial_model",
]


class Pool:
    """Answers a row with random responses that share a key with it.

    With the primary as key, and responses simulated with another seed, this is the floor; with the particle type as
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
        keys: The responses' primaries with shape (M,), -1 for others than the rows'.
        pdg: Their PDG codes with shape (M,).
        photon_sum: Their photon sums with shape (M,).
        rows: Primaries, PDG codes and photon sums of the rows to answer, each with shape (N,).
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
        primaries, types, sums = rows
        self.near, self.counts = np.zeros((len(primaries), most), np.int64), np.zeros(len(primaries), np.int64)
        self.known = np.isin(primaries, keys)
        for wanted, present, mine in ((types, pdg, ~self.known), (primaries, keys, self.known)):
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


class Chooser(Protocol):
    """How a reference chooses its answers among its responses."""

    def draw(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Positions of answers to rows (B,), the draws keyed by numbers (B,); shape (B,)."""

    def distinct(self, seed: int) -> np.ndarray:
        """Positions of one answer to each row, none twice, shape (N,); -1 where none was left."""


@dataclass(frozen=True)
class Reference:
    """Monte Carlo responses that answer the judged rows in a model's place.

    Attributes:
        chooser: Chooses the responses.
        images: From positions among the responses (B,) to photon counts (B, nx, ny).
        known: The rows that have responses to their own key, such as their primary, shape (N,).
        eligible: The rows on which the answers may be judged, shape (N,): not those that answer themselves.
    """

    chooser: Chooser
    images: Callable[[np.ndarray], np.ndarray]
    known: np.ndarray
    eligible: np.ndarray

    @property
    def lacking(self) -> int:
        """How many of the eligible rows have no response to their own key."""
        return int((~self.known[self.eligible]).sum())

    def positions(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Positions among the responses of answers to rows (B,), the draws keyed by numbers (B,); shape (B,)."""
        return self.chooser.draw(rows, seed, numbers)

    def samples(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Photon counts (B, nx, ny) that answer rows (B,), see :meth:`positions`."""
        return self.images(self.positions(rows, seed, numbers))

    def photon_sums(self, rows: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        """Photon sums (B,) of the answers, int64; each image is read once."""
        distinct, back = np.unique(self.positions(rows, seed, numbers), return_inverse=True)
        parts = np.array_split(distinct, len(distinct) // 4096 + 1)
        return np.concatenate([self.images(part).sum(axis=(1, 2), dtype=np.int64) for part in parts])[back.ravel()]


def floor_of_simulation(other: Showers, rows: Selection) -> Reference:
    """The floor from showers of the same primaries, simulated with another seed.

    Args:
        other: The other simulation.
        rows: The judged rows.
    """
    pool = Pool(_matched_primaries(other, rows), other.pdg, rows.primary_ids, rows.showers.pdg)
    return Reference(pool, other.images.__getitem__, pool.known, np.ones(len(rows), dtype=bool))


def floor_of_sums(other: Showers, rows: Selection, most: int) -> Reference:
    """The floor of models that are given photon sums: responses to the same primaries with nearly the same sums.

    Args:
        other: A simulation with another seed, that has responses with such sums.
        rows: The judged rows.
        most: Responses that take turns for a row.
    """
    own = rows.primary_ids, rows.showers.pdg, rows.showers.photon_sum
    nearest = Nearest(_matched_primaries(other, rows), other.pdg, other.photon_sum, own, most)
    return Reference(nearest, other.images.__getitem__, nearest.known, np.ones(len(rows), dtype=bool))


def floor_of_halves(data: ShowerData, split: Literal["test", "val"], rows: Selection) -> Reference | None:
    """The floor without another simulation: one half of each primary's responses, answered from the other half.

    Only that half is fair to judge on. (Each half answered from the other would be a resample of the reference itself,
    which no simulation can match.)

    Args:
        data: The data set.
        split: The split of the judged rows.
        rows: The judged rows.

    Returns:
        The floor; None where every primary has a single response, so that there is no other half.
    """
    primary_ids = data.primary_ids(split)
    answering = rank_within(primary_ids) % 2 == 1
    if not answering.any():
        return None
    others = data.rows(split)[answering]
    pool = Pool(primary_ids[answering], data.arrays["pdg"][others], rows.primary_ids, rows.showers.pdg)
    return Reference(
        pool,
        lambda positions: data.arrays["images"][others[positions]],
        pool.known,
        ~answering[rows.positions],
    )


def trivial_model(data: ShowerData, rows: Selection) -> Reference:
    """Answers with a random training response of the same particle type.

    Args:
        data: The data set.
        rows: The judged rows.
    """
    train = data.rows("train")
    none = np.zeros(len(train)), np.zeros(len(rows))
    pool = Pool(data.arrays["pdg"][train], none[0], rows.showers.pdg, none[1])
    return Reference(
        pool,
        lambda positions: data.arrays["images"][train[positions]],
        pool.known,
        np.ones(len(rows), dtype=bool),
    )


#: Rows of a file that are in memory at once.
_PIECE = 4096


@dataclass(frozen=True)
class Floors:
    """The simulations with another seed that an evaluation was given.

    Attributes:
        other: Responses to the same primaries, if there are any.
        sums: Responses to the same primaries with the same photon sums, if there are any.
        most: How many of those a row takes turns with.
    """

    other: Showers | None = None
    sums: Showers | None = None
    most: int = 1

    @classmethod
    def read(cls, options: FloorOptions, data: ShowerData, split: Literal["test", "val"]) -> Floors:
        """Reads the files; of the one with given sums, which is large, only responses to primaries of the split.

        Raises:
            ValueError: If the floor of all sums was made to have those of the rows: no simulation could reach it.
        """
        detector = data.detector
        other = read(options.floor, detector) if options.floor else None
        if options.floor and _matched(options.floor):
            raise ValueError(
                f"{options.floor}: its photon sums were matched to given ones (match_sums); expected responses with sums of "
                "their own; name it with --shape_floor"
            )
        if not options.shape_floor:
            return cls(other)
        rows = data.rows(split)
        known = set(_keys(data.arrays["particles"][rows], data.arrays["pdg"][rows]))
        pieces = [
            piece.select(np.array([key in known for key in _keys(piece.particles, piece.pdg)]))
            for source in sources(options.shape_floor, detector)
            for piece in checked_pieces(source, _PIECE)
        ]
        particles, pdg, images = (
            np.concatenate([getattr(p, name) for p in pieces]) for name in ("particles", "pdg", "images")
        )
        sums = Showers(particles, pdg, images, detector)
        if not len(sums):
            raise ValueError(f"{options.shape_floor}: expected responses to primaries of the {split} rows, has none")
        return cls(other, sums, max(1, _matched(options.shape_floor)))

    def simulated(self, rows: Selection) -> dict[str, Reference]:
        """The floors of whole simulations by their short names."""
        found = {"floor": floor_of_simulation(self.other, rows)} if self.other is not None else {}
        return found | ({"shape_floor": floor_of_sums(self.sums, rows, self.most)} if self.sums is not None else {})

    def references(self, data: ShowerData, split: Literal["test", "val"], rows: Selection) -> dict[str, Reference]:
        """All floors there can be, of halves without another simulation, and the trivial model, by their short names.

        Raises:
            ValueError: If a simulation is of other primaries than most of the rows: it would be another trivial model.
        """
        for name, own in (simulated := self.simulated(rows)).items():
            if 2 * own.lacking > len(rows):
                raise ValueError(
                    f"{name}: its responses are to other primaries; expected those of at least half of the {len(rows)} judged "
                    f"rows, {len(rows) - own.lacking} have theirs (calosim simulate --primaries FILE makes them)"
                )
        halves = floor_of_halves(data, split, rows) if self.other is None else None
        found = {} if halves is None else {"halves": halves}
        return {**found, **simulated, "trivial": trivial_model(data, rows)}


def _matched(file: str) -> int:
    """How many responses with nearly its photon sum a file was given for each row, by its record; 0 if it does not say."""
    recipe = read_recipe(file)
    return int(recipe["settings"].get("match_sums", 0)) if recipe else 0


def _matched_primaries(pool: Showers, rows: Selection) -> np.ndarray:
    """The pool's identifiers of primaries in the numbering of the judged rows, -1 for primaries that are not among them."""
    known = dict(zip(_keys(rows.showers.particles, rows.showers.pdg), rows.primary_ids, strict=True))
    return np.array([known.get(key, -1) for key in _keys(pool.particles, pool.pdg)], dtype=np.int64)


def _keys(particles: np.ndarray, pdg: np.ndarray) -> Iterator[bytes]:
    """What tells primaries apart, from features (N, 9) and PDG codes (N,)."""
    return (row.tobytes() for row in np.column_stack([particles, pdg]) + 0.0)
