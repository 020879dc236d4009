"""Showers in files: the record of primaries with their photon images, and its readers and writers.

The form that calosim writes is a ROOT file with a TTree ``showers``: one float64 branch per feature of
:data:`FEATURES`, ``pdg`` (int32) and ``response``, a fixed nx x ny array of photon counts (int16; int32 where
a pixel needs it). Two strings beside the tree, ``detector`` and ``format``, name the detector and the version
of this form.

:func:`read` and :func:`iterate` also take what the field passes around: pairs of npz files (particles and
responses, key ``arr_0``) and the text that O2's macro ``Extract.C`` prints (a CSV of tracks, and the images
of ZN or ZP, one line of numbers per x). Whatever is wrong with a file becomes a ``ValueError`` of one line
that names the file and the place.

References:
    | O2's macro Extract.C: AliceO2Group/AliceO2, ``Detectors/ZDC`` (response images of the ZDC simulation)
    | Particle data: Scikit-HEP ``particle``, tables of the Particle Data Group
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from tqdm import tqdm

from calosim.detectors import DETECTORS, Detector, get_detector

__all__ = [
    "FEATURES",
    "Showers",
    "Writer",
    "convert",
    "iterate",
    "read",
    "read_primaries",
    "read_table",
    "validate",
    "write",
]

#: The primary particle's features, in the order of ``Showers.particles``.
#: energy GeV; vx, vy, vz cm; px, py, pz GeV/c; mass MeV; charge in units of e.
FEATURES: tuple[str, ...] = ("energy", "vx", "vy", "vz", "px", "py", "pz", "mass", "charge")

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_TREE = "showers"
_FORMAT = "calosim 1"
#: Rows in one basket of our files, and in one step of the readers: 15 MB of ZN images. Smaller ones cost more in
#: uproot's bookkeeping of baskets, which grows with their number squared.
_BASKET = 4000
_INT16_MAX = np.iinfo(np.int16).max
_INT32_MAX = np.iinfo(np.int32).max
#: Tables of particle masses differ by less (MeV); nuclear and atomic masses of light nuclei by up to 1.1 MeV.
_MASS_TOLERANCE = 1.5
#: What can be a primary of a forward calorimeter (c tau above a centimeter), for files without PDG codes.
#: Neutral antiparticles are left out: nothing in mass and charge tells them from the far more frequent
#: particles.
_LONG_LIVED: tuple[int, ...] = (
    *(22, -11, 11, -13, 13, 130, 310, -211, 211, -321, 321, 2112, -2212, 2212, 3122),
    *(-3112, 3112, -3222, 3222, 3322, -3312, 3312, -3334, 3334),
    *(1000010020, 1000010030, 1000020030, 1000020040),
)
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


@dataclass(frozen=True)
class Showers:
    """Primary particles and the photon images they left in one detector.

    Attributes:
        particles: Features with shape (N, 9), float64, in the order and units of :data:`FEATURES`.
        pdg: PDG codes with shape (N,), int32.
        images: Photon counts with shape (N, nx, ny), integers.
        detector: The detector's name, a key of :data:`calosim.detectors.DETECTORS`.
    """

    particles: np.ndarray
    pdg: np.ndarray
    images: np.ndarray
    detector: str

    def __len__(self) -> int:
        return len(self.pdg)

    @property
    def geometry(self) -> Detector:
        """The detector of :attr:`detector`."""
        return get_detector(self.detector)

    @property
    def photon_sum(self) -> np.ndarray:
        """Photons of every image, shape (N,), int64."""
        return self.images.sum(axis=(1, 2), dtype=np.int64)

    @cached_property
    def inputs(self) -> np.ndarray:
        """The unique input each row belongs to, shape (N,), int64, numbered in order of first appearance.

        Rows are of one input when the nine features and the PDG code are identical: the same primary
        simulated again.
        """
        # Adding zero turns -0.0 into 0.0, which must compare equal byte by byte.
        rows = np.ascontiguousarray(np.column_stack([self.particles, self.pdg]) + 0.0)
        keys = rows.view(f"V{rows.shape[1] * rows.itemsize}")[:, 0].tolist()
        seen: dict[bytes, int] = {}
        return np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int64, len(keys))

    def select(self, rows: np.ndarray | slice) -> Showers:
        """Returns some rows, by index, mask or slice."""
        return Showers(self.particles[rows], self.pdg[rows], self.images[rows], self.detector)


# Particle data


@lru_cache
def _mass_and_charge(pdg: int) -> tuple[float, float] | None:
    from particle import InvalidParticle, Particle, ParticleNotFound  # reading its tables costs 0.2 s

    try:
        particle = Particle.from_pdgid(pdg)
    except (InvalidParticle, ParticleNotFound):
        return None
    # Neutrinos have no mass in the tables.
    return float(particle.mass or 0.0), float(particle.charge or 0.0)


def _masses_and_charges(pdg: np.ndarray, source: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Masses in MeV and charges in e of PDG codes, each with shape (N,)."""
    codes, inverse = np.unique(pdg, return_inverse=True)
    known = [_mass_and_charge(int(code)) for code in codes]
    if at := _first(np.array([k is None for k in known], dtype=bool)[inverse]):
        raise ValueError(f"{source}: {where(at[0])}: unknown PDG code {pdg[at]}; expected one of the PDG tables")
    values = np.array(known, dtype=np.float64).reshape(-1, 2)[inverse]
    return values[:, 0], values[:, 1]


