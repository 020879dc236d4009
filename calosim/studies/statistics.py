"""The rows and cells of a study's tables: metrics with their uncertainties, and paired comparisons with a reference model.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over primaries: the same ones are drawn for all models.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from calosim.detectors import get_detector
from calosim.evaluation.stored import TITLES, Evaluation
from calosim.evaluation.tests import CONTROLS as C2ST_CONTROLS
from calosim.io import markdown_table
from calosim.metrics.bootstrap import LEAST_PRIMARIES, Bootstrap, contrast, interval, resample
from calosim.metrics.registry import METRICS, Rows, resampled_metrics
from calosim.particles import particle_code, particle_name
from calosim.studies.plan import ENSEMBLE, REFERENCES, Study, Table

__all__ = [
    "TESTS",
    "Cell",
    "Cells",
    "Row",
    "cells_of_tests",
    "contrast_text",
    "evaluated_rows",
    "fill_cells",
    "mean_ranks",
    "rank_table",
    "reference_rows",
    "winners",
]


@dataclass
class Row:
    """One line of the tables: a label's runs, which differ in particle or seed; runs that differ otherwise are other lines.

    Attributes:
        label: The training's label in the plan, with the values of ``each`` that are neither particle nor seed; or ``floor``,
            ``trivial``, ``ensemble``.
        title: What the tables call it.
        evaluations: Evaluations with the particle each is of; None for all.
    """

    label: str
    title: str
    evaluations: list[tuple[Evaluation, str | None]] = field(default_factory=list)

    def of(self, particle: str) -> list[Evaluation]:
        """The evaluations that answer for a particle type, or for ``all``."""
        return [evaluation for evaluation, own in self.evaluations if own is None or own == particle]

    def candidate(self, mode: str) -> str:
        """Which candidate of its evaluations is the row's: the floor is the one of the mode."""
        own = self.label if self.label in REFERENCES else mode
        same = f"{mode}_{own}"
        return same if same in TITLES and all(same in e.metrics for e, _ in self.evaluations) else own

    def called(self, mode: str) -> str:
        """What the tables of a mode call it."""
        return TITLES.get(self.candidate(mode), self.title) if self.label in REFERENCES else self.title


def evaluated_rows(study: Study) -> list[Row]:
    """A row for each label with a finished evaluation; one for each combination of values that are swept over."""
    rows: dict[str, Row] = {}
    for step in (step for steps in study.runs.values() for step in steps):
        if evaluation := study.evaluation(step):
            key, title = study.row(step)
            particle = step.options.get("data.particle")
            own = None if particle is None else particle_name(particle_code(particle))
            rows.setdefault(key, Row(key, title)).evaluations.append((evaluation, own))
    return list(rows.values())


def reference_rows(rows: Sequence[Row]) -> list[Row]:
    """Floor and trivial model, from the first evaluation of all particles that has them."""
    for evaluation, particle in (pair for row in rows for pair in row.evaluations):
        if particle is None and "trivial" in evaluation.metrics:
            controls = evaluation.record.get("c2st", {}).get("controls", {})
            titles = {name: TITLES[name] for name in TITLES if name in evaluation.metrics}
            titles |= {name: C2ST_CONTROLS[name] for name in controls}
            return [Row(name, titles[name], [(evaluation, None)]) for name in REFERENCES if name in titles]
    return []


