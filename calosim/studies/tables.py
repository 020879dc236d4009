"""The written comparison of a study: Markdown tables, the same as CSV, and a picture for each mode."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from calosim import __version__
from calosim.data.record import Showers
from calosim.evaluation.selection import trained_data
from calosim.evaluation.stored import TITLES
from calosim.io import csv_text, markdown_table
from calosim.metrics.bootstrap import LEAST_PRIMARIES, Bootstrap
from calosim.metrics.registry import METRICS, with_spread
from calosim.models.shower import ShowerModel
from calosim.processes import one_thread
from calosim.runs import Run, git_hash, origin
from calosim.studies.plan import REFERENCES, Study
from calosim.studies.statistics import TESTS, Cell, Cells, Row, contrast_text, rank_table, winners

__all__ = ["Comparison", "cost_table", "generation_times", "measure_speeds", "speed_table"]


def cost_table(study: Study) -> str:
    """Steps, samples and minutes of each row's finished trainings, as Markdown."""
    rows: dict[tuple[str, str], set[str]] = {}
    for step in (step for steps in study.runs.values() for step in steps if step.result.exists()):
        rows.setdefault(study.row(step), set()).add(step.name)
    lines = []
    for (_, title), own in rows.items():
        both = own.union(*(_needs(study, name) for name in own))
        steps, samples, total = (
            _total(study, own, "steps"),
            _total(study, own, "samples"),
            _total(study, both, "samples"),
        )
        minutes = _total(study, own, "seconds") / 60
        lines.append([title, str(len(own)), f"{steps:,}", f"{samples:,}", f"{total:,}", f"{minutes:.1f}"])
    return markdown_table(["", "runs", "steps", "samples seen", "with those it starts from", "training, min"], lines)


def _total(study: Study, names: Iterable[str], what: str) -> Any:
    """The sum of ``steps``, ``samples`` or ``seconds`` over finished trainings."""
    return sum((Run(study.steps[name].folder).training or {})[what] for name in names)


def _needs(study: Study, name: str) -> set[str]:
    """The finished trainings that a training starts or learns from, and those they do."""
    needs = [study.steps[need] for need in study.steps[name].after]
    own = {step.name for step in needs if step.is_training and step.result.exists()}
    return own.union(*(_needs(study, need) for need in own))


#: How often each model's speed is measured.
SPEED_TURNS = 3
#: Responses that are generated at once.
BATCHES = (1, 256)


def generation_times(
    model: ShowerModel, showers: Showers, batches: Sequence[int] = BATCHES, repeats: int = 5
) -> dict[str, float]:
    """Seconds per response of a shower model, medians, photon sums given.

    Args:
        model: The model.
        showers: Responses whose primaries and photon sums are taken.
        batches: Batch sizes.
        repeats: How often each is measured at least; what is over soon is measured for a second.

    Returns:
        ``batch 1`` and so on.
    """
    times = {}
    for batch in batches:
        row = np.arange(batch) % len(showers)
        particles = torch.from_numpy(showers.particles[row]).to(model.device, torch.float32)
        photon_sum = torch.from_numpy(showers.photon_sum[row]).to(model.device)
        rows = torch.from_numpy(row).to(model.device)
        taken: list[float] = []
        while len(taken) <= repeats or sum(taken) < 1:
            begin = time.perf_counter()
            model.generate(particles, photon_sum, len(taken), rows)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            taken.append(time.perf_counter() - begin)
        times[f"batch {batch}"] = float(np.median(taken[1:])) / batch  # the first warms up
    return times


def measure_speeds(study: Study, quiet: bool) -> dict[str, dict[str, float]]:
    """Times on one thread, and the number of parameters, of each label's first run that was evaluated."""
    runs = {label: steps[0].folder for label, steps in study.runs.items() if steps and study.evaluation(steps[0])}
    models = {label: ShowerModel.load(run) for label, run in runs.items()}
    showers = {}
    for label, run in runs.items():
        data, _ = trained_data(run)
        showers[label] = data.showers("test", np.arange(min(max(BATCHES), len(data.rows("test")))))
    measured: dict[str, list[dict[str, float]]] = {label: [] for label in runs}
    with one_thread():
        # In turns: a machine's speed drifts by more than models differ.
        turns = [label for _ in range(SPEED_TURNS) for label in runs]
        for label in tqdm(turns, desc="speed", disable=True if quiet else None):
            measured[label].append(generation_times(models[label], showers[label]))
    return {
        label: {"parameters": models[label].size}
        | {key: float(np.median([one[key] for one in times])) for key in times[0]}
        for label, times in measured.items()
    }


def speed_table(study: Study, speeds: Mapping[str, Mapping[str, float]]) -> str:
    """Sizes and speeds as a Markdown section."""
    columns = [f"batch {batch}" for batch in BATCHES]
    lines = [
        [study.title(label), f"{speed['parameters']:,}", *(f"{1e3 * speed[key]:.2f}" for key in columns)]
        for label, speed in speeds.items()
    ]
    text = "One thread; ms per response with given photon sums, medians."
    return f"## Size and speed\n\n{text}\n\n{markdown_table(['', 'parameters', *columns], lines)}\n"


