"""Reader of the text that O2's macro ``Extract.C`` prints: a CSV of tracks, and image texts of ZN or ZP."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from calosim.data.record import (
    Showers,
    Source,
    Where,
    check_primaries,
    existing_file,
    first_true,
    pdg_codes,
    photon_counts,
    row_name,
    tabulated,
)
from calosim.detectors import DETECTORS, Detector

__all__ = ["column_pieces", "count_lines", "is_table", "pair_texts", "read_table", "text_source"]

#: The letter of a detector in the first column of Extract.C's CSV, and the name of its image file.
_TEXT_DETECTORS = {"zn": ("N", "neutron_image.txt"), "zp": ("P", "proton_image.txt")}

#: Columns of Extract.C's CSV and their types; the older form has no momenta.
_COLUMNS: dict[str, str] = {
    "Detector": "U1",
    "Pdg": "i8",
    "Energy": "f8",
    "Vx": "f8",
    "Vy": "f8",
    "Vz": "f8",
    "PhotonSum": "i8",
}
_MOMENTA = ("Px", "Py", "Pz")


def open_text(path: Path) -> IO[str]:
    """Opens a text file, in the encodings that spreadsheets write; what is no text shows in messages as a question mark."""
    with path.open("rb") as file:
        start = file.read(2)
    encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return path.open(encoding=encoding, errors="replace")


def is_table(path: Path) -> bool:
    """Whether a text file begins with names, as tables do, rather than with the numbers of an image."""
    with open_text(path) as file:
        return any(letter.isalpha() for letter in file.readline(1000))


def read_table(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the table of tracks that O2's ``Extract.C`` prints, without images.

    Args:
        path: A CSV with the columns ``Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum``, or the older form
            ``Detector,Event,Counter,StatusCode,Pdg,Energy,Vx,Vy,Vz,PhotonSum``. Other columns are left out.

    Returns:
        A structured array with shape (N,) and one field per column above, in the file's units: GeV, cm, GeV/c
        and photons. ``Detector`` is ``N`` or ``P``; the older form has no fields ``Px``, ``Py`` and ``Pz``.

    Raises:
        ValueError: If a column is missing or a field is not what its column expects. Lines count from 1.
    """
    return next(column_pieces(existing_file(path), _COLUMNS, dict.fromkeys(_MOMENTA, "f8")))


def column_pieces(
    path: Path, columns: dict[str, str], optional: dict[str, str], first: int = 0, most: int | None = None
) -> Iterator[np.ndarray]:
    """The named columns of a CSV, in pieces.

    Args:
        path: A CSV with a header, its fields separated by commas, or by semicolons or tabs as spreadsheets may do.
        columns: Names and types of the columns it must have.
        optional: Names and types of columns that it has all together or not at all.
        first: The row to begin with; those before it are not looked at.
        most: The most rows of a piece; all if not given.

    Yields:
        Structured arrays with shape (N,); the first one also if it holds nothing.

    Raises:
        ValueError: If a column is missing or a field is not what its column expects. Lines count from 1.
    """
    with open_text(path) as file:
        start = file.readline()
        delimiter = max(",;\t", key=start.count)
        header = [name.strip() for name in next(csv.reader([start], delimiter=delimiter), [])]
        if any(name in header for name in optional):
            columns = columns | optional
        for name in columns:
            if header.count(name) != 1:
                has = f"has {header.count(name)} columns" if name in header else "has no column"
                raise ValueError(f"{path}: {has} {name!r}; expected {', '.join(columns)}, found {', '.join(header)}")
        places = [(header.index(name), name, kind) for name, kind in columns.items()]

        def records() -> Iterator[tuple[Any, ...]]:
            lines = csv.reader(islice(file, first, None), delimiter=delimiter)
            for number, fields in _lines(path, lines, first + 2):
                if len(fields) != len(header):
                    raise ValueError(f"{path}: line {number}: expected {len(header)} fields, got {len(fields)}")
                if delimiter == ";":  # where the comma is the decimal sign
                    fields = [text.replace(",", ".") for text in fields]
                yield tuple(_field(path, number, name, fields[k], kind) for k, name, kind in places)

        rows, dtype, full = records(), np.dtype(list(columns.items())), True
        while full:
            try:
                piece = np.fromiter(islice(rows, most), dtype)
            except csv.Error as error:
                raise ValueError(f"{path}: expected a table of numbers ({error})") from None
            yield piece
            full = most is not None and len(piece) == most


