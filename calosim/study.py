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
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

__all__ = ["Plan", "Step", "load_plan", "print_plan", "run_steps"]

#: Batches of the short run that estimates a training's time.
PROBE_BATCHES = 20


@dataclass(frozen=True)
class Step:
    """One command of a plan.

    Attributes:
        name: Unique name, that of its log.
        label: The training it belongs to, without the values of ``each``.
        values: The values of ``each``.
        verb: ``simulate``, ``fit`` or ``evaluate``.
        words: The command line after the verb.
        result: The file that exists when it is finished.
        after: Names of the steps it needs.
        options: Its resolved options.
    """

    name: str
    label: str
    values: Mapping[str, Any]
    verb: str
    words: tuple[str, ...]
    result: Path
    after: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder of a training, the folder of an evaluation."""
        return self.result.parent

    def finished(self) -> bool:
        """Whether its result is there.

        Raises:
            ValueError: If it was made with other options than the plan's.
        """
        if not self.result.exists():
            return False
        if self.verb == "fit":
            self.check_command("finished")
        if self.verb == "evaluate":
            arguments = json.loads(self.result.read_text())["arguments"]
            made = {key: arguments[key] for key in self.options if key in arguments}
            self._check("finished", made, {key: self.options[key] for key in made})
        return True

    def check_command(self, state: str) -> None:
        """Checks that a training was started as the plan says.

        Raises:
            ValueError: If not.
        """
        record = self.folder / "run.json"
        if not record.exists():
            raise ValueError(
                f"{self.folder}: expected the training of the plan or nothing, found a folder without run.json"
            )
        self._check(state, json.loads(record.read_text())["command"][1:], list(self.words))

    def _check(self, state: str, made: Any, wanted: Any) -> None:
        if made != wanted:
            raise ValueError(
                f"{self.folder}: {state} with other settings than the plan's (it has {_difference(made, wanted)}); "
                "remove the folder to make it anew, or choose another `out`"
            )


def _difference(made: Any, wanted: Any) -> str:
    """What of the settings differs, for an error message."""
    if isinstance(made, dict):
        return ", ".join(f"{k}={made[k]!r} instead of {wanted[k]!r}" for k in wanted if made[k] != wanted[k])
    extra, missing = [w for w in made if w not in wanted], [w for w in wanted if w not in made]
    return f"{' '.join(extra) or 'nothing'} instead of {' '.join(missing) or 'nothing'}"


@dataclass(frozen=True)
class Plan:
    """A plan, read.

    Attributes:
        out: The folder of everything it makes.
        steps: What is to be run, each after those it needs.
        trainings: Names of the training steps by label, in the plan's order.
        settings: The rest of the file.
    """

    out: Path
    steps: dict[str, Step]
    trainings: dict[str, list[str]]
    settings: Mapping[str, Any]

    def runs(self, label: str) -> list[Step]:
        """The training steps of a label."""
        return [self.steps[name] for name in self.trainings[label]]


def load_plan(path: str | Path, out: str | None = None, options: Mapping[str, Any] | None = None) -> Plan:
    """Reads a plan.

    Args:
        path: The YAML file.
        out: Another folder than the plan's.
        options: Further options of every training, for instance ``{"trainer.max_epochs": 1}``.

    Raises:
        ValueError: If the file is not a plan, or a name in it is unknown.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("trainings"), dict):
        raise ValueError(f"{path}: expected a plan with `trainings`")
    known = {"out", "simulate", "common", "trainings", "evaluate", "validate", "table"}
    if unknown := set(raw) - known:
        raise ValueError(f"{path}: unknown entries {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}")
    folder = Path(out or raw.get("out") or f"runs/{Path(path).stem}")
    steps: dict[str, Step] = {}
    for file, given in (raw.get("simulate") or {}).items():
        words = _words({**given, "out": file})
        steps[file] = Step(file, file, {}, "simulate", words, Path(file), tuple(steps), given)
    data_steps = tuple(steps)
    trainings: dict[str, list[str]] = {}
    instances: dict[str, list[Step]] = {}
    for label, entry in raw["trainings"].items():
        entry = entry or {}
        if unknown := set(entry) - {"each", "config", "options", "evaluate", "title"}:
            raise ValueError(
                f"{path}: training {label} has unknown entries {', '.join(sorted(unknown))}; expected each, config, "
                "options, evaluate, title"
            )
        for values in _combinations(entry.get("each") or {}):
            name = "-".join([label, *map(str, values.values())])
            given, needs = _resolve(
                {**(raw.get("common") or {}), **(entry.get("options") or {})}, values, instances, path
            )
            given |= options or {}
            run = folder / name
            configs = itertools.chain.from_iterable(("-c", str(c)) for c in entry.get("config") or [])
            words = (*configs, *_words(given), "--run", str(run))
            step = Step(name, label, values, "fit", words, run / "training.json", (*data_steps, *needs), given)
            steps[name] = step
            trainings.setdefault(label, []).append(name)
            instances.setdefault(label, []).append(step)
    for kind, split, sub in (("evaluate", "test", "evaluation"), ("validate", "val", "validation")):
        for label, entry in raw["trainings"].items() if kind in raw else ():
            own = (entry or {}).get("evaluate", {})
            for step in instances[label] if own is not False else ():
                given, needs = _resolve({**(raw[kind] or {}), **(own or {})}, step.values, instances, path)
                given |= {"shape": str(step.folder), "split": split, "out": str(step.folder / sub)}
                result, name = step.folder / sub / "evaluation.json", f"{step.name}-{sub}"
                steps[name] = Step(
                    name, label, step.values, "evaluate", _words(given), result, (step.name, *needs), given
                )
    return Plan(folder, steps, trainings, raw)


