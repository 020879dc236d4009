"""Reader of npz pairs: particles and responses, key ``arr_0`` each."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from calosim.data.record import (
    FEATURES,
    Showers,
    Source,
    Where,
    check_primaries,
    infer_pdg,
    pdg_codes,
    photon_counts,
    reading_file,
    row_name,
    told_detector,
)

__all__ = ["npz_header", "npz_source"]


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
