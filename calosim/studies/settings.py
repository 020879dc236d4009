"""Settings of trainings and data, as far as they determine a result: what makes two of them the same."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calosim.showers.recipe import current_hash, primaries_hash

__all__ = ["difference", "files_of", "fingerprint", "identity", "resolved", "simulated"]

#: Settings of a run that change where it writes and what it shows, but no weight.
_ASIDE = {
    "": {"run", "quiet", "ckpt_path", "weights_only"},
    "trainer": {
        "default_root_dir",
        "enable_autolog_hparams",
        "enable_model_summary",
        "enable_progress_bar",
        "log_every_n_steps",
        "logger",
        "model_registry",
        "profiler",
    },
    # Files are told by their content, see `files_of`.
    "data": {"files", "cache_dir"},
}


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """All settings of ``calosim fit WORDS``.

    Raises:
        ValueError: If the command would refuse them.
    """
    from calosim.cli.train import resolved as ask  # with torch and lightning, which a plan's reading can do without

    return ask(list(words))


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that determine a training's result, flat: ``{"trainer.max_epochs": 2}``.

    Args:
        settings: All settings, of :func:`resolved` or of a run's ``config.yaml``.
    """
    flat: dict[str, Any] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                if key not in _ASIDE.get(name, ()) and key != "dirpath":  # where checkpoints lie
                    visit(f"{name}.{key}".lstrip("."), inner)
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                visit(f"{name}.{number}", item)
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value

    visit("", settings)
    return flat


def files_of(settings: Mapping[str, Any]) -> list[str]:
    """The data files of a training."""
    files = settings["data"]["files"]
    return [files] if isinstance(files, str) else list(files)


def difference(made: Mapping[str, Any], wanted: Mapping[str, Any], most: int = 3) -> str:
    """What differs between two flat settings, in words; an empty text if nothing does."""
    keys = [key for key in dict.fromkeys([*wanted, *made]) if made.get(key) != wanted.get(key)]
    words = [f"{key}={made.get(key)!r} instead of {wanted.get(key)!r}" for key in keys[:most]]
    return ", ".join([*words, f"and {len(keys) - most} more"] if len(keys) > most else words)


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