def _combinations(each: Mapping[str, Iterable[Any]]) -> Iterable[dict[str, Any]]:
    return (dict(zip(each, values, strict=True)) for values in itertools.product(*each.values()))


def _words(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as command-line words."""
    return tuple(
        w
        for key, v in options.items()
        for w in (f"--{key}", v if isinstance(v, str) else json.dumps(v, allow_nan=False))
    )


def _resolve(
    options: Mapping[str, Any], values: Mapping[str, Any], instances: Mapping[str, list[Step]], path: str | Path
) -> tuple[dict[str, Any], list[str]]:
    """Puts values and run folders in the place of ``{names}``; also the names of the runs that are needed."""
    needs: list[str] = []

    def replace(value: Any) -> Any:
        if isinstance(value, list):
            return [replace(v) for v in value]
        if not isinstance(value, str) or "{" not in value:
            return value
        if value[1:-1] in values and value == f"{{{value[1:-1]}}}":
            return values[value[1:-1]]  # keeps a number a number
        names: dict[str, Any] = dict(values)
        for label, steps in instances.items():
            fitting = [s for s in steps if all(values.get(k, v) == v for k, v in s.values.items())]
            if len(fitting) == 1:
                names[label] = fitting[0].folder
                if f"{{{label}}}" in value:
                    needs.append(fitting[0].name)
        try:
            return value.format_map(names)
        except (KeyError, ValueError, IndexError):
            raise ValueError(f"{path}: cannot resolve {value!r}; known here are {', '.join(map(str, names))}") from None

    return {key: replace(value) for key, value in options.items()}, needs


def run_steps(
    plan: Plan, jobs: int = 1, quiet: bool = False, only: Callable[[Step], bool] = lambda step: True
) -> dict[str, str]:
    """Runs what is not finished.

    Args:
        plan: The plan.
        jobs: How many commands run at once; they share the processor cores, and take turns at the CUDA devices.
        quiet: Print nothing and show no progress.
        only: Which steps are wanted.

    Returns:
        Why steps failed, by name; a step whose need failed is among them.
    """
    if jobs < 1:
        raise ValueError(f"expected at least one job, got {jobs}")
    wanted = {name: step for name, step in plan.steps.items() if only(step)}
    done = {name for name, step in wanted.items() if step.finished()} | (set(plan.steps) - set(wanted))
    failed: dict[str, str] = {}
    running: dict[Future[str], str] = {}
    children: set[subprocess.Popen[bytes]] = set()
    slots = list(range(jobs))
    progress = tqdm(total=len(wanted), initial=len(done & set(wanted)), unit="step", disable=True if quiet else None)
    with _terminable(), progress, ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                for name, step in wanted.items():
                    if name in done or name in failed or name in running.values():
                        continue
                    if blocked := [need for need in step.after if need in failed]:
                        failed[name] = f"needs {blocked[0]}, which failed"
                        progress.update()
                    elif slots and done.issuperset(step.after):
                        running[pool.submit(_run, plan.out, step, jobs, slots.pop(0), slots, children)] = name
                progress.set_postfix_str(", ".join(running.values()))
                if not running:
                    return failed
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    if reason := future.result():
                        failed[name] = reason
                        progress.write(f"{name}: failed: {reason}")
                    else:
                        done.add(name)
                        if not quiet:
                            progress.write(f"{name}: done")
                    progress.update()
        finally:
            for child in list(children):  # an interrupted study leaves nothing running; it resumes later
                child.kill()


_LOCK = threading.Lock()


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets a termination request, such as that of a batch system, end the study in an orderly way."""

    def terminate(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(out: Path, step: Step, jobs: int, slot: int, slots: list[int], children: set[subprocess.Popen[bytes]]) -> str:
    """Runs one step to its end; an empty text, or why it failed."""
    try:
        words = list(step.words)
        log = out / "logs" / f"{step.name.replace('/', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        marker = log.with_suffix(".pid")
        if marker.exists() and _alive(int(marker.read_text() or 0)):
            return f"is still running as process {marker.read_text()}; wait for it or end it"
        if step.verb == "fit" and step.folder.exists() and any(step.folder.iterdir()):
            try:
                step.check_command("begun")
            except ValueError as error:
                return str(error)
            if (step.folder / "checkpoints" / "last.ckpt").exists():
                words += ["--ckpt_path", "last"]
            else:
                shutil.rmtree(step.folder)  # killed before its first checkpoint: nothing to resume
        environment = os.environ | {"TQDM_DISABLE": "1"}
        if jobs > 1:
            environment |= _share(jobs, slot)
        with log.open("ab") as stream:
            command = [sys.executable, "-m", "calosim", step.verb, *words]
            stream.write(f"\n$ calosim {' '.join([step.verb, *words])}\n".encode())
            stream.flush()
            with subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment) as child:
                with _LOCK:
                    children.add(child)
                marker.write_text(str(child.pid))
                code = child.wait()
                children.discard(child)
        marker.unlink(missing_ok=True)
        if code == 0 and step.result.exists():
            return ""
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = f"exit {code}" if code else f"no {step.result} was made"
        return f"{reason}: {lines[-1][:300]} (see {log})"
    finally:
        with _LOCK:
            slots.append(slot)


def _share(jobs: int, slot: int) -> dict[str, str]:
    """The environment of one of several commands that run at once."""
    import torch

    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if (devices := torch.cuda.device_count()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % devices)
    return environment


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError):
        return False
    return pid > 0


