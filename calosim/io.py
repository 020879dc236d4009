"""Files that are whole or not there, and the only spelling of JSON, YAML, npz, CSV and Markdown tables."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "PART",
    "atomic_write",
    "check_not_read",
    "check_writable",
    "claim",
    "claimed",
    "csv_text",
    "expanded",
    "find_config",
    "markdown_table",
    "open_npz",
    "read_csv",
    "read_json",
    "read_npz",
    "read_yaml",
    "release",
    "shipped_config",
    "take_place",
    "temporary_folder",
    "to_json",
    "try_lock",
    "write_json",
    "write_npz",
    "writing",
]

#: How the names of temporary folders end.
PART = ".calosim-part"


@contextmanager
def temporary_folder(place: str | Path, of: str | Path | None = None) -> Iterator[Path]:
    """A folder for what is being made, removed at the end.

    It is locked while its maker lives, so that what a killed process left is told from what another one is making; the
    next temporary folder in the same place clears it away.

    Args:
        place: The folder to make it in, itself made if missing.
        of: What is being made, for the message; the place itself if not given.

    Raises:
        ValueError: If that is not writable.
    """
    place = Path(place)
    with _naming(of or place, "cannot write there"):
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob(f".*{PART}"):
            with suppress(OSError):
                handle = os.open(left, os.O_RDONLY)
                if try_lock(handle, without=False):  # its maker is gone
                    shutil.rmtree(left, ignore_errors=True)
                os.close(handle)
        folder, handle = _locked_folder(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def try_lock(handle: int, without: bool = True) -> bool:
    """Takes the lock of an open file or folder; the system lets go of it when the last process that has it open ends.

    Args:
        handle: The file's descriptor.
        without: What to answer where the file system has no locks.

    Returns:
        Whether it is taken now, and not another process's.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without
    return True


def claim(folder: Path, busy: str) -> int:
    """Makes a folder and keeps other processes out of it until :func:`release`, or until this one ends.

    Args:
        folder: The folder.
        busy: What to say if another process has it.

    Returns:
        What :func:`release` takes.

    Raises:
        ValueError: If another process has it, or it cannot be made.
    """
    with _naming(folder, "cannot write there"):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    if not try_lock(handle):
        os.close(handle)
        raise ValueError(f"{folder}: {busy}")
    return handle


def release(folder: Path, handle: int) -> None:
    """Lets others into a folder; one in which nothing came to be is removed."""
    with suppress(OSError):
        folder.rmdir()
    os.close(handle)


@contextmanager
def claimed(folder: str | Path, busy: str) -> Iterator[Path]:
    """A folder in which no other process works meanwhile, see :func:`claim`; it stays, unless it is empty at the end."""
    folder = Path(folder)
    handle = claim(folder, busy)
    try:
        yield folder
    finally:
        release(folder, handle)


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Lets a file be written so that readers see all of it or none.

    What a symbolic link points to is written, not the link. Devices and pipes stay what they are and get the content.

    Args:
        path: The file; its folder is made if missing.

    Yields:
        Where to write. When the block ends well, that takes the file's place; otherwise it is removed.

    Raises:
        ValueError: If the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; expected a file to write")
    special = path.exists() and not path.is_file()
    target = path if special else Path(os.path.realpath(path))
    with temporary_folder(tempfile.gettempdir() if special else target.parent, path) as folder:
        part = folder / target.name
        yield part
        with _naming(path, "cannot be written"):
            if special:
                with part.open("rb") as made, path.open("wb") as device:
                    shutil.copyfileobj(made, device)
                return
            with part.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(part, target)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that readers see all of it or none, see :func:`writing`.

    Args:
        path: The file; its folder is made if missing.
        content: Text (written as UTF-8) or bytes.

    Raises:
        ValueError: If it cannot be written.
    """
    with writing(path) as part, _naming(path, "cannot be written"):
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def check_not_read(out: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuses to write over what is read, by whatever name.

    Raises:
        ValueError: If ``out`` is one of the inputs.
    """
    out = Path(out)
    for path in map(Path, inputs):
        if out.is_file() and path.exists() and path.samefile(out):
            also = "" if path == out else f" ({path})"
            raise ValueError(f"{out}: is also a source{also}; expected another file to write")


def take_place(made: Path, folder: Path) -> None:
    """Gives a finished folder its name.

    Raises:
        ValueError: If another command has made one of that name meanwhile.
    """
    try:
        made.rename(folder)
    except OSError as error:
        raise ValueError(f"{folder}: another command has made it meanwhile ({error.strerror or error})") from None


