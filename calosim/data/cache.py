"""The cache of plain arrays that all processes map into memory, told by content; and how a file was made."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from calosim.data.reading import files_read, read
from calosim.data.root import Names, read_made
from calosim.io import read_json, temporary_folder, write_json

__all__ = ["cached_arrays", "content_hash", "open_cache", "primaries_hash", "read_recipe"]

_VERSION = 4
_ARRAYS = ("particles", "pdg", "images", "primary_ids", "photon_sum")
#: Written last: a folder that has it is whole.
_META = "meta.json"


def cached_arrays(files: Sequence[str], detector: str, cache_dir: str | None = None, names: Names = Names()) -> Path:
    """Reads files into a folder of plain arrays, unless that was done before.

    Args:
        files: Paths of the files, read once and as a set, see :func:`calosim.data.read`.
        detector: The detector they must hold.
        cache_dir: The folder of caches, see :class:`~calosim.data.datamodule.RootDataModule`.
        names: What the files call their tree and branches.

    Returns:
        A folder with ``particles``, ``pdg``, ``images``, ``primary_ids`` and ``photon_sum`` as ``.npy`` and ``meta.json``. Its
        name is a hash of the contents, so that changed files never meet an old cache.

    Raises:
        ValueError: If a file is missing or bad, or no folder is writable.
    """
    data_hash = content_hash(files, detector)
    named = f" {names}" if names != Names() else ""
    key = hashlib.blake2b(f"{_VERSION} {detector} {data_hash}{named}".encode(), digest_size=10).hexdigest()
    places = [Path(cache_dir)] if cache_dir else [Path(files[0]).resolve().parent / ".calosim_cache", *_user_cache()]
    for known in places:
        if _is_whole(known / key):
            return known / key
    place = next((p for p in places if _writable(p)), None)
    if place is None:
        raise ValueError(f"{places[0]}: the cache folder is not writable; choose another with --data.cache_dir")
    showers = read(files, detector, tree=names.tree, columns=names.columns)
    with temporary_folder(place) as temporary:
        made = temporary / key
        made.mkdir()
        for name in _ARRAYS:
            np.save(made / f"{name}.npy", getattr(showers, name))
        meta = {"data_hash": data_hash, "detector": detector, "files": list(map(str, files)), "rows": len(showers)}
        write_json(made / _META, meta)
        _publish(made, place / key)
    return place / key


def open_cache(folder: Path) -> tuple[dict[str, np.ndarray], str]:
    """Maps the arrays of a cache into memory.

    Args:
        folder: A folder of :func:`cached_arrays`.

    Returns:
        The arrays by name, and the data hash. Images stay in the file; all else is small and read in pieces all the time.
    """
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    held = {name: values if name == "images" else np.array(values) for name, values in arrays.items()}
    return held, read_json(folder / _META)["data_hash"]


def content_hash(files: Sequence[str], detector: str | None = None) -> str:
    """The data hash that results are labeled with: of the contents of everything that is read, each file once.

    Args:
        files: Paths of the files.
        detector: The detector they must hold, which decides whose images are read where text holds several.

    Raises:
        ValueError: If a file or its partner is missing.
    """
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such file; make one with `calosim simulate` or `calosim convert`")
    return _hash(tuple(map(_state, files_read(files, detector))))


def primaries_hash(file: str) -> str:
    """The hash of a file of primaries, which stands alone: a CSV of them has no images beside it."""
    return _hash((_state(Path(file)),))


def _state(path: Path) -> tuple[Path, int, int]:
    return path, path.stat().st_mtime_ns, path.stat().st_size


@lru_cache(maxsize=64)
def _hash(states: tuple[tuple[Path, int, int], ...]) -> str:
    """The hash of the contents of files; those are read anew only where something has changed."""
    digest = hashlib.blake2b(digest_size=16)
    for path, *_ in states:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def _publish(made: Path, folder: Path) -> None:
    """Gives a finished cache its name."""
    try:
        made.rename(folder)
    except OSError:
        # Another process was faster, and its cache is as good as ours; or a damaged cache is in the way.
        if not _is_whole(folder):
            shutil.rmtree(folder)
            made.rename(folder)


def _is_whole(folder: Path) -> bool:
    """Whether a cache is there and can be mapped; what was damaged since is made anew."""
    try:
        rows = read_json(folder / _META)["rows"]
        return all(len(np.load(folder / f"{name}.npy", mmap_mode="r")) == rows for name in _ARRAYS)
    except (EOFError, KeyError, OSError, TypeError, ValueError):  # what numpy and json make of other bytes
        return False


def _user_cache() -> list[Path]:
    """The user's cache folder; none for who has no home, as in a container."""
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [Path(place) / "calosim"] if os.path.isabs(place) else []


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def read_recipe(file: str | Path) -> dict[str, Any] | None:
    """How ``calosim simulate`` made a file: its ``settings``, and the ``primaries_hash`` of those it took from a file.

    Returns:
        None if nothing tells.

    Raises:
        ValueError: If the file is bad.
    """
    if made := read_made(file):
        return made if "settings" in made else None
    # calosim 0.2 wrote it beside the file, and it may be another file by now.
    path = Path(f"{file}.json")
    made = read_json(path) if path.exists() else None
    if not made or made.get("data_hash") != content_hash([str(file)]):
        return None
    settings = made["settings"]
    return made | {"settings": {"keep_empty": settings.pop("keep_dark", False), **settings}}
