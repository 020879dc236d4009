"""From primaries to the responses that are kept, in streams of random numbers that do not depend on the threads."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calosim.data.cache import primaries_hash, read_recipe
from calosim.data.reading import checked_pieces, read_primaries, sources
from calosim.data.record import Showers, existing_file, number_primaries
from calosim.data.root import Writer, write
from calosim.data.splits import split_rows
from calosim.detectors import Detector, get_detector
from calosim.io import check_not_read, check_writable
from calosim.montecarlo.flight import Flight, decay, properties
from calosim.montecarlo.matter import ELECTROMAGNETIC, INVISIBLE, Station
from calosim.montecarlo.setups import Setup, get_setup
from calosim.runs import origin

__all__ = [
    "MIN_PHOTONS",
    "Truth",
    "distinct_primaries",
    "draw_primaries",
    "illuminate",
    "nearest_free",
    "primaries_of_file",
    "respond",
    "simulate",
    "simulate_file",
    "simulate_matched",
    "simulate_with_truth",
    "transport",
]


#: How many times too many photons an artifact has; the one on record had some thousand times too many.
_ARTIFACT_FACTOR = 200


def transport(
    particles: np.ndarray,
    pdg: np.ndarray,
    detector: Detector,
    stations: tuple[Station, ...],
    rng: np.random.Generator,
) -> Flight:
    r"""Flies particles from their vertex to the front face.

    Between stations particles fly straight and decay with length :math:`\beta \gamma c \tau`; being memoryless, the
    length is drawn anew after each station.

    Args:
        particles: Features with shape (n, 9).
        pdg: PDG codes with shape (n,).
        detector: The detector; which face a particle meets is the sign of its pz.
        stations: What is met on the way, in order of z.
        rng: The random stream.

    Returns:
        All particles that cross the plane of the front face, wherever they do; ``row`` counts from 0.
    """
    side = np.sign(particles[:, 6])
    face = np.where(side > 0, detector.front_z[0], -detector.front_z[1])
    goals = np.column_stack([*(np.full(len(pdg), s.z) for s in stations), face])
    position, momentum = particles[:, 1:4].copy(), particles[:, 4:7].copy()
    position[:, 2] *= side
    momentum[:, 2] *= side
    flight = Flight(np.arange(len(pdg)), pdg.astype(np.int64), momentum, position, np.ones(len(pdg), dtype=bool))
    for goal in range(len(stations) + 1):
        flight = _fly(flight, goals[:, goal], rng)
        if goal < len(stations):
            flight = stations[goal].act(flight, rng)
    return flight


def _fly(flight: Flight, goal: np.ndarray, rng: np.random.Generator) -> Flight:
    """Flies straight to the goal of each row; daughters of those that decay before it fly on."""
    done = [flight.select(slice(0))]  # none may arrive
    while len(flight):
        flight = flight.select(flight.momentum[:, 2] > 1.0)  # GeV/c: softer ones neither arrive nor shine
        mass, _, ctau = properties(flight.pdg)
        unstable = np.isfinite(ctau)
        along = np.full(len(flight), np.inf)
        along[unstable] = (
            flight.momentum[unstable, 2] / mass[unstable] * ctau[unstable] * rng.standard_exponential(unstable.sum())
        )
        end = flight.position[:, 2] + along
        decays = end < goal[flight.row]
        done.append(flight.select(~decays).moved(goal[flight.row[~decays]]))
        flight = flight.select(decays).moved(end[decays])
        flight = decay(flight, rng) if len(flight) else flight
    return Flight.join(done)


def illuminate(
    arrived: Flight,
    n: int,
    detector: Detector,
    setup: Setup,
    rng: np.random.Generator,
    *,
    min_photons: int = 0,
    artifact: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Turns particles on the front face into images.

    Args:
        arrived: Particles on the face.
        n: Number of rows the particles belong to.
        detector: The detector.
        setup: Its setup.
        rng: The random stream.
        min_photons: Rows with fewer photons are dropped.
        artifact: Rows that get far too many photons, shape (n,); none by default.

    Returns:
        Images of the kept rows, int16, shape (K, nx, ny), and which rows were kept, shape (n,).
    """
    local = arrived.position[:, :2] - (detector.center_x, 0.0)
    em = np.isin(arrived.pdg, ELECTROMAGNETIC)
    photons = []
    for light, which in ((setup.electronic, em), (setup.hadronic, ~em & ~np.isin(arrived.pdg, INVISIBLE))):
        shower = arrived.select(which)
        counts = light.counts(shower.energy, properties(shower.pdg).charge == 0, rng)
        if artifact is not None:
            counts[artifact[shower.row]] *= _ARTIFACT_FACTOR
        owner, position = light.photon_positions(local[which], counts, rng)
        photons.append(_pixels(shower.row[owner], position, detector))
    row, pixel = (np.concatenate(part) for part in zip(*photons, strict=True))
    kept = np.bincount(row, minlength=n) >= min_photons
    # Most attempts leave nothing: images are made for the kept ones only.
    among = kept[row]
    flat = (np.cumsum(kept) - 1)[row[among]] * detector.pixels + pixel[among]
    images = np.bincount(flat, minlength=kept.sum() * detector.pixels).reshape(-1, *detector.shape)
    # Only an artifact comes near the limit of int16, which halves the memory of everything downstream.
    return images.clip(max=np.iinfo(np.int16).max).astype(np.int16), kept


