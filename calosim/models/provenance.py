"""What a model has learned from: the data and splits of its whole line, the range of its primaries, and finite numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calosim.data.record import FEATURES
from calosim.data.splits import ShowerData
from calosim.particles import particle_name
from calosim.runs import SPLIT

__all__ = [
    "PRECISIONS",
    "Lineage",
    "Seen",
    "check_precision",
    "check_rows",
    "first_not_finite",
    "joined",
    "lineage_of",
    "not_seen",
    "primaries_of",
    "same_line",
    "split_unlike",
]

#: The trainer's precisions in which losses were compared with those of 64 bits. In half of them counts above 256
#: (bfloat16) or 2048 (float16) are no longer themselves, and logarithms of normal probabilities have no kernels.
PRECISIONS = ("32-true", "64-true")

#: Data sets and splits, the oldest first: mappings with the keys of :data:`calosim.runs.SPLIT` and ``particle``.
Lineage = list[dict[str, Any]]

#: Rows of training by PDG code (as text), and the smallest and largest value of each feature: ``pdg``, ``low``, ``high``.
Seen = dict[str, Any]

#: How far outside of its range in training a feature is far outside: in units of that range's width, or in its own unit;
#: below the lowest energy in units of it.
MARGIN, LEAST_MARGIN = 0.1, 1e-3


def check_precision(precision: str) -> None:
    """Refuses a trainer's precision that is not one of :data:`PRECISIONS`.

    Raises:
        ValueError: If so.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"expected trainer.precision {' or '.join(PRECISIONS)}, got {precision}: photon counts and the logarithms of "
            "small probabilities do not survive in half precision"
        )


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite; None if there is none."""
    floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
    return next((name for name, value in floats.items() if not value.isfinite().all()), None)


def lineage_of(data: Any) -> Lineage:
    """What a data module gives to learn from, as one entry of a line; none without the project's own data module."""
    source = getattr(data, "data", None)
    if not isinstance(source, ShowerData):
        return []
    told = source.describe()
    return [{key: told[key] for key in (*SPLIT, "particle")}]


def joined(*lines: Lineage) -> Lineage:
    """Several lines as one; what they have in common stands where it stands first."""
    result: Lineage = []
    for entry in (entry for line in lines for entry in line):
        if entry not in result:
            result.append(entry)
    return result


def same_line(mine: Lineage, theirs: Lineage) -> str:
    """What differs between two lines, in words; an empty text if nothing does."""
    if mine == theirs:
        return ""
    if len(mine) != len(theirs):
        return f"{len(theirs)} data sets or splits in its line, not {len(mine)}"
    pair = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
    keys = [key for key in (*SPLIT, "particle") if pair[0].get(key) != pair[1].get(key)]
    return ", ".join(f"{key} {pair[1].get(key)}, not {pair[0].get(key)}" for key in keys)


def split_unlike(line: Lineage) -> str:
    """Which ancestor was trained on another split of the same data than the last of a line, in words; empty if none."""
    for entry in (entry for entry in line[:-1] if entry["data_hash"] == line[-1]["data_hash"]):
        if differs := ", ".join(f"{k} {entry[k]}, not {line[-1][k]}" for k in SPLIT if entry[k] != line[-1][k]):
            return f"what it begins from was trained on another split of these data ({differs})"
    return ""


def primaries_of(data: Any, earlier: Seen | None = None) -> Seen | None:
    """Types and ranges of the primaries of a data module's training rows, together with those that were seen earlier.

    Args:
        data: The data module.
        earlier: What the model had seen that the training began from.
    """
    if not hasattr(data, "arrays"):
        return earlier
    rows = data.rows("train")
    particles, pdg = data.arrays["particles"][rows], data.arrays["pdg"][rows]
    codes = {str(code): int((pdg == code).sum()) for code in np.unique(pdg)}
    low, high = particles.min(0), particles.max(0)
    if earlier is not None:
        codes = {code: codes.get(code, 0) + earlier["pdg"].get(code, 0) for code in {**earlier["pdg"], **codes}}
        low, high = np.minimum(low, earlier["low"]), np.maximum(high, earlier["high"])
    return {"pdg": codes, "low": low.tolist(), "high": high.tolist()}


def not_seen(seen: Seen | None, particles: np.ndarray, pdg: np.ndarray) -> dict[str, np.ndarray]:
    """Primaries outside of what a model was trained on.

    Args:
        seen: What it has seen; nothing is outside if it does not tell.
        particles: Features with shape (N, 9).
        pdg: PDG codes with shape (N,).

    Returns:
        By reason, such as ``deuteron never seen`` or ``energy beyond [50.1, 2980] GeV``, which rows it concerns, shape (N,).
    """
    if seen is None:
        return {}
    known = np.isin(pdg, [int(code) for code in seen["pdg"]])
    found = {f"{particle_name(int(code))} never seen": pdg == code for code in np.unique(pdg[~known])}
    low, high = np.array(seen["low"]), np.array(seen["high"])
    margin = np.maximum(MARGIN * (high - low), LEAST_MARGIN)
    margin_below = margin.copy()
    margin_below[0] = MARGIN * low[0]  # energies span orders of magnitude
    beyond = (particles < low - margin_below) | (particles > high + margin)
    for k, name in enumerate(FEATURES[:7]):  # mass and charge follow from the type
        found[f"{name} beyond [{low[k]:.4g}, {high[k]:.4g}]"] = beyond[:, k] & known
    return {reason: rows for reason, rows in found.items() if rows.any()}


def check_rows(values: Tensor, rows: Tensor, what: str) -> None:
    """Refuses values of rows that are not finite.

    Args:
        values: With shape (*, B).
        rows: Row numbers in the data, shape (B,).
        what: What they are, and when.

    Raises:
        FloatingPointError: If one is not.
    """
    values = values.detach()
    bad = ~values.isfinite()
    if bad.any():
        at = tuple(torch.nonzero(bad)[0].tolist())
        row, value = int(rows[at[-1]]), float(values[at])
        raise FloatingPointError(f"{what}: row {row} of the data gives {value}; expected a finite number")
