"""Command lines, checked before anything slow is imported: a misspelled option is answered at once, with the nearest one."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml

from calosim.cli.signatures import Option, constant, descriptions, method_options, options
from calosim.io import find_config, read_yaml

__all__ = ["MODELS", "TOOLS", "TRAINING", "Known", "checked", "submit_words", "tool_options", "training_options"]

#: Where each tool's function lives; imported when it is called, so that one tool does not pay for another.
TOOLS: dict[str, str] = {
    "simulate": "calosim.cli.tools:simulate",
    "convert": "calosim.data.reading:convert",
    "generate": "calosim.simulation.generate:generate",
    "merge": "calosim.simulation.generate:merge",
    "evaluate": "calosim.evaluation.evaluate:evaluate",
    "ensemble": "calosim.simulation.ensemble:save_ensemble",
    "explain": "calosim.explain.explain:explain",
    "report": "calosim.report.report:report",
    "export": "calosim.export.o2:export",
    "compare": "calosim.studies.compare:compare",
}
#: The trainer, whose methods are the training verbs, and what of their arguments is no option.
TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
GIVEN = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
TRAINING = ("fit", "validate", "test", "predict")
#: The names of the models, by which ``--model`` finds them.
MODELS: tuple[str, ...] = tuple(constant("calosim.models.checkpoints", "MODULES"))
#: Words for help, after which nothing is required.
HELP = re.compile(r"^(-h|--help|--print_config(=.*)?|--(.*\.)?help(=.*)?)$")
#: How alike two names must be for one to be meant by the other, from 0 to 1.
ALIKE = 0.6

#: Options by name: an :class:`Option`, options in a group, or None for what only its parser can tell.
Known = Mapping[str, "Option | Known | None"]


@dataclass
class _Reading:
    """A command line while it is being read.

    Attributes:
        known: The verb's options.
        model: The model that was named last; ``?`` for one that is not ours.
        given: Dotted names of the options that have a value.
    """

    known: dict[str, Any]
    model: str | None
    given: set[str]


def tool_options(verb: str) -> dict[str, Any]:
    """A tool's options: the arguments of its function, those that are settings replaced by their fields."""
    module, _, name = TOOLS[verb].partition(":")
    known: dict[str, Any] = {"config": None, "trust": None}
    for option in (options(module, name) or {}).values():
        known |= option.settings or {option.name: option}
    return known


def training_options(verb: str) -> dict[str, Any]:
    """A training verb's options, but for those of the model."""
    checkpoint = options("lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint") or {}
    known: dict[str, Any] = dict.fromkeys(
        ("config", "seed_everything", "model", "optimizer", "lr_scheduler", "run", "quiet")
    )
    known |= {"data": options("calosim.data.datamodule", "RootDataModule"), "trainer": options(*TRAINER)}
    known |= {"best": checkpoint, "last": checkpoint}
    return known | {n: None for n in method_options(*TRAINER, verb) or {} if n not in GIVEN}


def checked(argv: Sequence[str]) -> list[str]:
    """Refuses what no parser would take, as far as that shows without importing models.

    Args:
        argv: The verb and its words.

    Returns:
        The words as parsers take them: several values are a list, and patterns such as ``runs/*`` are what they match.

    Raises:
        ValueError: If an option is unknown, lacks its value, or has one of another type; if a configuration file is missing
            or wrong; or if something that is needed is not there.
    """
    verb, *words = argv
    if verb == "submit":
        return [verb, *_checked_submit(words)]
    if verb not in TOOLS and words[-1:] == ["--model.help"]:
        raise ValueError(f"expected one of {', '.join(MODELS)} behind --model.help")
    if any(map(HELP.match, words)):
        return list(argv)
    if verb in TOOLS:
        reading = _Reading(tool_options(verb), None, set())
        # `--dry-run` is `--dry_run`.
        words = [re.sub(r"^--[a-z_-]+(?=$|=)", lambda m: "--" + m[0][2:].replace("-", "_"), word) for word in words]
    else:
        reading = _Reading(training_options(verb), None, set())
    if verb not in TOOLS:
        _name_model(reading, words)
    result = [verb]
    for flag, values in _pairs(words, reading.known):
        name = flag.lstrip("-").removesuffix("+")
        if flag in ("-c", "--config"):
            _check_file(reading, values)
        elif not (name == "model" and reading.model):
            _check(reading, name, values, f"--{name}")
        option = _lookup(reading.known, name.split("."))
        if not values and name != "quiet" and not (isinstance(option, Option) and option.names == ["bool"]):
            raise ValueError(f"expected a value behind {flag}")
        result += [flag, *(_as_one(flag, values, option) if isinstance(option, Option) else values)]
    _check_needs(verb, reading)
    return result