@dataclass
class Cell:
    """A metric of one row, column and mode.

    Attributes:
        mean: Over generation runs, and over training seeds if there are several.
        std: Over training seeds if there are several, else over generation runs; of a test its standard error.
        seeds: How many trainings the cell is of.
        target: What the metric should be: 0, or for center distances the Monte Carlo's own, below which showers are too
            much alike.
        primaries: The number of primaries.
        samples: The metric in each bootstrap resample of primaries, with shape (R,); None for metrics that are
            not resampled, for tests, and for fewer than :data:`LEAST_PRIMARIES`.
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
        return None if self.samples is None else interval(self.mean, self.samples)

    @classmethod
    def joined(cls, parts: Sequence[Cell], primaries: int = 0) -> Cell:
        """The cell of several trainings, whose scatter is its uncertainty, from those of each."""
        means = [part.mean for part in parts]
        std = float(np.std(means, ddof=1)) if len(parts) > 1 else parts[0].std
        target, samples = float(np.mean([part.target for part in parts])), [part.samples for part in parts]
        mean = None if any(s is None for s in samples) else np.mean([s for s in samples if s is not None], axis=0)
        return cls(float(np.mean(means)), std, len(parts), target, primaries, mean)


#: Cells by mode, metric, particle and label.
Cells = dict[tuple[str, str, str, str], Cell]


class _Column(NamedTuple):
    """The first test rows of a particle type that were met, whose they are, and how often each input is in each resample."""

    data: Mapping[str, np.ndarray]
    row: Row
    counts: np.ndarray


def fill_cells(rows: Sequence[Row], table: Table, resamples: int, quiet: bool) -> Cells:
    """All cells of a study's tables but those of tests.

    Args:
        rows: The rows.
        table: Columns, metrics and modes.
        resamples: Bootstrap resamples of primaries.
        quiet: Show no progress.

    Raises:
        ValueError: If rows were evaluated on other data than those they are to be compared with.
    """
    cells: Cells = {}
    columns: dict[str, _Column] = {}
    detector = get_detector(rows[0].evaluations[0][0].record["data"]["detector"])
    work = [(mode, particle, row) for mode in table.modes for particle in table.particles for row in rows]
    for mode, particle, row in tqdm(work, desc="bootstrap", unit="cell", disable=True if quiet else None):
        parts: dict[str, list[Cell]] = {}
        candidate = row.candidate(mode)
        for evaluation in row.of(particle):
            if f"ws_{particle}" not in evaluation.metrics.get(candidate, {"mean": {}})["mean"]:
                continue
            own = evaluation["natural"] if particle == "all" else evaluation["pdg"] == particle_code(particle)
            data = {name: evaluation[name][own] for name in ("rows", "pdg", "primary_ids", "reference")}
            if particle not in columns:
                columns[particle] = _Column(data, row, resample(len(np.unique(data["primary_ids"])), resamples))
            first, earlier, counts = columns[particle]
            # The floor may have been evaluated on the very same rows only; another selection cannot be paired.
            if any(not np.array_equal(first[name], data[name]) for name in data):
                raise ValueError(
                    f"{evaluation.folder}: evaluated on other rows of {particle} than {earlier.label}; evaluate both with the "
                    "same rows, rows_of_each and data"
                )
            samples: Mapping[str, np.ndarray] = {}
            names = [f"{candidate}_{what}" for what in ("channels", "offsets")]
            # A floor of halves has no samples for every row.
            if counts.shape[1] >= LEAST_PRIMARIES and names[0] in evaluation.names:
                known = *(data[name] for name in ("reference", "pdg", "primary_ids")), detector
                runs = [Rows(*run, *known) for run in zip(*(evaluation[name][:, own] for name in names), strict=True)]
                samples = resampled_metrics(runs, counts, table.metrics)
            result, truth = evaluation.metrics[candidate], evaluation.metrics["monte_carlo"]["mean"]
            for metric in table.metrics:
                name = f"{metric}_{particle}"
                if name not in result["mean"]:
                    raise ValueError(
                        f"{evaluation.folder}: expected {metric} of {particle}, which it has not; evaluate again"
                    )
                target = truth.get(name, 0.0) if METRICS[metric].target == "monte_carlo" else 0.0
                part = Cell(result["mean"][name], result["std"][name], 1, target, samples=samples.get(metric))
                parts.setdefault(metric, []).append(part)
        for metric, found in parts.items():
            cells[mode, metric, particle, row.label] = Cell.joined(found, columns[particle].counts.shape[1])
    for (mode, metric, particle, label), cell in cells.items():
        other = cells.get((mode, metric, particle, table.reference or ""))
        if other is None or label in REFERENCES or cell.samples is None or other.samples is None or cell is other:
            continue
        cell.versus = contrast(cell.mean, other.mean, cell.samples, other.samples)
    return cells


#: Tests of all particles together, and what tables call them: the C2ST's areas by classifier, and the likelihood.
TESTS = {"auc_images": "AUC images", "auc_features": "AUC features", "nll": "NLL"}
#: The controls that are rows, by the samples that they are of.
CONTROLS = {"floor": "mc", "shape_floor": "mc_sums", "damaged_10": "damaged_10"}


def cells_of_tests(rows: Sequence[Row], modes: Sequence[str]) -> Cells:
    """What tests say of all models of all particle types, and of the floor: cells of :data:`TESTS` for ``all``.

    Args:
        rows: The rows of the study.
        modes: ``shape``, ``chain``.
    """
    cells: Cells = {}
    for mode in modes:
        for row in rows:
            found = [_tested(evaluation.record, row.candidate(mode)) for evaluation in row.of("all")]
            for test in TESTS:
                if parts := [part[test] for part in found if test in part]:
                    cells[mode, test, "all", row.label] = Cell.joined(parts)
    return cells


def _tested(record: Mapping[str, Any], candidate: str) -> dict[str, Cell]:
    """What the tests of an evaluation say of a candidate or a floor."""
    test, likelihood = record.get("c2st", {}), record.get("likelihood", {})
    if candidate in CONTROLS:
        verdicts = test.get("controls", {}).get(CONTROLS[candidate], {}).get("verdicts", {})
    else:
        verdicts = test.get("candidates", {}).get(candidate, {}).get("verdicts", {})
    found = {f"auc_{name}": Cell(told["auc"], told["error"], target=0.5) for name, told in verdicts.items()}
    if candidate == "shape" and "monte_carlo" in likelihood:
        found["nll"] = Cell(likelihood["monte_carlo"], 0.0)
    return found


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks of some models over the metrics that all of them have.

    Args:
        values: Metrics with shape (metrics, models, ...), lower being better; NaN where there is none.

    Returns:
        With shape (models, ...): ties share a rank; NaN for models without any metric.
    """
    known = ~np.isnan(values)
    present = known.any(0)
    counted = known & (known | ~present).all(1, keepdims=True)
    below = (values[:, None] < values[:, :, None]).sum(2)
    equal = (values[:, None] == values[:, :, None]).sum(2)
    ranks = np.where(counted, below + (equal + 1) / 2, 0).sum(0)
    return np.where(counted.any(0), ranks / np.maximum(counted.sum(0), 1), np.nan)