@dataclass(frozen=True)
class Comparison:
    """A study's results, ready to be written.

    Attributes:
        study: The study.
        rows: The rows of its tables.
        cells: Their cells.
        failed: Why steps failed, by name.
        chosen: The label that answers in the ensemble, by particle; empty without an ensemble.
    """

    RECORD: ClassVar[str] = "comparison.json"

    study: Study
    rows: Sequence[Row]
    cells: Cells
    failed: Mapping[str, str]
    chosen: Mapping[str, str]

    @property
    def modes(self) -> list[str]:
        """The modes that something is known of."""
        known = {key[0] for key, cell in self.cells.items() if not np.isnan(cell.mean)}
        return [mode for mode in self.study.table.modes if mode in known]

    @property
    def titles(self) -> dict[str, str]:
        """What the tables call the models, by label; without floor and trivial model."""
        return {row.label: row.title for row in self.rows if row.label not in REFERENCES}

    @property
    def _data(self) -> str:
        """The hash of the data."""
        return self.rows[0].evaluations[0][0].record["data"]["data_hash"]

    def markdown(self) -> str:
        """The whole comparison."""
        study, table = self.study, self.study.table
        sections = [self._head(), winners(table, self.cells, self.titles)]
        for mode in self.modes:
            sections.append(f"## {TITLES[mode][0].upper()}{TITLES[mode][1:]}")
            sections.append(self._summary(mode))
            for metric in table.metrics:
                parts = [self._metric(mode, metric) if list(table.particles) != ["all"] else ""]
                if parts := [*filter(None, [*parts, self._contrasts(mode, metric)])]:
                    sections += [f"### {METRICS[metric].in_units}", *parts]
            sections.append(f"### Mean rank over the metrics\n\n{rank_table(table, self.cells, mode, self.titles)}")
        if self.chosen:
            members = ", ".join(f"{table.columns[p]}: {study.title(x)}" for p, x in self.chosen.items())
            sections.append(f"## The ensemble\n\nChosen by mean rank on validation rows: {members}.")
        sections.append("## Cost\n\nTime on the machine as it was: other jobs beside a training make it longer.")
        sections.append(cost_table(study))
        sections.append(f"Made with calosim {__version__}, git {git_hash()}, from data {self._data}.")
        return "\n\n".join(filter(None, sections)) + "\n"

    def record(self) -> dict[str, Any]:
        """What it was made with and from, and the weights that it is of, see :func:`calosim.models.checkpoints.older`."""
        found: dict[str, dict[str, str]] = {}
        for evaluation in (evaluation for row in self.rows for evaluation, _ in row.evaluations):
            for told in evaluation.record.get("weights", []):
                place = os.path.realpath(evaluation.folder / told["beside"])
                found[told["model"]] = told | {"beside": os.path.relpath(place, os.path.realpath(self.study.out))}
        return origin(data_hash=self._data, weights=list(found.values()))

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
        """Draws all metrics of a mode into a file: bootstrap intervals, or standard deviations where there are none.

        The columns are particles; or, of all of them together, the values that a study sweeps over.
        """
        from calosim.plots import comparison

        def point(cell: Cell | None) -> tuple[float, float, float] | None:
            if cell is None or np.isnan(cell.mean):
                return None
            return (cell.mean, *(cell.interval or (cell.mean - cell.std, cell.mean + cell.std)))

        table, metrics = self.study.table, {m: METRICS[m].in_units for m in self.study.table.metrics}
        columns, swept = list(table.columns.values()), self._swept()
        # By title the place of each point's cell: its particle and its label.
        places = {row.called(mode): [(p, row.label) for p in table.particles] for row in self.rows}
        if list(table.particles) == ["all"] and swept:
            columns, places = list(dict.fromkeys(value for _, value in swept.values())), {}
            metrics |= {test: TESTS[test] for test in self._tests(mode) if test != "nll"}
            for row in self.rows:
                # What is not swept over, a floor for instance, stands beside each value.
                title, value = swept.get(row.label, (row.called(mode), None))
                own = places.setdefault(title, [("all", "")] * len(columns))
                places[title] = [
                    ("all", row.label) if value in (None, c) else o for c, o in zip(columns, own, strict=True)
                ]
        panels = {
            heading: {
                title: [point(self.cells.get((mode, metric, *place))) for place in own] for title, own in places.items()
            }
            for metric, heading in metrics.items()
        }
        comparison(panels, columns, path)

    def _swept(self) -> dict[str, tuple[str, str]]:
        """By label of a row that is one of a sweep: what the training is called, and the values that are swept over."""
        study, found = self.study, {}
        for step in (step for steps in self.study.runs.values() for step in steps):
            if swept := study.swept(step):
                value = ", ".join(f"{name} {value}" for name, value in swept.items())
                found[study.row(step)[0]] = study.title(step.label), value
        return found

    def _tests(self, mode: str) -> list[str]:
        """The tests that something is known of."""
        return [test for test in TESTS if any((mode, test, "all", row.label) in self.cells for row in self.rows)]

    def _head(self) -> str:
        columns, cells = self.study.table.columns, self.cells
        first = self.rows[0].evaluations[0][0].record
        primaries = {p: max((c.primaries for k, c in cells.items() if k[2] == p), default=0) for p in columns}
        text = (
            f"# Comparison: {self.study.out.name}\n\n"
            f"{first['rows']} test rows of "
            f"{first['primaries']} primaries, {first['responses']} responses per row, {first['runs']} runs. Cells: mean ± "
            "standard deviation over runs, or over training seeds where a line says how many; the best model of a column "
            "in bold.\n\n"
            f"Primaries of a column: {', '.join(f'{columns[p]} {count}' for p, count in primaries.items())}. With fewer than "
            f"{LEAST_PRIMARIES} there are no intervals, p-values or winners."
        )
        failures = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
        return f"{text}\n\nFailed: {failures}." if failures else text

    def _called(self, mode: str, row: Row) -> str:
        """What a row is called, with the number of its training seeds."""
        seeds = max((c.seeds for k, c in self.cells.items() if k[3] == row.label), default=1)
        return f"{row.called(mode)} ({seeds} seeds)" if seeds > 1 else row.called(mode)

    def _cell(self, key: tuple[str, str, str, str], within: bool = False) -> str:
        """A metric of a row, in bold where it is the best model's; with its interval if wanted."""
        cell, form = self.cells.get(key), METRICS[key[1]].form
        if cell is None or np.isnan(cell.mean):
            return "–"
        text = with_spread(cell.mean, cell.std, form)
        if within and cell.interval:
            text += " [{:{f}}, {:{f}}]".format(*cell.interval, f=form)
        rivals = [self.cells[k].score for label in self.titles if (k := (*key[:3], label)) in self.cells]
        enough = cell.primaries >= LEAST_PRIMARIES and len(rivals) > 1
        best = key[3] in self.titles and enough and cell.score == np.nanmin(rivals)
        return f"**{text}**" if best else text

    def _summary(self, mode: str) -> str:
        """The table of all particles together: metrics with their 95 % intervals, and tests; empty where there is nothing."""
        table, tests = self.study.table, self._tests(mode)
        metrics = [metric for metric in table.metrics if "all" in table.particles]

        def tested(row: Row, test: str) -> str:
            cell = self.cells.get((mode, test, "all", row.label))
            if cell is None:
                return "–"
            if test == "nll":
                return f"{cell.mean:.4g} nats per {row.of('all')[0].record['likelihood']['per']}"
            return f"{cell.mean:.3f} ± {cell.std:.3f}"

        lines = []
        for row in self.rows:
            line = [self._cell((mode, metric, "all", row.label), within=True) for metric in metrics]
            line += [tested(row, test) for test in tests]
            if any(text != "–" for text in line):
                lines.append([self._called(mode, row), *line])
        if not lines:
            return ""
        text = "Metrics with their 95 % intervals by bootstrap over primaries in brackets."
        if tests:
            text += (
                " AUC: area under the ROC curve of the classifier two-sample test (C2ST), how often a classifier finds the "
                "generated one of a pair, 0.5 is guessing; ± its standard error, or the standard deviation over training seeds."
            )
        header = ["", *(METRICS[metric].in_units for metric in metrics), *(TESTS[test] for test in tests)]
        return f"### All particles\n\n{text}\n\n{markdown_table(header, lines)}"

    def _metric(self, mode: str, metric: str) -> str:
        """The table of one metric by particle."""
        particles = self.study.table.particles
        lines = [[self._cell((mode, metric, particle, row.label)) for particle in particles] for row in self.rows]
        known = [
            [self._called(mode, row), *line] for row, line in zip(self.rows, lines, strict=True) if set(line) != {"–"}
        ]
        return markdown_table(["", *self.study.table.columns.values()], known)

    def _contrasts(self, mode: str, metric: str) -> str:
        """The table of differences from the reference row; empty if there are none."""
        table, lines = self.study.table, []
        for row in self.rows:
            cells = [self.cells.get((mode, metric, particle, row.label)) for particle in table.particles]
            versus = [cell.versus if cell else None for cell in cells]
            if any(versus):
                lines.append([row.title, *(contrast_text(v, METRICS[metric].form) if v else "–" for v in versus)])
        if not lines:
            return ""
        text = f"Difference from {self.study.title(table.reference or '')} [95 % interval], p, share of resamples in favor:"
        return f"{text}\n\n{markdown_table(['', *table.columns.values()], lines)}"
