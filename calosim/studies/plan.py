"""Plans of studies: which trainings and evaluations there are, and which needs which.

A plan is a YAML file. What it names is made in order of need:

.. code-block:: yaml

    include: [common/zn.yaml]            # entries of other files, relative to this one; this file's own win
    uses: [baseline.yaml]                # other plans, relative to this one, whose trainings are used here
    out: runs/study                      # everything is made in here
    simulate:                            # data files, made if they are missing
      data/study.root: {detector: zn, primaries: 5000, seed: 1}
    common: {data.files: [data/study.root]}          # options of every training
    trainings:
      base:
        config: [conf/teacher.yaml]
        options: {trainer.max_epochs: 10}
      long: {use: long-1}                # the training of that name of a plan in `uses`, in the folder that it has there
      gd:                                # one run for each particle: gd-gamma, gd-lambda
        title: fine-tuned                # what the tables call it
        each: {particle: [gamma, lambda]}
        config: [conf/finetune/gd.yaml]
        options: {model.init_from: "{base}", data.particle: "{particle}"}    # {base} is that run's folder
        evaluate: {responses: 5}         # its own options of `evaluate` and `validate`; false: it is not evaluated
    evaluate: {runs: 5, rows: 1000}      # options of `calosim evaluate`, for every training but those with `evaluate: false`
    validate: {runs: 1, rows: 1000}      # the same on the validation split, for choices between models
    table: {reference: base}             # what is compared with what, see calosim.studies.plan.Table

In a file that is included mappings are merged with the plan's, entry by entry; lists and values are replaced. A training that
is used is made if it is missing, as its own plan says; evaluations of it are each study's own.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from calosim.evaluation.stored import Evaluation
from calosim.io import find_config, read_yaml
from calosim.metrics.registry import METRICS
from calosim.particles import STUDY_PARTICLES, particle_code, particle_heading, particle_name
from calosim.runs import Run

__all__ = ["ENSEMBLE", "REFERENCES", "Step", "Study", "Table", "command_words", "merged", "read_entries"]

#: Rows of tables that are no model of the plan: the Monte Carlo itself, the trivial model, and the Monte Carlo with photons
#: moved, which shows the tests' power; and the ensemble of the best.
REFERENCES = ("floor", "halves", "trivial", "damaged_10")
ENSEMBLE = "ensemble"
#: Names that a plan's own folder and tables have for something else than its trainings.
TAKEN = ("logs", ENSEMBLE, *REFERENCES)
#: Options whose values make other trainings of the same model, by chance or by the rows that it answers for.
POOLED = ("seed_everything", "data.particle")
#: Entries of a plan and of its trainings, and what they may be.
ENTRIES: dict[str, Any] = {"out": str, "uses": list, "trainings": dict}
ENTRIES |= dict.fromkeys(("simulate", "common", "evaluate", "validate", "table"), dict)
TRAINING_ENTRIES = {"each": dict, "config": list, "options": dict, "use": str, "evaluate": dict | bool, "title": str}
KINDS = {str: "text", dict: "a mapping", list: "a list", dict | bool: "a mapping or false"}


def read_entries(path: str | Path, outer: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The entries of a YAML file, on top of those of the files that it includes.

    Args:
        path: The file. Its entry ``include`` lists others, relative to its own folder: later ones win over earlier ones,
            and the file itself over all.
        outer: The files that include it.

    Raises:
        ValueError: If a file is missing, no YAML mapping, or includes itself.
    """
    path, by = Path(path), f" (included by {outer[-1]})" if outer else ""
    if path.resolve() in [file.resolve() for file in outer]:
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
        result = merged(result, read_entries(path.parent / file, (*outer, path)))
    return merged(result, entries)


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


