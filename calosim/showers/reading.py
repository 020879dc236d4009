"""Reading showers in any form, and converting them to calosim's ROOT form."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calosim.detectors import get_detector
from calosim.showers.checks import (
    agreed_detector,
    check_primaries,
    check_showers,
    existing_file,
    masses_and_charges,
    pdg_codes,
    row_name,
)
from calosim.showers.extract import open_text, read_columns, text_sources
from calosim.showers.npz import npz_header, npz_source
from calosim.showers.record import FEATURES, Showers, Source
from calosim.showers.root import BASKET, Writer, check_branches, open_tree, read_branches, root_source

__all__ = ["convert", "iterate", "read", "read_primaries"]

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def _content(path: Path) -> str:
    """What a file holds: ``root``, ``particles``, ``responses`` (npz), ``table`` or ``images`` (text)."""
    match path.suffix.lower():
        case ".root":
            return "root"
        case ".npz":
            dimensions = len(npz_header(path)[0])
            if dimensions not in (2, 3):
                raise ValueError(f"{path}: arr_0 has {dimensions} dimensions; expected (N, 9), (N, 10) or (N, nx, ny)")
            return "particles" if dimensions == 2 else "responses"
        case ".csv" | ".txt":
            with open_text(path) as file:
                start = file.readline(1000)
            return "table" if "," in start else "images"
        case other:
            raise ValueError(f"{path}: unknown suffix {other!r}; expected .root, .npz, .csv or .txt")


def _sources(files: Files, detector: str | None, assume_beam_direction: bool, prefer: Sequence[int]) -> list[Source]:
    """Sorts files into data sets, looking for a partner beside a file that comes without."""
    listed = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not listed:
        raise ValueError("no file to read; expected at least one")
    if detector is not None:
        detector = get_detector(detector).name
    kinds: dict[str, list[Path]] = {k: [] for k in ("root", "particles", "responses", "table", "images")}
    for path in map(existing_file, listed):
        kinds[_content(path)].append(path)
    sources = [root_source(path, detector) for path in kinds["root"]]
    particles, responses = kinds["particles"], kinds["responses"]
    if not responses:
        responses = [_partner(path, "particles", "responses") for path in particles]
    elif not particles:
        particles = [_partner(path, "responses", "particles") for path in responses]
    if len(particles) != len(responses):
        counts = f"{len(particles)} npz files with particles and {len(responses)} with responses"
        raise ValueError(f"{particles[0]}: got {counts}; expected pairs")
    sources += [npz_source(p, r, detector, prefer) for p, r in zip(particles, responses, strict=True)]
    if kinds["table"] or kinds["images"]:
        sources += text_sources(kinds["table"], kinds["images"], detector, assume_beam_direction)
    for source in sources:
        agreed_detector(source.detector, sources[0].detector, source.name)
        if source.rows == 0:
            raise ValueError(f"{source.name}: holds no rows; expected at least one")
    return sources


def _partner(path: Path, mine: str, other: str) -> Path:
    partner = path.with_name(path.name.replace(mine, other))
    if partner == path or not partner.exists():
        raise ValueError(
            f"{path}: its partner with the {other} is missing; expected it beside this or as a second file"
        )
    return existing_file(partner)


def iterate(
    path: Files,
    rows: int = BASKET,
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


def _checked(source: Source, rows: int) -> Iterator[Showers]:
    for showers, where in source.pieces(rows):
        check_showers(showers, source.name, where)
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
        for showers in _checked(source, BASKET)
    )
    n, geometry = sum(source.rows for source in sources), get_detector(sources[0].detector)
    particles, pdg = np.empty((n, len(FEATURES))), np.empty(n, np.int32)
    images = np.empty((n, *geometry.shape), np.int32 if wide else np.int16)
    first = 0
    # Large files take seconds; `calosim ... --quiet` sets tqdm's own variable.
    silent = True if os.environ.get("TQDM_DISABLE") else None
    with tqdm(total=n, desc=f"reading {sources[0].name}", unit="rows", delay=1, disable=silent) as progress:
        for source in sources:
            for showers in _checked(source, BASKET):
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
    path = existing_file(path)
    match path.suffix.lower():
        case ".root":
            with open_tree(path) as (_, tree):
                names = (*FEATURES, "pdg")
                check_branches(path, tree, names)
                arrays = read_branches(path, tree, names, 0, tree.num_entries)
        case ".csv":
            kinds = {name: "f8" for name in FEATURES if name not in ("mass", "charge")} | {"pdg": "i8"}
            table = read_columns(path, kinds, {"mass": "f8", "charge": "f8"})
            arrays = {name: table[name] for name in table.dtype.names or ()}
        case other:
            raise ValueError(f"{path}: unknown suffix {other!r}; expected .root or .csv")
    if len(arrays["pdg"]) == 0:
        raise ValueError(f"{path}: holds no rows; expected at least one")
    where = partial(row_name, 0)
    pdg = pdg_codes(arrays["pdg"], str(path), where)
    if "mass" not in arrays:
        arrays["mass"], arrays["charge"] = masses_and_charges(pdg, str(path), where)
    particles = np.column_stack([arrays[name] for name in FEATURES]).astype(np.float64, copy=False)
    check_primaries(particles, pdg, str(path), where)
    return particles, pdg


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
            for showers in _checked(each, BASKET):
                writer.extend(showers)
                particles.update(showers.pdg.tolist())
                progress.update(len(showers))
    title = writer.geometry.title
    print(f"{out}: {total:,} {title} responses of {len(particles)} particle types, {_size(Path(out))}")


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"