def count_lines(path: Path) -> int:
    """How many rows stand below the header of a CSV; empty lines may stand at the end."""
    with open_text(path) as file:
        file.readline()
        return sum(1 for line in file if line.strip(' ,;\t"\n'))


def _lines(path: Path, lines: Iterable[list[str]], start: int) -> Iterator[tuple[int, list[str]]]:
    """The fields of lines behind the header, with their numbers from ``start`` on; empty lines may stand at the end."""
    empty = 0
    for number, fields in enumerate(lines, start):
        if not any(map(str.strip, fields)):
            empty = empty or number
        elif empty:
            raise ValueError(f"{path}: line {empty}: is empty, but line {number} is not; expected no gap")
        else:
            yield number, fields


def _whole_number(text: str) -> np.int64:
    # Programs for tables write 22.0 or 1E+3 for whole numbers.
    value = float(text) if text.strip("+-0123456789 ") else int(text)
    if value != int(value):
        raise ValueError
    return np.int64(int(value))


def _field(path: Path, number: int, name: str, text: str, kind: str) -> Any:
    expected, convert = _CONVERSIONS[kind]
    try:
        return convert(text)
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{path}: line {number}: {name} is {text!r:.100}; expected {expected}") from None


#: What a field of a type must be, and how it is read.
_CONVERSIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "U1": ("N or P", {"N": "N", "P": "P"}.__getitem__),
    "i8": ("a whole number", _whole_number),
    "f8": ("a number", float),
}


def pair_texts(tables: list[Path], images: list[Path], detector: str | None) -> list[tuple[Path, Path]]:
    """Tables of tracks, each with the image text of one detector.

    Args:
        tables: CSVs of ``Extract.C``.
        images: Image texts in the order of their tables; of none, those beside the tables are taken.
        detector: The detector wanted; it may be left out where there are images of one only.

    Raises:
        ValueError: If a detector must be chosen, or a table has no image text.
    """
    if not tables:
        raise ValueError(f"{images[0]}: images without particles; expected the CSV of Extract.C as a second file")
    if not images:
        beside = [t.with_name(name) for t in tables for _, name in _TEXT_DETECTORS.values()]
        images = [path for path in beside if path.exists()]
    by_detector: dict[str, list[Path]] = {}
    for path in images:
        by_detector.setdefault(_detector_of_line(path), []).append(path)
    if detector is None:
        if len(by_detector) > 1:
            raise ValueError(f"{tables[0]}: comes with ZN and ZP images; expected a choice of detector, zn or zp")
        detector = next(iter(by_detector), "zn")
    found = by_detector.get(detector, [])
    if len(found) != len(tables):
        name = _TEXT_DETECTORS[detector][1] if detector in _TEXT_DETECTORS else "an image text"
        raise ValueError(
            f"{', '.join(map(str, tables))}: {len(tables)} CSV with {len(found)} {DETECTORS[detector].title} image texts; "
            f"expected one for each, such as {name} beside it"
        )
    return list(zip(tables, found, strict=True))


def _detector_of_line(path: Path) -> str:
    """ZN or ZP, told by the numbers in the first line of an image text."""
    with open_text(path) as file:
        n = len(file.readline().split())
    for name in _TEXT_DETECTORS:
        if DETECTORS[name].shape[1] == n:
            return name
    known = " or ".join(f"{DETECTORS[name].shape[1]} ({DETECTORS[name].title})" for name in _TEXT_DETECTORS)
    raise ValueError(f"{path}: line 1: expected {known} numbers, got {n}")