@contextmanager
def _naming(path: str | Path, what: str) -> Iterator[None]:
    """Turns what the system says into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: {what} ({error.strerror or error})") from None


def _locked_folder(place: Path) -> tuple[Path, int]:
    """A new temporary folder, and the open file that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=".", suffix=PART, dir=place))
        # Another process may sweep the folder before it is locked: then there is a next one.
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if try_lock(handle) and folder.exists():
            return folder, handle
        os.close(handle)


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


def write_json(path: str | Path, value: Any) -> None:
    """Writes :func:`to_json` of a value, atomically."""
    atomic_write(path, to_json(value))


@contextmanager
def _reading(path: str | Path, form: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns what goes wrong in reading a file, and the errors of what it holds, into one line that names the file."""
    with _naming(path, "cannot be read"):
        try:
            yield
        except errors as error:
            raise ValueError(f"{path}: expected {form} ({' '.join(str(error).split()):.300})") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: If the file is missing or no JSON.
    """
    with _reading(path, "JSON", ValueError, RecursionError):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Writes arrays as a compressed npz file, atomically."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    atomic_write(path, stream.getvalue())


@contextmanager
def open_npz(path: str | Path) -> Iterator[Any]:
    """An npz file, whose arrays are read when they are asked for; nothing pickled is.

    Raises:
        ValueError: If the file is missing or damaged, or has no such array.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream) as stored:
            yield stored
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # numpy, zipfile and zlib raise half a dozen types for damaged files
        raise ValueError(f"{path}: expected an npz file of numbers ({type(error).__name__}: {error})") from None


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file by name, see :func:`open_npz`."""
    with open_npz(path) as stored:
        return {name: stored[name] for name in stored.files}


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file.

    Raises:
        ValueError: If the file is missing or no YAML, or names something twice in one mapping, of which YAML drops the first.
    """
    import yaml

    class Once(yaml.SafeLoader):
        """Takes each key of a mapping once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if twice := [name for number, name in enumerate(names) if name in names[:number]]:
                raise yaml.YAMLError(f"{twice[0]} is there twice, again in line {node.start_mark.line + 1} or below")
            return super().construct_mapping(node, deep)

    # Numbers and dates that are none, lists without an end.
    with _reading(path, "YAML", yaml.YAMLError, ValueError, RecursionError):
        return yaml.load(Path(path).read_text(encoding="utf-8"), Once)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""A table as CSV, its lines ended by \n.

    >>> csv_text(["particle", "ws"], [["gamma", 1.5]])
    'particle,ws\ngamma,1.5\n'
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The lines of a CSV file, each by its header.

    Raises:
        ValueError: If the file is missing or no CSV.
    """
    with _reading(path, "CSV", UnicodeDecodeError, csv.Error), Path(path).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown, without a line end after its last row; bars inside of cells are escaped.

    >>> print(markdown_table(["feature", "photons"], [["|pz|", "12"]]))
    | feature | photons |
    |---|---|
    | \\|pz\\| | 12 |
    """
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def expanded(value: Any) -> Any:
    """A setting, or settings in lists and mappings, in which paths that begin with ``~`` are those of the user's home."""
    if isinstance(value, dict):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if hasattr(value, "items") and hasattr(value, "__setitem__"):  # a parser's namespace, in place
        for key, item in list(value.items()):
            value[key] = expanded(item)
        return value
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def shipped_config(name: str | Path) -> Path | None:
    """A configuration file that calosim ships, by its path within ``conf``; None if there is none."""
    # In a checkout `conf` stands beside the package, in a wheel it is inside of it.
    here = Path(__file__).resolve().parent
    places = (here / "conf" / name, here.parent / "conf" / name)
    return next((place for place in places if place.is_file()), None)


def find_config(path: str | Path) -> Path:
    """A configuration file: the one of that path, else the one that calosim ships under it.

    Args:
        path: Such as ``conf/teacher.yaml``.

    Raises:
        ValueError: If there is neither.
    """
    path = Path(path)
    if path.exists():
        return path
    if path.parts[:1] == ("conf",):
        inside = Path(*path.parts[1:])
        if inside.parts[:1] == ("coordinates",):  # as their folder was called before
            inside = Path("representation", *inside.parts[1:])
        if found := shipped_config(inside):
            return found
    raise ValueError(f"{path}: no such file, neither here nor among those that calosim ships in conf/")
