"""Targets of the calibration: a published number, ours with its statistical error, and where ours should lie.

Errors are of sums over primaries (not over responses, which of one primary are alike) in blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["BLOCKS", "Target", "absolute", "measured", "relative"]

#: Blocks of rows whose spread is the error of a statistic.
BLOCKS = 20


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        group: What it is about.
        name: The quantity.
        published: The published value, as text.
        ours: What comes out of the toy.
        error: Its statistical error; nan where it has no meaning.
        band: Where ours should lie; None for numbers that are only shown beside each other.
        note: A remark, and the reason where it is missed.
    """

    group: str
    name: str
    published: str
    ours: float
    error: float = np.nan
    band: tuple[float, float] | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``inside``, ``MISSED`` or, without a band, ``shown``."""
        if self.band is None:
            return "shown"
        return "inside" if self.band[0] <= self.ours <= self.band[1] else "MISSED"


def relative(value: float, fraction: float) -> tuple[float, float]:
    """A band around a value, of a fraction of it to each side."""
    return value - abs(value) * fraction, value + abs(value) * fraction


def absolute(value: float, width: float) -> tuple[float, float]:
    """A band around a value, of that width to each side."""
    return value - width, value + width


def measured(
    group: str,
    name: str,
    published: str,
    statistic: Callable[..., float],
    block: np.ndarray,
    band: tuple[float, float] | None,
    note: str = "",
) -> Target:
    """A target whose value is a statistic of rows.

    Args:
        group: As in :class:`Target`.
        name: As in :class:`Target`.
        published: As in :class:`Target`.
        statistic: Called with a mask of rows, shape (N,).
        block: The block of every row, 0 to ``BLOCKS - 1``, shape (N,).
        band: As in :class:`Target`.
        note: As in :class:`Target`.

    Returns:
        The target with the statistic of all rows, and as its error that of the mean over blocks.
    """
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # blocks of a rare particle may be empty: their nan is dropped
        parts = [statistic(block == b) for b in range(BLOCKS) if (block == b).any()]
        finite = np.array([p for p in parts if np.isfinite(p)])
        error = finite.std(ddof=1) / np.sqrt(len(finite)) if len(finite) > 1 else np.nan
        ours = float(statistic(np.ones(len(block), dtype=bool)))
    return Target(group, name, published, ours, float(error), band, note)
