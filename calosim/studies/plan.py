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

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Plan", "Step", "command_words", "load_plan"]


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
        words = command_words({**given, "out": file})
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
            words = (*configs, *command_words(given), "--run", str(run))
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
                    name, label, step.values, "evaluate", command_words(given), result, (step.name, *needs), given
                )
    return Plan(folder, steps, trainings, raw)


def _combinations(each: Mapping[str, Iterable[Any]]) -> Iterable[dict[str, Any]]:
    return (dict(zip(each, values, strict=True)) for values in itertools.product(*each.values()))


def command_words(options: Mapping[str, Any]) -> tuple[str, ...]:
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
