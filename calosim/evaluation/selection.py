r"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

Protocol of P4: several responses are generated for every test row, several times over; the numbers are means and
standard deviations over those runs. The floor is the Monte Carlo against itself with another seed; the trivial model
answers with a random training response of the same particle type.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from calosim.particles import particle_code
from calosim.runs import split_of
from calosim.showers.datamodule import RootDataModule

__all__ = ["check_splits", "mixed_rows", "rank_within", "run_folder", "some_rows", "trained_data"]


def mixed_rows(
    inputs: np.ndarray, pdg: np.ndarray, rows: int | None, of_each: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of the natural mix, and further rows of rare particle types.

    Args:
        inputs: Unique-input numbers with shape (N,).
        pdg: PDG codes with shape (N,).
        rows: About how many rows of the natural mix; all if None.
        of_each: About how many rows of each type at least, as far as there are; none beyond the mix if None.

    Returns:
        Positions, ascending, shape (M,); and which of them are of the natural mix, shape (M,).
    """
    mix = some_rows(inputs, pdg, rows)
    parts = [mix]
    for code in np.unique(pdg) if of_each else []:
        own = np.flatnonzero(pdg == code)
        if (pdg[mix] == code).sum() < (of_each or 0):
            parts.append(own[some_rows(inputs[own], pdg[own], of_each)])
    chosen = np.unique(np.concatenate(parts))
    return chosen, np.isin(chosen, mix)


def some_rows(inputs: np.ndarray, pdg: np.ndarray, rows: int | None, together: int = 5) -> np.ndarray:
    """Positions of some rows that keep the mix of particle types and several responses of an input together, ascending.

    Conditional metrics need several responses of an input; evenly spread rows would leave one or two of each.

    Args:
        inputs: Unique-input numbers with shape (N,).
        pdg: PDG codes with shape (N,).
        rows: About how many rows are wanted; all if None.
        together: Responses of one input that stay together.
    """
    if rows is None or rows >= len(inputs):
        return np.arange(len(inputs))
    rank = rank_within(inputs)
    order = np.lexsort((rank, inputs, pdg))
    starts = np.flatnonzero(rank[order] % together == 0)
    blocks = np.split(order, starts[1:])
    # Evenly spread over blocks sorted by particle type: every type with its share of the blocks.
    wanted = max(1, round(len(blocks) * rows / len(inputs)))
    picked = np.linspace(0, len(blocks) - 1, wanted).round().astype(np.int64)
    return np.sort(np.concatenate([blocks[i] for i in picked]))


def trained_data(
    run: str | Path, files: list[str] | None = None, model: str | Path | None = None
) -> tuple[RootDataModule, int | None]:
    """The data set that a run was trained with, split as it was then, all particle types.

    Args:
        run: A run folder or a checkpoint in it.
        files: Other places of its files.
        model: The run whose particle is wanted; ``run`` if not given.

    Returns:
        The data, and the PDG code of the only particle that the model was trained with, if so.

    Raises:
        ValueError: If the run folder has no ``config.yaml``, or the files' contents have changed since.
    """
    folder = run_folder(run)
    for name in ("config.yaml", "run.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected a run folder with {name}, which names the data of the training")
    settings = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    data = RootDataModule(**{**settings, "files": files or settings["files"], "particle": None})
    data.setup()
    trained = json.loads((folder / "run.json").read_text())["data"]["data_hash"]
    if data.data_hash != trained:
        raise ValueError(
            f"{', '.join(data.files)}: not the data of {folder} (hash {data.data_hash}, expected {trained}); its test split "
            "would not be the one held out in training"
        )
    own = run_folder(model or run) / "config.yaml"
    particle = yaml.safe_load(own.read_text())["data"].get("particle") if own.is_file() else None
    return data, None if particle is None else particle_code(particle)


def check_splits(judge: str | Path, models: Sequence[str | Path], given: bool) -> None:
    """Refuses models that may have been trained on the rows they are to be judged on.

    Args:
        judge: The run whose data set and split are used.
        models: Run folders, checkpoints or ensembles.
        given: Whether that run was named for its data: then models of another data set are meant to be there.

    Raises:
        ValueError: If a model was trained on another split of the data set, or unasked on another data set.
    """
    wanted = split_of(run_folder(judge))
    for model in models:
        found = split_of(run_folder(model))
        if None in (wanted, found) or found == wanted:
            continue
        if not given or found["data_hash"] == wanted["data_hash"]:  # type: ignore[index]
            differs = ", ".join(f"{k} {found[k]}, not {wanted[k]}" for k in wanted if found[k] != wanted[k])  # type: ignore[index,union-attr]
            raise ValueError(
                f"{model}: expected a model trained on the data and split of {judge}, lest it has seen the rows it is judged "
                f"on; it has {differs}"
            )


def run_folder(run: str | Path) -> Path:
    return Path(run) if Path(run).is_dir() else Path(run).parent.parent


def rank_within(groups: np.ndarray) -> np.ndarray:
    """Counts the earlier rows with the same number, shape (N,)."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return rank
