"""Reading showers in any form, and converting them to calosim's ROOT form or to HDF5."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calosim.data.arrays import SUFFIXES, Hdf5Writer, hdf5_source, npz_header, npz_source
from calosim.data.extract import column_pieces, count_lines, is_table, pair_texts, text_source
from calosim.data.o2sim import o2sim_source
from calosim.data.record import (
    COLUMNS,
    FEATURES,
    TABULATED,
    Showers,
    Source,
    Where,
    agreed_detector,
    check_primaries,
    check_showers,
    existing_file,
    features_of,
    row_name,
    showers_of,
    told_detector,
)
from calosim.data.root import BASKET, O2SIM, Names, Writer, open_tree, root_source
from calosim.detectors import get_detector
from calosim.io import check_not_read
from calosim.options import Convert

__all__ = [
    "PIECE",
    "Files",
    "PrimariesFile",
    "arrays_source",
    "checked_pieces",
    "convert",
    "files_read",
    "read",
    "read_primaries",
    "sources",
]


#: Rows read at once: 3 MB of features.
PIECE = 40_000
_NAMES = [name for name in (*FEATURES, "pdg") if name not in TABULATED]


@dataclass(frozen=True)
class PrimariesFile:
    """A file of primaries whose rows are read when they are asked for.

    Attributes:
        path: The file.
        rows: How many primaries it holds, at least one.
    """

    path: Path
    rows: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PrimariesFile:
        """Counts the rows of a file, see :func:`read_primaries`; what they hold is checked when they are read.

        Raises:
            ValueError: If it is no such file, or holds no rows.
        """
        path = existing_file(path)
        match path.suffix.lower():
            case ".root":
                with open_tree(path) as tree:
                    tree.check(_NAMES, TABULATED)
                    rows = tree.rows
            case ".csv":
                next(_table(path, 0, 1))  # refuses a wrong header
                rows = count_lines(path)
            case other:
                raise ValueError(f"{path}: unknown suffix {other!r}; expected .root or .csv")
        if rows == 0:
            raise ValueError(f"{path}: holds no rows; expected at least one")
        return cls(path, rows)

    def pieces(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Reads rows ``first`` to ``stop``, all if not given, in constant memory.

        Yields:
            Features with shape (B, 9), float64, and PDG codes (B,), int32, of up to :data:`PIECE` rows.

        Raises:
            ValueError: If anything is wrong with them, in one line that says what and where.
        """
        stop = self.rows if stop is None else stop
        tables = (
            _branches(self.path, first, stop)
            if self.path.suffix.lower() == ".root"
            else _table(self.path, first, PIECE)
        )
        for arrays in tables:
            if first >= stop:
                return
            piece = self._checked({name: values[: stop - first] for name, values in arrays.items()}, first)
            yield piece
            first += len(piece[1])
        if first < stop:
            raise ValueError(f"{self.path}: the file is damaged; it ends with row {first - 1} of {self.rows}")

    def _checked(self, arrays: dict[str, np.ndarray], first: int) -> tuple[np.ndarray, np.ndarray]:
        """Features and codes from columns, of which mass and charge may be missing."""
        where, name = partial(row_name, first), str(self.path)
        particles, pdg = features_of(arrays, name, where)
        check_primaries(particles, pdg, name, where)
        return particles, pdg


