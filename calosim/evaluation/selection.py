"""Which rows are judged: the data set and split of a training, rows that keep the mix of particles, unseen by the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calosim.data.record import Showers
from calosim.data.splits import ShowerData
from calosim.models.checkpoints import lineages
from calosim.options import Protocol
from calosim.runs import SPLIT, Run

__all__ = [
    "Selection",
    "check_splits",
    "mixed_rows",
    "rank_within",
    "select_rows",
    "some_rows",
    "trained_data",
]


@dataclass(frozen=True)
class Selection:
    """The rows of a split that are judged.

    Attributes:
        showers: The N rows.
        positions: Where they are in the split, ascending, shape (N,).
        primary_ids: Identifiers of their primaries in the data set, shape (N,).
        natural: Which of them are of the natural mix of particle types, shape (N,); the others are there for their type.
    """

    showers: Showers
    positions: np.ndarray
    primary_ids: np.ndarray
    natural: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


def select_rows(data: ShowerData, protocol: Protocol, particle: int | None = None) -> Selection:
    """The rows that a protocol asks for; none where the split has none.

    Args:
        data: The data set, all particle types.
        protocol: How many rows of which split.
        particle: PDG code of the only particle type to judge; all if None.
    """
    primary_ids, pdg = data.primary_ids(protocol.split), data.arrays["pdg"][data.rows(protocol.split)]
    positions, natural = mixed_rows(primary_ids, pdg, protocol.rows, protocol.rows_of_each)
    # All types' rows are chosen, then those of the particle: the same rows whichever model is judged.
    if particle is not None:
        own = pdg[positions] == particle
        positions, natural = positions[own], natural[own]
    return Selection(data.showers(protocol.split, positions), positions, primary_ids[positions], natural)


def mixed_rows(
    primary_ids: np.ndarray, pdg: np.ndarray, rows: int | None, of_each: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of the natural mix, and further rows of rare particle types.

    Args:
        primary_ids: Identifiers of the primaries with shape (N,).
        pdg: PDG codes with shape (N,).
        rows: About how many rows of the natural mix; all if None.
        of_each: About how many rows of each type at least, as far as there are; none beyond the mix if None.

    Returns:
        Positions, ascending, shape (M,); and which of them are of the natural mix, shape (M,).
    """
    mix = some_rows(primary_ids, pdg, rows)
    parts = [mix]
    for code in np.unique(pdg) if of_each else []:
        own = np.flatnonzero(pdg == code)
        if (pdg[mix] == code).sum() < (of_each or 0):
            parts.append(own[some_rows(primary_ids[own], pdg[own], of_each)])
    chosen = np.unique(np.concatenate(parts))
    return chosen, np.isin(chosen, mix)


def some_rows(primary_ids: np.ndarray, pdg: np.ndarray, rows: int | None, together: int = 5) -> np.ndarray:
    """Positions of some rows that keep the mix of particle types and several responses of a primary together, ascending.

    Conditional metrics need several responses of a primary; evenly spread rows would leave one or two of each.

    Args:
        primary_ids: Identifiers of the primaries with shape (N,).
        pdg: PDG codes with shape (N,).
        rows: About how many rows are wanted; all if None.
        together: Responses of one primary that stay together.
    """
    if rows is None or rows >= len(primary_ids):
        return np.arange(len(primary_ids))
    rank = rank_within(primary_ids)
    order = np.lexsort((rank, primary_ids, pdg))
    starts = np.flatnonzero(rank[order] % together == 0)
    blocks = np.split(order, starts[1:])
    # Evenly spread over blocks sorted by particle type: every type with its share of the blocks.
    wanted = max(1, round(len(blocks) * rows / len(primary_ids)))
    picked = np.linspace(0, len(blocks) - 1, wanted).round().astype(np.int64)
    return np.sort(np.concatenate([blocks[i] for i in picked]))


def rank_within(groups: np.ndarray) -> np.ndarray:
    """Counts the earlier rows with the same number, shape (N,)."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return rank


def trained_data(
    run: str | Path, files: list[str] | None = None, model: str | Path | None = None
) -> tuple[ShowerData, int | None]:
    """The data set that a run was trained with, split as it was then, all particle types.

    Args:
        run: A run folder or a checkpoint in it.
        files: Other places of its files.
        model: The run whose particle is wanted; ``run`` if not given.

    Returns:
        The data, and the PDG code of the only particle that the model was trained with, if so.

    Raises:
        ValueError: If the run does not tell what it was trained on, or the files' contents have changed since.
    """
    source = Run(run)
    settings, trained = source.config["data"], source.record["data"]["data_hash"]
    data = ShowerData.of(settings, files=files or settings["files"], particle=None)
    if data.data_hash != trained:
        raise ValueError(
            f"{', '.join(data.files)}: not the data of {source.folder} (hash {data.data_hash}, expected {trained}); its "
            "test split would not be the one held out in training"
        )
    return data, Run(model or run).particle


def check_splits(judge: str | Path, models: Sequence[str | Path], given: bool) -> None:
    """Refuses models that may have been trained on the rows they are to be judged on.

    Args:
        judge: The run whose data set and split are used.
        models: Run folders, checkpoints or ensembles.
        given: Whether that run was named for its data: then models of another data set are meant to be there.

    Raises:
        ValueError: If a model was trained on another split of the data set, or unasked on another data set.
    """
    wanted = Run(judge).split
    if wanted is None:
        return
    for model in models:
        for found in lineages(model):
            differs = ", ".join(f"{k} {found.get(k)}, not {wanted[k]}" for k in SPLIT if found.get(k) != wanted[k])
            if differs and (not given or found["data_hash"] == wanted["data_hash"]):
                raise ValueError(
                    f"{model}: expected a model trained on the data and split of {judge}, and begun from such models, lest it "
                    f"has seen the rows it is judged on; it has {differs}"
                )
