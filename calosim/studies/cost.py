"""Runs a plan of trainings and evaluations: skips what is finished, resumes what was killed, several at once.

A plan is a YAML file. What it names is made in order of need:

.. code-block:: yaml

    out: runs/study                      # everything is made in here
    simulate:                            # data files, made if they are missing
      data/study.root: {detector: zn, primaries: 5000, seed: 1}
    common: {data.files: [data/study.root]}          # options of every training
    trainings:
      base:
        config: [conf/teacher.yaml]
        options: {trainer.max_epochs: 10}
      gd:                                # one run for each particle: gd-gamma, gd-lambda
        each: {particle: [gamma, lambda]}
        config: [conf/finetune/gd.yaml]
        options: {model.init_from: "{base}", data.particle: "{particle}"}    # {base} is that run's folder
    evaluate: {runs: 5, rows: 1000}      # options of `calosim evaluate`, for every training but those with `evaluate: false`
    validate: {runs: 1, rows: 1000}      # the same on the validation split, for choices between models
"""

from __future__ import annotations

import inspect
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from calosim.studies.plan import Plan, Step, command_words

__all__ = ["print_plan", "training_kind"]

#: Batches of the short run that estimates a training's time.
PROBE_BATCHES = 20


def print_plan(plan: Plan, jobs: int = 1) -> None:
    """Prints the steps with their state and, for trainings, an estimate of their time.

    A training's time is samples (rows times epochs) times the time per sample, which is that of a finished training with the
    same configuration files, else that of a short run of a few batches; where a run cannot be tried before another is
    finished, the time per sample of that other one stands in.
    """
    rates: dict[tuple[str, ...], float] = {}
    rows: dict[str, int] = {}
    total, unknown = 0.0, 0
    table = []
    for step in plan.steps.values():
        state = "finished" if step.finished() else "to do"
        if step.verb == "fit" and state == "to do" and (step.folder / "checkpoints" / "last.ckpt").exists():
            state = "to resume"
        estimate, text = None, ""
        if step.verb == "fit":
            fault = "unknown before its data are made"
            try:
                samples = _samples(step, rows)
            except ValueError as error:
                samples, fault = None, f"will fail: {error}"
            if state == "finished":
                record = json.loads(step.result.read_text())
                rates[training_kind(step)] = record["seconds"] / max(record["samples"], 1)
                text = f"{record['seconds'] / 60:.1f} min, took"
            elif samples is None:
                text = fault
            else:
                rate = rates.get(training_kind(step))
                needs = [plan.steps[n] for n in step.after if plan.steps[n].verb == "fit"]
                if rate is None and all(need.finished() for need in needs):
                    rate = _probe(step)
                if rate is None:
                    rate = next(
                        (
                            rates[training_kind(plan.steps[n])]
                            for n in step.after
                            if training_kind(plan.steps[n]) in rates
                        ),
                        None,
                    )
                if rate is not None:
                    rates.setdefault(training_kind(step), rate)
                    estimate = rate * samples
                    text = f"about {estimate / 60:.1f} min for {samples} samples"
        if state != "finished":
            if estimate is None:
                unknown += 1
            total += estimate or 0.0
        table.append((step.name, state, text, f"calosim {step.verb} {' '.join(step.words)}"))
    widths = [max(len(line[i]) for line in table) for i in range(3)]
    for name, state, text, command in table:
        print(f"{name:<{widths[0]}}  {state:<{widths[1]}}  {text:<{widths[2]}}  {command}")
    print(f"Estimated: {total / jobs / 60:.0f} min with {jobs} at once, and {unknown} steps without an estimate.")


def training_kind(step: Step) -> tuple[str, ...]:
    """Trainings of one kind take the same time per sample."""
    return tuple(word for flag, word in itertools.pairwise(step.words) if flag == "-c") or (step.verb,)


def _samples(step: Step, rows: dict[str, int]) -> int | None:
    """Samples that a training sees, in all epochs; None while its data do not exist."""
    from calosim.showers.datamodule import RootDataModule

    merged: dict[str, Any] = {}
    base = Path(__file__).resolve().parents[2] / "conf" / "base.yaml"
    for config in [str(base), *training_kind(step)]:
        for section in ("trainer", "data"):
            loaded = yaml.safe_load(Path(config).read_text()) if Path(config).is_file() else {}
            merged.setdefault(section, {}).update(loaded.get(section) or {})
    for key, value in step.options.items():
        section, _, name = key.partition(".")
        if section in merged:
            merged[section][name] = value
    settings = {k: v for k, v in merged["data"].items() if k in ("files", "detector", "particle", "split_by", "seed")}
    key = json.dumps(settings, sort_keys=True)
    if key not in rows:
        files = settings["files"] if isinstance(settings["files"], list) else [settings["files"]]
        if not all(Path(file).exists() for file in files):
            return None
        rows[key] = len(RootDataModule(**settings).rows("train"))
    limit, each = merged["trainer"].get("limit_train_batches"), rows[key]
    if isinstance(limit, int):
        default = inspect.signature(RootDataModule).parameters["batch_size"].default
        each = min(each, limit * int(merged["data"].get("batch_size", default)))
    elif limit is not None:
        each = int(each * limit)
    return each * int(merged["trainer"]["max_epochs"])


def _probe(step: Step) -> float | None:
    """Seconds per sample of a few batches; None if the short run failed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [w if w != str(step.folder) else f"{folder}/run" for w in step.words]
        short = {
            "max_epochs": 1,
            "limit_train_batches": PROBE_BATCHES,
            "limit_val_batches": 0,
            "enable_checkpointing": False,
        }
        words += [
            *command_words({f"trainer.{key}": value for key, value in short.items()}),
            "--trainer.callbacks",
            "[]",
        ]
        command = [sys.executable, "-m", "calosim", "fit", *words]
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        record = Path(folder) / "run" / "training.json"
        if not record.exists():
            return None
        found = json.loads(record.read_text())
    # The short run's own clock, without the start of the program.
    return min(found["seconds"], time.perf_counter() - begin) / max(found["samples"], 1)