def _infer_pdg(particles: np.ndarray, prefer: Sequence[int], source: str, where: Where) -> np.ndarray:
    """PDG codes from mass and charge, for files that have none: features (N, 9) to codes (N,)."""
    known = {code: _mass_and_charge(code) for code in (*prefer, *_LONG_LIVED)}
    pairs, inverse = np.unique(particles[:, 7:9], axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    codes = np.zeros(len(pairs), np.int32)
    for k, (mass, charge) in enumerate(pairs):
        fits = [c for c, p in known.items() if p and abs(p[0] - mass) < _MASS_TOLERANCE and p[1] == charge]
        fits = [c for c in fits if c in prefer][:1] or fits
        if len(fits) != 1:
            row = where(int((inverse == k).argmax()))
            found = f"fit PDG codes {', '.join(map(str, fits))}: prefer one" if fits else "fit no particle"
            raise ValueError(
                f"{source}: {row}: mass {mass:g} MeV and charge {charge:g} e {found}; "
                "expected one fit, or the PDG code as a tenth column"
            )
        codes[k] = fits[0]
    return codes[inverse]


# Validation

Where = Callable[[int], str]


def _row(first: int, index: int) -> str:
    return f"row {first + index}"


def validate(showers: Showers, source: str) -> None:
    """Checks that a record means what its type promises.

    Args:
        showers: Any number of rows.
        source: Where they come from, for the message; usually a file name.

    Raises:
        ValueError: If shapes or types disagree, a feature is not finite, an energy or a photon count is
            negative, a PDG code is unknown, or a mass or charge is not that of its PDG code. Rows count from
            0.
    """
    _validate(showers, source, partial(_row, 0))


def _first(wrong: np.ndarray) -> tuple[int, ...] | None:
    """Where a boolean array is first true, or nothing."""
    return tuple(int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape)) if wrong.any() else None


def _validate(showers: Showers, source: str, where: Where) -> None:
    detector, n = showers.geometry, len(showers.pdg)
    if showers.images.shape != (n, *detector.shape):
        raise ValueError(
            f"{source}: response: expected {detector.title} images with shape {(n, *detector.shape)}, "
            f"got {showers.images.shape}"
        )
    if showers.images.dtype.kind not in "iu":
        raise ValueError(f"{source}: response: expected integer photon counts, got {showers.images.dtype}")
    _validate_primaries(showers.particles, showers.pdg, source, where)
    _counts(showers.images, source, where)


def _validate_primaries(particles: np.ndarray, pdg: np.ndarray, source: str, where: Where) -> None:
    expected = (len(pdg), len(FEATURES))
    if particles.shape != expected:
        raise ValueError(f"{source}: expected particles with shape {expected}, got {particles.shape}")
    if at := _first(~np.isfinite(particles)):
        name, value = FEATURES[at[1]], particles[at]
        raise ValueError(f"{source}: {where(at[0])}: {name} is {value}; expected a finite number")
    if at := _first(particles[:, 0] <= 0):
        value = particles[at[0], 0]
        raise ValueError(f"{source}: {where(at[0])}: energy is {value:g} GeV; expected more than 0")
    mass, charge = _masses_and_charges(pdg, source, where)
    for k, true, tolerance in (
        (FEATURES.index("mass"), mass, np.maximum(_MASS_TOLERANCE, 0.01 * mass)),
        (FEATURES.index("charge"), charge, np.zeros_like(charge)),
    ):
        if at := _first(np.abs(particles[:, k] - true) > tolerance):
            unit = "MeV" if FEATURES[k] == "mass" else "e"
            raise ValueError(
                f"{source}: {where(at[0])}: {FEATURES[k]} is {particles[at[0], k]:g}; "
                f"expected {true[at]:g} {unit} for PDG code {pdg[at]}"
            )