def submit_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of the words behind ``submit``: its own options, and the command that is submitted.

    Raises:
        ValueError: If an option lacks its value, or there is no command.
    """
    own: list[str] = []
    command: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--(slurm([.=]|$)|dry[-_]run)", word) and (command or not HELP.match(word)):
            command.append(word)
            continue
        own.append(word.replace("dry-run", "dry_run"))
        if word.startswith("--slurm") and "=" not in word:
            own += [rest.pop(0)] if rest else []
    if not command and not any(map(HELP.match, own)):
        raise ValueError("expected the verb to submit with its options: calosim submit fit -c conf/teacher.yaml")
    return own, command


def _checked_submit(words: Sequence[str]) -> list[str]:
    """Checks the options of ``submit``, and the command that it submits."""
    own, command = submit_words(words)
    if command and command[0] not in (*TOOLS, *TRAINING):
        raise ValueError(f"expected one of {', '.join([*TOOLS, *TRAINING])} to submit, got {command[0]!r}")
    reading = _Reading({"slurm": options("calosim.slurm", "Slurm"), "dry_run": None}, None, set())
    for flag, values in _pairs(own, reading.known):
        if flag != "--slurm" and not HELP.match(flag):
            _check(reading, flag[2:], values, flag)
    # What stands for a number in an array of jobs is one.
    checked([word.replace("{task}", "0") for word in command]) if command else None
    return [*own, *command]


def _pairs(words: Sequence[str], known: Known) -> Iterator[tuple[str, list[str]]]:
    """Options with their values, of which lists may have several words.

    Raises:
        ValueError: If a word belongs to no option.
    """
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not re.match(r"^(--[A-Za-z_]|-c$)", flag):
            hint = f"; did you mean -c {word}?" if word.endswith((".yaml", ".yml")) else ""
            raise ValueError(f"expected an option, got {word!r}{hint}")
        option = _lookup(known, flag.lstrip("-").removesuffix("+").split("."))
        values = [value] if equals else []
        many = isinstance(option, Option) and option.is_list
        while not equals and rest and not re.match(r"^(--?[A-Za-z_]|-c$)", rest[0]) and (many or not values):
            values.append(rest.pop(0))
        yield flag, values


def _lookup(known: Known, parts: Sequence[str]) -> Any:
    """The option of a dotted name; None if there is none, or if that cannot be told."""
    entry: Any = known
    for part in parts:
        if isinstance(entry, Option):
            entry = entry.settings
        if not isinstance(entry, Mapping):
            return None
        if part != "init_args":
            entry = entry.get(part)
    return entry


def _check(reading: _Reading, name: str, values: Sequence[Any], said: str, where: str = "") -> None:
    """Checks an option by its dotted name, and its value.

    Raises:
        ValueError: If it is unknown, or the value is of another type.
    """
    entry: Any = reading.known
    for part in name.split("."):
        if isinstance(entry, Option):
            entry = entry.settings
        if entry is None or part == "class_path":
            return
        if part == "init_args":
            continue
        if part not in entry:
            kind, dashes = ("setting", "") if where else ("option", "--")
            raise ValueError(f"{where}unknown {kind} {said}{_nearest(reading.known, name, dashes)}")
        entry = entry[part]
    for value in values:
        reading.given |= {name.replace("init_args.", "")} if value not in (None, "null") else set()
        expected = entry.refusal(_read(value)) if isinstance(entry, Option) and len(values) == 1 else ""
        if expected:
            raise ValueError(f"{where}{said}: expected {expected}, got {value!r}")


def _read(value: Any) -> Any:
    """A value as YAML understands it."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        return value


def _nearest(known: Known, name: str, dashes: str) -> str:
    """A question after the option that is most like an unknown one, if one is."""

    def names(known: Known, outer: str) -> Iterator[str]:
        for key, entry in known.items():
            yield outer + key
            inside = entry.settings if isinstance(entry, Option) else entry
            yield from names(inside or {}, f"{outer}{key}.")

    def likeness(other: str) -> float:
        whole, last = (
            SequenceMatcher(None, a, b).ratio()
            for a, b in ((name, other), (name.rpartition(".")[2], other.rpartition(".")[2]))
        )
        return max(whole, 0.9 * last + 0.1 * whole)

    name = name.replace("init_args.", "")
    best = max(names(known, ""), key=likeness)
    return f"; did you mean {dashes}{best}?" if likeness(best) > ALIKE else ""


