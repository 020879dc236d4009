"""Arrays of showers in files that are not ROOT's: pairs of npz files, and HDF5 in the CaloChallenge's layout.

References:
    | CaloChallenge 2022: A Community Challenge for Fast Calorimeter Simulation (Krause et al.), https://arxiv.org/abs/2410.21611
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from calosim.data.record import (
    COLUMNS,
    FEATURES,
    TABULATED,
    Showers,
    Source,
    Where,
    check_primaries,
    infer_pdg,
    pdg_codes,
    photon_counts,
    reading_file,
    row_name,
    showers_of,
    told_detector,
)
from calosim.data.root import Names, Writer

__all__ = ["SUFFIXES", "Hdf5Writer", "hdf5_source", "npz_header", "npz_source"]


@contextmanager
def _npz(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Opens the array of an npz file as a stream behind its header."""
    with reading_file(path):
        archive = zipfile.ZipFile(path)
    with archive:
        if "arr_0.npy" not in archive.namelist():
            found = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
            raise ValueError(f"{path}: has no key 'arr_0'; found {found}")
        with reading_file(path):
            stream = archive.open("arr_0.npy")
        with stream:
            with reading_file(path):
                shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
            if dtype.kind not in "iuf":
                what = "pickled Python objects" if dtype.hasobject else f"type {dtype}"
                raise ValueError(f"{path}: arr_0 holds {what}; expected plain numbers")
            if fortran and len(shape) > 1:
                raise ValueError(f"{path}: arr_0 is in Fortran order; expected C order (numpy.ascontiguousarray)")
            yield stream, shape, dtype


#: Readers of an array's header, by version of numpy's format.
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def npz_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array of an npz file, which is not read.

    Raises:
        ValueError: If the file is damaged or holds something else.
    """
    with _npz(path) as (_, shape, dtype):
        return shape, dtype


def _npz_pieces(path: Path, rows: int) -> Iterator[np.ndarray]:
    with _npz(path) as (stream, shape, dtype):
        size = math.prod(shape[1:]) * dtype.itemsize
        for first in range(0, shape[0], rows):
            n = min(rows, shape[0] - first)
            with reading_file(path):
                piece = np.frombuffer(stream.read(n * size), dtype).reshape(n, *shape[1:])
            yield piece


def npz_source(particles: Path, responses: Path, wanted: str | None, prefer: Sequence[int]) -> Source:
    """A pair of npz files as a source.

    Args:
        particles: ``arr_0`` with shape (N, 9), or (N, 10) with the PDG code.
        responses: ``arr_0`` with shape (N, nx, ny).
        wanted: The detector expected; any if None.
        prefer: PDG codes to take where a file without them leaves a choice.

    Raises:
        ValueError: If the shapes do not fit each other or a detector.
    """
    (shape, _), (image_shape, dtype) = npz_header(particles), npz_header(responses)
    if shape[1] not in (len(FEATURES), len(FEATURES) + 1):
        raise ValueError(
            f"{particles}: arr_0 has {shape[1]} columns; expected {len(FEATURES)} ({', '.join(FEATURES)}), "
            "and the PDG code as an optional tenth"
        )
    if shape[0] != image_shape[0]:
        raise ValueError(f"{responses}: has {image_shape[0]} rows; {particles} has {shape[0]}")
    detector = told_detector(image_shape[1:], wanted, str(responses))

    def pieces(rows: int) -> Iterator[tuple[Showers, Where]]:
        first = 0
        for table, images in zip(_npz_pieces(particles, rows), _npz_pieces(responses, rows), strict=True):
            where = partial(row_name, first)
            try:
                features = table[:, : len(FEATURES)].astype(np.float64)
                if table.shape[1] > len(FEATURES):
                    pdg = pdg_codes(table[:, -1], str(particles), where)
                else:
                    pdg = infer_pdg(features, prefer, str(particles), where)
                # Checked here because a message about a feature must name this file, not the one with the images.
                check_primaries(features, pdg, str(particles), where)
            except ValueError as error:  # columns have no names here, and others may have been meant
                raise ValueError(f"{error} (columns {', '.join(FEATURES)}, pdg)") from None
            yield Showers(features, pdg, photon_counts(images, str(responses), where), detector), where
            first += len(table)

    return Source(detector, shape[0], dtype.kind == "i" and dtype.itemsize <= 2, pieces, str(responses))


SUFFIXES = (".h5", ".hdf5")

#: The CaloChallenge's names: energies (N, 1) in MeV, and what cells hold (N, cells), here photons of pixel (x, y) at x ny + y.
_ENERGIES, _SHOWERS = "incident_energies", "showers"

#: Rows of a chunk of the images: half a megabyte of the ZN's.
_CHUNK = 64


def _h5py() -> Any:
    """h5py, an optional package.

    Raises:
        ValueError: If it is missing.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "expected h5py for HDF5 files, which is not installed; try pip install 'calosim[hdf5]'"
        ) from None
    return h5py


