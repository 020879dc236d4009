"""What jsonargparse takes and says: several words are a list, old names are taken, refusals are a line with the nearest name."""

from __future__ import annotations

import glob
import inspect
import json
import pydoc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from calosim.io import find_config, read_yaml

__all__ = ["HELP", "ConfigFile", "one_line", "parse"]

#: Options by the names that they had before, on the command line and in YAML; the two last are Lightning's, whose place is in
#: the model: two places for one thing would leave one of them ignored.
OLD = {
    "shape": "shower",
    "noise_removal": "requantization",
    "noise_removal_of": "requantization_of",
    "keep_dark": "keep_empty",
    "model.coordinates": "model.representation",
    "optimizer": "model.optimizer",
    "lr_scheduler": "model.scheduler",
}
FLAG = re.compile(r"--[A-Za-z_]|-[ch]$")
HELP = re.compile(r"(-h|--help|--print_config|--(.*\.)?help)$")
#: Types in words.
KINDS = {"bool": "true or false", "float": "a number", "int": "a whole number"}
#: How alike two names must be for one to be meant by the other, from 0 to 1.
ALIKE = 0.6


@dataclass(frozen=True)
class File:
    """A configuration file that was read."""

    path: str
    settings: Mapping[str, Any]


class ConfigFile(ActionConfigFile):
    """``-c FILE``: a file that is here or shipped, each of whose keys is there once; what is wrong is said with its name."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        """Adds the settings of a file to those that came before it.

        Raises:
            ValueError: If it is missing or no mapping, or a setting is unknown or of another type.
        """
        path = find_config(value)
        settings = read_yaml(path)
        if not isinstance(settings, dict):
            got = "nothing" if settings is None else type(settings).__name__
            raise ValueError(f"{path}: expected settings such as `trainer:`, got {got}")
        # A run's own configuration has null for these, and must not take away what was named before it.
        unnamed = {key for key in ("run", "ckpt_path") if settings.get(key, "") is None}
        present = _renamed({key: value for key, value in settings.items() if key not in unnamed})
        try:
            _check_names(present, _options(parser))
            ActionConfigFile.apply_config(
                parser, cfg, dest, str(path) if present == settings else yaml.safe_dump(present)
            )
        except (ArgumentError, TypeError) as error:
            said = str(error).removeprefix(f'Parser key "{dest}": ')
            raise ValueError(f"{value}: {one_line(said, parser, '')}") from None
        cfg[dest][-1] = File(str(path), present)


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """The options of a command line.

    Args:
        parser: Who knows them; it must raise rather than exit.
        words: Those behind the subcommand.

    Raises:
        ValueError: If one is unknown, lacks its value or has one of another type, or if one that is needed is not there.
    """
    try:
        return parser.parse_args([*_taken(parser, words)])
    except ArgumentError as error:
        raise ValueError(one_line(str(error), parser)) from None


# -- words -------------------------------------------------------------------------------------------------------------


def _taken(parser: ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """Words as the parser takes them: each option with one value, by its present name.

    Raises:
        ValueError: If a word belongs to no option, or an option has several values that takes one.
    """
    kinds = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not FLAG.match(flag):
            hint = f"; did you mean -c {flag}?" if flag.endswith((".yaml", ".yml")) else ""
            raise ValueError(f"expected an option, got {flag!r}{hint}")
        values = [value] if equals else list(takewhile(lambda word: not FLAG.match(word), rest))
        del rest[: 0 if equals else len(values)]
        if HELP.match(flag):
            yield from (flag + equals + value,) if equals else (flag, *values)
            continue
        name = "config" if flag == "-c" else _present(flag[2:].replace("-", "_"), kinds)
        kind = kinds.get(name.removesuffix("+"))
        if not values and kind is bool:
            values = ["true"]
        yield f"--{name}={_as_one(flag, values, kind, name in kinds)}" if values else f"--{name}"


def _present(name: str, known: Iterable[str]) -> str:
    """An option's present name, if there is one in this parser."""
    for old, new in OLD.items():
        if re.match(rf"{old}(?=$|[.+])", name) and new.partition(".")[0] in known:
            return new + name[len(old) :]
    return name


def _renamed(settings: Mapping[str, Any], outer: str = "") -> dict[str, Any]:
    """Settings of a file under their present names."""
    result = {}
    for key, value in settings.items():
        path = f"{outer}{key}".replace(".init_args", "")
        if key != "init_args" and path in OLD and OLD[path].count(".") == path.count("."):
            key = OLD[path].rpartition(".")[2]
        result[key] = _renamed(value, f"{path}.") if isinstance(value, dict) else value
    return result


