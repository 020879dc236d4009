"""The written comparison of a study: Markdown tables, the same as CSV, and a picture for each mode."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from calosim import __version__
from calosim.data.record import Showers
from calosim.data.root import write
from calosim.evaluation.selection import trained_data
from calosim.evaluation.stored import TITLES
from calosim.io import csv_text, markdown_table
from calosim.metrics.bootstrap import LEAST_PRIMARIES, Bootstrap
from calosim.metrics.registry import METRICS, with_spread
from calosim.models.base import evaluating
from calosim.models.shower import ShowerModel
from calosim.montecarlo.simulate import simulate
from calosim.processes import one_thread, own_command
from calosim.runs import Run, git_hash, origin
from calosim.studies.layout import REFERENCES, Row, Table
from calosim.studies.plan import Plan, Step, command_words, files_of, simulated
from calosim.studies.run import is_finished, unknown_origin
from calosim.studies.statistics import Cell, Cells, contrast_text, judge_table, rank_table, winners

__all__ = ["Comparison", "cost_table", "generation_times", "measure_speeds", "print_plan", "speed_table"]


#: Settings of the short run that estimates a training's time.
PROBE = {
    "max_epochs": 1,
    "limit_train_batches": 20,
    "limit_val_batches": 0,
    "enable_checkpointing": False,
    "callbacks": [],
}
#: Primaries of a small simulation that stands for one which is still to be made.
SMALL = 500


def print_plan(plan: Plan, jobs: int = 1) -> None:
    """Prints the steps with their state and, for trainings, an estimate of their time.

    A training's time is samples (rows times epochs) times the time per sample, which is that of a finished training with the
    same configuration files, else that of a short run of a few batches; where a run cannot be tried before another is
    finished, the time per sample of that other one stands in. Data that are still to be simulated are tried on a small
    simulation.
    """
    with tempfile.TemporaryDirectory() as folder:
        _print(plan, jobs, _Estimates(plan, Path(folder)))


def _print(plan: Plan, jobs: int, estimates: _Estimates) -> None:
    total, unknown = 0.0, 0
    table = []
    for step in plan.steps.values():
        state = "finished" if is_finished(step) else "to do"
        if step.verb == "fit" and state == "to do" and Run(step.folder).last.exists():
            state = "to resume"
        seconds, text = None, unknown_origin(step)
        if step.verb == "fit" and state == "finished":
            text = estimates.took(step)
        elif step.verb == "fit":
            seconds, text = estimates.of(step)
        if state != "finished":
            unknown += seconds is None
            total += seconds or 0.0
        table.append((step.name, state, text, shlex.join(["calosim", step.verb, *step.words])))
    widths = [max(len(line[i]) for line in table) for i in range(3)]
    for name, state, text, command in table:
        print(f"{name:<{widths[0]}}  {state:<{widths[1]}}  {text:<{widths[2]}}  {command}")
    print(f"Estimated: {total / jobs / 60:.0f} min with {jobs} at once, and {unknown} steps without an estimate.")


@dataclass
class _Estimates:
    """Estimates of trainings' times.

    Attributes:
        plan: The plan.
        folder: For small simulations.
        rates: Seconds per sample by configuration files: trainings with the same ones are taken to be equally fast.
        rows: Training rows by data settings.
    """

    plan: Plan
    folder: Path
    rates: dict[tuple[str, ...], float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def took(self, step: Step) -> str:
        """The time of a finished training, in words; it counts for others."""
        record = Run(step.folder).training or {}
        self.rates[step.configs] = record["seconds"] / max(record["samples"], 1)
        return f"{record['seconds'] / 60:.1f} min, took"

    def of(self, step: Step) -> tuple[float | None, str]:
        """The seconds that a training will take, None if that is unknown, and the same in words."""
        try:
            samples = self._samples(step)
        except ValueError as error:
            return None, f"will fail: {error}"
        if samples is None:
            return None, "unknown before its data are made"
        needs = [self.plan.steps[name] for name in step.after if self.plan.steps[name].verb == "fit"]
        rate = self.rates.get(step.configs)
        if rate is None and all(is_finished(need) for need in needs):
            rate = _probe(step, self._files(step)[0])
        if rate is None:
            rate = next((self.rates[need.configs] for need in needs if need.configs in self.rates), None)
        if rate is None:
            return None, ""
        self.rates.setdefault(step.configs, rate)
        return rate * samples, f"about {rate * samples / 60:.1f} min for {samples} samples"

    def _samples(self, step: Step) -> int | None:
        """Samples that a training sees, in all epochs; None while its data do not exist.

        Raises:
            ValueError: If the training would be refused.
        """
        from calosim.data.datamodule import RootDataModule

        known = inspect.signature(RootDataModule).parameters
        data = {key: value for key, value in step.settings["data"].items() if key in known}
        trainer = step.settings["trainer"]
        files, times = self._files(step)
        if not all(Path(file).exists() for file in files):
            return None
        data["files"] = files
        # What a batch is does not change the rows; whatever else differs may.
        key = json.dumps({k: v for k, v in data.items() if k != "batch_size"}, sort_keys=True)
        if key not in self.rows:
            self.rows[key] = round(times * len(RootDataModule(**data).rows("train")))
        limit, each = trainer["limit_train_batches"], self.rows[key]
        if limit is not None and (isinstance(limit, int) or limit > 1):  # as Lightning reads it: 150.0 are batches
            each = min(each, int(limit) * data["batch_size"])
        elif limit is not None:
            each = int(each * limit)
        return each * trainer["max_epochs"]

    def _files(self, step: Step) -> tuple[list[str], float]:
        """The data files of a training and 1; or small simulations in their place, and how many times as large they will be."""
        files, made, times = files_of(step.settings), [], 1.0
        for number, file in enumerate(files):
            recipe = simulated((self.plan.entries.get("simulate") or {}).get(file) or {"primaries": file})
            if Path(file).exists() or not isinstance(recipe["primaries"], int):
                return files, 1.0
            times = max(1.0, recipe["primaries"] / SMALL)
            made.append(str(self.folder / f"{Path(file).stem}-{number}.root"))
            if not Path(made[-1]).exists():
                few = min(SMALL, recipe["primaries"])
                write(made[-1], simulate(few, recipe["responses_per_primary"], recipe["detector"], recipe["seed"]))
        return made, times


def _probe(step: Step, files: Sequence[str]) -> float | None:
    """Seconds per sample of a few batches; None if the short run failed."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(f"{folder}/run")
        words = [w if w != str(step.folder) else str(run.folder) for w in step.words]
        words += command_words({f"trainer.{key}": value for key, value in PROBE.items()} | {"data.files": list(files)})
        begin = time.perf_counter()
        subprocess.run(own_command(["fit", *words]), capture_output=True, check=False)
        took, found = time.perf_counter() - begin, run.training
    if found is None:
        return None
    # The short run's own clock, without the start of the program.
    return min(found["seconds"], took) / max(found["samples"], 1)


