"""Which model is best: mean ranks over the metrics, and how often the same one wins when primaries are resampled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from calosim.evaluation.definitions import TITLES
from calosim.io import markdown_table
from calosim.metrics.bootstrap import Bootstrap
from calosim.studies.cells import Cells
from calosim.studies.layout import ENSEMBLE, FORMATS, HEADINGS, Table

__all__ = ["contrast_text", "mean_ranks", "rank_table", "winners"]


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
                    f"{HEADINGS[used[0]]} {contrast_text(versus, FORMATS[used[0]])}" if versus else "(itself)",
                ]
            )
    if not lines:
        return ""
    text = (
        f"The lowest mean rank over {', '.join(HEADINGS[metric] for metric in used)}; in which share of bootstrap resamples of "
        "the primaries the same model has it, and which other has it most often. That is about these networks and other "
        "primaries: it does not cover another training, and is no confidence level. The p-values are of single "
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
