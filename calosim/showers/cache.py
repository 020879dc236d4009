"""The cache of plain arrays that all processes map into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calosim.showers.reading import read
from calosim.showers.record import Showers

__all__ = ["ARRAYS", "cached_arrays", "content_hash"]

_CACHE_VERSION = 2


ARRAYS = ("particles", "pdg", "images", "inputs", "photon_sum")


def cached_arrays(files: Sequence[str], detector: str, cache_dir: str | None = None) -> Path:
    """Reads files into a folder of plain arrays, unless that was done before.

    Args:
        files: Paths of the files.
        detector: The detector they must hold.
        cache_dir: The folder of caches, see :class:`RootDataModule`.

    Returns:
        A folder with ``particles``, ``pdg``, ``images``, ``inputs`` and ``photon_sum`` as ``.npy`` and ``meta.json``. Its
        name is a hash of the contents, so that changed files never meet an old cache.

    Raises:
        ValueError: If a file is missing or bad, or no folder is writable.
    """
    data_hash = content_hash(files)
    key = hashlib.blake2b(f"{_CACHE_VERSION} {detector} {data_hash}".encode(), digest_size=10).hexdigest()
    places = [Path(cache_dir)] if cache_dir else [Path(files[0]).resolve().parent / ".calosim_cache", _user_cache()]
    for known in places:
        if (known / key / "meta.json").exists():
            return known / key
    place = next((p for p in places if _writable(p)), None)
    if place is None:
        raise ValueError(f"{places[0]}: the cache folder is not writable; choose another with --data.cache_dir")
    temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=place))
    try:
        parts = [read(f, detector) for f in files]
        rows = sum(map(len, parts))
        showers = parts[0]
        if len(parts) > 1:
            images = np.concatenate([p.images for p in parts])
            particles, pdg = (
                np.concatenate([p.particles for p in parts]),
                np.concatenate([p.pdg for p in parts]),
            )
            showers = Showers(particles, pdg, images, detector)
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(showers, name))
        meta = {"data_hash": data_hash, "detector": detector, "files": [str(f) for f in files], "rows": rows}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        os.chmod(temporary, 0o755)
        try:
            temporary.rename(place / key)
        except OSError:
            # Another process was faster, and its cache is as good as ours; or a half-deleted cache is in the way.
            if not (place / key / "meta.json").exists():
                shutil.rmtree(place / key)
                temporary.rename(place / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place / key


def content_hash(files: Sequence[str]) -> str:
    """A hash of the files' contents, the data hash that results are labeled with."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: no such file; make one with `calosim simulate` or `calosim convert`")
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calosim"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
