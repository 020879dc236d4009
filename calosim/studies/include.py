"""What plans have in common stands in a file of its own, which they include."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calosim.io import read_yaml

__all__ = ["merged", "read_entries"]


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