def _counts(values: np.ndarray, source: str, where: Where) -> np.ndarray:
    """Photon counts (N, nx, ny) of any numeric type as int16, or int32 where a pixel needs it."""
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    wrong = None
    # Comparisons with NaN are false, hence `not`.
    if not (low >= 0 and high <= _INT32_MAX):
        wrong = ~((values >= 0) & (values <= _INT32_MAX))
    elif values.dtype.kind == "f":
        wrong = values != np.rint(values)
    if wrong is not None and (at := _first(wrong)):
        raise ValueError(
            f"{source}: {where(at[0])}: response holds {values[at]:g} photons in pixel {at[1:]}; "
            f"expected a whole number from 0 to {_INT32_MAX}"
        )
    return values.astype(np.int16 if high <= _INT16_MAX else np.int32, copy=False)


def _codes(values: np.ndarray, source: str, where: Where) -> np.ndarray:
    """PDG codes (N,) of any numeric type as int32."""
    if at := _first(~(np.abs(values) <= _INT32_MAX) | (values != np.rint(values))):
        raise ValueError(f"{source}: {where(at[0])}: pdg is {values[at]}; expected a PDG code")
    return values.astype(np.int32)


def _detector_of_shape(shape: tuple[int, ...], source: str) -> str:
    for name, detector in DETECTORS.items():
        if detector.shape == shape:
            return name
    known = ", ".join(f"{d.title} {d.shape[0]} x {d.shape[1]}" for d in DETECTORS.values())
    raise ValueError(f"{source}: response: images of shape {shape} fit no detector; expected one of {known}")


def _agreed(found: str, wanted: str | None, source: str) -> str:
    if wanted is not None and get_detector(wanted).name != found:
        title = get_detector(wanted).title
        raise ValueError(f"{source}: holds {DETECTORS[found].title} responses; expected {title}")
    return found


# Sources: one data set each, in one or two files


@dataclass(frozen=True)
class _Source:
    """A data set that can be read in pieces.

    Attributes:
        detector: The detector's name.
        rows: The number of rows.
        narrow: Whether the images are stored as 16-bit integers, so that no piece can be wider.
        pieces: Called with a number of rows, yields records of at most that many and what to call their rows.
        name: The file's name for messages.
    """

    detector: str
    rows: int
    narrow: bool
    pieces: Callable[[int], Iterator[tuple[Showers, Where]]]
    name: str


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; expected a file")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    return path


def _kind(path: Path) -> str:
    """What a file holds: ``root``, ``particles``, ``responses`` (npz), ``table`` or ``images`` (text)."""
    match path.suffix.lower():
        case ".root":
            return "root"
        case ".npz":
            dimensions = len(_npz_header(path)[0])
            if dimensions not in (2, 3):
                raise ValueError(f"{path}: arr_0 has {dimensions} dimensions; expected (N, 9), (N, 10) or (N, nx, ny)")
            return "particles" if dimensions == 2 else "responses"
        case ".csv" | ".txt":
            with _text(path) as file:
                start = file.readline(1000)
            return "table" if "," in start else "images"
        case other:
            raise ValueError(f"{path}: unknown suffix {other!r}; expected .root, .npz, .csv or .txt")


def _sources(files: Files, detector: str | None, assume_beam_direction: bool, prefer: Sequence[int]) -> list[_Source]:
    """Sorts files into data sets, looking for a partner beside a file that comes without."""
    listed = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not listed:
        raise ValueError("no file to read; expected at least one")
    if detector is not None:
        detector = get_detector(detector).name
    kinds: dict[str, list[Path]] = {k: [] for k in ("root", "particles", "responses", "table", "images")}
    for path in map(_existing, listed):
        kinds[_kind(path)].append(path)
    sources = [_root_source(path, detector) for path in kinds["root"]]
    particles, responses = kinds["particles"], kinds["responses"]
    if not responses:
        responses = [_partner(path, "particles", "responses") for path in particles]
    elif not particles:
        particles = [_partner(path, "responses", "particles") for path in responses]
    if len(particles) != len(responses):
        counts = f"{len(particles)} npz files with particles and {len(responses)} with responses"
        raise ValueError(f"{particles[0]}: got {counts}; expected pairs")
    sources += [_npz_source(p, r, detector, prefer) for p, r in zip(particles, responses, strict=True)]
    if kinds["table"] or kinds["images"]:
        sources += _text_sources(kinds["table"], kinds["images"], detector, assume_beam_direction)
    for source in sources:
        _agreed(source.detector, sources[0].detector, source.name)
        if source.rows == 0:
            raise ValueError(f"{source.name}: holds no rows; expected at least one")
    return sources


