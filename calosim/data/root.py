"""ROOT files: a tree of showers as calosim, RDataFrame or a physicist's loop writes it, and the writer of calosim's own.

An entry of a TTree or an RNTuple is a shower. Its image is a branch of whatever kind: a fixed array, flat or not, a vector, a
vector of vectors.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import NAMESPACE_DNS, uuid5

import numpy as np

from calosim.data.record import (
    COLUMNS,
    FEATURES,
    TABULATED,
    Showers,
    Source,
    Where,
    check_showers,
    photon_counts,
    reading_file,
    row_name,
    showers_of,
    told_detector,
)
from calosim.detectors import get_detector
from calosim.io import writing

__all__ = ["BASKET", "O2SIM", "Names", "Tree", "Writer", "open_tree", "read_made", "root_source", "write"]


#: The trees that are looked for: ours, and that of O2's simulation.
_TREE, O2SIM = "showers", "o2sim"
_FORMAT = "calosim 1"
#: What ROOT files say of when and where they were made. Ours say what is in them.
_WRITTEN, _UUID = datetime(2000, 1, 1), uuid5(NAMESPACE_DNS, "calosim")

#: Rows in one basket of our files, and in one step of the readers: 15 MB of ZN images. Smaller ones cost more in
#: uproot's bookkeeping of baskets, which grows with their number squared.
BASKET = 4000


@dataclass(frozen=True)
class Names:
    """What a ROOT file calls its tree and branches, where that is not what calosim calls them.

    Attributes:
        tree: The tree, with folders before it (``events/tracks``); ``showers``, or O2's ``o2sim``, if not given.
        columns: Branches by our names, those of :data:`~calosim.data.record.COLUMNS`. A member of an object is named behind a
            point: ``{"px": "p.fX"}``.

    Raises:
        ValueError: If a column is none of ours.
    """

    tree: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.columns if name not in COLUMNS]:
            raise ValueError(f"columns: unknown column {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    """Opens a ROOT file.

    Raises:
        ValueError: If it is none, or damaged.
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
        yield file


@contextmanager
def open_tree(path: Path, names: Names = Names()) -> Iterator[Tree]:
    """Opens a ROOT file and its tree: the one that is named, else ``showers`` or O2's ``o2sim``.

    Raises:
        ValueError: If it is no ROOT file, damaged, or has no such tree.
    """
    with _open_file(path) as file:
        with reading_file(path):
            keys = file.keys(cycle=False)
        known = (names.tree,) if names.tree else (_TREE, O2SIM)
        found = next((name for name in known if name in keys), None)
        if found is None:
            has = ", ".join(map(repr, sorted(keys))) or "nothing"
            raise ValueError(f"{path}: has no tree {known[0]!r}; found {has} (another is named with --tree)")
        with reading_file(path):
            tree = file[found]
            is_table = hasattr(tree, "num_entries")  # a TTree or an RNTuple
        if not is_table:
            kind = file.classname_of(found)
            raise ValueError(
                f"{path}: {found!r} is a {kind}; expected a TTree or an RNTuple (uproot writes one with mktree)"
            )
        yield Tree(path, file, tree, found, names.columns)


