"""Files of primary particles without responses, read in pieces: ten million rows take no more memory than ten thousand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calosim.data.checks import (
    check_primaries,
    existing_file,
    features_of,
    row_name,
)
from calosim.data.extract import column_pieces, count_lines
from calosim.data.record import FEATURES, TABULATED
from calosim.data.root import open_tree

__all__ = ["PIECE", "PrimariesFile", "read_primaries"]

#: Rows read at once: 3 MB of features.
PIECE = 40_000
_NAMES = [name for name in (*FEATURES, "pdg") if name not in TABULATED]


@dataclass(frozen=True)
class PrimariesFile:
    """A file of primaries whose rows are read when they are asked for.

    Attributes:
        path: The file.
        rows: How many primaries it holds, at least one.
    """

    path: Path
    rows: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PrimariesFile:
        """Counts the rows of a file, see :func:`read_primaries`; what they hold is checked when they are read.

        Raises:
            ValueError: If it is no such file, or holds no rows.
        """
        path = existing_file(path)
        match path.suffix.lower():
            case ".root":
                with open_tree(path) as tree:
                    tree.check(_NAMES, TABULATED)
                    rows = tree.rows
            case ".csv":
                next(_table(path, 0, 1))  # refuses a wrong header
                rows = count_lines(path)
            case other:
                raise ValueError(f"{path}: unknown suffix {other!r}; expected .root or .csv")
        if rows == 0:
            raise ValueError(f"{path}: holds no rows; expected at least one")
        return cls(path, rows)

    def pieces(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Reads rows ``first`` to ``stop``, all if not given, in constant memory.

        Yields:
            Features with shape (B, 9), float64, and PDG codes (B,), int32, of up to :data:`PIECE` rows.

        Raises:
            ValueError: If anything is wrong with them, in one line that says what and where.
        """
        stop = self.rows if stop is None else stop
        tables = (
            _branches(self.path, first, stop)
            if self.path.suffix.lower() == ".root"
            else _table(self.path, first, PIECE)
        )
        for arrays in tables:
            if first >= stop:
                return
            piece = self._checked({name: values[: stop - first] for name, values in arrays.items()}, first)
            yield piece
            first += len(piece[1])
        if first < stop:
            raise ValueError(f"{self.path}: the file is damaged; it ends with row {first - 1} of {self.rows}")

    def _checked(self, arrays: dict[str, np.ndarray], first: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and codes from columns, of which mass and charge may be missing."""
        where, name = partial(row_name, first), str(self.path)
        particles, pdg = features_of(arrays, name, where)
        check_primaries(particles, pdg, name, where)
        return particles, pdg


def _branches(path: Path, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    with open_tree(path) as tree:
        names = tree.check(_NAMES, TABULATED)
        for start in range(first, stop, PIECE):
            yield tree.read(names, start, min(start + PIECE, stop))


def _table(path: Path, first: int, most: int) -> Iterator[dict[str, np.ndarray]]:
    kinds = dict.fromkeys(_NAMES, "f8") | {"pdg": "i8"}
    for table in column_pieces(path, kinds, dict.fromkeys(TABULATED, "f8"), first, most):
        yield {name: table[name] for name in table.dtype.names or ()}


def read_primaries(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads primary particles without responses.

    Args:
        path: A ROOT file with a tree ``showers`` that has the branches of :data:`FEATURES` and ``pdg``, or a
            CSV with a header of these names in any order. A CSV may leave out mass and charge: they follow
            from the PDG code.

    Returns:
        Features with shape (N, 9), float64, in the order and units of :data:`FEATURES`, and PDG codes (N,),
        int32.

    Raises:
        ValueError: If anything is wrong with the file, in one line that says what and where.
    """
    particles, pdg = zip(*PrimariesFile.open(path).pieces(), strict=True)
    return np.concatenate(particles), np.concatenate(pdg)
