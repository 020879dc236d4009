"""The cells of a study's tables: metrics with their uncertainties, and paired comparisons with a reference model.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over unique inputs: the same inputs are drawn for all models.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from calosim.evaluation.definitions import TITLES
from calosim.evaluation.intervals import LEAST_PRIMARIES, resampled_metrics
from calosim.evaluation.stored import Evaluation
from calosim.metrics.bootstrap import Bootstrap, contrast, interval, resample
from calosim.particles import particle_code
from calosim.studies.layout import REFERENCES, Row, Table

__all__ = ["Cell", "Cells", "fill_cells"]

#: Metrics whose best value is the Monte Carlo's own, not 0.
CENTERS = ("center", "center_sd")


@dataclass
class Cell:
    """A metric of one row, column and mode.

    Attributes:
        mean: Over generation runs, and over training seeds if there are several.
        std: Over training seeds if there are several, else over generation runs.
        seeds: How many trainings the cell is of.
        target: What the metric should be: 0, or for center distances the Monte Carlo's own, below which showers are too
            much alike.
        primaries: The number of unique inputs.
        samples: The metric in each bootstrap resample of unique inputs, with shape (R,); None for the centers' standard
            deviation and for fewer than :data:`LEAST_PRIMARIES`.
        versus: The paired comparison with the reference row.
    """

    mean: float
    std: float
    seeds: int = 1
    target: float = 0.0
    primaries: int = 0
    samples: np.ndarray | None = None
    versus: Bootstrap | None = None

    @property
    def score(self) -> float:
        """What ranks the cell, lower being better."""
        return abs(self.mean - self.target)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap interval; None without resamples."""
        if self.samples is None:
            return None
        return interval(self.mean, self.samples)


#: Cells by mode, metric, particle and label.
Cells = dict[tuple[str, str, str, str], Cell]


def fill_cells(rows: Sequence[Row], table: Table, resamples: int, quiet: bool) -> Cells:
    """All cells of a study's tables.

    Args:
        rows: The rows.
        table: Columns, metrics and modes.
        resamples: Bootstrap resamples of unique inputs, R.
        quiet: Show no progress.

    Raises:
        ValueError: If rows were judged on other data than those they are to be compared with.
    """
    cells: Cells = {}
    pairing = _Pairing(resamples)
    detector = rows[0].evaluations[0][0].record["data"]["detector"]
    work = [(mode, particle, row) for mode in table.modes for particle in table.particles for row in rows]
    for mode, particle, row in tqdm(work, desc="bootstrap", unit="cell", disable=True if quiet else None):
        parts: dict[str, list[_Part]] = {}
        for evaluation in row.of(particle):
            candidate = row.candidate(mode)
            if f"ws_{particle}" not in evaluation.metrics.get(TITLES[candidate], {"mean": {}})["mean"]:
                continue
            column = pairing.column(evaluation, particle, row)
            samples = column.resampled(evaluation, candidate, table.metrics, detector)
            for metric in table.metrics:
                parts.setdefault(metric, []).append(_part(evaluation, candidate, metric, particle, samples.get(metric)))
        for metric, values in parts.items():
            cells[mode, metric, particle, row.label] = _joined(values, column.primaries)
    if table.reference:
        _compare(cells, table.reference)
    return cells


class _Part(NamedTuple):
    """What one training adds to a cell; see :class:`Cell`."""

    mean: float
    std: float
    target: float
    samples: np.ndarray | None


def _part(evaluation: Evaluation, candidate: str, metric: str, particle: str, samples: np.ndarray | None) -> _Part:
    name, result = f"{metric}_{particle}", evaluation.metrics[TITLES[candidate]]
    truth = evaluation.metrics["monte_carlo"]["mean"]
    target = truth.get(name, 0.0) if metric in CENTERS else 0.0
    return _Part(result["mean"][name], result["std"][name], target, samples)


def _joined(parts: Sequence[_Part], primaries: int) -> Cell:
    means, stds, targets, samples = zip(*parts, strict=True)
    several = len(parts) > 1
    return Cell(
        float(np.mean(means)),
        float(np.std(means, ddof=1) if several else stds[0]),
        len(parts),
        float(np.mean(targets)),
        primaries,
        None if any(s is None for s in samples) else np.mean(samples, axis=0),
    )


def _compare(cells: Cells, reference: str) -> None:
    """Fills in the comparisons with the reference row."""
    for (mode, metric, particle, label), cell in cells.items():
        other = cells.get((mode, metric, particle, reference))
        if other is None or label in REFERENCES or cell.samples is None or other.samples is None or cell is other:
            continue
        cell.versus = contrast(cell.mean, other.mean, cell.samples, other.samples)


@dataclass(frozen=True)
class _Column:
    """The test rows of a particle type in one evaluation, and how their inputs are resampled.

    Attributes:
        own: Which rows of the evaluation they are, shape (N,).
        data: Their ``rows``, ``pdg``, ``inputs`` and channels, ``reference``.
        counts: How often each unique input occurs in each resample, shape (R, K).
    """

    own: np.ndarray
    data: Mapping[str, np.ndarray]
    counts: np.ndarray

    @property
    def primaries(self) -> int:
        return self.counts.shape[1]

    def resampled(
        self, evaluation: Evaluation, candidate: str, metrics: Sequence[str], detector: str
    ) -> dict[str, np.ndarray]:
        """Metrics of a candidate in each resample, shape (R,), averaged over runs; empty where that cannot be had."""
        names = [f"{candidate}_{what}" for what in ("channels", "offsets")]
        # A floor of halves has no answers to every row.
        if self.primaries < LEAST_PRIMARIES or names[0] not in evaluation.names:
            return {}
        channels, offsets = (evaluation[name][:, self.own] for name in names)
        return resampled_metrics(channels, offsets, self.data, self.counts, metrics, detector)


@dataclass
class _Pairing:
    """Makes sure that all rows of a column are judged on the same data and resampled alike."""

    resamples: int
    _seen: dict[str, tuple[_Column, Row]] = field(default_factory=dict)

    def column(self, evaluation: Evaluation, particle: str, row: Row) -> _Column:
        """The rows of a particle in an evaluation.

        Raises:
            ValueError: If the column's first row was judged on others.
        """
        own = evaluation["natural"] if particle == "all" else evaluation["pdg"] == particle_code(particle)
        data = {name: evaluation[name][own] for name in ("rows", "pdg", "inputs", "reference")}
        if particle not in self._seen:
            counts = resample(len(np.unique(data["inputs"])), self.resamples)
            self._seen[particle] = _Column(own, data, counts), row
        first, earlier = self._seen[particle]
        # The floor may have been judged on the very same rows only; another selection cannot be paired.
        if any(not np.array_equal(first.data[name], data[name]) for name in data):
            raise ValueError(
                f"{evaluation.folder}: judged on other rows of {particle} than {earlier.label}; evaluate both with the same "
                "rows, rows_of_each and data"
            )
        return _Column(own, data, first.counts)
