"""Showers of files as a training splits and filters them, without anything of a training's; no torch is imported."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calosim.data.cache import cached_arrays, open_cache
from calosim.data.record import Showers
from calosim.data.root import Names
from calosim.detectors import Detector, get_detector
from calosim.particles import particle_code, particle_name

__all__ = ["SPLITS", "ShowerData", "Split", "split_rows"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_rows(
    primary_ids: np.ndarray,
    pdg: np.ndarray,
    by: Literal["primary", "response"] = "primary",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> dict[Split, np.ndarray]:
    """Splits rows into training, validation and test.

    Args:
        primary_ids: Number of every row's primary, shape (N,), see :attr:`calosim.data.record.Showers.primary_ids`.
        pdg: PDG code of every row, shape (N,).
        by: ``primary`` keeps all responses to one primary together, so that no primary is in two splits, and divides the
            primaries of each particle type separately, so that rare types reach every split; ``response`` divides rows
            regardless of their primary, as the published studies did.
        fractions: Shares of training, validation and test; they sum to 1.
        seed: Seed of the division.

    Returns:
        Sorted row numbers of each split; together they hold every row once.

    Raises:
        ValueError: If the fractions do not sum to 1 or are negative.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-9:
        raise ValueError(f"expected three split fractions that sum to 1, got {tuple(fractions)}")
    rng = np.random.default_rng(seed)

    def divide(items: np.ndarray) -> list[np.ndarray]:
        # Halves round up, so that a type with five primaries has one for validation.
        held = [int(len(items) * f + 0.5) for f in fractions[1:]]
        kept = max(len(items) - sum(held), 0)
        return np.split(rng.permutation(items), [kept, kept + held[0]])

    if by == "response":
        return {name: np.sort(part) for name, part in zip(SPLITS, divide(np.arange(len(pdg))), strict=True)}
    if by != "primary":
        raise ValueError(f"unknown split {by!r}; expected primary or response")
    of_primary = np.zeros(int(primary_ids.max(initial=-1)) + 1, dtype=np.int8)
    for code in np.unique(pdg):
        for k, part in enumerate(divide(np.unique(primary_ids[pdg == code]))):
            of_primary[part] = k
    return {name: np.flatnonzero(of_primary[primary_ids] == k) for k, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class ShowerData:
    """Showers of files: split, then filtered. What the files hold is read when it is asked for, once.

    Attributes:
        files: One file of showers or several, in any form that ``calosim convert`` reads.
        detector: Name of the detector the files must hold.
        particle: Keep only this particle type, by name or PDG code; all if None. The split is made before the filter, so that
            a test row of one selection is never a training row of another.
        split_by: See :func:`split_rows`, as for fractions and seed.
        fractions: Shares of training, validation and test.
        min_photons: Keep only rows with at least that many photons, again after the split.
        seed: Seed of the split.
        cache_dir: Where the cache of arrays lies, see :func:`calosim.data.cache.cached_arrays`.
        tree: The tree of ROOT files, see :class:`calosim.data.root.Names`.
        columns: Branches of other names, by ours.

    Raises:
        ValueError: If there is no file or one is given twice, or the detector or the particle is unknown.
    """

    files: str | Sequence[str]
    detector: str = "zn"
    particle: str | int | None = None
    split_by: Literal["primary", "response"] = "primary"
    fractions: Sequence[float] = (0.7, 0.1, 0.2)
    min_photons: int = 10
    seed: int = 0
    cache_dir: str | None = None
    tree: str | None = None
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        files = [self.files] if isinstance(self.files, str) else list(self.files)
        if not files:
            raise ValueError("expected at least one data file (--data.files FILE), got none")
        if twice := [name for name, times in Counter(map(os.path.realpath, files)).items() if times > 1]:
            raise ValueError(f"{twice[0]}: given twice as a data file; expected each once")
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "detector", self.geometry.name)
        object.__setattr__(self, "particle", None if self.particle is None else particle_code(self.particle))
        Names(self.tree, self.columns or {})

    @classmethod
    def of(cls, settings: Mapping[str, Any], **others: Any) -> ShowerData:
        """The data of a training's settings, as its ``config.yaml`` has them under ``data``.

        Args:
            settings: Arguments of :class:`~calosim.data.datamodule.RootDataModule`; those of batches are left out.
            **others: What takes the place of some.
        """
        names = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in {**settings, **others}.items() if name in names})

    @property
    def geometry(self) -> Detector:
        """The detector."""
        return get_detector(self.detector)

    def cache(self) -> Path:
        """The folder of the files' arrays, made unless it is there."""
        return cached_arrays(self.files, self.detector, self.cache_dir, Names(self.tree, self.columns or {}))

    @cached_property
    def _opened(self) -> tuple[dict[str, np.ndarray], str]:
        return open_cache(self.cache())

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """``particles``, ``pdg``, ``images``, ``primary_ids`` and ``photon_sum`` of all rows; images stay in the file."""
        return self._opened[0]

    @property
    def data_hash(self) -> str:
        """The hash of the files' contents, that results are labeled with."""
        return self._opened[1]

    @cached_property
    def splits(self) -> dict[Split, np.ndarray]:
        """Row numbers of each split within the files, ascending.

        Raises:
            ValueError: If the selection leaves no training row, or a file is bad.
        """
        pdg, names = self.arrays["pdg"], ", ".join(self.files)
        splits = split_rows(self.arrays["primary_ids"], pdg, self.split_by, self.fractions, self.seed)
        nonempty = self.arrays["photon_sum"] >= self.min_photons
        splits = {name: rows[nonempty[rows]] for name, rows in splits.items()}
        if self.particle is not None:
            splits = {name: rows[pdg[rows] == self.particle] for name, rows in splits.items()}
            if not sum(map(len, splits.values())):
                wanted, *present = (particle_name(int(code)) for code in (self.particle, *np.unique(pdg)))
                raise ValueError(f"{names}: no row of particle {wanted}; the files hold {', '.join(present)}")
        if not len(splits["train"]):
            selected = sum(map(len, splits.values()))
            if not selected:
                raise ValueError(
                    f"{names}: no row has {self.min_photons} photons or more; expected responses with light"
                )
            raise ValueError(
                f"{names}: none of the {selected} selected rows is in the training split; expected more primaries or a larger "
                "first fraction"
            )
        return splits

    def rows(self, split: Split) -> np.ndarray:
        """Row numbers of a split within the files, ascending, shape (M,)."""
        return self.splits[split]

    def primary_ids(self, split: Split) -> np.ndarray:
        """Numbers of the primaries of a split's rows, shape (M,), int64."""
        return self.arrays["primary_ids"][self.rows(split)]

    def showers(self, split: Split, positions: np.ndarray | None = None) -> Showers:
        """The rows of a split in memory.

        Args:
            split: ``train``, ``val`` or ``test``.
            positions: Positions within the split; all if not given.
        """
        rows, a = self.rows(split) if positions is None else self.rows(split)[positions], self.arrays
        return Showers(a["particles"][rows], a["pdg"][rows], a["images"][rows], self.detector)

    def describe(self) -> dict[str, Any]:
        """What results say of their data: files, hash, counts, and all that decides the split."""
        return {
            "files": self.files,
            "data_hash": self.data_hash,
            "detector": self.detector,
            "rows": {split: len(self.rows(split)) for split in SPLITS},
            "split_by": self.split_by,
            "fractions": [float(fraction) for fraction in self.fractions],
            "particle": self.particle,
            "seed": self.seed,
        }