def cost_table(plan: Plan) -> str:
    """Samples and minutes of each label's finished trainings, as Markdown."""
    rows = []
    for label in plan.trainings:
        own = {step.name for step in plan.runs(label) if step.result.exists()}
        if own:
            both = own.union(*(_needs(plan, name) for name in own))
            samples, total = _total(plan, own, "samples"), _total(plan, both, "samples")
            minutes = _total(plan, own, "seconds") / 60
            rows.append([plan.title(label), str(len(own)), f"{samples:,}", f"{total:,}", f"{minutes:.1f}"])
    return markdown_table(["", "runs", "samples seen", "with those it starts from", "training, min"], rows)


def _total(plan: Plan, names: Iterable[str], what: str) -> Any:
    """The sum of ``samples`` or ``seconds`` over finished trainings."""
    return sum((Run(plan.steps[name].folder).training or {})[what] for name in names)


def _needs(plan: Plan, name: str) -> set[str]:
    """The finished trainings that a training starts or learns from, and those they do."""
    own = {
        need for need in plan.steps[name].after if plan.steps[need].verb == "fit" and plan.steps[need].result.exists()
    }
    return own.union(*(_needs(plan, need) for need in own))


#: How often each model's speed is measured.
SPEED_TURNS = 3


def generation_times(
    model: ShowerModel, showers: Showers, batches: Sequence[int] = (1, 256), repeats: int = 5
) -> dict[str, float]:
    """Seconds per response of a shower model, medians, photon sums given.

    Args:
        model: The model.
        showers: Responses whose primaries and photon sums are taken.
        batches: Batch sizes.
        repeats: How often each is measured at least; what is over soon is measured for a second.

    Returns:
        ``batch 1`` and so on; of a teacher of points also ``sequential``: what a feature-by-feature inverse would take,
        as most libraries do it, at the last batch size: one full pass for each coordinate, extrapolated from single passes.
    """
    times = {}
    for batch in batches:
        row = np.arange(batch) % len(showers)
        particles = torch.from_numpy(showers.particles[row]).to(model.device, torch.float32)
        photon_sum = torch.from_numpy(showers.photon_sum[row]).to(model.device)
        rows = torch.from_numpy(row).to(model.device)

        def generate(seed: int, particles=particles, photon_sum=photon_sum, rows=rows) -> None:
            model.generate(particles, photon_sum, seed, rows)

        times[f"batch {batch}"] = _median(generate, model.device, repeats) / batch
        if batch == batches[-1]:
            with evaluating(model):
                if found := model.sequential(particles, photon_sum):
                    run, passes = found
                    times["sequential"] = _median(lambda seed, run=run: run(), model.device, repeats) * passes / batch
    return times


