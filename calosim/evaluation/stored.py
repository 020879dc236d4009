"""The folder of a finished evaluation: its record and its answers, each read once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from calosim.io import open_npz, read_json
from calosim.particles import particle_code

__all__ = ["Evaluation"]


class Evaluation:
    """What ``calosim evaluate`` left in a folder.

    ===================  ==========================================================================
    ``evaluation.json``  arguments, data, metrics of all candidates; written last
    ``evaluation.md``    the same as tables for people; ``evaluation.csv`` for programs
    ``answers.npz``      what the candidates answered, row by row, reduced to what metrics need
    ===================  ==========================================================================

    Args:
        folder: The folder; nothing is read before it is asked for, and nothing twice.
    """

    RECORD, TABLES, NUMBERS, ANSWERS = "evaluation.json", "evaluation.md", "evaluation.csv", "answers.npz"

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def exists(self) -> bool:
        """Whether the evaluation came to its end."""
        return (self.folder / self.RECORD).exists()

    @property
    def has_answers(self) -> bool:
        """Whether answers were kept: an evaluation of photon sums alone has none."""
        return (self.folder / self.ANSWERS).exists()

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of ``evaluation.json``.

        Raises:
            ValueError: If it is missing or no JSON.
        """
        return read_json(self.folder / self.RECORD)

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
            title: {
                what: {key: number(x) for key, x in image[what].items()} for what in ("mean", "std") if what in image
            }
            for title, image in images.items()
        }

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the arrays in ``answers.npz``."""
        with open_npz(self.folder / self.ANSWERS) as stored:
            return frozenset(stored.files)

    def __getitem__(self, name: str) -> np.ndarray:
        """One array of ``answers.npz``; only those that are asked for are unpacked."""
        if name not in self._arrays:
            with open_npz(self.folder / self.ANSWERS) as stored:
                self._arrays[name] = stored[name]
        return self._arrays[name]

    def requantization(self, particle: str) -> int | None:
        """The noise removal of a particle type or of ``all``, as chosen on validation rows; None if counts came out exactly."""
        methods = self.record["requantization"]
        code = 0 if particle == "all" else particle_code(particle)
        return methods.get(str(code), methods.get("0"))
