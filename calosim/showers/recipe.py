"""How a data file was made: a record beside it, ``data/zn.root.json`` of ``data/zn.root``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from calosim import __version__
from calosim.files import read_json, write_json
from calosim.showers.cache import content_hash
from calosim.showers.reading import files_read

__all__ = ["current_hash", "read_recipe", "write_recipe"]


def write_recipe(file: str, settings: Mapping[str, Any]) -> None:
    """Writes how a file was made.

    Args:
        file: The data file, complete.
        settings: What determines its content; of ``primaries`` that were taken from a file the content is recorded too.
    """
    record = {"calosim": __version__, "settings": dict(settings), "data_hash": current_hash([file])}
    if isinstance(settings.get("primaries"), str):
        record["primaries_hash"] = current_hash([settings["primaries"]])
    write_json(f"{file}.json", record)


def read_recipe(file: str | Path) -> dict[str, Any] | None:
    """How a file was made; None if nothing tells, or if the file is another one by now."""
    path = Path(f"{file}.json")
    record = read_json(path) if path.exists() else None
    return record if record and record.get("data_hash") == current_hash([str(file)]) else None


def current_hash(files: Sequence[str], detector: str | None = None) -> str:
    """The data hash of files as they are now, see :func:`content_hash`; read anew only where something has changed.

    Raises:
        ValueError: If a file or its partner is missing.
    """
    states = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files_read(files, detector)]
    return _hash(tuple(files), detector, tuple(states))


@lru_cache(maxsize=64)
def _hash(files: tuple[str, ...], detector: str | None, states: tuple[tuple[Path, int, int], ...]) -> str:
    return content_hash(files, detector)
