"""Plans of studies: which trainings and evaluations there are, and which needs which.

A plan is a YAML file. What it names is made in order of need:

.. code-block:: yaml

    include: [common/zn.yaml]            # entries of other files, relative to this one; this file's own win
    out: runs/study                      # everything is made in here
    shared: runs/shared                  # except for shared trainings; by default `shared` beside `out`
    simulate:                            # data files, made if they are missing
      data/study.root: {detector: zn, primaries: 5000, seed: 1}
    common: {data.files: [data/study.root]}          # options of every training
    trainings:
      base:
        config: [conf/teacher.yaml]
        options: {trainer.max_epochs: 10}
        shared: true                     # trained once for all plans that have it with the same settings and data
      gd:                                # one run for each particle: gd-gamma, gd-lambda
        title: fine-tuned                # what the tables call it
        each: {particle: [gamma, lambda]}
        config: [conf/finetune/gd.yaml]
        options: {model.init_from: "{base}", data.particle: "{particle}"}    # {base} is that run's folder
        evaluate: {responses: 5}         # its own options of `evaluate` and `validate`; false: it is not judged
    evaluate: {runs: 5, rows: 1000}      # options of `calosim evaluate`, for every training but those with `evaluate: false`
    validate: {runs: 1, rows: 1000}      # the same on the validation split, for choices between models
    table: {reference: base}             # what is compared with what, see calosim.studies.layout.Table

In a file that is included mappings are merged with the plan's, entry by entry; lists and values are replaced.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from calosim.data.cache import content_hash, primaries_hash
from calosim.evaluation.stored import Evaluation
from calosim.io import find_config, read_yaml
from calosim.particles import particle_code
from calosim.runs import Run, identity

__all__ = [
    "ENSEMBLE",
    "REFERENCES",
    "Plan",
    "Step",
    "command_words",
    "files_of",
    "fingerprint",
    "load_plan",
    "merged",
    "read_entries",
    "resolved",
    "simulated",
]


def read_entries(path: str | Path) -> dict[str, Any]:
    """The entries of a YAML file, on top of those of the files that it includes.

    Args:
        path: The file. Its entry ``include`` lists others, relative to its own folder: later ones win over earlier ones,
            and the file itself over all.

    Raises:
        ValueError: If a file is missing, no YAML mapping, or includes itself.
    """
    return _read(Path(path), ())


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings in one: mappings inside of both are merged, anything else (lists, null) is replaced.

    >>> merged({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}, "d": None})
    {'a': {'b': 1, 'c': [3]}, 'd': None}
    """
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _read(path: Path, outer: tuple[Path, ...]) -> dict[str, Any]:
    by = f" (included by {outer[-1]})" if outer else ""
    here = path.resolve()
    if here in [file.resolve() for file in outer]:
        raise ValueError(f"{path}: includes itself, by way of {' and '.join(map(str, outer))}")
    try:
        entries = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}{by}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path}{by}: expected entries such as `trainings:`, got {type(entries).__name__}")
    includes = entries.pop("include", None) or []
    if not isinstance(includes, list) or not all(isinstance(file, str) for file in includes):
        raise ValueError(f"{path}{by}: expected `include` to be a list of files, got {includes!r}")
    result: dict[str, Any] = {}
    for file in includes:
        result = merged(result, _read(path.parent / file, (*outer, path)))
    return merged(result, entries)


#: Options that stand in the settings as they are given, and where, and change nothing else.
_VERBATIM: dict[str, tuple[str, ...]] = {
    "--seed_everything": ("seed_everything",),
    "--data.particle": ("data", "particle"),
    "--model.init_from": ("model", "init_args", "init_from"),
    "--run": ("run",),
}
#: Options of ``simulate`` that change no shower.
_HOW = ("out", "workers", "quiet")
#: Settings by configuration files and words, without the values of those options.
_READ: dict[tuple[Any, ...], dict[str, Any]] = {}