def _partner(path: Path, mine: str, other: str) -> Path:
    partner = path.with_name(path.name.replace(mine, other))
    if partner == path or not partner.exists():
        raise ValueError(
            f"{path}: its partner with the {other} is missing; expected it beside this or as a second file"
        )
    return _existing(partner)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what a library says of a damaged file into one line; around a single call."""
    try:
        yield
    except Exception as error:  # random bytes can make uproot, zipfile and numpy raise almost anything
        kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
        raise ValueError(f"{path}: the file is damaged or incomplete; reading it ends in {kind}") from error


# ROOT


@contextmanager
def _tree(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens a ROOT file and its tree."""
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
    with _damage(path):
        file = uproot.open({str(path): None})
    with file:
        with _damage(path):
            names = {key.partition(";")[0] for key in file.keys(recursive=False)}
        if _TREE not in names:
            if "o2sim" in names:
                raise ValueError(
                    f"{path}: holds O2's tree 'o2sim', whose C++ classes only O2 can read; "
                    "run O2's macro Extract.C on it and convert the text that it prints"
                )
            found = ", ".join(sorted(names)) or "nothing"
            raise ValueError(f"{path}: has no tree {_TREE!r}; found {found}")
        with _damage(path):
            tree = file[_TREE]
        if not isinstance(tree, uproot.TTree):
            kind = getattr(tree, "classname", type(tree).__name__)
            raise ValueError(f"{path}: {_TREE!r} is a {kind}; expected a TTree (uproot writes one with mktree)")
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


def _check_branches(path: Path, tree: Any, names: Sequence[str]) -> None:
    found = tree.keys(recursive=False)
    for name in names:
        if name not in found:
            raise ValueError(f"{path}: has no branch {name!r}; expected {', '.join(names)}")
    for name in (n for n in names if n != "response"):
        shape, _ = _branch_shape(path, tree, name)
        if shape:
            raise ValueError(f"{path}: branch {name!r} has entries of shape {shape}; expected one number")


def _root_source(path: Path, wanted: str | None) -> _Source:
    with _tree(path) as (file, tree):
        texts = {}
        with _damage(path):
            texts = {name: str(file[name]) for name in ("format", "detector") if name in file}
        if texts.get("format", _FORMAT) != _FORMAT:
            raise ValueError(f"{path}: has format {texts['format']!r}; this calosim reads {_FORMAT!r}")
        _check_branches(path, tree, (*FEATURES, "pdg", "response"))
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
            detector = _detector_of_shape(shape, str(path))
        _agreed(detector, wanted, str(path))
        narrow = dtype.kind == "i" and dtype.itemsize <= 2
        return _Source(detector, tree.num_entries, narrow, partial(_root_pieces, path, detector), str(path))


def _root_pieces(path: Path, detector: str, rows: int) -> Iterator[tuple[Showers, Where]]:
    with _tree(path) as (_, tree):
        # Whole baskets at a time: a basket cut in two would be decompressed twice.
        with _damage(path):
            edges = [int(edge) for edge in tree["response"].entry_offsets]
        start = 0
        for edge in edges[1:]:
            if edge - start < rows and edge != edges[-1]:
                continue
            arrays = _arrays(path, tree, (*FEATURES, "pdg", "response"), start, edge)
            for first in range(0, edge - start, rows):
                part = {name: values[first : first + rows] for name, values in arrays.items()}
                where = partial(_row, start + first)
                yield (
                    Showers(
                        np.column_stack([part[name] for name in FEATURES]).astype(np.float64, copy=False),
                        _codes(part["pdg"], str(path), where),
                        _counts(part["response"], str(path), where),
                        detector,
                    ),
                    where,
                )
            start = edge


def _arrays(path: Path, tree: Any, names: Sequence[str], start: int, stop: int) -> dict[str, np.ndarray]:
    with _damage(path):
        # uproot's own cache would keep another 100 MB.
        arrays = tree.arrays(names, entry_start=start, entry_stop=stop, library="np", array_cache=None)
    for name, values in arrays.items():
        if len(values) != stop - start:
            got = f"{len(values)} of the {stop - start} entries from {start} on"
            raise ValueError(f"{path}: the file is damaged; branch {name!r} gives {got}")
    return arrays


# npz


