"""The written comparison of a study: Markdown tables, the same as CSV, and a picture for each mode."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from calosim import __version__
from calosim.evaluation.definitions import TITLES, in_units, with_spread
from calosim.evaluation.intervals import LEAST_PRIMARIES
from calosim.io import csv_text, markdown_table
from calosim.metrics.bootstrap import Bootstrap
from calosim.runs import git_hash
from calosim.studies.cells import Cell, Cells
from calosim.studies.cost import cost_table
from calosim.studies.judges import judge_table
from calosim.studies.layout import FORMATS, HEADINGS, REFERENCES, Row, Table
from calosim.studies.plan import Plan
from calosim.studies.winners import contrast_text, rank_table, winners

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """A study's results, ready to be written.

    Attributes:
        plan: The plan.
        table: What the tables show.
        rows: Their rows.
        cells: Their cells.
        failed: Why steps failed, by name.
        chosen: The label that answers in the ensemble, by particle; empty without an ensemble.
    """

    RECORD: ClassVar[str] = "comparison.json"

    plan: Plan
    table: Table
    rows: Sequence[Row]
    cells: Cells
    failed: Mapping[str, str]
    chosen: Mapping[str, str]

    @property
    def modes(self) -> list[str]:
        """The modes that something is known of."""
        known = {key[0] for key, cell in self.cells.items() if not np.isnan(cell.mean)}
        return [mode for mode in self.table.modes if mode in known]

    @property
    def titles(self) -> dict[str, str]:
        """What the tables call the models, by label; without floor and trivial model."""
        return {row.label: row.title for row in self.rows if row.label not in REFERENCES}

    def markdown(self) -> str:
        """The whole comparison."""
        sections = [self._head(), winners(self.table, self.cells, self.titles)]
        for mode in self.modes:
            sections.append(f"## {TITLES[mode][0].upper()}{TITLES[mode][1:]}")
            for metric in self.table.metrics:
                sections.append(f"### {in_units(HEADINGS[metric])}\n\n{self._metric(mode, metric)}")
                sections.append(self._contrasts(mode, metric))
            sections.append(judge_table(self.rows, self.cells, mode))
            sections.append(
                f"### Mean rank over the metrics\n\n{rank_table(self.table, self.cells, mode, self.titles)}"
            )
        if self.chosen:
            members = ", ".join(f"{self.table.columns[p]}: {self.plan.title(x)}" for p, x in self.chosen.items())
            sections.append(f"## The ensemble\n\nChosen by mean rank on validation rows: {members}.")
        sections.append("## Cost\n\nTime on the machine as it was: other jobs beside a training make it longer.")
        sections.append(cost_table(self.plan))
        data = self.rows[0].evaluations[0][0].record["data"]["data_hash"]
        sections.append(f"Made with calosim {__version__}, git {git_hash()}, from data {data}.")
        return "\n\n".join(filter(None, sections)) + "\n"

    def record(self) -> dict[str, Any]:
        """What it was made with and from, and the weights that it is of, see :func:`calosim.models.checkpoints.older`."""
        found: dict[str, dict[str, str]] = {}
        for evaluation in (evaluation for row in self.rows for evaluation, _ in row.evaluations):
            for told in evaluation.record.get("weights", []):
                place = os.path.realpath(evaluation.folder / told["beside"])
                found[told["model"]] = told | {"beside": os.path.relpath(place, os.path.realpath(self.plan.out))}
        data = self.rows[0].evaluations[0][0].record["data"]["data_hash"]
        return {"calosim": __version__, "git": git_hash(), "data_hash": data, "weights": list(found.values())}

    def csv(self) -> str:
        """All cells."""
        columns = ["mode", "metric", "particle", "model", "mean", "std", "low", "high"]
        columns += [f"versus_{name}" for name in Bootstrap._fields]
        lines = [
            [*key, cell.mean, cell.std, *(cell.interval or ("", "")), *(cell.versus or [""] * len(Bootstrap._fields))]
            for key, cell in self.cells.items()
        ]
        return csv_text(columns, lines)

    def draw(self, path: Path, mode: str) -> None:
        """Draws all metrics of a mode into a file: bootstrap intervals, or standard deviations where there are none."""
        from calosim.plots import comparison

        def point(cell: Cell | None) -> tuple[float, float, float] | None:
            if cell is None or np.isnan(cell.mean):
                return None
            return (cell.mean, *(cell.interval or (cell.mean - cell.std, cell.mean + cell.std)))

        panels = {
            in_units(HEADINGS[metric]): {
                row.called(mode): [point(c) for c in self._line(mode, metric, row.label)] for row in self.rows
            }
            for metric in self.table.metrics
        }
        comparison(panels, list(self.table.columns.values()), path)

    def _line(self, mode: str, metric: str, label: str) -> Iterator[Cell | None]:
        """The cells of one row, column by column."""
        return (self.cells.get((mode, metric, particle, label)) for particle in self.table.particles)

    def _head(self) -> str:
        columns, cells = self.table.columns, self.cells
        first = self.rows[0].evaluations[0][0].record
        primaries = {p: max((c.primaries for k, c in cells.items() if k[2] == p), default=0) for p in columns}
        text = (
            f"# Comparison: {self.plan.out.name}\n\n"
            f"{first['rows']} test rows of "
            f"{first['inputs']} primaries, {first['responses']} responses per row, {first['runs']} runs. Cells: mean ± "
            "standard deviation over runs, or over training seeds where a line says how many; the best model of a column "
            "in bold.\n\n"
            f"Primaries of a column: {', '.join(f'{columns[p]} {count}' for p, count in primaries.items())}. With fewer than "
            f"{LEAST_PRIMARIES} there are no intervals, p-values or winners."
        )
        failures = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
        return f"{text}\n\nFailed: {failures}." if failures else text

    def _metric(self, mode: str, metric: str) -> str:
        """The table of one metric, the best model of each column in bold."""
        form, titles, lines = FORMATS[metric], self.titles, []
        for row in self.rows:
            seeds = max((c.seeds for k, c in self.cells.items() if k[3] == row.label), default=1)
            texts = [f"{row.called(mode)} ({seeds} seeds)" if seeds > 1 else row.called(mode)]
            for particle in self.table.particles:
                cell = self.cells.get((mode, metric, particle, row.label))
                if cell is None or np.isnan(cell.mean):
                    texts.append("–")
                    continue
                text = with_spread(cell.mean, cell.std, form)
                rivals = [self.cells[k].score for x in titles if (k := (mode, metric, particle, x)) in self.cells]
                enough = cell.primaries >= LEAST_PRIMARIES and len(rivals) > 1
                best = row.label in titles and enough and cell.score == np.nanmin(rivals)
                texts.append(f"**{text}**" if best else text)
            lines.append(texts)
        return markdown_table(["", *self.table.columns.values()], lines)

    def _contrasts(self, mode: str, metric: str) -> str:
        """The table of differences from the reference row; empty if there are none."""
        lines = []
        for row in self.rows:
            versus = [c.versus if c else None for c in self._line(mode, metric, row.label)]
            if any(versus):
                lines.append([row.title, *(contrast_text(v, FORMATS[metric]) if v else "–" for v in versus)])
        if not lines:
            return ""
        title = self.plan.title(self.table.reference or "")
        text = f"Difference from {title} [95 % interval], p, share of resamples in favor:"
        return f"{text}\n\n{markdown_table(['', *self.table.columns.values()], lines)}"