@contextmanager
def _columns(path: Path, names: Names) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Opens a file and its datasets, by our names."""
    h5py = _h5py()
    with reading_file(path):
        file = h5py.File(path, "r")
    with file:
        found = {}
        with reading_file(path):
            there = list(file)
        for name in COLUMNS:
            called = names.columns.get(name, _SHOWERS if name == "response" else name)
            with reading_file(path):
                data = file.get(called)
                kind = data.dtype if isinstance(data, h5py.Dataset) else None
            if data is None and name in TABULATED:
                continue
            if kind is None:
                has = ", ".join(there) or "nothing"
                raise ValueError(
                    f"{path}: has no dataset {called!r}; expected {_SHOWERS} with {', '.join(COLUMNS[:-1])}, found {has}"
                )
            if kind.kind not in "iuf":
                raise ValueError(f"{path}: dataset {called!r} holds {kind}; expected numbers")
            found[name] = data
        yield file, found


def hdf5_source(path: Path, wanted: str | None, names: Names = Names()) -> Source:
    """A file in the CaloChallenge's layout as a source.

    Args:
        path: The file. Features and ``pdg`` are datasets (N,) or (N, 1) with our names and units; the file's attribute
            ``detector`` names the detector, which is told by the number of cells otherwise. Faces of two dimensions only.
        wanted: The detector expected; any if None.
        names: Of the datasets, where they are others.

    Raises:
        ValueError: If the file is bad, or holds another detector.
    """
    with _columns(path, names) as (file, data):
        with reading_file(path):
            shapes = {name: values.shape for name, values in data.items()}
            narrow, named = data["response"].dtype in (np.int8, np.int16), file.attrs.get("detector")
        named = named.decode(errors="replace") if isinstance(named, bytes) else named and str(named)
        rows, shape = (shapes["response"] or (0,))[0], shapes["response"][1:]
        for name, each in shapes.items():
            if name != "response" and each not in ((rows,), (rows, 1)):
                raise ValueError(
                    f"{path}: dataset {name!r} has shape {each}; expected ({rows},), a number for each shower"
                )
    detector = told_detector(shape, wanted, str(path), named)

    def pieces(most: int) -> Iterator[tuple[Showers, Where]]:
        with _columns(path, names) as (_, data):
            for first in range(0, rows, most):
                where, part = partial(row_name, first), slice(first, min(first + most, rows))
                with reading_file(path):
                    arrays = {name: values[part] for name, values in data.items()}
                arrays = {name: values if name == "response" else values.reshape(-1) for name, values in arrays.items()}
                yield showers_of(arrays, detector, str(path), where), where

    return Source(detector, rows, narrow, pieces, str(path))


class Hdf5Writer(Writer):
    """Writes showers to an HDF5 file as :class:`~calosim.data.root.Writer` does to a ROOT file, with the same promises."""

    suffixes = SUFFIXES

    def _open(self) -> None:
        h5py, pixels = _h5py(), self.geometry.pixels
        self._dtype = np.dtype(np.int32)
        with self._write_errors():
            self._file = h5py.File(self._temporary, "w")
            self._file.attrs["detector"] = self.geometry.name
            kinds: dict[str, Any] = {_ENERGIES: ((1,), "f8"), **dict.fromkeys(FEATURES, ((), "f8"))}
            kinds |= {"pdg": ((), "i4"), _SHOWERS: ((pixels,), "i4")}
            for name, (shape, kind) in kinds.items():
                # Most pixels are empty: level 1 is as small as others and many times as fast.
                how = {
                    "chunks": (_CHUNK if shape and shape[0] > 1 else 4096, *shape),
                    "compression": "gzip",
                    "compression_opts": 1,
                }
                self._file.create_dataset(name, (0, *shape), kind, maxshape=(None, *shape), **how)

    def _put(self, showers: Showers) -> None:
        columns = {name: showers.particles[:, k] for k, name in enumerate(FEATURES)} | {"pdg": showers.pdg}
        columns |= {_ENERGIES: 1000 * showers.particles[:, :1], _SHOWERS: showers.images.reshape(len(showers), -1)}
        with self._write_errors():
            for name, values in columns.items():
                data = self._file[name]
                data.resize(len(data) + len(values), axis=0)
                data[-len(values) :] = values
