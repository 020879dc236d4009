"""The command ``generate``: primaries in, simulated responses out, in constant memory and from where it was interrupted."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from calosim.data.cache import primaries_hash
from calosim.data.reading import PrimariesFile, checked_pieces
from calosim.data.record import Showers, existing_file
from calosim.data.root import BASKET, Writer, read_made, root_source
from calosim.io import check_not_read, claimed
from calosim.options import Generate, Merge, Shard
from calosim.runs import difference, origin
from calosim.simulation.simulator import FastSimulator, pick_device

__all__ = ["generate", "join", "merge", "stream"]


def join(files: Iterable[Path], out: str | Path, detector: str, made: Mapping[str, Any], progress: tqdm) -> None:
    """Writes the rows of files one behind the other, in constant memory.

    Args:
        files: ROOT files of that detector.
        out: The ROOT file to write.
        detector: The detector's name.
        made: What it says of how it was made.
        progress: Counts rows.

    Raises:
        ValueError: If a file is bad.
    """
    with Writer(out, detector, made) as writer:
        for file in files:
            for showers in checked_pieces(root_source(file, detector), BASKET):
                writer.extend(showers)
                progress.update(len(showers))


def merge(options: Merge) -> None:
    """Joins the shards of one generation to what a single run would have written.

    Raises:
        ValueError: If they do not belong together, one is missing, damaged, or there twice.
    """
    shards, out, quiet = options.shards, options.out, options.quiet
    check_not_read(out, shards)
    files, made, total = _in_order(list(map(existing_file, shards)))
    detector = root_source(next(iter(files.values())), None).detector
    with tqdm(total=total, unit="responses", unit_scale=True, disable=True if quiet else None) as progress:
        join(files.values(), out, detector, made, progress)
    print(f"{out}: {total:,} responses of {len(files)} shards")


def _in_order(paths: list[Path]) -> tuple[dict[int, Path], dict[str, Any], int]:
    """Files by the number of their shard, what the whole says of itself, and its rows; see :func:`merge`."""
    if not paths:
        raise ValueError("no shard to merge; expected the files of all of them")
    found: dict[int, Path] = {}
    first: dict[str, Any] = {}
    total = 0
    for path in paths:
        source, made = root_source(path, None), read_made(path)
        shard = Shard()
        with suppress(ValueError, TypeError, KeyError):
            shard = Shard.read(made["shard"])  # type: ignore[index]
        if made is None or shard.count == 1:
            raise ValueError(f"{path}: is no shard; expected what `calosim generate --shard` writes")
        common = {**made, "shard": f"N/{shard.count}"}
        first = first or common
        if common != first:
            raise ValueError(f"{path}: does not belong to {paths[0]} (it has {difference(common, first)})")
        if shard.number in found:
            raise ValueError(f"{path}: is shard {shard}, as {found[shard.number]} is; expected each once")
        if source.rows != len(shard.rows(made["rows"])):
            raise ValueError(
                f"{path}: holds {source.rows} rows; expected {len(shard.rows(made['rows']))} of shard {shard}"
            )
        found[shard.number] = path
        total = made["rows"]
        count = shard.count
    if missing := [str(number) for number in range(1, count + 1) if number not in found]:
        raise ValueError(f"{len(missing)} of {count} shards are missing: {','.join(missing)}; expected all of them")
    return {number: found[number] for number in sorted(found)}, {**first, "shard": str(Shard())}, total


#: Rows of a part, after which an interrupted generation goes on: seconds to a minute of work.
PART = 5 * BASKET
#: Batches of each worker between two moments at which all wait for the last.
AT_ONCE = 4


def generate(options: Generate) -> None:
    """Simulates responses to primaries with trained models and writes them to a ROOT file.

    Raises:
        ValueError: If the models do not fit together, hold no photon-sum model, or a file or a number is wrong.
    """
    stages, work, primaries, out = options.stages, options.work, options.primaries, options.out
    responses, seed, quiet = options.responses, options.seed, options.quiet
    if responses < 1:
        raise ValueError(f"expected at least one response to each primary, got {responses}")
    if work.batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {work.batch_size}")
    check_not_read(out, [primaries])
    shard = Shard.read(work.shard)
    models = (
        stages.shower,
        stages.photons,
        options.requantization.by_code(),
        pick_device(work.device),
        stages.acceptance,
    )
    simulator = FastSimulator.load(*models, work.devices)
    if simulator.photons is None:
        raise ValueError(f"{stages.shower}: holds no photon-sum model; name one with --photons")
    source = PrimariesFile.open(primaries)
    made = origin(git=False, models=simulator.fingerprint())
    made |= {"primaries": primaries_hash(primaries), "responses": responses, "seed": seed}
    made |= {"rows": source.rows * responses, "shard": str(shard)}
    job = _Job(simulator, source, shard.rows(made["rows"]), made, work.batch_size)
    target = shard.path(out)
    Writer(target, simulator.detector.name)  # refuses a wrong name before the work, not after it
    if shard.count > 1 and target.is_file() and read_made(target) == made:
        print(f"{target}: is there already, all {len(job.rows):,} responses of shard {shard}")
        return
    _say_outside(job, options.strict)
    with tqdm(total=len(job.rows), unit="responses", unit_scale=True, disable=True if quiet else None) as progress:
        rate = _make(job, target, progress)
    detector, of = simulator.detector.title, f" of shard {shard}" if shard.count > 1 else ""
    print(f"{target}: {len(job.rows):,} responses of {detector} to {job.primaries:,} primaries{of}{rate}")


@dataclass(frozen=True)
class _Job:
    """What is to be made.

    Attributes:
        simulator: The fast simulation.
        source: The primaries.
        rows: The responses, of those of all primaries.
        made: What the file says of how it was made.
        batch_size: Responses simulated at once.
    """

    simulator: FastSimulator
    source: PrimariesFile
    rows: range
    made: dict[str, Any]
    batch_size: int

    @property
    def span(self) -> tuple[int, int]:
        """The first primary that is answered, and that behind the last."""
        return self.rows.start // self.made["responses"], -(-self.rows.stop // self.made["responses"])

    @property
    def primaries(self) -> int:
        """How many primaries are answered."""
        return self.span[1] - self.span[0]


def _say_outside(job: _Job, strict: bool) -> None:
    """Reads the primaries once, so that a bad one is refused before the work, and counts those outside of the training."""
    outside: Counter[str] = Counter()
    for particles, pdg in job.source.pieces(*job.span):
        outside.update(job.simulator.outside(particles, pdg))
    if outside:
        counts = "; ".join(f"{count} by {reason}" for reason, count in outside.items())
        place = f"{job.source.path}: outside of what the models were trained on are, of {job.primaries} primaries"
        if strict:
            raise ValueError(f"{place}, {counts}")
        print(f"calosim: {place}, {counts}", file=sys.stderr)


def _make(job: _Job, target: Path, progress: tqdm) -> str:
    """Makes a file, of many rows by way of parts that an interruption leaves; returns the rate in words."""
    name, begin = job.simulator.detector.name, time.perf_counter()
    parts = [range(first, min(first + PART, job.rows.stop)) for first in range(job.rows.start, job.rows.stop, PART)]
    if len(parts) == 1:
        _write(job, job.rows, target, job.made, progress)
        return _rate(job, len(job.rows), begin)
    with claimed(f"{target}.parts", "another process makes these responses now; expected one at a time") as folder:
        files = {folder / f"{part.start}.root": part for part in parts}
        done = [path for path in files if path.exists()]
        missing = [path for path in files if path not in done]
        made = {path: {**job.made, "first": part.start, "stop": part.stop} for path, part in files.items()}
        for path in done:
            if differs := difference(read_made(path) or {}, made[path]):
                raise ValueError(f"{path}: is of another command ({differs}); remove {folder}, or choose another --out")
        progress.update(sum(len(files[path]) for path in done))
        for path in missing:
            _write(job, files[path], path, made[path], progress)
        join(files, target, name, job.made, tqdm(disable=True))
        shutil.rmtree(folder)
    return _rate(job, sum(len(files[path]) for path in missing), begin)


def _rate(job: _Job, rows: int, begin: float) -> str:
    """How fast responses were made, in words."""
    if not rows:
        return ""
    rate, cores = rows / (time.perf_counter() - begin), job.simulator.workers
    whole, each = (f"{number:,.{0 if number >= 10 else 1}f}" for number in (rate, rate / cores))
    return f"; {whole} responses/s" + (f", {each} on each of {cores} cores" if cores > 1 else "")


def _write(job: _Job, rows: range, path: Path, made: dict[str, Any], progress: tqdm) -> None:
    with Writer(path, job.simulator.detector.name, made) as writer:
        for showers in stream(job.simulator, job.source, rows, made["responses"], made["seed"], job.batch_size):
            writer.extend(showers)
            progress.update(len(showers))


def stream(
    simulator: FastSimulator, source: PrimariesFile, rows: range, responses: int, seed: int, batch_size: int = 256
) -> Iterator[Showers]:
    """Simulates some of several responses to each primary, a batch at a time.

    Args:
        simulator: The fast simulation.
        source: The primaries.
        rows: Which responses; those to one primary follow each other.
        responses: Responses to each primary.
        seed: Seed of the draws.
        batch_size: Rows of a batch.

    Yields:
        Showers with up to :data:`AT_ONCE` batches for each worker; together those of ``rows``.
    """
    first, several = rows.start // responses, AT_ONCE * batch_size * simulator.workers
    for particles, pdg in source.pieces(first, -(-rows.stop // responses)):
        stop = min((first + len(pdg)) * responses, rows.stop)
        for start in range(max(first * responses, rows.start), stop, several):
            numbers = np.arange(start, min(start + several, stop))
            primary = numbers // responses - first
            images = simulator.sample(particles[primary], pdg[primary], seed, numbers, batch_size=batch_size)
            yield Showers(particles[primary], pdg[primary], images, simulator.detector.name)
        first += len(pdg)
