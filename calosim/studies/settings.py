"""Settings of trainings and data, as far as they determine a result: what makes two of them the same."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from calosim.data.recipe import current_hash, primaries_hash
from calosim.io import find_config
from calosim.runs import identity

__all__ = ["command_words", "files_of", "fingerprint", "resolved", "simulated"]

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

    def data(file: str, hashed: Callable[[str], str] = lambda file: current_hash([file])) -> Any:
        if file not in simulate:
            return hashed(file) if Path(file).is_file() else file
        recipe = simulated(simulate[file])
        source = recipe["primaries"]
        return recipe | ({"primaries": data(source, primaries_hash)} if isinstance(source, str) else {})

    content = json.dumps([identity(settings), [data(file) for file in files_of(settings)]], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=5).hexdigest()
