"""Reader and writer of calosim's ROOT form: a TTree ``showers`` with fixed arrays of photon counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import NAMESPACE_DNS, uuid5

import numpy as np

from calosim.detectors import DETECTORS, get_detector
from calosim.files import writing
from calosim.showers.checks import (
    agreed_detector,
    check_showers,
    detector_of_shape,
    pdg_codes,
    photon_counts,
    reading_file,
    row_name,
)
from calosim.showers.record import FEATURES, Showers, Source, Where

__all__ = ["BASKET", "Writer", "check_branches", "open_tree", "read_branches", "read_made", "root_source", "write"]

_TREE = "showers"
_FORMAT = "calosim 1"
#: What ROOT files say of when and where they were made. Ours say what is in them.
_WRITTEN, _UUID = datetime(2000, 1, 1), uuid5(NAMESPACE_DNS, "calosim")

#: Rows in one basket of our files, and in one step of the readers: 15 MB of ZN images. Smaller ones cost more in
#: uproot's bookkeeping of baskets, which grows with their number squared.
BASKET = 4000


@contextmanager
def open_tree(path: Path, *names: str) -> Iterator[tuple[Any, Any]]:
    """Opens a ROOT file and its tree ``showers``, or the first that it has of some.

    Raises:
        ValueError: If it is no ROOT file, damaged, or has no such tree.
    """
    with path.open("rb") as file:
        header = file.read(20)
    if header[:4] != b"root":
        raise ValueError(f"{path}: not a ROOT file; expected it to start with 'root'")
    version = int.from_bytes(header[4:8], "big")
    # Files above 2 GB have a version above a million, and the position of the end in eight bytes instead of four.
    end = int.from_bytes(header[12:20] if version >= 1_000_000 else header[12:16], "big")
    if path.stat().st_size < end:
        raise ValueError(f"{path}: the file is truncated; expected {end} bytes, got {path.stat().st_size}")
    import uproot  # 0.6 s

    # The mapping keeps uproot from taking a colon in the name for the start of an object's path.
    with reading_file(path):
        file = uproot.open({str(path): None})
    with file:
        with reading_file(path):
            keys = {key.partition(";")[0] for key in file.keys(recursive=False)}
        name = next((n for n in names if n in keys), names[0] if names else _TREE)
        if name not in keys:
            found = ", ".join(map(repr, sorted(keys))) or "nothing"
            raise ValueError(f"{path}: has no tree {name!r}; found {found}")
        with reading_file(path):
            tree = file[name]
        if not isinstance(tree, uproot.TTree):
            kind = getattr(tree, "classname", type(tree).__name__)
            raise ValueError(f"{path}: {name!r} is a {kind}; expected a TTree (uproot writes one with mktree)")
        yield file, tree


def _branch_shape(path: Path, tree: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape of one entry and type of a numeric branch."""
    import uproot

    branch = tree[name]
    if not isinstance(branch.interpretation, uproot.AsDtype):
        raise ValueError(f"{path}: branch {name!r} holds {branch.typename}; expected fixed arrays of numbers")
    dtype = branch.interpretation.to_dtype
    base, shape = dtype.subdtype or (dtype, ())
    if base.kind not in "iuf":
        raise ValueError(f"{path}: branch {name!r} holds {branch.typename}; expected numbers")
    if branch.num_entries != tree.num_entries:
        entries = f"{branch.num_entries} entries; expected {tree.num_entries} as in the tree"
        raise ValueError(f"{path}: branch {name!r} has {entries}")
    return shape, base


def check_branches(path: Path, tree: Any, names: Sequence[str]) -> None:
    """Checks that a tree has branches, and that all but ``response`` hold one number an entry.

    Raises:
        ValueError: If not.
    """
    found = tree.keys(recursive=False)
    for name in names:
        if name not in found:
            raise ValueError(f"{path}: has no branch {name!r}; expected {', '.join(names)}")
    for name in (n for n in names if n != "response"):
        shape, _ = _branch_shape(path, tree, name)
        if shape:
            raise ValueError(f"{path}: branch {name!r} has entries of shape {shape}; expected one number")