def command_words(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as command-line words."""
    return tuple(
        w
        for key, v in options.items()
        for w in (f"--{key}", v if isinstance(v, str) else json.dumps(v, allow_nan=False))
    )


@dataclass(frozen=True)
class Step:
    """One command of a study.

    Attributes:
        name: Unique name.
        label: The training it belongs to, without the values of ``each``.
        values: The values of ``each``.
        subcommand: ``simulate``, ``fit`` or ``evaluate``.
        words: The command line after it.
        result: The file that exists when it is finished.
        about: Where its log, its lock and its job are written down, without their suffixes.
        after: Names of the steps it needs.
        options: Its options, names resolved.
    """

    name: str
    label: str
    values: Mapping[str, Any]
    subcommand: str
    words: tuple[str, ...]
    result: Path
    about: Path
    after: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder of a training, the folder of an evaluation."""
        return self.result.parent

    def beside(self, suffix: str) -> Path:
        """A file about the step: its ``log``, ``lock`` or ``job``."""
        self.about.parent.mkdir(parents=True, exist_ok=True)
        return self.about.with_name(f"{self.about.name}.{suffix}")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of a step, as its command understands its words.

        Raises:
            ValueError: If it does not.
        """
        from calosim.cli import tools, train  # with torch and lightning, which a plan's reading can do without

        try:
            return train.resolved(list(self.words)) if self.is_training else tools.resolved(self.subcommand, self.words)
        except ValueError as error:
            raise ValueError(f"{'training' if self.is_training else 'step'} {self.name}: {error}") from None

    @property
    def is_training(self) -> bool:
        """Whether a model is trained."""
        return self.subcommand == "fit"


class Study:
    """A plan, read: what is to be run, and where it is found.

    Args:
        path: The YAML file.
        out: Another folder than the plan's.
        options: Further options of every training, for instance ``{"trainer.max_epochs": 1}``; not of those of other plans.
        each: Other values of ``each``, by name.
        users: The plans that use it.

    Attributes:
        path: The file.
        out: The folder of what it makes.
        entries: The file's entries, together with those it includes.
        steps: What is to be run, each after those it needs.
        runs: The training steps by label, in the plan's order.

    Raises:
        ValueError: If the file is not a plan, or a name in it is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        out: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        each: Mapping[str, Sequence[Any]] | None = None,
        users: tuple[Path, ...] = (),
    ):
        self.path = find_config(path)
        if self.path.resolve() in users:
            raise ValueError(f"{self.path}: uses itself, by way of {users[-1]}")
        self.entries = read_entries(self.path)
        self._check_entries()
        self.out = Path(out or self.entries.get("out") or f"runs/{self.path.stem}")
        self.steps: dict[str, Step] = {}
        self.runs: dict[str, list[Step]] = {}
        self._places: dict[str, str] = {}
        others = [self.path.parent / file for file in self.entries.get("uses") or []]
        self._used = [Study(other, users=(*users, self.path.resolve())) for other in others]
        self._add_data()
        swept = {name for entry in self.entries["trainings"].values() for name in (entry or {}).get("each") or {}}
        if unknown := sorted(set(each or {}) - swept):
            raise ValueError(
                f"{self.path}: each: no training has {unknown[0]}; expected {', '.join(sorted(swept)) or 'none'}"
            )
        for label, entry in self.entries["trainings"].items():
            self._add_training(label, entry or {}, options or {}, each or {})
        self._add_evaluations("evaluate", "test", Run.EVALUATION)
        self._add_evaluations("validate", "val", Run.VALIDATION)
        self._check_rows()

    def evaluation(self, run: Step, sub: str = Run.EVALUATION) -> Evaluation | None:
        """The finished evaluation (``sub`` ``evaluation``) or validation of a training; None if there is none."""
        step = self.steps.get(f"{run.name}-{sub}")
        found = Evaluation(step.folder) if step else None
        return found if found and found.exists else None

    def title(self, label: str) -> str:
        """What the tables call a training."""
        return (self.entries["trainings"].get(label) or {}).get("title") or label

    def swept(self, step: Step) -> dict[str, Any]:
        """The values of ``each`` that make another model: trainings that differ by chance alone are the same one."""
        runs = self.runs[step.label]
        pooled = {
            name
            for name, option in itertools.product(step.values, POOLED)
            if all(run.options.get(option) == run.values[name] for run in runs)
        }
        return {name: value for name, value in step.values.items() if name not in pooled}

    def row(self, step: Step) -> tuple[str, str]:
        """The row of the tables that a training belongs to: its name, and what the tables call it."""
        swept, title = self.swept(step), self.title(step.label)
        words = ", ".join(f"{name} {value}" for name, value in swept.items())
        return "-".join([step.label, *map(str, swept.values())]), f"{title} ({words})" if swept else title

    @cached_property
    def table(self) -> Table:
        """What the tables show.

        Raises:
            ValueError: If the entry ``table`` names what does not exist.
        """
        return Table.of(self.path, self.entries.get("table") or {}, self.runs)

    def _check_entries(self) -> None:
        """Refuses what is no plan, and entries that are unknown or of another kind."""
        path, entries = self.path, self.entries
        if not isinstance(entries.get("trainings"), dict):
            raise ValueError(f"{path}: expected a plan with `trainings`")
        if "shared" in {*entries, *itertools.chain(*(e for e in entries["trainings"].values() if isinstance(e, dict)))}:
            raise ValueError(
                f"{path}: `shared` is no entry any more; write a plan of its own for what plans share, name it in "
                "`uses: [FILE]`, and have trainings with `use: NAME`"
            )
        _check_entries(f"{path}", entries, ENTRIES)
        for file, given in (entries.get("simulate") or {}).items():
            _check_kind(f"{path}: simulate: {file}", given, dict)
        for label, entry in entries["trainings"].items():
            where, entry = f"{path}: training {label}", {} if entry is None else entry
            _check_entries(where, entry, TRAINING_ENTRIES)
            for name, values in (entry.get("each") or {}).items():
                _check_kind(f"{where}: each: {name}", values, list)
            if label in TAKEN or "/" in label:
                raise ValueError(f"{where}: expected another name; / and {', '.join(TAKEN)} are taken")
            if "use" in entry and {"config", "options"} & set(entry):
                raise ValueError(f"{where}: expected either `use` or `config` and `options`, got both")

    def _add(self, step: Step) -> None:
        """Adds a step, whose name, log and place no other one has.

        Raises:
            ValueError: If one has: of two, one would vanish.
        """
        place = os.path.realpath(step.result if step.subcommand == "simulate" else step.folder)
        log = f"log {os.path.realpath(step.about)}"
        # An evaluation lies in the run folder of the training that it needs.
        around = [str(parent) for parent in Path(place).parents if self._places.get(str(parent)) not in step.after]
        within = [known for known in self._places if known.startswith(f"{place}/")]
        for other in (self._places[known] for known in (log, place, *around, *within) if known in self._places):
            raise ValueError(
                f"{self.path}: {self.steps[other].subcommand} {other!r} and {step.subcommand} {step.name!r} would have one name "
                f"or place ({place}); expected names that differ"
            )
        self._places |= {log: step.name, place: step.name}
        self.steps[step.name] = step

    def _about(self, name: str) -> Path:
        return self.out / "logs" / name.replace("/", "_")

    def _add_data(self) -> None:
        for file, given in (self.entries.get("simulate") or {}).items():
            words = command_words({**given, "out": file})
            self._add(Step(file, file, {}, "simulate", words, Path(file), self._about(file), tuple(self.steps), given))

    def _add_training(
        self, label: str, entry: Mapping[str, Any], options: Mapping[str, Any], other: Mapping[str, Sequence[Any]]
    ) -> None:
        each = {name: other.get(name, values) for name, values in (entry.get("each") or {}).items()}
        data = tuple(self.entries.get("simulate") or {})
        self.runs[label] = []
        for combination in itertools.product(*each.values()):
            values = dict(zip(each, combination, strict=True))
            name = "-".join([label, *map(str, combination)])
            if "use" in entry:
                used = self._use(str(self._resolve({"use": entry["use"]}, values)[0]["use"]))
                step = replace(used, name=name, label=label, values=values)
            else:
                own = {**(self.entries.get("common") or {}), **(entry.get("options") or {})}
                given, needs = self._resolve(own, values)
                given |= options
                configs = itertools.chain.from_iterable(("-c", str(c)) for c in entry.get("config") or [])
                folder = self.out / name
                words = (*configs, *command_words(given), "--run", str(folder))
                about, after = self._about(name), (*data, *needs)
                step = Step(name, label, values, "fit", words, folder / Run.TRAINING, about, after, given)
            self._add(step)
            self.runs[label].append(step)

    def _use(self, name: str) -> Step:
        """A training of another plan, after what it needs."""
        for study in self._used:
            if found := next((step for steps in study.runs.values() for step in steps if step.name == name), None):
                return replace(found, after=tuple(self._needed(study, need) for need in found.after))
        files = ", ".join(f"{study.path}" for study in self._used) or "a plan, of which `uses` names none"
        raise ValueError(f"{self.path}: use: {name}: expected a training of {files}")

    def _needed(self, study: Study, name: str) -> str:
        """What a step of another plan is called here; it is added, unless it is here already."""
        step = study.steps[name]
        for own in self.steps.values():
            if (own.result, own.words) == (step.result, step.words):
                return own.name
        self._add(replace(step, after=tuple(self._needed(study, need) for need in step.after)))
        return name

    def _add_evaluations(self, entry: str, split: str, sub: str) -> None:
        """Adds the evaluations of all trainings on a split, in their folders; of used ones in a folder of this study."""
        if entry not in self.entries:
            return
        for label, training in self.entries["trainings"].items():
            own = (training or {}).get("evaluate", {})
            for run in self.runs[label] if own is not False else ():
                given, needs = self._resolve({**(self.entries[entry] or {}), **(own or {})}, run.values)
                folder, name = self.out / run.name / sub, f"{run.name}-{sub}"
                given |= {"shower": str(run.folder), "split": split, "out": str(folder)}
                words, about, after = command_words(given), self._about(name), (run.name, *needs)
                result = folder / Evaluation.RECORD
                self._add(Step(name, label, run.values, "evaluate", words, result, about, after, given))

    def _resolve(self, options: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Puts values and run folders in the place of ``{names}``; also the names of the runs that are needed."""
        needs: list[str] = []

        def resolved(value: Any) -> Any:
            if isinstance(value, list):
                return [resolved(v) for v in value]
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

        return {key: resolved(value) for key, value in options.items()}, needs

    def _check_rows(self) -> None:
        """Refuses trainings that the tables could not tell apart, and one training that would count twice."""
        owners: dict[str, str] = {}
        for label, steps in self.runs.items():
            seen: list[tuple[dict[str, Any], str]] = []
            for step in steps:
                meaning = _meaning(step.options)
                if twice := [name for other, name in seen if other == meaning]:
                    raise ValueError(
                        f"{self.path}: {twice[0]} and {step.name} are the same training, which would count twice; expected "
                        "values of `each` that make a difference"
                    )
                seen.append((meaning, step.name))
            for name in {name for step in steps for name in self.row(step)}:
                if owners.setdefault(name, label) != label:
                    raise ValueError(
                        f"{self.path}: trainings {owners[name]} and {label} are both {name!r} in the tables; expected titles "
                        "and names that differ"
                    )


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
    """Refuses a value of another kind; what a list of files holds, and the keys of a mapping, are text."""
    if not isinstance(value, kind):
        raise ValueError(f"{where}: expected {KINDS[kind]}, got {value!r:.100}")
    inside = value if isinstance(value, dict) or where.endswith((": config", ": uses")) else ()
    if other := [item for item in inside if not isinstance(item, str)]:
        raise ValueError(f"{where}: expected text, got {other[0]!r:.100}")


@dataclass(frozen=True)
class Table:
    """The entry ``table`` of a plan.

    Attributes:
        particles: Columns: ``all`` and particle types, by their short names.
        metrics: Keys of :data:`calosim.metrics.registry.METRICS`.
        modes: ``shape`` (true photon sums), ``chain`` (generated ones).
        reference: The label of the training that others are compared with.
        ensemble: ``default`` and ``members``: labels whose best runs are joined; ``photons``: the label of the photon sum.
        speed: Whether models' sizes and speeds are measured.
    """

    particles: Sequence[str] = ("all", *(particle_name(code) for code in STUDY_PARTICLES))
    metrics: Sequence[str] = ("ws", "mae_cond", "delta", "jacc")
    modes: Sequence[str] = ("shape", "chain")
    reference: str | None = None
    ensemble: Mapping[str, Any] | None = None
    speed: bool = False

    @classmethod
    def of(cls, path: Path, given: Mapping[str, Any], trainings: Mapping[str, Any]) -> Table:
        """Reads and checks the entry of a plan, see :attr:`Study.table`."""
        known = [entry.name for entry in fields(cls)]
        if unknown := set(given) - set(known):
            raise ValueError(
                f"{path}: unknown entries {', '.join(sorted(unknown))} of table; expected {', '.join(known)}"
            )
        # One name of a particle in all tables, however the plan writes it.
        names = [p if p == "all" else particle_name(particle_code(p)) for p in given.get("particles", cls.particles)]
        table = cls(**{**given, "particles": names})
        once = {"particles": names, "metrics": table.metrics, "modes": table.modes, "ensemble": table.joined}
        for what, entries in once.items():
            if twice := [entry for number, entry in enumerate(entries) if entry in entries[:number]]:
                raise ValueError(f"{path}: table.{what}: expected each once, got {twice[0]} twice")
        if strange := [metric for metric in table.metrics if metric not in METRICS]:
            raise ValueError(f"{path}: unknown metric {strange[0]!r}; expected {', '.join(METRICS)}")
        labels = {label for label in [table.reference, *table.joined] if label is not None}
        if missing := sorted(labels - set(trainings)):
            raise ValueError(f"{path}: the table names {', '.join(missing)}, which is none of its trainings")
        return table

    @property
    def joined(self) -> list[str]:
        """Labels of the trainings that the ensemble is chosen from, the default first; empty without an ensemble.

        Raises:
            ValueError: If the entry ``ensemble`` is incomplete.
        """
        if not self.ensemble:
            return []
        needed, known = {"default", "members"}, {"default", "members", "photons"}
        if not isinstance(self.ensemble, dict) or not needed <= set(self.ensemble) <= known:
            raise ValueError(
                f"expected table.ensemble with default, members and perhaps photons, got {self.ensemble!r}"
            )
        return [self.ensemble["default"], *self.ensemble["members"]]

    @property
    def columns(self) -> dict[str, str]:
        """Headings of the columns by particle."""
        return {p: particle_heading(p) for p in self.particles}