# -- what a plan will cost ------------------------------------------------------------------------------------------


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
                rates[_kind(step)] = record["seconds"] / max(record["samples"], 1)
                text = f"{record['seconds'] / 60:.1f} min, took"
            elif samples is None:
                text = fault
            else:
                rate = rates.get(_kind(step))
                needs = [plan.steps[n] for n in step.after if plan.steps[n].verb == "fit"]
                if rate is None and all(need.finished() for need in needs):
                    rate = _probe(step)
                if rate is None:
                    rate = next(
                        (rates[_kind(plan.steps[n])] for n in step.after if _kind(plan.steps[n]) in rates), None
                    )
                if rate is not None:
                    rates.setdefault(_kind(step), rate)
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


def _kind(step: Step) -> tuple[str, ...]:
    """Trainings of one kind take the same time per sample."""
    return tuple(word for flag, word in itertools.pairwise(step.words) if flag == "-c") or (step.verb,)


def _samples(step: Step, rows: dict[str, int]) -> int | None:
    """Samples that a training sees, in all epochs; None while its data do not exist."""
    from calosim.data import RootDataModule

    merged: dict[str, Any] = {}
    base = Path(__file__).resolve().parent.parent / "conf" / "base.yaml"
    for config in [str(base), *_kind(step)]:
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
        words += [*_words({f"trainer.{key}": value for key, value in short.items()}), "--trainer.callbacks", "[]"]
        command = [sys.executable, "-m", "calosim", "fit", *words]
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        record = Path(folder) / "run" / "training.json"
        if not record.exists():
            return None
        found = json.loads(record.read_text())
    # The short run's own clock, without the start of the program.
    return min(found["seconds"], time.perf_counter() - begin) / max(found["samples"], 1)