def root_source(path: Path, wanted: str | None) -> Source:
    """A file of calosim's ROOT form as a source.

    Args:
        path: The file.
        wanted: The detector expected; any if None.

    Raises:
        ValueError: If the file is bad, of a later version of the form, or holds another detector.
    """
    with open_tree(path) as (file, tree):
        texts = {}
        with reading_file(path):
            texts = {name: str(file[name]) for name in ("format", "detector") if name in file}
        if texts.get("format", _FORMAT) != _FORMAT:
            raise ValueError(f"{path}: has format {texts['format']!r}; this calosim reads {_FORMAT!r}")
        check_branches(path, tree, (*FEATURES, "pdg", "response"))
        shape, dtype = _branch_shape(path, tree, "response")
        if "detector" in texts:
            detector = texts["detector"]
            if detector not in DETECTORS:
                known = ", ".join(DETECTORS)
                raise ValueError(f"{path}: unknown detector {detector!r} in the file; expected one of {known}")
            if shape != DETECTORS[detector].shape:
                title, expected = DETECTORS[detector].title, DETECTORS[detector].shape
                raise ValueError(f"{path}: branch 'response' has images of shape {shape}; {title} has {expected}")
        else:
            detector = detector_of_shape(shape, str(path))
        agreed_detector(detector, wanted, str(path))
        narrow = dtype.kind == "i" and dtype.itemsize <= 2
        return Source(detector, tree.num_entries, narrow, partial(_root_pieces, path, detector), str(path))


def read_made(path: Path) -> dict[str, Any] | None:
    """What a file says of how it was made, see :class:`Writer`; None if it says nothing.

    Raises:
        ValueError: If the file is bad.
    """
    with open_tree(path) as (file, _), reading_file(path):
        return json.loads(str(file["made"])) if "made" in file else None


def _root_pieces(path: Path, detector: str, rows: int) -> Iterator[tuple[Showers, Where]]:
    with open_tree(path) as (_, tree):
        # Whole baskets at a time: a basket cut in two would be decompressed twice.
        with reading_file(path):
            edges = [int(edge) for edge in tree["response"].entry_offsets]
        start = 0
        for edge in edges[1:]:
            if edge - start < rows and edge != edges[-1]:
                continue
            arrays = read_branches(path, tree, (*FEATURES, "pdg", "response"), start, edge)
            for first in range(0, edge - start, rows):
                part = {name: values[first : first + rows] for name, values in arrays.items()}
                where = partial(row_name, start + first)
                yield (
                    Showers(
                        np.column_stack([part[name] for name in FEATURES]).astype(np.float64, copy=False),
                        pdg_codes(part["pdg"], str(path), where),
                        photon_counts(part["response"], str(path), where),
                        detector,
                    ),
                    where,
                )
            start = edge