def _name_model(reading: _Reading, words: Sequence[str]) -> None:
    """Finds the model that is trained, and joins its options to the others.

    Raises:
        ValueError: If a configuration file is missing or no mapping, or the model has no such name.
    """
    for word, after in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        said: Any = value if equals else after
        if flag in ("-c", "--config") and said:
            model = _settings(said).get("model")
            said = model.get("class_path") if isinstance(model, dict) else model
        elif flag not in ("--model", "--model.class_path"):
            continue
        if not isinstance(said, str):
            continue
        place, _, name = said.rpartition(".")
        if (not place or place.startswith("calosim")) and name in MODELS:
            reading.model = name
        elif place or Path(said).exists() or "{" in said:
            reading.model = "?"
        else:
            like = max(MODELS, key=lambda known: SequenceMatcher(None, known.lower(), name.lower()).ratio())
            raise ValueError(f"unknown model {said!r}; did you mean {like}? There are {', '.join(MODELS)}")
    if reading.model in MODELS:
        reading.known["model"] = options("calosim.models", reading.model)


def _settings(file: str) -> dict[str, Any]:
    path = find_config(file)
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        got = "nothing" if settings is None else type(settings).__name__
        raise ValueError(f"{path}: expected settings such as `trainer:`, got {got}")
    return settings


def _check_file(reading: _Reading, values: Sequence[str]) -> None:
    """Checks the settings in a configuration file, by the names that they would have as options."""

    def visit(known: Known, settings: Mapping[str, Any], outer: str) -> None:
        for key, value in settings.items():
            name = f"{outer}{key}".removesuffix("+")
            _check(reading, name, [] if isinstance(value, Mapping) else [value], name, f"{values[0]}: ")
            if isinstance(value, Mapping):
                inside = _lookup(known, name.split("."))
                inside = inside.settings if isinstance(inside, Option) else inside
                if isinstance(inside, Mapping):
                    visit(known, value, f"{name}.")

    visit(reading.known, _settings(values[0]), "")


def _check_needs(verb: str, reading: _Reading) -> None:
    """Checks that what is needed was given.

    Raises:
        ValueError: If not.
    """
    if verb not in TOOLS and reading.model is None:
        raise ValueError(f"expected a model: -c conf/teacher.yaml, for instance, or --model with {', '.join(MODELS)}")
    group, outer = (reading.known, "") if verb in TOOLS else (reading.known["model"] or {}, "model.")
    module, _, function = TOOLS.get(verb, f"calosim.models:{reading.model}").partition(":")
    for name, option in group.items():
        if isinstance(option, Option) and option.required and f"{outer}{name}" not in reading.given:
            what = descriptions(module, function).get(name, "").partition(". ")[0].rstrip(".")
            raise ValueError(f"{reading.model or verb} needs --{outer}{name}{what and f' ({what})'}")


def _as_one(flag: str, values: Sequence[str], option: Option) -> list[str]:
    """The values of an option as one word.

    Raises:
        ValueError: If there are several where one is meant.
    """
    if not values:
        return []
    items = [_items(value) for value in values]
    listed = [
        item for value, inside in zip(values, items, strict=True) for item in ([value] if inside is None else inside)
    ]
    if not option.is_list:
        if not option.of_text or not items[0]:
            return list(values)
        if len(listed) > 1:
            raise ValueError(f"{flag}: expected one, got {len(listed)}: {', '.join(map(str, listed))}")
        return [str(listed[0])]
    found = [match for item in listed for match in (_matches(item) if option.of_text else [item])]
    alone = set(option.names) - {"list", "tuple", "Sequence", "None"}
    if found == list(values) and len(values) == 1 and (alone or _read(values[0]) is None):
        return list(values)
    return [json.dumps([item if option.of_text else _read(item) for item in found])]


def _items(value: str) -> list[Any] | None:
    """The items of a list that is written out; None of anything else."""
    if not (value.startswith("[") and value.endswith("]")):
        return None
    items = _read(value)
    if isinstance(items, list) and not any(isinstance(item, list | dict) for item in items):
        return items
    # Patterns such as *.root mean something else in YAML.
    return [item.strip() for item in value[1:-1].split(",")] if re.search(r"[*?]", value) else None


def _matches(item: Any) -> list[Any]:
    """The files that a pattern matches, in order; what is no pattern or matches none is left as it is."""
    if not isinstance(item, str) or not re.search(r"[*?\[]", item) or Path(item).exists():
        return [item]
    return sorted(glob.glob(item)) or [item]
