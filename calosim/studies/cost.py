"""What a study costs: the time that its plan will take, and the samples and minutes that it took."""

from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calosim.commands import own_command
from calosim.data.root import write
from calosim.io import markdown_table
from calosim.montecarlo.simulate import simulate
from calosim.runs import Run
from calosim.studies.finished import is_finished, unknown_origin
from calosim.studies.plan import Plan, Step
from calosim.studies.settings import command_words, files_of, simulated

__all__ = ["cost_table", "print_plan"]

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