def read_branches(path: Path, tree: Any, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
    """Entries ``start`` to ``stop`` of branches, by name.

    Raises:
        ValueError: If the file is damaged.
    """
    with reading_file(path):
        # uproot's own cache would keep another 100 MB.
        arrays = tree.arrays(names, entry_start=start, entry_stop=stop, library="np", array_cache=None)
    for name, values in arrays.items():
        if len(values) != stop - start:
            got = f"{len(values)} of the {stop - start} entries from {start} on"
            raise ValueError(f"{path}: the file is damaged; branch {name!r} gives {got}")
    return arrays


@contextmanager
def _no_time() -> Iterator[None]:
    """Keeps the time of day out of what uproot writes: the same rows are the same bytes, by whose hash runs know their data."""
    import uproot

    code = uproot._util.datetime_to_code
    uproot._util.datetime_to_code = lambda _: code(_WRITTEN)
    try:
        yield
    finally:
        uproot._util.datetime_to_code = code


class Writer:
    """Writes showers to a ROOT file piece by piece, in constant memory; all of them or none.

    Rows go to a temporary file, which takes the file's place when the ``with`` block ends well, see
    :func:`calosim.files.writing`. After an error it is removed, and a file of that name stays as it was.

    Args:
        path: The file, which must end in ``.root``; missing folders are made.
        detector: The detector's name.
        made: What the file is to say of how it was made, as JSON under the key ``made``; nothing if not given.

    Raises:
        ValueError: If the name has another suffix, the detector is unknown or the file cannot be written.

    Example:
        >>> with Writer("zn.root", "zn") as writer:  # doctest: +SKIP
        ...     for piece in pieces:
        ...         writer.extend(piece)
    """

    def __init__(self, path: str | os.PathLike[str], detector: str, made: Mapping[str, Any] | None = None) -> None:
        self.path, self._made = Path(path), made
        self.geometry = get_detector(detector)
        self.rows = 0
        if self.path.suffix.lower() != ".root":
            raise ValueError(f"{self.path}: unknown suffix {self.path.suffix!r} to write; expected .root")
        if self.path.is_dir():
            raise ValueError(f"{self.path}: is a folder; expected a file to write")
        self._temporary = self.path
        self._pending: list[Showers] = []
        self._dtype: np.dtype = np.dtype(np.int16)
        self._file: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._temporary = stack.enter_context(writing(self.path))
            stack.callback(self._give_up)
            self._open()
            self._stack = stack.pop_all()
        return self

    def extend(self, showers: Showers) -> None:
        """Appends rows.

        Args:
            showers: Any number of rows of the writer's detector.

        Raises:
            ValueError: If the rows are not valid (see :func:`calosim.showers.checks.check_showers`; rows
                count from the first one written), are of another detector, or cannot be written.
        """
        if showers.detector != self.geometry.name:
            title = showers.geometry.title
            raise ValueError(f"{self.path}: expected {self.geometry.title} responses to write, got {title}")
        where = partial(row_name, self.rows)
        check_showers(showers, str(self.path), where)
        images = photon_counts(showers.images, str(self.path), where)
        self.rows += len(showers)
        for first in range(0, len(showers), BASKET):
            # Copies: the caller may fill the same arrays again before the basket is full.
            part = slice(first, first + BASKET)
            arrays = (showers.particles[part].copy(), showers.pdg[part].copy(), images[part].copy())
            self._pending.append(Showers(*arrays, self.geometry.name))
            if sum(map(len, self._pending)) >= BASKET:
                self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            if self.rows == 0:
                raise ValueError(f"{self.path}: no rows to write; expected at least one")
            if self._pending:
                self._flush()
            with self._write_errors():
                self._close()

    def _give_up(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # after a full disk, closing fails again and would hide the reason
                self._file.close()

    def _open(self) -> None:
        import uproot

        with self._write_errors():
            # On ZN images with 96 % zeros zstd 1 reads as fast as no compression, at 1/27 of the size; zlib 1 is 1.3
            # times as large and slower both ways, lz4 reads 20 % faster at 1.7 times the size, and zstd 9 saves 12 %
            # for four times the writing time.
            self._file = uproot.recreate(self._temporary, compression=uproot.ZSTD(1), uuid_function=lambda: _UUID)
            self._file["detector"] = self.geometry.name
            self._file["format"] = _FORMAT
            if self._made is not None:
                self._file["made"] = json.dumps(self._made)
            branches: dict[str, Any] = dict.fromkeys(FEATURES, np.float64) | {"pdg": np.int32}
            branches["response"] = np.dtype((self._dtype, self.geometry.shape))
            self._tree = self._file.mktree(_TREE, branches, title="primary particles and their photon images")

    def _close(self) -> None:
        self._file.close()
        self._file = None

    def _flush(self) -> None:
        """Writes one basket, of what is pending at most."""
        particles = np.concatenate([s.particles for s in self._pending])
        pdg = np.concatenate([s.pdg for s in self._pending])
        images = np.concatenate([s.images for s in self._pending])
        if images.dtype == np.int32 and self._dtype == np.int16:
            self._widen()
        rest = slice(BASKET, None)
        self._pending = [Showers(particles[rest], pdg[rest], images[rest], self.geometry.name)]
        self._put(Showers(particles[:BASKET], pdg[:BASKET], images[:BASKET], self.geometry.name))

    def _put(self, showers: Showers) -> None:
        branches = {name: showers.particles[:, k] for k, name in enumerate(FEATURES)}
        branches |= {"pdg": showers.pdg.astype(np.int32), "response": showers.images.astype(self._dtype)}
        with self._write_errors():
            self._tree.extend(branches)

    def _widen(self) -> None:
        """Starts again with 32-bit images: a branch cannot change its type, and it is rare."""
        self._dtype = np.dtype(np.int32)
        narrow = self._temporary.with_suffix(".int16")
        with self._write_errors():
            self._close()
            os.replace(self._temporary, narrow)
        try:
            self._open()
            for showers, _ in _root_pieces(narrow, self.geometry.name, BASKET):
                self._put(showers)
        finally:
            narrow.unlink(missing_ok=True)

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            with _no_time():
                yield
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def write(path: str | os.PathLike[str], showers: Showers) -> None:
    """Writes showers to a ROOT file; whole or not at all.

    Args:
        path: The file, which must end in ``.root``; missing folders are made, an existing file is replaced.
        showers: At least one row.

    Raises:
        ValueError: If the rows are not valid (see :meth:`Writer.extend`) or the file cannot be written.
    """
    with Writer(path, showers.detector) as writer:
        writer.extend(showers)
