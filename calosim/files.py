"""Where a result comes from, and files that are whole or not there."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "check_writable", "to_json"]


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that readers see all of it or none.

    Args:
        path: The file; its folder is made if missing.
        content: Text (written as UTF-8) or bytes.

    Raises:
        ValueError: If the folder is not writable.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ValueError(f"{path}: cannot write there ({error.strerror})") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_writable(folder: str | Path) -> None:
    """Refuses a folder that cannot be made or written into, before hours of work end there.

    Raises:
        ValueError: If so.
    """
    folder = Path(folder)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"{folder}: cannot write there ({there} is not a writable folder)")


def to_json(value: Any) -> str:
    """Indented JSON that every parser reads: what is not finite becomes null."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: plain(item) for key, item in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(item) for item in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