def _branches(path: Path, first: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    with open_tree(path) as tree:
        names = tree.check(_NAMES, TABULATED)
        for start in range(first, stop, PIECE):
            yield tree.read(names, start, min(start + PIECE, stop))


def _table(path: Path, first: int, most: int) -> Iterator[dict[str, np.ndarray]]:
    kinds = dict.fromkeys(_NAMES, "f8") | {"pdg": "i8"}
    for table in column_pieces(path, kinds, dict.fromkeys(TABULATED, "f8"), first, most):
        yield {name: table[name] for name in table.dtype.names or ()}


def read_primaries(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads primary particles without responses.

    Args:
        path: A ROOT file with a tree ``showers`` that has the branches of :data:`FEATURES` and ``pdg``, or a
            CSV with a header of these names in any order. A CSV may leave out mass and charge: they follow
            from the PDG code.

    Returns:
        Features with shape (N, 9), float64, in the order and units of :data:`FEATURES`, and PDG codes (N,),
        int32.

    Raises:
        ValueError: If anything is wrong with the file, in one line that says what and where.
    """
    particles, pdg = zip(*PrimariesFile.open(path).pieces(), strict=True)
    return np.concatenate(particles), np.concatenate(pdg)


#: One file or several.
Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def _content(path: Path) -> str:
    """What a file holds: ``showers`` (ROOT, HDF5), ``particles``, ``responses`` (npz), ``table`` or ``images`` (text)."""
    match path.suffix.lower():
        case ".root" | ".h5" | ".hdf5":
            return "showers"
        case ".npz":
            dimensions = len(npz_header(path)[0])
            if dimensions not in (2, 3):
                raise ValueError(f"{path}: arr_0 has {dimensions} dimensions; expected (N, 9), (N, 10) or (N, nx, ny)")
            return "particles" if dimensions == 2 else "responses"
        case ".csv" | ".txt":
            return "table" if is_table(path) else "images"
        case other:
            raise ValueError(f"{path}: unknown suffix {other!r}; expected .root, .h5, .npz, .csv or .txt")


def _sets(files: Files, detector: str | None) -> list[tuple[Path, ...]]:
    """Sorts files into data sets, in listed order: a file of showers, particles with responses, or a table with images."""
    listed = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not listed:
        raise ValueError("no file to read; expected at least one")
    paths: dict[Path, Path] = {}
    for path in map(existing_file, listed):
        paths.setdefault(path.resolve(), path)  # a file that is listed twice is read once
    found: dict[str, list[Path]] = {k: [] for k in ("showers", "particles", "responses", "table", "images")}
    for path in paths.values():
        found[_content(path)].append(path)
    particles, responses = found["particles"], found["responses"]
    if not responses:
        responses = [_partner(path, "particles", "responses") for path in particles]
    elif not particles:
        particles = [_partner(path, "responses", "particles") for path in responses]
    if len(particles) != len(responses):
        counts = f"{len(particles)} npz files with particles and {len(responses)} with responses"
        raise ValueError(f"{particles[0]}: got {counts}; expected pairs")
    sets: list[tuple[Path, ...]] = [(path,) for path in found["showers"]]
    sets += _pairs(particles, responses)
    if found["table"] or found["images"]:
        sets += pair_texts(found["table"], found["images"], detector and get_detector(detector).name)
    place = {path: k for k, path in enumerate(paths.values())}
    return sorted(sets, key=lambda members: min(place.get(path, len(place)) for path in members))


def _pairs(particles: list[Path], responses: list[Path]) -> list[tuple[Path, Path]]:
    """Pairs npz files by their names; a single pair may be called anything.

    Raises:
        ValueError: If the names of several do not tell: paired by place, showers would get other primaries.
    """
    if len(particles) == 1:
        return [(particles[0], responses[0])]
    partners = {path.with_name(path.name.replace("responses", "particles")): path for path in responses}
    if lost := [path for path in particles if path not in partners]:
        raise ValueError(
            f"{lost[0]}: which of {len(responses)} files holds its responses? expected names that differ in `particles` and "
            "`responses` alone"
        )
    return [(path, partners[path]) for path in particles]


def _partner(path: Path, mine: str, other: str) -> Path:
    partner = path.with_name(path.name.replace(mine, other))
    if partner == path or not partner.exists():
        raise ValueError(
            f"{path}: its partner with the {other} is missing; expected it beside this or as a second file"
        )
    return existing_file(partner)


def files_read(files: Files, detector: str | None = None) -> list[Path]:
    """Everything that is read for some files, each file once: what is listed and the partners found beside it.

    Args:
        files: One or several files, as :func:`read` takes them.
        detector: The detector expected; of text, the images of other detectors are not read.

    Raises:
        ValueError: If a file is missing or cannot be told, or a partner is missing.
    """
    return list(dict.fromkeys(path for members in _sets(files, detector) for path in members))


def sources(
    files: Files,
    detector: str | None = None,
    assume_beam_direction: bool = False,
    prefer: Sequence[int] = (),
    names: Names = Names(),
) -> list[Source]:
    """The data sets that files make up, in the order in which :func:`read` reads them.

    Args:
        files: As for :func:`read`.
        detector: As for :func:`read`.
        assume_beam_direction: As for :func:`read`.
        prefer: As for :func:`read`.
        names: What ROOT files call their tree and branches, and HDF5 files their datasets.

    Raises:
        ValueError: If anything that shows without reading all rows is wrong with a file.
    """
    wanted = None if detector is None else get_detector(detector).name

    def source(first: Path, partner: Path | None = None) -> Source:
        if partner is None and first.suffix.lower() in SUFFIXES:
            return hdf5_source(first, wanted, names)
        if partner is None:
            with open_tree(first, names) as tree:
                kind = o2sim_source if tree.name == O2SIM and not names.columns else root_source
            return kind(first, wanted, names)
        if first.suffix.lower() == ".npz":
            return npz_source(first, partner, wanted, prefer)
        return text_source(first, partner, assume_beam_direction)

    result = [source(*members) for members in _sets(files, wanted)]
    for each in result:
        agreed_detector(each.detector, result[0].detector, each.name)
        if each.rows == 0:
            raise ValueError(f"{each.name}: holds no rows; expected at least one")
    return result


def arrays_source(arrays: Mapping[str, Any], wanted: str | None) -> Source:
    """Arrays in memory as a source.

    Args:
        arrays: Columns by our names: numpy's, pandas' or awkward's arrays, or lists. Others are ignored.
        wanted: The detector; told by the images' shape if None.

    Raises:
        ValueError: If a column is missing, or they are not of one length.
    """
    names = [name for name in COLUMNS if name in arrays or name not in TABULATED]
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"arrays: has no {missing[0]!r}; expected {', '.join(COLUMNS)}")
    values = {name: _numbers(name, arrays[name]) for name in names}
    images = values["response"]
    for name, column in values.items():
        if name != "response" and column.shape != images.shape[:1]:
            raise ValueError(
                f"arrays: {name} has shape {column.shape}; expected {images.shape[:1]}, a number for each image"
            )
    detector = told_detector(images.shape[1:], wanted, "arrays")

    def pieces(rows: int) -> Iterator[tuple[Showers, Where]]:
        for first in range(0, len(images), rows):
            where = partial(row_name, first)
            part = {name: column[first : first + rows] for name, column in values.items()}
            yield showers_of(part, detector, "arrays", where), where

    return Source(detector, len(images), images.dtype in (np.int8, np.int16), pieces, "arrays")


def _numbers(name: str, values: Any) -> np.ndarray:
    """A column as numpy's array, whatever its library; a series of images is one array."""
    try:
        array = np.asarray(values)
        array = np.array(list(array)) if array.dtype.hasobject else array
    except ValueError:  # of awkward's arrays too
        array = np.array(None)
    if array.dtype.kind not in "iuf" or not array.ndim:
        raise ValueError(f"arrays: {name} holds {type(values).__name__}; expected numbers, as many in each row")
    return array


def checked_pieces(source: Source, rows: int) -> Iterator[Showers]:
    """Reads a source in constant memory.

    Args:
        source: One of :func:`sources`.
        rows: The most rows in one piece.

    Yields:
        Records of 1 to ``rows`` rows: images int16, or int32 where a pixel of the piece needs it.

    Raises:
        ValueError: If a row is bad.
    """
    for showers, where in source.pieces(rows):
        check_showers(showers, source.name, where)
        yield showers


def read(
    path: Files | Mapping[str, Any],
    detector: str | None = None,
    assume_beam_direction: bool = False,
    prefer: Sequence[int] = (),
    tree: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Showers:
    """Reads showers into memory, whatever the form of the files; the images take one array and little more.

    Args:
        path: A ROOT file with a tree of showers, ours or another's; a file of O2's simulation; HDF5; an npz file of
            particles or responses (the other one is looked for beside it); a CSV of ``Extract.C`` (its ``neutron_image.txt``
            or ``proton_image.txt`` is looked for beside it). Or several files, each read once, one data set after the other in
            listed order; partners may stand anywhere in the list. Or arrays in memory, by the names of
            :data:`~calosim.data.record.COLUMNS`: numpy's, pandas' or awkward's.
        detector: The detector expected. Required to choose where text files hold images of both ZN and ZP.
        assume_beam_direction: Whether to take tracks of the older CSV, which has no momenta, as parallel to
            the beam: :math:`p_x = p_y = 0`, :math:`p_z = \\mathrm{sign}(v_z) \\sqrt{E^2 - m^2}`.
        prefer: PDG codes to take where a file without them leaves a choice; 310 takes K0S where K0L fits as
            well.
        tree: The tree of ROOT files, ``events/tracks``; ``showers`` or ``o2sim`` if not given.
        columns: Branches or datasets by our names, where they are others: ``{"energy": "E", "px": "p.fX"}``.

    Returns:
        All rows; images int16, or int32 where a pixel needs it.

    Raises:
        ValueError: If anything is wrong with a file, in one line that says what and where.
    """
    if isinstance(path, Mapping):
        parts = [arrays_source(path, detector)]
    else:
        parts = sources(path, detector, assume_beam_direction, prefer, Names(tree, columns or {}))
    from tqdm import tqdm

    # Files of wider numbers are gone through once more, so that one artefact in the last row does not cost
    # two arrays.
    wide = any(
        showers.images.dtype != np.int16
        for source in parts
        if not source.narrow
        for showers in checked_pieces(source, BASKET)
    )
    n, geometry = sum(source.rows for source in parts), get_detector(parts[0].detector)
    particles, pdg = np.empty((n, len(FEATURES))), np.empty(n, np.int32)
    images = np.empty((n, *geometry.shape), np.int32 if wide else np.int16)
    first = 0
    # Large files take seconds; `calosim ... --quiet` sets tqdm's own variable.
    silent = True if os.environ.get("TQDM_DISABLE") else None
    with tqdm(total=n, desc=f"reading {parts[0].name}", unit="rows", delay=1, disable=silent) as progress:
        for source in parts:
            for showers in checked_pieces(source, BASKET):
                part = slice(first, first + len(showers))
                particles[part], pdg[part], images[part] = showers.particles, showers.pdg, showers.images
                first += len(showers)
                progress.update(len(showers))
    return Showers(particles, pdg, images, geometry.name)


def convert(options: Convert) -> None:
    """Converts showers of any known form to one ROOT or HDF5 file.

    Raises:
        ValueError: If anything is wrong with a file, in one line that says what and where.
    """
    source, out, detector, quiet = options.source, options.out, options.detector, options.quiet
    from tqdm import tqdm

    names = Names(options.tree, options.columns or {})
    parts = sources(source, detector, options.assume_beam_direction, options.prefer or (), names)
    check_not_read(out, [source] if isinstance(source, str) else source)
    total = sum(part.rows for part in parts)
    particles: set[int] = set()
    bar = tqdm(total=total, unit="rows", disable=True if quiet else None)
    kinds = dict.fromkeys(Writer.suffixes, Writer) | dict.fromkeys(SUFFIXES, Hdf5Writer)
    suffix = Path(out).suffix.lower()
    if suffix not in kinds:
        raise ValueError(f"{out}: unknown suffix {suffix!r} to write; expected {' or '.join(kinds)}")
    with kinds[suffix](out, parts[0].detector) as writer, bar as progress:
        for part in parts:
            for showers in checked_pieces(part, BASKET):
                writer.extend(showers)
                particles.update(showers.pdg.tolist())
                progress.update(len(showers))
    size = f"{Path(out).stat().st_size / 1e6:,.1f} MB"
    print(f"{out}: {total:,} {writer.geometry.title} responses of {len(particles)} particle types, {size}")
