"""HDF5 in the layout of the CaloChallenge: ``incident_energies`` and ``showers``, with our features and PDG codes beside them.

References:
    | CaloChallenge 2022: A Community Challenge for Fast Calorimeter Simulation (Krause et al.), https://arxiv.org/abs/2410.21611
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calosim.data.record import (
    COLUMNS,
    FEATURES,
    TABULATED,
    Showers,
    Source,
    Where,
    reading_file,
    row_name,
    showers_of,
    told_detector,
)
from calosim.data.root import Names, Writer

__all__ = ["SUFFIXES", "Hdf5Writer", "hdf5_source"]

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
