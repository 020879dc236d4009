"""Settings of trainings and data, as far as they determine a result: what makes two of them the same."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calosim.runs import identity
from calosim.showers.recipe import current_hash, primaries_hash

__all__ = ["files_of", "fingerprint", "resolved", "simulated"]


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """All settings of ``calosim fit WORDS``.

    Raises:
        ValueError: If the command would refuse them.
    """
    from calosim.cli.train import resolved as ask  # with torch and lightning, which a plan's reading can do without

    return ask(list(words))


def files_of(settings: Mapping[str, Any]) -> list[str]:
    """The data files of a training."""
    files = settings["data"]["files"]
    return [files] if isinstance(files, str) else list(files)


def simulated(given: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the showers of ``calosim simulate``: the settings that are given, and defaults for the rest."""
    from calosim.cli.tools import simulate

    defaults = {name: parameter.default for name, parameter in inspect.signature(simulate).parameters.items()}
    return {name: given.get(name, value) for name, value in defaults.items() if name not in ("out", "workers", "quiet")}


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