def text_source(table: Path, images: Path, assume_beam_direction: bool) -> Source:
    """What ``Extract.C`` printed, as a source.

    Args:
        table: Its CSV of tracks, which is read here.
        images: Its image text of one detector, which tells whose tracks are taken.
        assume_beam_direction: Whether tracks without momenta are taken as parallel to the beam.

    Raises:
        ValueError: If the table is bad, or has no momenta where they are needed.
    """
    detector = _detector_of_line(images)
    tracks = read_table(table)
    mine = np.flatnonzero(tracks["Detector"] == _TEXT_DETECTORS[detector][0])
    tracks = tracks[mine]

    def where(first: int, index: int) -> str:
        return f"line {mine[first + index] + 2}"

    particles, pdg = _primaries(tracks, table, assume_beam_direction, partial(where, 0))

    def pieces(rows: int) -> Iterator[tuple[Showers, Where]]:
        first = 0
        for block in _image_pieces(images, len(tracks), DETECTORS[detector], rows):
            part, place = slice(first, first + len(block)), partial(row_name, first)
            showers = Showers(particles[part], pdg[part], photon_counts(block, str(images), place), detector)
            if at := first_true(showers.photon_sum != tracks["PhotonSum"][part]):
                row = at[0]
                raise ValueError(
                    f"{table}: {where(first, row)}: PhotonSum is {tracks['PhotonSum'][first + row]}, "
                    f"but image {first + row} of {images} sums to {showers.photon_sum[row]}"
                )
            yield showers, partial(where, first)
            first += len(block)

    return Source(detector, len(tracks), False, pieces, str(table))


def _primaries(
    tracks: np.ndarray, table: Path, assume_beam_direction: bool, where: Where
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 9) and PDG codes (N,) of tracks."""
    pdg = pdg_codes(tracks["Pdg"], str(table), where)
    mass, charge = tabulated(pdg, str(table), where)
    if "Pz" in (tracks.dtype.names or ()):
        momenta = [tracks[name] for name in _MOMENTA]
    elif assume_beam_direction:
        pz = np.sqrt(np.maximum(tracks["Energy"] ** 2 - (mass / 1000) ** 2, 0))
        momenta = [np.zeros_like(pz), np.zeros_like(pz), np.where(tracks["Vz"] < 0, -pz, pz)]
    else:
        raise ValueError(
            f"{table}: the older form of Extract.C has no momenta (columns Px, Py, Pz); "
            "allow assume_beam_direction to take every track as parallel to the beam"
        )
    features = [tracks[name] for name in ("Energy", "Vx", "Vy", "Vz")]
    particles = np.column_stack([*features, *momenta, mass, charge])
    check_primaries(particles, pdg, str(table), where)
    return particles, pdg


def _image_pieces(path: Path, total: int, detector: Detector, rows: int) -> Iterator[np.ndarray]:
    nx, ny = detector.shape
    with open_text(path) as file:
        for first in range(0, total, rows):
            n = min(rows, total - first)
            lines = list(islice(file, n * nx))
            if len(lines) != n * nx:
                got = first * nx + len(lines)
                raise ValueError(f"{path}: has {got} lines; expected {total} images x {nx} lines = {total * nx}")
            yield _numbers(path, lines, first * nx, ny).reshape(n, nx, ny)
        extra = sum(1 for _ in file)
        if extra:
            got = total * nx + extra
            raise ValueError(f"{path}: has {got} lines; expected {total} images x {nx} lines = {total * nx}")


def _numbers(path: Path, lines: list[str], first: int, ny: int) -> np.ndarray:
    """Integers (lines, ny) of text lines."""
    for number, line in enumerate(lines, start=first + 1):
        n = len(line.split())
        if n != ny:
            raise ValueError(f"{path}: line {number}: expected {ny} numbers, got {n}")
    try:
        return np.loadtxt(lines, dtype=np.int64, comments=None, ndmin=2)
    except ValueError as error:
        for number, line in enumerate(lines, start=first + 1):
            for word in line.split():
                _field(path, number, "a pixel", word, "i8")
        raise ValueError(f"{path}: from line {first + 1} on: expected whole numbers ({error})") from None
