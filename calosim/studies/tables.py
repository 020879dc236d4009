"""Compares the runs of a plan: metrics with their uncertainties, ranks, costs, speed, and the ensemble of the best.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over unique inputs: the same inputs are drawn for all models.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calosim import __version__
from calosim.evaluation.answers import TITLES
from calosim.metrics.bootstrap import Bootstrap
from calosim.particles import particle_code, particle_name, particle_symbol
from calosim.runs import git_hash
from calosim.studies.cells import ENSEMBLE, FORMATS, HEADINGS, LEAST_PRIMARIES, REFERENCES, Cells, Row, mean_ranks
from calosim.studies.plan import Plan

__all__ = ["csv_of", "draw_comparison", "report_of", "title_of"]


def title_of(study: Plan, label: str) -> str:
    return (study.settings["trainings"][label] or {}).get("title", label)


def _columns(table: Mapping[str, Any]) -> dict[str, str]:
    return {
        p: p if p == "all" else f"{particle_symbol(particle_code(p))} {particle_name(particle_code(p))}"
        for p in table["particles"]
    }


def report_of(
    study: Plan,
    table: Mapping[str, Any],
    rows: Sequence[Row],
    cells: Cells,
    failed: Mapping[str, str],
    chosen: Mapping[str, str],
) -> str:
    columns = _columns(table)
    first = json.loads((rows[0].folders[0][0] / "evaluation.json").read_text())
    data = first["data"]
    primaries = {p: max((c.primaries for k, c in cells.items() if k[2] == p), default=0) for p in columns}
    lines = [
        f"# Comparison: {study.out.name}",
        "",
        f"calosim {__version__}, git {git_hash()}, data {data['data_hash']}, {first['rows']} test rows of {first['inputs']} "
        f"primaries, {first['responses']} responses per row, {first['runs']} runs. Cells: mean ± standard deviation over runs, "
        "or over training seeds where a line says how many; the best model of a column in bold.",
        "",
        f"Primaries of a column: {', '.join(f'{columns[p]} {count}' for p, count in primaries.items())}. With fewer than "
        f"{LEAST_PRIMARIES} there are no intervals, p-values or winners.",
    ]
    if failed:
        lines += ["", "Failed: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()) + "."]
    titles = {row.label: row.title for row in rows if row.label not in REFERENCES}
    lines += _winners(table, cells, titles)
    head = "| | " + " | ".join(columns.values()) + " |"
    rule = "|---" * (len(columns) + 1) + "|"
    for mode in table["modes"]:
        if not any(key[0] == mode for key in cells):
            continue
        lines += ["", f"## {TITLES[mode][0].upper()}{TITLES[mode][1:]}"]
        for metric in table["metrics"]:
            lines += ["", f"### {HEADINGS[metric]}", "", head, rule]
            for row in rows:
                texts = []
                for particle in columns:
                    cell = cells.get((mode, metric, particle, row.label))
                    if cell is None or np.isnan(cell.mean):
                        texts.append("–")
                        continue
                    text = f"{cell.mean:{FORMATS[metric]}} ± {cell.std:{FORMATS[metric]}}"
                    rivals = [cells[k].score for x in titles if (k := (mode, metric, particle, x)) in cells]
                    best = row.label in titles and len(rivals) > 1 and cell.score == np.nanmin(rivals)
                    texts.append(f"**{text}**" if best else text)
                seeds = max((c.seeds for k, c in cells.items() if k[3] == row.label), default=1)
                title = f"{row.title} ({seeds} seeds)" if seeds > 1 else row.title
                lines.append(f"| {title} | " + " | ".join(texts) + " |")
            contrasts = [
                r for r in rows if any((c := cells.get((mode, metric, p, r.label))) and c.versus for p in columns)
            ]
            if contrasts:
                lines += [
                    "",
                    f"Difference from {title_of(study, table['reference'])} [95 % interval], p, share of resamples in favor:",
                ]
                lines += ["", head, rule]
                for row in contrasts:
                    found = [cells.get((mode, metric, particle, row.label)) for particle in columns]
                    texts = [_contrast(c.versus, FORMATS[metric]) if c and c.versus else "–" for c in found]
                    lines.append(f"| {row.title} | " + " | ".join(texts) + " |")
        lines += ["", "### Mean rank over the metrics", "", head, rule]
        ranks: dict[str, list[str]] = {label: [] for label in titles}
        for particle in columns:
            contestants = _contestants(cells, mode, particle, titles)
            scores = _scores(cells, table["metrics"], mode, particle, contestants)
            placed = dict(zip(contestants, mean_ranks(scores), strict=True))
            for label, texts in ranks.items():
                texts.append(f"{placed[label]:.2f}" if not np.isnan(placed.get(label, np.nan)) else "–")
        lines += [f"| {titles[label]} | " + " | ".join(texts) + " |" for label, texts in ranks.items()]
    if chosen:
        lines += ["", "## The ensemble", "", "Chosen by mean rank on validation rows: "]
        lines[-1] += ", ".join(f"{columns[p]}: {title_of(study, label)}" for p, label in chosen.items()) + "."
    lines += ["", "## Cost", "", "Time on the machine as it was: other jobs beside a training make it longer.", ""]
    lines += ["| | runs | samples seen | with those it starts from | training, min |", "|---|---|---|---|---|"]
    for label in study.trainings:
        own = {step.name for step in study.runs(label) if step.result.exists()}
        if own:
            samples, total = (
                _total(study, some, "samples") for some in (own, own.union(*(_needs(study, n) for n in own)))
            )
            minutes = _total(study, own, "seconds") / 60
            lines.append(f"| {title_of(study, label)} | {len(own)} | {samples:,} | {total:,} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def _total(study: Plan, names: Iterable[str], what: str) -> Any:
    """The sum over finished trainings of what their ``training.json`` says."""
    return sum(json.loads(study.steps[name].result.read_text())[what] for name in names)


def _needs(study: Plan, name: str) -> set[str]:
    """The finished trainings that a training starts or learns from, and those they do."""
    own = {
        need
        for need in study.steps[name].after
        if study.steps[need].verb == "fit" and study.steps[need].result.exists()
    }
    return own.union(*(_needs(study, need) for need in own))


def _contestants(cells: Cells, mode: str, particle: str, labels: Iterable[str]) -> list[str]:
    """The models that have something to say of a particle; of a single one the ensemble says what a member says."""
    found = {label for m, _, p, label in cells if (m, p) == (mode, particle)}
    return [x for x in labels if x in found and (x != ENSEMBLE or particle == "all")]


def _scores(cells: Cells, metrics: Sequence[str], mode: str, particle: str, labels: Sequence[str]) -> np.ndarray:
    """Scores of some models for a particle, with shape (metrics, models); NaN where there are none."""
    keys = [[(mode, metric, particle, label) for label in labels] for metric in metrics]
    return np.array([[cells[k].score if k in cells else np.nan for k in row] for row in keys]).reshape(len(metrics), -1)


def _winners(table: Mapping[str, Any], cells: Cells, titles: Mapping[str, str]) -> list[str]:
    """Who is best for which particle, by mean rank over the metrics, and in how many resamples of the primaries."""
    lines, used = [], []
    for mode in table["modes"]:
        for particle, name in _columns(table).items():
            rivals = _contestants(cells, mode, particle, titles)
            drawn: dict[str, list[np.ndarray]] = {}
            for metric in table["metrics"]:
                found = [cells.get((mode, metric, particle, label)) for label in rivals]
                known = [c for c in found if c is not None and not np.isnan(c.score)]
                samples = [np.abs(c.samples - c.target) for c in known if c.samples is not None]
                if len(samples) == len(rivals):
                    drawn[metric] = samples
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
            line = [
                name,
                TITLES[mode],
                f"**{titles[rivals[best]]}** ({ranks[best]:.2f})",
                f"{100 * shares[best]:.0f} %",
                f"{titles[rivals[other]]} ({100 * shares[other]:.0f} %)",
                f"{HEADINGS[used[0]]} {_contrast(versus, FORMATS[used[0]])}" if versus else "(itself)",
            ]
            lines.append("| " + " | ".join(line) + " |")
    if not lines:
        return []
    return [
        "",
        "## Winners",
        "",
        f"The lowest mean rank over {', '.join(HEADINGS[metric] for metric in used)}; in which share of bootstrap resamples of "
        "the primaries the same model has it, and which other has it most often. That is about these networks and other "
        "primaries: it does not cover another training, and is no confidence level. The p-values are of single "
        "comparisons: of twenty without any difference one falls below 0.05. Resampling draws differences of WS towards 0.",
        "",
        f"| | | best (mean rank) | wins in | next | difference from {titles.get(table['reference'], 'the reference')} "
        "[95 % interval], p, in favor |",
        "|---" * 6 + "|",
        *lines,
    ]


def _contrast(versus: Bootstrap, form: str) -> str:
    if np.isnan(versus.difference):
        return "–"
    p = f"p {versus.p_value:.3f}" if versus.p_value >= 0.001 else "p < 0.001"
    return f"{versus.difference:+{form}} [{versus.low:+{form}}, {versus.high:+{form}}], {p}, {100 * versus.share:.0f} %"


def csv_of(cells: Cells, rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "mode",
            "metric",
            "particle",
            "model",
            "mean",
            "std",
            "low",
            "high",
            *(f"versus_{name}" for name in Bootstrap._fields),
        ]
    )
    for (mode, metric, particle, label), cell in cells.items():
        limits = ["", ""] if cell.samples is None else np.nanquantile(cell.samples, [0.025, 0.975]).tolist()
        versus = list(cell.versus) if cell.versus else [""] * 5
        writer.writerow([mode, metric, particle, label, cell.mean, cell.std, *limits, *versus])
    return stream.getvalue()


def draw_comparison(path: Path, mode: str, table: Mapping[str, Any], rows: Sequence[Row], cells: Cells) -> None:
    from calosim.pictures import comparison

    panels: dict[str, dict[str, list[tuple[float, float, float] | None]]] = {}
    for metric in table["metrics"]:
        panel = panels.setdefault(HEADINGS[metric], {})
        for row in rows:
            points: list[tuple[float, float, float] | None] = []
            for particle in table["particles"]:
                cell = cells.get((mode, metric, particle, row.label))
                if cell is None or np.isnan(cell.mean):
                    points.append(None)
                elif cell.samples is None:
                    points.append((cell.mean, cell.mean - cell.std, cell.mean + cell.std))
                else:
                    low, high = np.nanquantile(cell.samples, [0.025, 0.975])
                    points.append((cell.mean, float(low), float(high)))
            panel[row.title] = points
    comparison(panels, list(_columns(table).values()), path)