def rank_table(table: Table, cells: Cells, mode: str, titles: Mapping[str, str]) -> str:
    """Mean ranks of all models by particle, as Markdown."""
    ranks: dict[str, list[str]] = {label: [title] for label, title in titles.items()}
    for particle in table.particles:
        contestants = _contestants(cells, mode, particle, titles)
        scores = _scores(cells, table.metrics, mode, particle, contestants)
        placed = dict(zip(contestants, mean_ranks(scores), strict=True))
        for label, texts in ranks.items():
            texts.append(f"{placed[label]:.2f}" if not np.isnan(placed.get(label, np.nan)) else "–")
    return markdown_table(["", *table.columns.values()], ranks.values())


def winners(table: Table, cells: Cells, titles: Mapping[str, str]) -> str:
    """Who is best for which particle, by mean rank over the metrics, and in how many resamples of the primaries.

    Args:
        table: Columns, metrics and modes.
        cells: The cells.
        titles: What the tables call the models, by label.

    Returns:
        A Markdown section; empty where nothing could be resampled.
    """
    lines, used = [], []
    for mode in table.modes:
        for particle, column in table.columns.items():
            rivals = _contestants(cells, mode, particle, titles)
            drawn = _drawn(table, cells, mode, particle, rivals)
            if len(rivals) < 2 or not drawn:
                continue
            used = list(drawn)
            ranks = mean_ranks(_scores(cells, used, mode, particle, rivals))
            resampled = np.nan_to_num(mean_ranks(np.array(list(drawn.values()))), nan=np.inf)
            first = resampled == resampled.min(0)
            shares = (first / first.sum(0)).mean(1)
            best = int(ranks.argmin())
            other = max((i for i in range(len(rivals)) if i != best), key=lambda i: shares[i])
            versus = cells[mode, used[0], particle, rivals[best]].versus
            told = (
                f"{METRICS[used[0]].heading} {contrast_text(versus, METRICS[used[0]].form)}" if versus else "(itself)"
            )
            lines.append(
                [
                    column,
                    TITLES[mode],
                    f"**{titles[rivals[best]]}** ({ranks[best]:.2f})",
                    f"{100 * shares[best]:.0f} %",
                    f"{titles[rivals[other]]} ({100 * shares[other]:.0f} %)",
                    told if table.reference else "–",
                ]
            )
    if not lines:
        return ""
    text = (
        f"The lowest mean rank over {', '.join(METRICS[metric].heading for metric in used)}; in which share of bootstrap "
        "resamples of the primaries the same model has it, and which other has it most often. That is about these networks and "
        "other primaries: it does not cover another training, and is no confidence level. The p-values are of single "
        "comparisons: of twenty without any difference one falls below 0.05. Resampling draws differences of WS towards 0."
    )
    reference = titles.get(table.reference or "", "the reference")
    versus_heading = f"difference from {reference} [95 % interval], p, in favor"
    head = ["", "", "best (mean rank)", "wins in", "next", versus_heading]
    return f"## Winners\n\n{text}\n\n{markdown_table(head, lines)}"


def contrast_text(versus: Bootstrap, form: str) -> str:
    """A comparison in words: the difference with its interval, the p-value, and the share in favor."""
    if np.isnan(versus.difference):
        return "–"
    p = f"p {versus.p_value:.3f}" if versus.p_value >= 0.001 else "p < 0.001"
    return f"{versus.difference:+{form}} [{versus.low:+{form}}, {versus.high:+{form}}], {p}, {100 * versus.share:.0f} %"


def _contestants(cells: Cells, mode: str, particle: str, labels: Iterable[str]) -> list[str]:
    """The models that have something to say of a particle; of a single one the ensemble says what a member says."""
    found = {label for m, _, p, label in cells if (m, p) == (mode, particle)}
    return [x for x in labels if x in found and (x != ENSEMBLE or particle == "all")]


def _scores(cells: Cells, metrics: Sequence[str], mode: str, particle: str, labels: Sequence[str]) -> np.ndarray:
    """Scores of some models for a particle, with shape (metrics, models); NaN where there are none."""
    keys = [[(mode, metric, particle, label) for label in labels] for metric in metrics]
    return np.array([[cells[k].score if k in cells else np.nan for k in row] for row in keys]).reshape(len(metrics), -1)


def _drawn(table: Table, cells: Cells, mode: str, particle: str, rivals: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Scores of the rivals in each resample, by metric; those metrics only that are known for all of them."""
    drawn = {}
    for metric in table.metrics:
        found = [cells.get((mode, metric, particle, label)) for label in rivals]
        known = [c for c in found if c is not None and not np.isnan(c.score)]
        samples = [np.abs(c.samples - c.target) for c in known if c.samples is not None]
        if len(samples) == len(rivals):
            drawn[metric] = samples
    return drawn