def command_words(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as command-line words."""
    return tuple(
        w
        for key, v in options.items()
        for w in (f"--{key}", v if isinstance(v, str) else json.dumps(v, allow_nan=False))
    )


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """All settings of ``calosim fit WORDS``; trainings that differ in seed, particle or origin alone are read once.

    Raises:
        ValueError: If the command would refuse them.
    """
    pairs = list(itertools.pairwise(words))
    files = tuple(find_config(word).read_bytes() for flag, word in pairs if flag in ("-c", "--config"))
    given = {_VERBATIM[flag]: int(word) if word.isdecimal() else word for flag, word in pairs if flag in _VERBATIM}
    rest = tuple(word for flag, word in itertools.pairwise(["", *words]) if flag not in _VERBATIM)
    key = (files, rest, *map(type, given.values()))
    if key not in _READ:
        from calosim.cli.train import resolved as ask  # with torch and lightning, which a plan's reading can do without

        settings = ask(list(words))
        if any(reduce(getitem, place, settings) != value for place, value in given.items()):
            return settings  # understood otherwise than it was written
        _READ[key] = settings
    settings = copy.deepcopy(_READ[key])
    for (*outer, last), value in given.items():
        reduce(getitem, outer, settings)[last] = value
    return settings


def files_of(settings: Mapping[str, Any]) -> list[str]:
    """The data files of a training."""
    files = settings["data"]["files"]
    return [files] if isinstance(files, str) else list(files)


def simulated(given: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the showers of ``calosim simulate``: the settings that are given, and defaults for the rest."""
    from calosim.cli.tools import resolved as ask

    return {name: value for name, value in ask("simulate", command_words(given)).items() if name not in _HOW}


def fingerprint(settings: Mapping[str, Any], simulate: Mapping[str, Mapping[str, Any]]) -> str:
    """A short hash of a training's settings and data, known before the data are made.

    Args:
        settings: All settings.
        simulate: How data files are made, by file; others count by their content.
    """

    def data(file: str, hashed: Callable[[str], str] = lambda file: content_hash([file])) -> Any:
        if file not in simulate:
            return hashed(file) if Path(file).is_file() else file
        recipe = simulated(simulate[file])
        source = recipe["primaries"]
        return recipe | ({"primaries": data(source, primaries_hash)} if isinstance(source, str) else {})

    content = json.dumps([identity(settings), [data(file) for file in files_of(settings)]], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=5).hexdigest()


#: Rows of tables that are no model of the plan: the Monte Carlo itself and the trivial answer; and the ensemble of the best.
REFERENCES = ("floor", "halves", "trivial")
ENSEMBLE = "ensemble"
#: Names that a plan's own folder and tables have for something else than its trainings.
TAKEN = ("logs", ENSEMBLE, *REFERENCES)
#: Options whose values make other trainings of the same model, by chance or by the rows that it answers for.
POOLED = ("seed_everything", "data.particle")
#: Entries of a plan and of its trainings, and what they may be.
ENTRIES: dict[str, Any] = {"out": str, "shared": str, "trainings": dict}
ENTRIES |= dict.fromkeys(("simulate", "common", "evaluate", "validate", "table"), dict)
TRAINING_ENTRIES = {
    "each": dict,
    "config": list,
    "options": dict,
    "evaluate": dict | bool,
    "title": str,
    "shared": bool,
}
KINDS = {str: "text", dict: "a mapping", list: "a list", bool: "true or false", dict | bool: "a mapping or false"}


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
        options: Its options, names resolved.
        shared: Whether other plans have it too: then several studies may want to make it at once.
    """

    name: str
    label: str
    values: Mapping[str, Any]
    verb: str
    words: tuple[str, ...]
    result: Path
    after: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False

    @property
    def folder(self) -> Path:
        """The run folder of a training, the folder of an evaluation."""
        return self.result.parent

    @property
    def configs(self) -> tuple[str, ...]:
        """The configuration files of a training."""
        return tuple(word for flag, word in itertools.pairwise(self.words) if flag == "-c")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of a step, as its command understands its words.

        Raises:
            ValueError: If it does not.
        """
        from calosim.cli.tools import resolved as ask

        try:
            return resolved(self.words) if self.verb == "fit" else ask(self.verb, self.words)
        except ValueError as error:
            kind = "training" if self.verb == "fit" else "step"
            raise ValueError(f"{kind} {self.name}: {error}") from None


@dataclass(frozen=True)
class Plan:
    """A plan, read.

    Attributes:
        path: The file.
        out: The folder of what it makes.
        steps: What is to be run, each after those it needs.
        trainings: Names of the training steps by label, in the plan's order.
        entries: The file's entries, together with those it includes.
    """

    path: Path
    out: Path
    steps: dict[str, Step]
    trainings: dict[str, list[str]]
    entries: Mapping[str, Any]

    def runs(self, label: str) -> list[Step]:
        """The training steps of a label."""
        return [self.steps[name] for name in self.trainings[label]]

    def judged(self, run: Step, sub: str = Run.EVALUATION) -> Evaluation | None:
        """The finished evaluation (``sub`` ``evaluation``) or validation of a training; None if there is none."""
        step = self.steps.get(f"{run.name}-{sub}")
        found = Evaluation(step.folder) if step else None
        return found if found and found.exists else None

    def title(self, label: str) -> str:
        """What the tables call a training."""
        return _title(self.entries, label)

    def row(self, step: Step) -> tuple[str, str]:
        """The row of the tables that a training belongs to: its name, and what the tables call it."""
        return _row(self.entries, step)


def load_plan(path: str | Path, out: str | None = None, options: Mapping[str, Any] | None = None) -> Plan:
    """Reads a plan.

    Args:
        path: The YAML file.
        out: Another folder than the plan's.
        options: Further options of every training, for instance ``{"trainer.max_epochs": 1}``.

    Raises:
        ValueError: If the file is not a plan, or a name in it is unknown.
    """
    path = find_config(path)
    entries = read_entries(path)
    if not isinstance(entries.get("trainings"), dict):
        raise ValueError(f"{path}: expected a plan with `trainings`")
    _check_entries(f"{path}", entries, ENTRIES)
    for file, given in (entries.get("simulate") or {}).items():
        _check_kind(f"{path}: simulate: {file}", given, dict)
    for label, entry in entries["trainings"].items():
        _check_entries(f"{path}: training {label}", {} if entry is None else entry, TRAINING_ENTRIES)
        for name, values in ((entry or {}).get("each") or {}).items():
            _check_kind(f"{path}: training {label}: each: {name}", values, list)
    reading = _Reading(path, Path(out or entries.get("out") or f"runs/{path.stem}"), entries, options or {})
    reading.add_data()
    reading.add_trainings()
    reading.add_evaluations("evaluate", "test", Run.EVALUATION)
    reading.add_evaluations("validate", "val", Run.VALIDATION)
    reading.check_rows()
    trainings = {label: [step.name for step in steps] for label, steps in reading.runs.items()}
    return Plan(path, reading.out, reading.steps, trainings, entries)


def _title(entries: Mapping[str, Any], label: str) -> str:
    return (entries["trainings"][label] or {}).get("title") or label


def _row(entries: Mapping[str, Any], step: Step) -> tuple[str, str]:
    """See :meth:`Plan.row`: only trainings that differ by chance are the same model, whose spread is an uncertainty."""
    templates = (entries["trainings"][step.label] or {}).get("options") or {}
    pooled = {str(templates.get(option)).strip("{}") for option in POOLED}
    swept = {name: value for name, value in step.values.items() if name not in pooled}
    title, words = _title(entries, step.label), ", ".join(f"{name} {value}" for name, value in swept.items())
    return "-".join([step.label, *map(str, swept.values())]), f"{title} ({words})" if swept else title


def _meaning(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as their values are understood: text as YAML, particles by their codes."""
    found = {}
    for name, value in options.items():
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(value) if isinstance(value, str) else value
        with suppress(ValueError, TypeError):
            value = particle_code(value) if name == "data.particle" else value
        found[name] = value
    return found


def _check_entries(where: str, entries: Any, known: Mapping[str, Any]) -> None:
    """Refuses entries that are unknown or of another kind."""
    _check_kind(where, entries, dict)
    if unknown := set(entries) - set(known):
        raise ValueError(
            f"{where} has unknown entries {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}"
        )
    for name, value in entries.items():
        if value is not None:
            _check_kind(f"{where}: {name}", value, known[name])


def _check_kind(where: str, value: Any, kind: Any) -> None:
    """Refuses a value of another kind; what a list holds, and the keys of a mapping, are text but in ``each``."""
    if not isinstance(value, kind):
        raise ValueError(f"{where}: expected {KINDS[kind]}, got {value!r:.100}")
    inside = value if isinstance(value, dict) or where.endswith(": config") else ()
    if other := [item for item in inside if not isinstance(item, str)]:
        raise ValueError(f"{where}: expected text, got {other[0]!r:.100}")


@dataclass
class _Reading:
    """A plan while it is being read: its steps so far."""

    path: Path
    out: Path
    entries: Mapping[str, Any]
    options: Mapping[str, Any]
    steps: dict[str, Step] = field(default_factory=dict)
    runs: dict[str, list[Step]] = field(default_factory=dict)
    _places: dict[str, str] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Adds a step, whose name, log and place no other one has.

        Raises:
            ValueError: If one has: of two, one would vanish.
        """
        place = os.path.realpath(step.result if step.verb == "simulate" else step.folder)
        log = f"log {step.name.replace('/', '_')}"
        # An evaluation lies in the run folder of the training that it needs.
        around = [str(parent) for parent in Path(place).parents if self._places.get(str(parent)) not in step.after]
        within = [known for known in self._places if known.startswith(f"{place}/")]
        for other in (self._places[known] for known in (log, place, *around, *within) if known in self._places):
            raise ValueError(
                f"{self.path}: {self.steps[other].verb} {other!r} and {step.verb} {step.name!r} would have one name or place "
                f"({place}); expected names that differ"
            )
        self._places |= {log: step.name, place: step.name}
        self.steps[step.name] = step

    def check_rows(self) -> None:
        """Refuses trainings that the tables could not tell apart, and one training that would count twice.

        Raises:
            ValueError: If there are some.
        """
        owners: dict[str, str] = {}
        for label, steps in self.runs.items():
            if label in TAKEN or "/" in label:
                raise ValueError(
                    f"{self.path}: training {label}: expected another name; / and {', '.join(TAKEN)} are taken"
                )
            seen: list[tuple[dict[str, Any], str]] = []
            for step in steps:
                meaning = _meaning(step.options)
                if twice := [name for other, name in seen if other == meaning]:
                    raise ValueError(
                        f"{self.path}: {twice[0]} and {step.name} are the same training, which would count twice; expected "
                        "values of `each` that make a difference"
                    )
                seen.append((meaning, step.name))
            for name in {name for step in steps for name in {*_row(self.entries, step)}}:
                if owners.setdefault(name, label) != label:
                    raise ValueError(
                        f"{self.path}: trainings {owners[name]} and {label} are both {name!r} in the tables; expected titles "
                        "and names that differ"
                    )

    def add_data(self) -> None:
        for file, given in (self.entries.get("simulate") or {}).items():
            words = command_words({**given, "out": file})
            self.add(Step(file, file, {}, "simulate", words, Path(file), tuple(self.steps), given))

    def add_trainings(self) -> None:
        data = tuple(self.steps)
        for label, entry in self.entries["trainings"].items():
            entry = entry or {}
            for values in _combinations(entry.get("each") or {}):
                name = "-".join([label, *map(str, values.values())])
                own = {**(self.entries.get("common") or {}), **(entry.get("options") or {})}
                given, needs = self.resolve(own, values)
                given |= self.options
                configs = itertools.chain.from_iterable(("-c", str(c)) for c in entry.get("config") or [])
                words = (*configs, *command_words(given))
                shared = bool(entry.get("shared"))
                folder = self.shared_folder(label, words, needs) if shared else self.out / name
                words = (*words, "--run", str(folder))
                step = Step(name, label, values, "fit", words, folder / Run.TRAINING, (*data, *needs), given, shared)
                self.add(step)
                self.runs.setdefault(label, []).append(step)

    def add_evaluations(self, entry: str, split: str, sub: str) -> None:
        """Adds the evaluations of all trainings on a split; those of a shared training stay in the plan's own folder."""
        if entry not in self.entries:
            return
        for label, training in self.entries["trainings"].items():
            own = (training or {}).get("evaluate", {})
            for run in self.runs[label] if own is not False else ():
                given, needs = self.resolve({**(self.entries[entry] or {}), **(own or {})}, run.values)
                folder, name = (self.out / run.name if run.shared else run.folder) / sub, f"{run.name}-{sub}"
                given |= {"shower": str(run.folder), "split": split, "out": str(folder)}
                self.add(
                    Step(
                        name,
                        label,
                        run.values,
                        "evaluate",
                        command_words(given),
                        folder / Evaluation.RECORD,
                        (run.name, *needs),
                        given,
                    )
                )

    def shared_folder(self, label: str, words: tuple[str, ...], needs: list[str]) -> Path:
        """The folder of a shared training, named by what it is: its settings and how its data are made."""
        if own := [need for need in needs if not self.steps[need].shared]:
            raise ValueError(f"{self.path}: training {label} is shared, but needs {own[0]}, which is not")
        try:
            settings = resolved(words)
        except ValueError as error:
            raise ValueError(f"{self.path}: training {label}: {error}") from None
        model = settings["model"]["class_path"].rpartition(".")[2].lower()
        name = f"{model}-{fingerprint(settings, self.entries.get('simulate') or {})}"
        return Path(self.entries.get("shared") or self.out.parent / "shared") / name

    def resolve(self, options: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
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
            for label, steps in self.runs.items():
                fitting = [s for s in steps if all(values.get(k, v) == v for k, v in s.values.items())]
                if len(fitting) == 1:
                    names[label] = fitting[0].folder
                    if f"{{{label}}}" in value:
                        needs.append(fitting[0].name)
            try:
                return value.format_map(names)
            except (KeyError, ValueError, IndexError):
                known = ", ".join(map(str, names))
                raise ValueError(f"{self.path}: cannot resolve {value!r}; known here are {known}") from None

        return {key: replace(value) for key, value in options.items()}, needs


def _combinations(each: Mapping[str, Iterable[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(each, values, strict=True)) for values in itertools.product(*each.values()))