@contextmanager
def _npz(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Opens the array of an npz file as a stream behind its header."""
    with _damage(path):
        archive = zipfile.ZipFile(path)
    with archive:
        if "arr_0.npy" not in archive.namelist():
            found = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
            raise ValueError(f"{path}: has no key 'arr_0'; found {found}")
        with _damage(path):
            stream = archive.open("arr_0.npy")
        with stream:
            with _damage(path):
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


def _npz_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    with _npz(path) as (_, shape, dtype):
        return shape, dtype


def _npz_pieces(path: Path, rows: int) -> Iterator[np.ndarray]:
    with _npz(path) as (stream, shape, dtype):
        size = math.prod(shape[1:]) * dtype.itemsize
        for first in range(0, shape[0], rows):
            n = min(rows, shape[0] - first)
            with _damage(path):
                piece = np.frombuffer(stream.read(n * size), dtype).reshape(n, *shape[1:])
            yield piece


def _npz_source(particles: Path, responses: Path, wanted: str | None, prefer: Sequence[int]) -> _Source:
    (shape, _), (image_shape, dtype) = _npz_header(particles), _npz_header(responses)
    if shape[1] not in (len(FEATURES), len(FEATURES) + 1):
        raise ValueError(
            f"{particles}: arr_0 has {shape[1]} columns; expected {len(FEATURES)} ({', '.join(FEATURES)}), "
            "and the PDG code as an optional tenth"
        )
    if shape[0] != image_shape[0]:
        raise ValueError(f"{responses}: has {image_shape[0]} rows; {particles} has {shape[0]}")
    detector = _agreed(_detector_of_shape(image_shape[1:], str(responses)), wanted, str(responses))
    narrow = dtype.kind == "i" and dtype.itemsize <= 2
    pieces = partial(_npz_pair_pieces, particles, responses, detector, prefer)
    return _Source(detector, shape[0], narrow, pieces, str(responses))


def _npz_pair_pieces(
    particles: Path, responses: Path, detector: str, prefer: Sequence[int], rows: int
) -> Iterator[tuple[Showers, Where]]:
    first = 0
    for table, images in zip(_npz_pieces(particles, rows), _npz_pieces(responses, rows), strict=True):
        where = partial(_row, first)
        features = table[:, : len(FEATURES)].astype(np.float64)
        if table.shape[1] > len(FEATURES):
            pdg = _codes(table[:, -1], str(particles), where)
        else:
            pdg = _infer_pdg(features, prefer, str(particles), where)
        # Checked here because a message about a feature must name this file, not the one with the images.
        _validate_primaries(features, pdg, str(particles), where)
        yield Showers(features, pdg, _counts(images, str(responses), where), detector), where
        first += len(table)


# Text of Extract.C


def _text(path: Path) -> IO[str]:
    return path.open(encoding="ascii", errors="replace")


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
    return _csv(_existing(path), _COLUMNS, dict.fromkeys(_MOMENTA, "f8"))


def _csv(path: Path, columns: dict[str, str], optional: dict[str, str]) -> np.ndarray:
    """The named columns of a CSV as a structured array; the optional ones all together or not at all."""
    with _text(path) as file:
        header = [name.strip() for name in file.readline().split(",")]
        if any(name in header for name in optional):
            columns = columns | optional
        for name in columns:
            if name not in header:
                raise ValueError(f"{path}: has no column {name!r}; expected {', '.join(columns)}")
        places = [(header.index(name), name, kind) for name, kind in columns.items()]

        def records() -> Iterator[tuple[Any, ...]]:
            for number, line in enumerate(file, start=2):
                fields = line.rstrip("\r\n").split(",")
                if len(fields) != len(header):
                    raise ValueError(f"{path}: line {number}: expected {len(header)} fields, got {len(fields)}")
                yield tuple(_field(path, number, name, fields[k], kind) for k, name, kind in places)

        return np.fromiter(records(), np.dtype(list(columns.items())))


def _field(path: Path, number: int, name: str, text: str, kind: str) -> Any:
    expected, convert = _CONVERSIONS[kind]
    try:
        return convert(text)
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{path}: line {number}: {name} is {text!r}; expected {expected}") from None


#: What a field of a type must be, and how it is read.
_CONVERSIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "U1": ("N or P", {"N": "N", "P": "P"}.__getitem__),
    "i8": ("a whole number", np.int64),
    "f8": ("a number", float),
}


def _text_sources(
    tables: list[Path], images: list[Path], detector: str | None, assume_beam_direction: bool
) -> list[_Source]:
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
            f"{tables[0]}: {len(tables)} CSV with {len(found)} {DETECTORS[detector].title} image texts; "
            f"expected one for each, such as {name} beside it"
        )
    return [_text_source(t, i, detector, assume_beam_direction) for t, i in zip(tables, found, strict=True)]


def _detector_of_line(path: Path) -> str:
    """ZN or ZP, told by the numbers in the first line of an image text."""
    with _text(path) as file:
        n = len(file.readline().split())
    for name in _TEXT_DETECTORS:
        if DETECTORS[name].shape[1] == n:
            return name
    known = " or ".join(f"{DETECTORS[name].shape[1]} ({DETECTORS[name].title})" for name in _TEXT_DETECTORS)
    raise ValueError(f"{path}: line 1: expected {known} numbers, got {n}")


def _text_source(table: Path, images: Path, detector: str, assume_beam_direction: bool) -> _Source:
    tracks = read_table(table)
    mine = np.flatnonzero(tracks["Detector"] == _TEXT_DETECTORS[detector][0])
    tracks = tracks[mine]

    def where(first: int, index: int) -> str:
        return f"line {mine[first + index] + 2}"

    pdg = _codes(tracks["Pdg"], str(table), partial(where, 0))
    mass, charge = _masses_and_charges(pdg, str(table), partial(where, 0))
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
    _validate_primaries(particles, pdg, str(table), partial(where, 0))

    def pieces(rows: int) -> Iterator[tuple[Showers, Where]]:
        first = 0
        for block in _image_pieces(images, len(tracks), DETECTORS[detector], rows):
            part, place = slice(first, first + len(block)), partial(_row, first)
            showers = Showers(particles[part], pdg[part], _counts(block, str(images), place), detector)
            if at := _first(showers.photon_sum != tracks["PhotonSum"][part]):
                row = at[0]
                raise ValueError(
                    f"{table}: {where(first, row)}: PhotonSum is {tracks['PhotonSum'][first + row]}, "
                    f"but image {first + row} of {images} sums to {showers.photon_sum[row]}"
                )
            yield showers, partial(where, first)
            first += len(block)

    return _Source(detector, len(tracks), False, pieces, str(table))


def _image_pieces(path: Path, total: int, detector: Detector, rows: int) -> Iterator[np.ndarray]:
    nx, ny = detector.shape
    with _text(path) as file:
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
    except ValueError:
        for number, line in enumerate(lines, start=first + 1):
            for word in line.split():
                _field(path, number, "a pixel", word, "i8")
        raise


# Reading


def iterate(
    path: Files,
    rows: int = _BASKET,
    detector: str | None = None,
    assume_beam_direction: bool = False,
    prefer: Sequence[int] = (),
) -> Iterator[Showers]:
    """Reads showers in pieces, in constant memory, whatever the form of the files.

    Args:
        path: A ROOT file of ours; an npz file of particles or responses (the other one is looked for beside
            it); a CSV of ``Extract.C`` (its ``neutron_image.txt`` or ``proton_image.txt`` is looked for
            beside it). Or several files, read one after the other; partners may stand anywhere in the list.
        rows: The most rows in one piece.
        detector: The detector expected. Required to choose where text files hold images of both ZN and ZP.
        assume_beam_direction: Whether to take tracks of the older CSV, which has no momenta, as parallel to
            the beam: :math:`p_x = p_y = 0`, :math:`p_z = \\mathrm{sign}(v_z) \\sqrt{E^2 - m^2}`.
        prefer: PDG codes to take where a file without them leaves a choice; 310 takes K0S where K0L fits as
            well.

    Yields:
        Records of 1 to ``rows`` rows: images int16, or int32 where a pixel of the piece needs it.

    Raises:
        ValueError: If anything is wrong with a file, in one line that says what and where.
    """
    for source in _sources(path, detector, assume_beam_direction, prefer):
        yield from _checked(source, rows)


def _checked(source: _Source, rows: int) -> Iterator[Showers]:
    for showers, where in source.pieces(rows):
        _validate(showers, source.name, where)
        yield showers


def read(
    path: Files,
    detector: str | None = None,
    assume_beam_direction: bool = False,
    prefer: Sequence[int] = (),
) -> Showers:
    """Reads showers into memory; the images take one array and little more.

    Args:
        path: One or several files, as :func:`iterate` takes them.
        detector: The detector expected.
        assume_beam_direction: As for :func:`iterate`.
        prefer: As for :func:`iterate`.

    Returns:
        All rows; images int16, or int32 where a pixel needs it.

    Raises:
        ValueError: If anything is wrong with a file, in one line that says what and where.
    """
    sources = _sources(path, detector, assume_beam_direction, prefer)
    # Files of wider numbers are gone through once more, so that one artefact in the last row does not cost
    # two arrays.
    wide = any(
        showers.images.dtype != np.int16
        for source in sources
        if not source.narrow
        for showers in _checked(source, _BASKET)
    )
    n, geometry = sum(source.rows for source in sources), get_detector(sources[0].detector)
    particles, pdg = np.empty((n, len(FEATURES))), np.empty(n, np.int32)
    images = np.empty((n, *geometry.shape), np.int32 if wide else np.int16)
    first = 0
    # Large files take seconds; `calosim ... --quiet` sets tqdm's own variable.
    silent = True if os.environ.get("TQDM_DISABLE") else None
    with tqdm(total=n, desc=f"reading {sources[0].name}", unit="rows", delay=1, disable=silent) as progress:
        for source in sources:
            for showers in _checked(source, _BASKET):
                part = slice(first, first + len(showers))
                particles[part], pdg[part], images[part] = showers.particles, showers.pdg, showers.images
                first += len(showers)
                progress.update(len(showers))
    return Showers(particles, pdg, images, geometry.name)


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
    path = _existing(path)
    match path.suffix.lower():
        case ".root":
            with _tree(path) as (_, tree):
                names = (*FEATURES, "pdg")
                _check_branches(path, tree, names)
                arrays = _arrays(path, tree, names, 0, tree.num_entries)
        case ".csv":
            kinds = {name: "f8" for name in FEATURES if name not in ("mass", "charge")} | {"pdg": "i8"}
            table = _csv(path, kinds, {"mass": "f8", "charge": "f8"})
            arrays = {name: table[name] for name in table.dtype.names or ()}
        case other:
            raise ValueError(f"{path}: unknown suffix {other!r}; expected .root or .csv")
    if len(arrays["pdg"]) == 0:
        raise ValueError(f"{path}: holds no rows; expected at least one")
    where = partial(_row, 0)
    pdg = _codes(arrays["pdg"], str(path), where)
    if "mass" not in arrays:
        arrays["mass"], arrays["charge"] = _masses_and_charges(pdg, str(path), where)
    particles = np.column_stack([arrays[name] for name in FEATURES]).astype(np.float64, copy=False)
    _validate_primaries(particles, pdg, str(path), where)
    return particles, pdg


# Writing


class Writer:
    """Writes showers to a ROOT file piece by piece, in constant memory; all of them or none.

    Rows go to a temporary file in the same folder, which takes the file's name when the ``with`` block ends
    well. After an error the temporary file is removed, and a file of that name stays as it was.

    Args:
        path: The file, which must end in ``.root``; missing folders are made.
        detector: The detector's name.

    Raises:
        ValueError: If the name has another suffix, the detector is unknown or the file cannot be written.

    Example:
        >>> with Writer("zn.root", "zn") as writer:  # doctest: +SKIP
        ...     for piece in pieces:
        ...         writer.extend(piece)
    """

    def __init__(self, path: str | os.PathLike[str], detector: str) -> None:
        self.path = Path(path)
        self.geometry = get_detector(detector)
        self.rows = 0
        if self.path.suffix.lower() != ".root":
            raise ValueError(f"{self.path}: unknown suffix {self.path.suffix!r} to write; expected .root")
        if self.path.is_dir():
            raise ValueError(f"{self.path}: is a folder; expected a file to write")
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.tmp")
        self._pending: list[Showers] = []
        self._dtype: np.dtype = np.dtype(np.int16)
        self._file: Any = None

    def __enter__(self) -> Self:
        with self._write_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except ValueError:
            self._discard()
            raise
        return self

    def extend(self, showers: Showers) -> None:
        """Appends rows.

        Args:
            showers: Any number of rows of the writer's detector.

        Raises:
            ValueError: If the rows are not valid (see :func:`validate`; rows count from the first one
                written), are of another detector, or cannot be written.
        """
        if showers.detector != self.geometry.name:
            title = showers.geometry.title
            raise ValueError(f"{self.path}: expected {self.geometry.title} responses to write, got {title}")
        where = partial(_row, self.rows)
        _validate(showers, str(self.path), where)
        images = _counts(showers.images, str(self.path), where)
        self.rows += len(showers)
        for first in range(0, len(showers), _BASKET):
            # Copies: the caller may fill the same arrays again before the basket is full.
            part = slice(first, first + _BASKET)
            arrays = (showers.particles[part].copy(), showers.pdg[part].copy(), images[part].copy())
            self._pending.append(Showers(*arrays, self.geometry.name))
            if sum(map(len, self._pending)) >= _BASKET:
                self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # after a full disk, closing fails again and would hide the reason
                self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self.rows == 0:
            raise ValueError(f"{self.path}: no rows to write; expected at least one")
        if self._pending:
            self._flush()
        with self._write_errors():
            self._close()
            os.replace(self._temporary, self.path)

    def _open(self) -> None:
        import uproot

        with self._write_errors():
            # On ZN images with 96 % zeros zstd 1 reads as fast as no compression, at 1/27 of the size; zlib 1 is 1.3
            # times as large and slower both ways, lz4 reads 20 % faster at 1.7 times the size, and zstd 9 saves 12 %
            # for four times the writing time.
            self._file = uproot.recreate(self._temporary, compression=uproot.ZSTD(1))
            self._file["detector"] = self.geometry.name
            self._file["format"] = _FORMAT
            branches: dict[str, Any] = dict.fromkeys(FEATURES, np.float64) | {"pdg": np.int32}
            branches["response"] = np.dtype((self._dtype, self.geometry.shape))
            self._tree = self._file.mktree(_TREE, branches, title="primary particles and their photon images")

    def _close(self) -> None:
        self._file.close()
        self._file = None
        with self._temporary.open("rb+") as file:
            os.fsync(file.fileno())

    def _flush(self) -> None:
        """Writes one basket, of what is pending at most."""
        particles = np.concatenate([s.particles for s in self._pending])
        pdg = np.concatenate([s.pdg for s in self._pending])
        images = np.concatenate([s.images for s in self._pending])
        if images.dtype == np.int32 and self._dtype == np.int16:
            self._widen()
        rest = slice(_BASKET, None)
        self._pending = [Showers(particles[rest], pdg[rest], images[rest], self.geometry.name)]
        self._put(Showers(particles[:_BASKET], pdg[:_BASKET], images[:_BASKET], self.geometry.name))

    def _put(self, showers: Showers) -> None:
        branches = {name: showers.particles[:, k] for k, name in enumerate(FEATURES)}
        branches |= {"pdg": showers.pdg.astype(np.int32), "response": showers.images.astype(self._dtype)}
        with self._write_errors():
            self._tree.extend(branches)

    def _widen(self) -> None:
        """Starts again with 32-bit images: a branch cannot change its type, and it is rare."""
        self._dtype = np.dtype(np.int32)
        narrow = self._temporary.with_suffix(".int16.tmp")
        with self._write_errors():
            self._close()
            os.replace(self._temporary, narrow)
        try:
            self._open()
            for showers, _ in _root_pieces(narrow, self.geometry.name, _BASKET):
                self._put(showers)
        finally:
            narrow.unlink(missing_ok=True)

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def write(path: str | os.PathLike[str], showers: Showers) -> None:
    """Writes showers to a ROOT file; whole or not at all.

    Args:
        path: The file, which must end in ``.root``; missing folders are made, an existing file is replaced.
        showers: At least one row.

    Raises:
        ValueError: If the rows are not valid (see :func:`validate`) or the file cannot be written.
    """
    with Writer(path, showers.detector) as writer:
        writer.extend(showers)


def convert(
    source: str | list[str],
    out: str,
    detector: str | None = None,
    assume_beam_direction: bool = False,
    prefer: list[int] | None = None,
    quiet: bool = False,
) -> None:
    """Converts showers of any known form to one ROOT file.

    Args:
        source: ROOT, npz or text files, one or a list. npz: particles and responses (key ``arr_0``). Text of O2's Extract.C:
            the CSV and the image texts. A partner that is not listed is looked for beside its file.
        out: The ROOT file to write.
        detector: The detector expected: zn, zp or focal_h. Required where text files hold both ZN and ZP.
        assume_beam_direction: Take tracks of the older CSV, which has no momenta, as parallel to the beam.
        prefer: PDG codes to take where an npz file without PDG codes leaves a choice; 310 takes K0S where K0L
            fits as well.
        quiet: Show no progress.

    Raises:
        ValueError: If anything is wrong with a file, in one line that says what and where.
    """
    sources = _sources(source, detector, assume_beam_direction, prefer or ())
    for path in map(Path, [source] if isinstance(source, str) else source):
        if Path(out).exists() and path.samefile(out):
            raise ValueError(f"{out}: is also a source; expected another file to write")
    total = sum(s.rows for s in sources)
    particles: set[int] = set()
    bar = tqdm(total=total, unit="rows", disable=True if quiet else None)
    with Writer(out, sources[0].detector) as writer, bar as progress:
        for each in sources:
            for showers in _checked(each, _BASKET):
                writer.extend(showers)
                particles.update(showers.pdg.tolist())
                progress.update(len(showers))
    title = writer.geometry.title
    print(f"{out}: {total:,} {title} responses of {len(particles)} particle types, {_size(Path(out))}")


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"
