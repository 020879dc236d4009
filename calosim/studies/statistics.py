"""The cells of a study's tables: metrics with their uncertainties, and paired comparisons with a reference model.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over unique inputs: the same inputs are drawn for all models.

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
from calosim.io import markdown_table
from calosim.metrics.bootstrap import LEAST_PRIMARIES, Bootstrap, contrast, interval, resample
from calosim.metrics.registry import METRICS, Rows, resampled_metrics
from calosim.particles import particle_code
from calosim.studies.layout import ENSEMBLE, REFERENCES, Row, Table

__all__ = [
    "Cell",
    "Cells",
    "contrast_text",
    "fill_cells",
    "judge_cells",
    "judge_table",
    "mean_ranks",
    "rank_table",
    "winners",
]


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
        samples: The metric in each bootstrap resample of primaries, with shape (R,); None for metrics that are not
            resampled and for fewer than :data:`LEAST_PRIMARIES`.
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
            if f"ws_{particle}" not in evaluation.metrics.get(candidate, {"mean": {}})["mean"]:
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
    name, result = f"{metric}_{particle}", evaluation.metrics[candidate]
    if name not in result["mean"]:
        raise ValueError(f"{evaluation.folder}: expected {metric} of {particle}, which it has not; evaluate again")
    truth = evaluation.metrics["monte_carlo"]["mean"]
    target = truth.get(name, 0.0) if METRICS[metric].target == "monte_carlo" else 0.0
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
        data: Their ``rows``, ``pdg``, ``primary_ids`` and channels, ``reference``.
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
        # A floor of halves has no samples for every row.
        if self.primaries < LEAST_PRIMARIES or names[0] not in evaluation.names:
            return {}
        known = *(self.data[name] for name in ("reference", "pdg", "primary_ids")), get_detector(detector)
        runs = [
            Rows(*arrays, *known) for arrays in zip(*(evaluation[name][:, self.own] for name in names), strict=True)
        ]
        return resampled_metrics(runs, self.counts, metrics)


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
        data = {name: evaluation[name][own] for name in ("rows", "pdg", "primary_ids", "reference")}
        if particle not in self._seen:
            counts = resample(len(np.unique(data["primary_ids"])), self.resamples)
            self._seen[particle] = _Column(own, data, counts), row
        first, earlier = self._seen[particle]
        # The floor may have been judged on the very same rows only; another selection cannot be paired.
        if any(not np.array_equal(first.data[name], data[name]) for name in data):
            raise ValueError(
                f"{evaluation.folder}: judged on other rows of {particle} than {earlier.label}; evaluate both with the same "
                "rows, rows_of_each and data"
            )
        return _Column(own, data, first.counts)


#: Classifiers by the metrics that their areas are, and what tables call them.
CLASSIFIERS = {"auc_images": ("images", "AUC images"), "auc_features": ("features", "AUC features")}
#: The controls that are floors, by the samples that they judge.
CONTROLS = {"floor": "mc", "shape_floor": "mc_sums"}


def judge_cells(rows: Sequence[Row], modes: Sequence[str]) -> Cells:
    """The areas of all models of all particle types that were put before classifiers, and of the floor.

    Args:
        rows: The rows of the study.
        modes: ``shape``, ``chain``.

    Returns:
        Cells of ``auc_images`` and ``auc_features`` for ``all``: means over trainings with their standard deviation, or that
        of one training with its standard error.
    """
    cells: Cells = {}
    for mode in modes:
        for row in rows:
            found = [_verdicts(e.record.get("c2st", {}), row.candidate(mode)) for e in row.of("all")]
            for metric, (classifier, _) in CLASSIFIERS.items():
                told = [verdicts[classifier] for verdicts in found if classifier in verdicts]
                if told:
                    areas = [verdict["auc"] for verdict in told]
                    spread = np.std(areas, ddof=1) if len(areas) > 1 else told[0]["error"]
                    cell = Cell(float(np.mean(areas)), float(spread), len(areas), target=0.5)
                    cells[mode, metric, "all", row.label] = cell
    return cells


def judge_table(rows: Sequence[Row], cells: Cells, mode: str) -> str:
    """The areas of one mode as a Markdown section; empty where no model was put before classifiers.

    Args:
        rows: The rows of the study.
        cells: With those of :func:`judge_cells`.
        mode: The mode.
    """
    lines = []
    for row in rows:
        found = [cells.get((mode, metric, "all", row.label)) for metric in CLASSIFIERS]
        if any(found):
            seeds = max(cell.seeds for cell in found if cell)
            title = f"{row.called(mode)} ({seeds} seeds)" if seeds > 1 else row.called(mode)
            lines.append([title, *(f"{cell.mean:.3f} ± {cell.std:.3f}" if cell else "–" for cell in found)])
    if not lines:
        return ""
    text = (
        "Area under the ROC curve: how often a trained classifier finds the generated one of a pair, 0.5 is guessing; ± its "
        "standard error, or the standard deviation over training seeds."
    )
    return f"### C2ST\n\n{text}\n\n{markdown_table(['', *(title for _, title in CLASSIFIERS.values())], lines)}"


def _verdicts(test: Mapping[str, Any], candidate: str) -> Mapping[str, Mapping[str, float]]:
    """By classifier, what an evaluation's C2ST says of a candidate or a floor."""
    if candidate in CONTROLS:
        return test.get("controls", {}).get(CONTROLS[candidate], {}).get("verdicts", {})
    return test.get("candidates", {}).get(candidate, {}).get("verdicts", {})


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
            lines.append(
                [
                    column,
                    TITLES[mode],
                    f"**{titles[rivals[best]]}** ({ranks[best]:.2f})",
                    f"{100 * shares[best]:.0f} %",
                    f"{titles[rivals[other]]} ({100 * shares[other]:.0f} %)",
                    f"{METRICS[used[0]].heading} {contrast_text(versus, METRICS[used[0]].form)}"
                    if versus
                    else "(itself)",
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
