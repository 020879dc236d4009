"""How a data file was made: a record beside it, ``data/zn.root.json`` of ``data/zn.root``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from calosim import __version__
from calosim.io import read_json, write_json
from calosim.data.cache import hash_contents
from calosim.data.reading import files_read

__all__ = ["current_hash", "primaries_hash", "read_recipe", "write_recipe"]


def write_recipe(file: str, settings: Mapping[str, Any]) -> None:
    """Writes how a file was made.

    Args:
        file: The data file, complete.
        settings: What determines its content; of ``primaries`` that were taken from a file the content is recorded too.
    """
    record = {"calosim": __version__, "settings": dict(settings), "data_hash": current_hash([file])}
    if isinstance(settings.get("primaries"), str):
        record["primaries_hash"] = primaries_hash(settings["primaries"])
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
    return _hash(tuple(map(_state, files_read(files, detector))))


def primaries_hash(file: str) -> str:
    """The hash of a file of primaries, which stands alone: a CSV of them has no images beside it."""
    return _hash((_state(Path(file)),))


def _state(path: Path) -> tuple[Path, int, int]:
    return path, path.stat().st_mtime_ns, path.stat().st_size


@lru_cache(maxsize=64)
def _hash(states: tuple[tuple[Path, int, int], ...]) -> str:
    return hash_contents([path for path, *_ in states])