def _pixels(row: np.ndarray, position: np.ndarray, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Row and pixel number of every photon; those that end beside the detector have leaked out."""
    size, shape = np.array(detector.size, dtype=np.float32), detector.shape
    x, y = (np.floor((position[i] + size[i] / 2) / np.float32(detector.pitch)) for i in (0, 1))
    inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1])
    return row[inside], x[inside].astype(np.int64) * shape[1] + y[inside].astype(np.int64)


Primaries = int | Showers | tuple[np.ndarray, np.ndarray]

#: Responses with fewer photons are not kept, as in the published data (Majerz et al., 2026).
MIN_PHOTONS = 10

#: Attempts that share one random stream. Part of the meaning of a seed: changing it changes every dataset.
_CHUNK = 2048
#: Chunks that each worker is given at once.
_AHEAD = 16
_PRIMARY_STREAM, _RESPONSE_STREAM = 0, 1


@dataclass(frozen=True)
class Truth:
    """What a detector cannot tell.

    Attributes:
        primary: Which primary a response belongs to, shape (N,).
        direct: Whether the primary itself reached the front face, shape (N,).
        artifact: Whether the response is one of the rare artifacts, shape (N,).
    """

    primary: np.ndarray
    direct: np.ndarray
    artifact: np.ndarray


def draw_primaries(n: int, detector: str | Detector, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws primaries from the mix and the spectra of a detector's setup.

    Types are drawn by systematic sampling, so that even a small sample has the right mix.

    Args:
        n: How many.
        detector: A detector or its name.
        seed: The seed; independent of the responses' stream of the same seed.

    Returns:
        Features (n, 9), float64, in the order and units of :data:`calosim.data.record.FEATURES`, and PDG codes (n,), int32.

    Raises:
        ValueError: If there is no such detector or n is not positive.
    """
    setup = get_setup(get_detector(detector))
    if n < 1:
        raise ValueError(f"expected a positive number of primaries, got {n}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PRIMARY_STREAM,)))
    weights = np.array([s.weight for s in setup.primaries.sources.values()])
    edges = np.cumsum(weights / weights.sum())[:-1]
    types = np.searchsorted(edges, (np.arange(n) + rng.random()) / n, side="right")
    pdg = rng.permutation(np.array(list(setup.primaries.sources))[types])
    momentum = setup.primaries.momenta(pdg, rng)
    vertex = np.stack([rng.normal(mean, width, n) for mean, width in setup.primaries.vertex], 1)
    mass, charge, _ = properties(pdg)
    energy = np.sqrt((momentum**2).sum(1) + mass**2)
    features = [energy[:, None], vertex, momentum, 1000 * mass[:, None], charge[:, None]]
    return np.concatenate(features, 1), pdg.astype(np.int32)


def distinct_primaries(particles: np.ndarray, pdg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each primary once, in order of first appearance: showers repeat one for each of its responses.

    Args:
        particles: Features with shape (N, 9).
        pdg: PDG codes with shape (N,).

    Returns:
        Features (n, 9) and PDG codes (n,) of the distinct ones.
    """
    first = np.unique(number_primaries(particles, pdg), return_index=True)[1]
    return particles[first], pdg[first]


def simulate(
    primaries: Primaries, responses_per_primary: int, detector: str | Detector, seed: int, **how: Any
) -> Showers:
    """The responses of :func:`simulate_with_truth` alone; ``how`` are its other arguments."""
    return simulate_with_truth(primaries, responses_per_primary, detector, seed, **how)[0]


def simulate_with_truth(
    primaries: Primaries,
    responses_per_primary: int,
    detector: str | Detector,
    seed: int,
    *,
    workers: int = 1,
    progress: bool = False,
    min_photons: int = MIN_PHOTONS,
) -> tuple[Showers, Truth]:
    """Simulates many responses to each of some primaries and keeps those with at least 10 photons.

    Every primary is tried equally often, as in the ALICE data, and ``responses_per_primary`` is the number of *kept*
    responses averaged over primaries of the built-in mix: the attempts are that number over the setup's mean
    acceptance. So, as in the data, a primary on course leaves several times the average, a kaon that nearly always
    decays to charged pions a few, and one that never leaves 10 photons does not appear at all. The built-in mix is
    one of primaries; its weights are such that the *kept responses* have the published mix.

    Args:
        primaries: How many to draw from the built-in mix, or the primaries themselves: features (n, 9) and PDG codes
            (n,), or Showers, of which each distinct primary is taken once.
        responses_per_primary: Mean number of kept responses per primary of the built-in mix.
        detector: A detector or its name.
        seed: One seed gives one dataset, bit for bit, whatever the number of workers.
        workers: Threads.
        progress: Whether to show a progress bar.
        min_photons: Attempts that leave fewer are dropped; 0 keeps every attempt.

    Returns:
        The kept responses, those of one primary next to each other, images int16; and how each came about.

    Raises:
        ValueError: If the detector is unknown or has no setup, a number is not positive, given primaries have the
            wrong shape or an unknown PDG code, or none of them leaves a response.
    """
    geometry = get_detector(detector)
    if responses_per_primary < 1 or workers < 1:
        raise ValueError(
            "expected a positive number of responses per primary and of workers, "
            f"got {responses_per_primary} and {workers}"
        )
    particles, pdg = _taken(primaries, geometry, seed)
    parts = list(respond(particles, pdg, responses_per_primary, geometry, seed, workers, progress, min_photons))
    if not any(len(images) for images, _ in parts):
        raise ValueError(
            f"none of {len(pdg)} primaries, tried {_attempts(responses_per_primary, geometry)} times each, left {min_photons} "
            f"photons in {geometry.title}; nothing to write"
        )
    images = np.concatenate([p[0] for p in parts])
    truth = Truth(*(np.concatenate([getattr(p[1], n) for p in parts]) for n in Truth.__dataclass_fields__))
    return Showers(particles[truth.primary], pdg[truth.primary], images, geometry.name), truth


def respond(
    particles: np.ndarray,
    pdg: np.ndarray,
    responses_per_primary: int,
    detector: Detector,
    seed: int,
    workers: int = 1,
    progress: bool = False,
    min_photons: int = MIN_PHOTONS,
) -> Iterator[tuple[np.ndarray, Truth]]:
    """Simulates piece by piece, in constant memory, what :func:`simulate` returns at once.

    Args:
        particles: Features of the primaries with shape (n, 9).
        pdg: Their PDG codes with shape (n,).
        responses_per_primary: See :func:`simulate`.
        detector: The detector.
        seed: See :func:`simulate`.
        workers: See :func:`simulate`.
        progress: See :func:`simulate`.
        min_photons: See :func:`simulate_with_truth`.

    Yields:
        Images (B, nx, ny) of kept responses and their truth; the numbers of the primaries rise.
    """
    setup = get_setup(detector)
    properties(pdg)  # an unknown code is an error here, not in a thread
    attempts = _attempts(responses_per_primary, detector)
    total = len(pdg) * attempts

    def chunk(index: int) -> tuple[np.ndarray, Truth]:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_RESPONSE_STREAM, index)))
        rows = np.arange(index * _CHUNK, min((index + 1) * _CHUNK, total)) // attempts
        return _respond(particles[rows], pdg[rows], rows, detector, setup, min_photons, rng)

    from tqdm import tqdm

    chunks = range(ceil(total / _CHUNK))
    bar = tqdm(total=total, unit="showers", unit_scale=True, disable=None if progress else True)
    with bar, ThreadPoolExecutor(workers) as pool:  # numpy releases the interpreter lock where the time goes
        # A few at a time: what is done waits in memory for whoever asks.
        for start in range(0, len(chunks), _AHEAD * workers):
            for index, part in enumerate(pool.map(chunk, chunks[start : start + _AHEAD * workers]), start):
                yield part
                bar.update(min(_CHUNK, total - index * _CHUNK))


def _attempts(responses_per_primary: int, detector: Detector) -> int:
    """How often each primary is tried."""
    return max(1, round(responses_per_primary / get_setup(detector).acceptance))


def _taken(primaries: Primaries, detector: Detector, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws primaries, or checks those that are given."""
    if isinstance(primaries, Showers):
        return distinct_primaries(primaries.particles, primaries.pdg)
    if not isinstance(primaries, tuple):
        return draw_primaries(int(primaries), detector, seed)
    particles, pdg = np.asarray(primaries[0], dtype=np.float64), np.asarray(primaries[1], dtype=np.int32)
    if particles.ndim != 2 or particles.shape[1] != 9 or pdg.shape != particles.shape[:1] or not len(pdg):
        raise ValueError(
            f"expected primaries with features (n, 9) and PDG codes (n,), got {particles.shape} and {pdg.shape}"
        )
    return particles, pdg


def _respond(
    particles: np.ndarray,
    pdg: np.ndarray,
    primary: np.ndarray,
    detector: Detector,
    setup: Setup,
    min_photons: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, Truth]:
    """One attempt per row, from the vertex to the image."""
    n = len(pdg)
    arrived = transport(particles, pdg, detector, setup.stations, rng)
    on_face = np.all(np.abs(arrived.position[:, :2] - (detector.center_x, 0.0)) < np.array(detector.size) / 2, axis=1)
    arrived = arrived.select(on_face)
    artifact = rng.random(n) < setup.artifacts
    images, kept = illuminate(arrived, n, detector, setup, rng, min_photons=min_photons, artifact=artifact)
    direct = np.zeros(n, dtype=bool)
    direct[arrived.row[arrived.primary]] = True
    return images, Truth(primary[kept], direct[kept], artifact[kept])


def simulate_matched(
    rows: Showers,
    photon_sum: np.ndarray,
    responses: int,
    keep: int,
    seed: int,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Iterator[tuple[Showers, np.ndarray]]:
    """Simulates responses to the rows' primaries and keeps, for each row, those whose photon sums are nearest to its own.

    No response is kept for two rows. Of a primary with few responses some rows get fewer, or none.

    Args:
        rows: The rows; of their images only the detector matters.
        photon_sum: Photon sums that are wanted with shape (N,).
        responses: Mean number of responses per primary to choose from, see :func:`calosim.montecarlo.simulate`.
        keep: Responses that are wanted for each row.
        seed: One seed gives one result, whatever the number of workers; not that of the rows.
        workers: Threads.
        progress: Whether to show a progress bar.

    Yields:
        Piece by piece, the kept showers, those of one primary and then of one row next to each other, and the photon sums
        (B,) that were wanted of them.

    Raises:
        ValueError: If a number is not positive, or the detector has no setup.
    """
    if min(responses, keep, workers) < 1:
        raise ValueError(
            "expected a positive number of responses per primary, of responses to keep and of workers, "
            f"got {responses}, {keep} and {workers}"
        )
    ids, first = rows.primary_ids, np.unique(rows.primary_ids, return_index=True)[1]
    particles, pdg = rows.particles[first], rows.pdg[first]
    of_primary = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
    parts = respond(particles, pdg, responses, rows.geometry, seed, workers, progress)
    for images, number in _whole_primaries((found, truth.primary) for found, truth in parts):
        sums = images.sum((1, 2), dtype=np.int64)
        chosen, wanted = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for primary in np.unique(number):
            own, asked = np.flatnonzero(number == primary), photon_sum[of_primary[primary]]
            places = nearest_free(asked, sums[own], keep, np.random.default_rng((seed, primary)))
            chosen.append(own[places[places >= 0]])
            wanted.append(np.repeat(asked, (places >= 0).sum(1)))
        kept = np.concatenate(chosen)
        if len(kept):
            of = number[kept]
            yield Showers(particles[of], pdg[of], images[kept], rows.detector), np.concatenate(wanted)


def _whole_primaries(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts images and numbers of their primaries, which rise, so that all responses to a primary are in one piece."""
    held: tuple[np.ndarray, np.ndarray] | None = None
    for part in parts:
        images, number = part if held is None else (np.concatenate(both) for both in zip(held, part, strict=True))
        cut = np.searchsorted(number, number[-1]) if len(number) else 0
        if cut:
            yield images[:cut], number[:cut]
        held = images[cut:], number[cut:]
    if held is not None and len(held[1]):
        yield held


def nearest_free(wanted: np.ndarray, found: np.ndarray, keep: int, rng: np.random.Generator) -> np.ndarray:
    """Gives each wanted number some of the found ones, the nearest that are still free; each found one goes to one only.

    Takes turns, in random order, so that none is always served first.

    Args:
        wanted: Numbers with shape (K,).
        found: Numbers with shape (M,).
        keep: How many each gets, as long as there are any.
        rng: Draws the order.

    Returns:
        Positions in ``found`` with shape (K, keep), -1 where none was left.
    """
    order = np.argsort(found, kind="stable").tolist()
    values = np.sort(found, kind="stable").tolist()
    places = np.full((len(wanted), keep), -1, dtype=np.int64)
    for turn in range(keep):
        for k in rng.permutation(len(wanted)):
            if not values:
                return places
            value = float(wanted[k])
            right = bisect_left(values, value)
            # The nearer of both neighbors, the upper one of equals.
            left = right == len(values) or (right > 0 and value - values[right - 1] < values[right] - value)
            taken = right - left
            values.pop(taken)
            places[k, turn] = order.pop(taken)
    return places


#: Rows of a file that are in memory at once.
_PIECE = 4096


def simulate_file(
    out: str,
    detector: str,
    primaries: int | str,
    responses_per_primary: int,
    seed: int,
    *,
    split: Literal["test", "val"] | None = None,
    match_sums: int = 0,
    keep_empty: bool = False,
    workers: int = 1,
    quiet: bool = False,
) -> None:
    """Simulates to a ROOT file, which says itself how it was made, see :func:`calosim.data.cache.read_recipe`.

    Args:
        out: The ROOT file to write.
        detector: The detector's name.
        primaries: How many to draw from the built-in mix, or a ROOT or CSV file that holds them.
        responses_per_primary: See :func:`simulate`.
        seed: See :func:`simulate`.
        split: Only those rows of the file that a training holds out by default, to test or to validate; all if None.
        match_sums: Keep that many responses for each row of the file, see :func:`simulate_matched`; 0 keeps all.
        keep_empty: Whether attempts that leave too few photons are kept, too.
        workers: Threads.
        quiet: Whether to show no progress.

    Raises:
        ValueError: If a file is bad or has no row of that split, settings contradict each other, or there is nothing to write.
    """
    Writer(out, detector)  # refuses a wrong name before the work, not after it
    check_writable(Path(out).parent)
    file = primaries if isinstance(primaries, str) else None
    settings: dict[str, Any] = {
        "detector": detector,
        "primaries": primaries,
        "responses_per_primary": responses_per_primary,
    }
    settings |= {"split": split, "match_sums": match_sums, "keep_empty": keep_empty, "seed": seed}
    made = origin(git=False, settings=settings)
    if file is None and (split is not None or match_sums):
        raise ValueError("split and match_sums are of the rows of a file; expected one as primaries, got a number")
    if match_sums and keep_empty:
        raise ValueError("match_sums keeps responses, and keep_empty what is none; expected one of them")
    if file is not None:
        check_not_read(out, [existing_file(file)])
        made["primaries_hash"] = primaries_hash(file)
        recipe = (read_recipe(file) or {"settings": {}})["settings"]
        if match_sums and recipe.get("seed") == seed:
            told = f"was simulated with seed {seed}; expected another seed for responses to hold against it"
            raise ValueError(f"{file}: {told}")
        if not match_sums and (first := recipe.get("detector", detector)) != detector:
            said = f"simulated for {first}, its primaries now meet {detector} (--detector {first}: the same again)"
            print(f"calosim: {file}: {said}", file=sys.stderr)
        if match_sums:
            with Writer(out, detector, made) as writer:
                print(_match_to_file(file, writer, responses_per_primary, match_sums, seed, split, workers, quiet))
            return
    source: Any = primaries if file is None else primaries_of_file(file, split)
    showers = simulate(
        source,
        responses_per_primary,
        detector,
        seed,
        workers=workers,
        progress=not quiet,
        min_photons=0 if keep_empty else MIN_PHOTONS,
    )
    write(out, showers, made)
    answered, tried = showers.primary_ids.max() + 1, primaries if file is None else len(source[1])
    mean = f"{len(showers) / answered:.1f} each"
    print(f"{out}: {len(showers)} responses of {showers.geometry.title} to {answered} of {tried} primaries, {mean}")


def primaries_of_file(file: str, split: Literal["test", "val"] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The distinct primaries of a file.

    Args:
        file: ROOT or CSV, see :func:`calosim.data.reading.read_primaries`.
        split: Only those that a training holds out by default, to test or to validate.

    Returns:
        Features (n, 9) and PDG codes (n,).

    Raises:
        ValueError: If the file is bad, or has no row of that split.
    """
    particles, pdg = read_primaries(file)
    rows = _rows_of(particles, pdg, split, file)
    return distinct_primaries(particles[rows], pdg[rows])


def _match_to_file(
    file: str,
    writer: Writer,
    responses: int,
    keep: int,
    seed: int,
    split: Literal["test", "val"] | None,
    workers: int,
    quiet: bool,
) -> str:
    """Writes what :func:`simulate_matched` keeps for the rows of a file; returns a line about how near the sums are."""
    detector = writer.geometry
    pieces = [
        (piece.particles, piece.pdg, piece.photon_sum)
        for source in sources(file, detector.name)
        for piece in checked_pieces(source, _PIECE)
    ]
    particles, pdg, photon_sum = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    kept, differences = _rows_of(particles, pdg, split, file), []
    rows = Showers(particles[kept], pdg[kept], np.zeros((len(kept), *detector.shape), np.int8), detector.name)
    matched = simulate_matched(rows, photon_sum[kept], responses, keep, seed, workers=workers, progress=not quiet)
    for showers, wanted in matched:
        writer.extend(showers)
        differences.append(np.abs(showers.photon_sum - wanted) / np.maximum(wanted, 1))
    if not differences:
        raise ValueError(f"{file}: no response of at least 10 photons to any of its primaries was simulated")
    median, most = 100 * np.quantile(np.concatenate(differences), [0.5, 0.95])
    return (
        f"{writer.path}: {writer.rows} responses of {detector.title} for {len(rows)} rows, up to {keep} each; their photon sums "
        f"differ by {median:.2g} % (median), 95 % of them by less than {most:.2g} %"
    )


def _rows_of(particles: np.ndarray, pdg: np.ndarray, split: Literal["test", "val"] | None, file: str) -> np.ndarray:
    """The rows of a split, all if None."""
    if split is None:
        return np.arange(len(pdg))
    rows = split_rows(number_primaries(particles, pdg), pdg)[split]
    if not len(rows):
        raise ValueError(f"{file}: none of its {len(pdg)} rows is in the {split} split; expected more primaries")
    return rows
