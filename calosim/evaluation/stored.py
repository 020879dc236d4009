"""The folder of a finished evaluation: its record and its samples, each read once, and what tables call what is in them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from calosim.io import open_npz, read_json
from calosim.particles import STUDY_PARTICLES, particle_code, particle_name

__all__ = ["TITLES", "Evaluation", "shown_particles"]

#: What tables call the candidates, by the short names that files use.
TITLES = {
    "shape": "shape alone (true photon sums)",
    "shape_floor": "floor (Monte Carlo, same photon sums)",
    "chain": "full chain",
    "floor": "floor (Monte Carlo, other seed)",
    "halves": "floor (Monte Carlo, other half of the responses)",
    "trivial": "trivial (random training response)",
}

#: Keys of records and arrays written by version 0.2, which had candidates by their titles.
_OLD = {title: name for name, title in TITLES.items()} | {"inputs": "primaries", "classifier": "c2st"}


def shown_particles(present: Container[str]) -> list[str]:
    """The names among those present that tables and pictures show: ``all``, then the study's types in its order."""
    return [name for name in ("all", *map(particle_name, STUDY_PARTICLES)) if name in present]


def _renamed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with today's keys; its arguments are as they were given."""
    found = {_OLD.get(key, key): value for key, value in record.items()}
    return {k: _renamed(value) if k in ("images", "c2st", "candidates") else value for k, value in found.items()}


class Evaluation:
    """What ``calosim evaluate`` left in a folder.

    ===================  ==========================================================================
    ``evaluation.json``  arguments, data, metrics of all candidates; written last
    ``evaluation.md``    the same as tables for people; ``evaluation.csv`` for programs
    ``samples.npz``      what the candidates generated, row by row, reduced to what metrics need
    ===================  ==========================================================================

    Args:
        folder: The folder; nothing is read before it is asked for, and nothing twice.
    """

    RECORD, TABLES, NUMBERS, SAMPLES = "evaluation.json", "evaluation.md", "evaluation.csv", "samples.npz"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def exists(self) -> bool:
        """Whether the evaluation came to its end."""
        return (self.folder / self.RECORD).exists()

    @cached_property
    def samples(self) -> Path:
        """The file of samples, there or not."""
        old = self.folder / "answers.npz"  # its name in version 0.2
        return old if old.exists() else self.folder / self.SAMPLES

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of ``evaluation.json``.

        Raises:
            ValueError: If it is missing or no JSON.
        """
        return _renamed(read_json(self.folder / self.RECORD))

    @cached_property
    def older(self) -> str:
        """Which models have other weights by now than those that were judged, in words; empty if none."""
        from calosim.models.checkpoints import older  # with torch, which most readers can do without

        return older(self.record.get("weights"), self.folder)

    @cached_property
    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """By candidate, ``mean`` and ``std`` of all metrics; those of the Monte Carlo itself by ``monte_carlo``."""
        images = self.record["images"] | {"monte_carlo": {"mean": self.record.get("monte_carlo", {})}}

        def number(value: float | None) -> float:  # null is what JSON has for NaN
            return float("nan") if value is None else value

        return {
            name: {
                what: {key: number(x) for key, x in image[what].items()} for what in ("mean", "std") if what in image
            }
            for name, image in images.items()
        }

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the arrays in the file of samples; none without it, as of an evaluation of photon sums alone."""
        if not self.samples.exists():
            return frozenset()
        with open_npz(self.samples) as stored:
            return frozenset("primary_ids" if name == "inputs" else name for name in stored.files)

    def __getitem__(self, name: str) -> np.ndarray:
        """One array of the file of samples; only those that are asked for are unpacked."""
        if name not in self._arrays:
            with open_npz(self.samples) as stored:
                old = name == "primary_ids" and name not in stored
                self._arrays[name] = stored["inputs" if old else name]
        return self._arrays[name]

    def requantization(self, particle: str) -> int | None:
        """The requantization of a particle type or of ``all``, as chosen on validation rows; None if counts came out exactly."""
        methods = self.record["requantization"]
        code = 0 if particle == "all" else particle_code(particle)
        return methods.get(str(code), methods.get("0"))