def _check_names(settings: Mapping[str, Any], known: Sequence[str], outer: str = "") -> None:
    """Checks the keys of a file that the parser itself knows, as it does itself only when it no longer knows the file.

    Raises:
        TypeError: In the parser's own words, if one is unknown.
    """
    for key, value in settings.items():
        name = f"{outer}{key}".removesuffix("+")
        group = any(option.startswith(f"{name}.") for option in known)
        if not group and name not in known:
            raise TypeError(f"Option '{name}' is not accepted")
        if group and isinstance(value, dict):
            _check_names(value, known, f"{name}.")


def _as_one(flag: str, values: Sequence[str], kind: Any, known: bool) -> str:
    """The values of an option as one: a list in YAML, if it takes a list.

    Args:
        flag: The option, for the message.
        values: At least one.
        kind: Its type; None if only classes inside of it tell.
        known: Whether the parser itself has this option.

    Raises:
        ValueError: If there are several where one is meant.
    """
    kinds = _alternatives(kind)
    lists = [each for each in kinds if _is_list(each)]
    if known and not lists:
        if len(values) > 1:
            raise ValueError(f"{flag}: expected one, got {len(values)}: {', '.join(values)}")
        return values[0]
    if str in [inner for each in lists for inner in get_args(each)]:
        found = [match for value in values for item in _items(value) for match in _matches(item)]
        alone = found == list(values) and len(found) == 1 and (str in kinds or found == ["null"])
        return found[0] if alone else json.dumps(found)
    if len(values) > 1 or (lists and set(kinds) - {*lists, type(None)} == set() and values[0][:1] not in ("[", "n")):
        return f"[{', '.join(values)}]"
    return values[0]


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the only one."""
    return (kind,) if _is_list(kind) or not get_args(kind) else get_args(kind)


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and origin is not str and issubclass(origin, Sequence)


def _items(value: str) -> list[str]:
    """The items of a list that is written out, else the only one."""
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    try:
        items = yaml.safe_load(value)
    except yaml.YAMLError:  # where patterns such as *.root mean something else
        items = [{}]
    if any(isinstance(item, dict | list) for item in items):
        items = [item.strip() for item in value[1:-1].split(",")]
    return [str(item) for item in items]


def _matches(item: str) -> list[str]:
    """The files that a pattern matches, in order; what is no pattern or matches none is left as it is."""
    if not re.search(r"[*?\[]", item) or Path(item).exists():
        return [item]
    return sorted(glob.glob(item)) or [item]


# -- refusals ----------------------------------------------------------------------------------------------------------

#: Leaves of what jsonargparse says: they end the path of keys above them.
_LEAF = re.compile(
    r"(?:- )?((?:.*Option |Expected |expected |the following |Type |No |Import|Unexpected |module |Not of ).*)"
)


def one_line(text: str, parser: ArgumentParser | None = None, dashes: str = "--") -> str:
    """The line that matters of a message which tells all types that were tried; any other message in one line.

    Args:
        text: What jsonargparse says.
        parser: Whose options are offered instead of an unknown one.
        dashes: What stands before an option's name.

    >>> one_line('Parser key "data.batch_size":\\n  Expected a <class \\'int\\'>. Got value: many')
    '--data.batch_size: expected a whole number, got many'
    >>> one_line("Does not validate against any of the Union subtypes\\nErrors:\\n  - a.ckpt: expected a checkpoint\\n")
    'a.ckpt: expected a checkpoint'
    """
    if found := re.match(r"unrecognized arguments: --([^\s=]*)|Group '(.*)' does not accept option '(.*)'", text):
        return _unknown(found[1] or f"{found[2]}.{found[3]}", _options(parser), dashes)
    if found := re.match(r"Option '(.+)' is not accepted", text):
        return _unknown(found[1], _options(parser), dashes)
    if found := re.match(r"argument (-\w/)?([^/]*)(/.*)?: expected one argument", text):
        return f"expected a value behind {found[2]}"
    if found := re.match(r"the following arguments are required: ([\w.]+)", text):
        helps = {action.dest: action.help for action in parser._actions} if parser else {}
        what = " ".join((helps.get(found[1]) or "").split()).partition(". ")[0].rstrip(".")
        return f"expected {dashes}{found[1]} too{what and f' ({what})'}"
    if not re.match("Parser key|Does not validate", text):
        return _plain(" ".join(text.split()))
    return _innermost(text, dashes) or " ".join(text.split())


def _innermost(text: str, dashes: str) -> str:
    """What is said of the innermost setting."""
    path: list[tuple[int, str, str]] = []  # depth, key, class
    found: list[tuple[str, str, str]] = []  # key, class, what is said of it
    kinds: list[str] = []
    given = ""
    for line in text.splitlines():
        depth, words = len(line) - len(line.lstrip()), line.strip()
        outer = [entry for entry in path if entry[0] < depth]
        if key := re.search(r"(?:Parser key \"(.+?)\"|Problem with given class_path '(.+?)'):$", words):
            path = [*outer, (depth, key[1] or "", key[2] or "")]
        elif words.startswith("Subtypes: "):
            kinds = re.findall(r"<class '([\w.]+)'>", words)
        elif value := re.match(r"Given value: (.*)", words):
            given = given or value[1]
        elif (leaf := _LEAF.match(words)) or re.match(r"- (?!Does not validate)", words):
            classes = [entry[2] for entry in outer if entry[2]]
            name = ".".join(entry[1] for entry in outer if entry[1])
            found.append((name, classes[-1] if classes else "", leaf[1] if leaf else words[2:]))
    # Names of classes are tried as paths too; and the empty value is always one of several.
    found = [leaf for leaf in found if "a path but" not in leaf[2] and "NoneType" not in leaf[2]] or found
    if not found:
        return ""
    # A setting's own words come first, then what is said of the innermost one.
    own = [leaf for leaf in found if leaf[2].startswith("expected ") or not _LEAF.match(leaf[2])]
    name, _, said = max(own or found, key=lambda leaf: leaf[0].count("."))
    same = [leaf for leaf in found if leaf[0] == name]
    if own:
        return said
    if unknown := re.search(r"Option '(.+?)' is not accepted", said):
        kinds = re.findall(r"class_path='([\w.]+)'", said) or [kind for _, kind, _ in same if kind]
        names = [f"{name}.{option}" for kind in kinds for option in _arguments(kind)]
        return _unknown(f"{name}.{unknown[1]}", names, dashes)
    if missing := re.match("the following arguments are required: (.*)", said):
        return f"expected {dashes}{name}.{missing[1]} too"
    if unknown := re.match(r"Expected a dot import path string: (.*)", said):
        return _no_class(
            f"{dashes}{name}", unknown[1], {c.__name__ for kind in kinds for c in _classes(pydoc.locate(kind))}
        )
    if unknown := re.match(r"module '(.+)' has no attribute '(.+)'", said):
        return _no_class(
            f"{dashes}{name}", f"{unknown[1]}.{unknown[2]}", [f"{unknown[1]}.{n}" for n in _names(unknown[1])]
        )
    if said.startswith("Expected a <") and "Got value" not in said:
        each = [_kind(leaf[2].removeprefix("Expected a ")) for leaf in same if leaf[2].startswith("Expected a ")]
        return f"{dashes}{name}: expected {' or '.join(dict.fromkeys(each))}, got {given}"
    return f"{dashes}{name}: {_plain(said)}"


def _plain(words: str) -> str:
    """A message of jsonargparse in fewer words."""
    words = re.sub(r"\. Got value: Namespace\(.*", "", words)  # around what was said already
    return re.sub(r"^Expected an? (.*?)\. Got value: (.*)$", lambda m: f"expected {_kind(m[1])}, got {m[2]}", words)


def _kind(words: str) -> str:
    """A type by its name."""
    words = re.sub(r"typing\.|<class '(?:[\w.]+\.)?(\w+)'>", lambda m: KINDS.get(m[1], m[1] or ""), words)
    return re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", " or "), words)


def _options(parser: ArgumentParser | None) -> list[str]:
    """The options that a parser knows itself."""
    return [action.dest for action in parser._actions if not action.dest.endswith("help")] if parser else []


def _no_class(option: str, name: str, known: Iterable[str]) -> str:
    meant = _nearest(name, known)
    return f"{option}: expected the name of a class, got {name}{meant and f'; did you mean {meant}?'}"


def _names(module: str) -> list[str]:
    """The names in a module."""
    return [name for name in dir(pydoc.locate(module)) if not name.startswith("_")]


def _arguments(kind: str) -> list[str]:
    """The arguments of a class, by its path."""
    try:
        return list(inspect.signature(pydoc.locate(kind)).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError, pydoc.ErrorDuringImport):
        return []


def _classes(kind: Any) -> Iterator[type[Any]]:
    """A class and those that are made of it."""
    if isinstance(kind, type):
        yield kind
        inner: type[Any]
        for inner in kind.__subclasses__():
            yield from _classes(inner)


def _unknown(name: str, known: Iterable[str], dashes: str) -> str:
    name = name.replace("init_args.", "")
    meant = _nearest(name, known)
    return f"unknown {'option' if dashes else 'setting'} {dashes}{name}{meant and f'; did you mean {dashes}{meant}?'}"


def _nearest(name: str, known: Iterable[str]) -> str:
    """The name that is most like another one; empty if none is."""

    def likeness(other: str) -> float:
        (outer, _, inner), (outside, _, inside) = name.rpartition("."), other.rpartition(".")
        last = SequenceMatcher(None, inner, inside).ratio()
        whole = SequenceMatcher(None, name, other).ratio()
        return last if outer == outside else max(whole, 0.9 * last + 0.1 * whole)

    best = max(known, key=likeness, default="")
    return best if likeness(best) > ALIKE else ""