def _median(function: Any, device: torch.device, repeats: int) -> float:
    times: list[float] = []
    while len(times) <= repeats or sum(times) < 1:
        begin = time.perf_counter()
        function(len(times))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))  # the first warms up


def measure_speeds(plan: Plan, quiet: bool) -> dict[str, dict[str, float]]:
    """Times on one thread, and the number of parameters, of each label's first run that was judged."""
    runs = {label: steps[0].folder for label in plan.trainings if plan.judged((steps := plan.runs(label))[0])}
    models = {label: ShowerModel.load(run) for label, run in runs.items()}
    measured: dict[str, list[dict[str, float]]] = {label: [] for label in runs}
    with one_thread():
        # In turns: a machine's speed drifts by more than models differ.
        turns = [label for _ in range(SPEED_TURNS) for label in runs]
        for label in tqdm(turns, desc="speed", disable=True if quiet else None):
            data, _ = trained_data(runs[label])
            showers = data.showers("test", np.arange(min(256, len(data.rows("test")))))
            measured[label].append(generation_times(models[label], showers))
    return {
        label: {"parameters": sum(p.numel() for p in models[label].parameters())}
        | {key: float(np.median([one[key] for one in times])) for key in times[0]}
        for label, times in measured.items()
    }


def speed_table(plan: Plan, speeds: Mapping[str, Mapping[str, float]], cells: Cells) -> str:
    """Sizes and speeds beside the quality, as a Markdown section."""
    lines = []
    columns = [key for key in ("batch 1", "batch 256", "sequential") if any(key in speed for speed in speeds.values())]
    for label, speed in speeds.items():
        ws = cells.get(("shape", "ws", "all", label))
        quality = f"{ws.mean:.2f} ± {ws.std:.2f}" if ws else ""
        texts = [f"{1e3 * speed[key]:.2f}" if key in speed else "" for key in columns]
        lines.append([plan.title(label), f"{speed['parameters']:,}", quality, *texts])
    text = "One thread; ms per response with given photon sums, medians."
    if "sequential" in columns:
        text += " Sequential: one pass for each\ncoordinate, extrapolated from single passes."
    return f"## Size and speed\n\n{text}\n\n{markdown_table(['', 'parameters', 'WS all', *columns], lines)}\n"


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
                sections.append(f"### {METRICS[metric].in_units}\n\n{self._metric(mode, metric)}")
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
        return origin(data_hash=data, weights=list(found.values()))

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
            METRICS[metric].in_units: {
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
            f"{first['primaries']} primaries, {first['responses']} responses per row, {first['runs']} runs. Cells: mean ± "
            "standard deviation over runs, or over training seeds where a line says how many; the best model of a column "
            "in bold.\n\n"
            f"Primaries of a column: {', '.join(f'{columns[p]} {count}' for p, count in primaries.items())}. With fewer than "
            f"{LEAST_PRIMARIES} there are no intervals, p-values or winners."
        )
        failures = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
        return f"{text}\n\nFailed: {failures}." if failures else text

    def _metric(self, mode: str, metric: str) -> str:
        """The table of one metric, the best model of each column in bold."""
        form, titles, lines = METRICS[metric].form, self.titles, []
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
                lines.append([row.title, *(contrast_text(v, METRICS[metric].form) if v else "–" for v in versus)])
        if not lines:
            return ""
        title = self.plan.title(self.table.reference or "")
        text = f"Difference from {title} [95 % interval], p, share of resamples in favor:"
        return f"{text}\n\n{markdown_table(['', *self.table.columns.values()], lines)}"