class Tree:
    """An open tree, whose branches go by our names.

    Attributes:
        name: Its name in the file.
        rows: How many entries it has.
        size: Bytes of its entries, decompressed; 0 if that is not known.
        texts: What the file says of itself in words, by name: ``detector``, ``format`` and ``made``, if at all. calosim writes
            them as ``TObjString``; in C++, ``TNamed("detector", "zn").Write()`` is as good.
    """

    def __init__(self, path: Path, file: Any, tree: Any, name: str, columns: Mapping[str, str]):
        self.name, self._path, self._tree, self._columns = name, path, tree, columns
        self.texts = _texts(path, file)
        with reading_file(path):
            self.rows, self.size = int(tree.num_entries), int(getattr(tree, "uncompressed_bytes", 0))
            paths = tree.keys()
        # Branches below others go by their path, with points too, and by their own name where that is one branch's.
        leaves = [p.rpartition("/")[2] for p in paths]
        times = Counter(leaves)
        self._branches = {leaf: p for leaf, p in zip(leaves, paths, strict=True) if times[leaf] == 1}
        self._branches |= {p.replace("/", "."): p for p in paths} | {p: p for p in paths}

    def __contains__(self, name: str) -> bool:
        words = self._columns.get(name, name).split(".")
        return any(".".join(words[:k]) in self._branches for k in range(len(words), 0, -1))

    def _find(self, name: str) -> tuple[Any, list[str]]:
        """The branch of a column, and the members that lead to its numbers in the objects that the branch holds."""
        called = self._columns.get(name, name)
        words = called.split(".")
        for k in range(len(words), 0, -1):
            if path := self._branches.get(".".join(words[:k])):
                return self._tree[path], words[k:]
        expected = f"{', '.join(COLUMNS)}, or what they are called in --columns"
        raise ValueError(f"{self._path}: has no branch {called!r}; expected {expected}")

    def is_branch(self, name: str) -> bool:
        """Whether a column is a branch of its own, rather than a member of another's objects."""
        return self._columns.get(name, name) in self._branches

    def check(self, names: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
        """Checks that the tree has columns, and that all but ``response`` hold one number an entry.

        Args:
            names: Columns that must be there.
            optional: Columns that may be there.

        Returns:
            Those that are.

        Raises:
            ValueError: If not.
        """
        there = [*names, *(name for name in optional if name in self)]
        for name in there:
            shape, _ = self.shape(name)
            if shape and name != "response":
                branch = self._columns.get(name, name)
                raise ValueError(f"{self._path}: branch {branch!r} has entries of shape {shape}; expected one number")
        return there

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape of one entry of a column, by the first, and the type of its numbers."""
        first = self.read([name], 0, min(1, self.rows))[name]
        return first.shape[1:], first.dtype

    def steps(self, name: str, rows: int) -> Iterator[tuple[int, int]]:
        """Ranges of entries to read at once, of so many rows or more: whole baskets, as one cut in two is decompressed twice."""
        branch, _ = self._find(name)
        with reading_file(self._path):
            # An RNTuple has clusters; its pages cannot be read by halves either.
            clusters = [each.num_first_entry for each in getattr(self._tree, "cluster_summaries", [])]
            edges = [int(edge) for edge in getattr(branch, "entry_offsets", [*clusters, self.rows])]
        start = 0
        for edge in edges[1:]:
            stop = min(edge, self.rows)
            if stop > start and (stop - start >= rows or stop == self.rows):
                yield start, stop
                start = stop

    def read(self, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Entries ``start`` to ``stop`` of columns, by name, each (stop - start, ...).

        Raises:
            ValueError: If the file is damaged, or a column holds something else than numbers, as many in each entry.
        """
        found = self.arrays(names, start, stop)
        return {name: self._regular(name, values, stop - start) for name, values in found.items()}

    def _regular(self, name: str, values: Any, rows: int) -> np.ndarray:
        """Numbers of a column as numpy's array (rows, ...)."""
        called, kind = self._columns.get(name, name), self._find(name)[0].typename
        if not isinstance(values, np.ndarray):
            import awkward

            try:
                values = awkward.to_numpy(awkward.to_regular(values, axis=None))
            except ValueError:  # lengths that differ, or records
                expected = "expected as many numbers in each entry"
                raise ValueError(f"{self._path}: branch {called!r} holds {kind}; {expected}") from None
        if values.dtype.kind not in "iuf":
            raise ValueError(f"{self._path}: branch {called!r} holds {kind}; expected numbers")
        if len(values) != rows:
            raise ValueError(
                f"{self._path}: the file is damaged; branch {called!r} gives {len(values)} of {rows} entries"
            )
        return values

    def arrays(
        self, names: Sequence[str], start: int, stop: int, interpretations: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Entries ``start`` to ``stop`` of columns as they are nested, by name; each branch is read once.

        Args:
            names: Columns.
            start: The first entry.
            stop: The entry behind the last.
            interpretations: uproot's interpretations of columns that it does not recognize.

        Returns:
            numpy's arrays of columns that hold as many numbers in each entry, else awkward's.

        Raises:
            ValueError: If the file is damaged, or the objects of a branch have no such members.
        """
        import uproot

        held: dict[int, Any] = {}
        forms = interpretations or {}
        found = {}
        for name in names:
            branch, members = self._find(name)
            if getattr(branch, "num_entries", self.rows) != self.rows:
                has = f"{branch.num_entries} entries; expected {self.rows} as in the tree"
                raise ValueError(f"{self._path}: branch {self._columns.get(name, name)!r} has {has}")
            if id(branch) not in held:
                plain = not members and isinstance(getattr(branch, "interpretation", None), uproot.AsDtype)
                how = {"interpretation": forms[name]} if name in forms else {}
                with reading_file(self._path):
                    # uproot's own cache would keep another 100 MB.
                    held[id(branch)] = branch.array(
                        entry_start=start, entry_stop=stop, library="np" if plain else "ak", array_cache=None, **how
                    )
            found[name] = self._member(branch, members, held[id(branch)])
        return found

    def _member(self, branch: Any, members: Sequence[str], values: Any) -> Any:
        import awkward

        for member in members:
            fields = awkward.fields(values) if isinstance(values, awkward.Array) else []
            if member not in fields:
                has = ", ".join(fields) or "none"
                raise ValueError(f"{self._path}: branch {branch.name!r} has no member {member!r}; found {has}")
            values = values[member]
        return values


def _texts(path: Path, file: Any) -> dict[str, str]:
    """Words at the top of a file, by their keys."""
    with reading_file(path):
        kinds = file.classnames(recursive=False, cycle=False)
        found = {name: (file[name], kinds[name]) for name in ("detector", "format", "made") if name in kinds}
        return {name: text.member("fTitle") if kind == "TNamed" else str(text) for name, (text, kind) in found.items()}


def root_source(path: Path, wanted: str | None, names: Names = Names()) -> Source:
    """A file with a tree of showers as a source.

    Args:
        path: The file.
        wanted: The detector expected; any if None.
        names: Of the tree and its branches.

    Raises:
        ValueError: If the file is bad, of a later version of the form, or holds another detector.
    """
    with open_tree(path, names) as tree:
        if (form := tree.texts.get("format", _FORMAT)) != _FORMAT:
            raise ValueError(f"{path}: has format {form!r}; this calosim reads {_FORMAT!r}")
        columns = tree.check([name for name in COLUMNS if name not in TABULATED], TABULATED)
        (shape, dtype), rows = tree.shape("response"), tree.rows
    detector = told_detector(shape, wanted, str(path), tree.texts.get("detector"))
    narrow = dtype.kind == "i" and dtype.itemsize <= 2

    def pieces(most: int) -> Iterator[tuple[Showers, Where]]:
        with open_tree(path, names) as tree:
            for start, stop in tree.steps("response", most):
                arrays = tree.read(columns, start, stop)
                for first in range(0, stop - start, most):
                    part = {name: values[first : first + most] for name, values in arrays.items()}
                    where = partial(row_name, start + first)
                    yield showers_of(part, detector, str(path), where), where

    return Source(detector, rows, narrow, pieces, str(path))


def read_made(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a file says of how it was made, see :class:`Writer`; None if it says nothing, as all but ROOT files.

    Raises:
        ValueError: If the file is bad.
    """
    path = Path(path)
    if path.suffix.lower() != ".root":
        return None
    with _open_file(path) as file:
        text = _texts(path, file).get("made")
    with reading_file(path):
        return None if text is None else dict(json.loads(text))


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
    :func:`calosim.io.writing`. After an error it is removed, and a file of that name stays as it was.

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

    suffixes: tuple[str, ...] = (".root",)

    def __init__(self, path: str | os.PathLike[str], detector: str, made: Mapping[str, Any] | None = None) -> None:
        self.path, self._made = Path(path), made
        self.geometry = get_detector(detector)
        self.rows = 0
        if self.path.suffix.lower() not in self.suffixes:
            expected = " or ".join(self.suffixes)
            raise ValueError(f"{self.path}: unknown suffix {self.path.suffix!r} to write; expected {expected}")
        if self.path.is_dir():
            raise ValueError(f"{self.path}: is a folder; expected a file to write")
        self._temporary = self.path
        self._pending: list[Showers] = []
        self._dtype: np.dtype = np.dtype(np.int16)
        self._file: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._part = stack.enter_context(writing(self.path))
            # A ROOT file holds the name that it was made by: always this one, so that the same rows are the same bytes.
            self._temporary = self._part.with_name("showers")
            stack.callback(self._give_up)
            self._open()
            self._stack = stack.pop_all()
        return self

    def extend(self, showers: Showers) -> None:
        """Appends rows.

        Args:
            showers: Any number of rows of the writer's detector.

        Raises:
            ValueError: If the rows are not valid (see :func:`calosim.data.record.check_showers`; rows
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
            if any(map(len, self._pending)):
                self._flush()
            with self._write_errors():
                self._close()
                os.replace(self._temporary, self._part)

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
            # Where clusters begin, which ROOT reads by several threads: 30 MB of ZN images, as ROOT would have it.
            self._tree._cascading._metadata["fAutoFlush"] = 2 * BASKET

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
        self._dtype, written = np.dtype(np.int32), self._tree.num_entries
        narrow = self._temporary.with_suffix(".int16")
        with self._write_errors():
            self._close()
            os.replace(self._temporary, narrow)
        try:
            self._open()
            for showers, _ in root_source(narrow, self.geometry.name).pieces(BASKET) if written else ():
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


def write(path: str | os.PathLike[str], showers: Showers, made: Mapping[str, Any] | None = None) -> None:
    """Writes showers to a ROOT file; whole or not at all.

    Args:
        path: The file, which must end in ``.root``; missing folders are made, an existing file is replaced.
        showers: At least one row.
        made: What the file is to say of how it was made, see :class:`Writer`.

    Raises:
        ValueError: If the rows are not valid (see :meth:`Writer.extend`) or the file cannot be written.
    """
    with Writer(path, showers.detector, made) as writer:
        writer.extend(showers)
