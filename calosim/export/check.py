"""Checks exported files: O2's contract, equality with Python number by number, and the distributions of channel sums."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calosim.data.reading import read, read_primaries
from calosim.export.builder import NORMALS, SEED, rows_of
from calosim.export.card import card, check_tables
from calosim.export.client import CARD, CHECK, RECORD, Client
from calosim.export.graph import LEAST
from calosim.io import atomic_write, read_json, write_json
from calosim.metrics.wasserstein import wasserstein
from calosim.models.checkpoints import weights_hash
from calosim.options import CheckSettings
from calosim.simulation.simulator import FastSimulator

__all__ = ["check_folder"]

#: Images with light that may differ from Python's: float32 sums of another order fall to the other side of a whole number.
MOST_DIFFERENT = 0.01

#: Distances between samples that are larger than all but this share of those between shuffled ones are no chance.
LEAST_CHANCE = 0.001

#: Draws that tell how many responses a classifier cuts by chance.
DRAWS = 100_000

#: Responses that are timed, and how often each.
TIMED = (50, 15)


def check_folder(folder: str, settings: CheckSettings) -> None:
    """Runs the files of a folder as O2 does, prints what came out, and keeps it there, unless a larger check was passed before.

    Args:
        folder: A folder made by `calosim export`; the runs that it was made of must still be where they were.
        settings: What to do.

    Raises:
        ValueError: If the check fails.
    """
    check_files(Path(folder))
    client = Client(folder)
    source = settings.primaries or settings.montecarlo
    if source is None:
        raise ValueError("expected primaries to check with; name a ROOT file or a CSV with --primaries")
    truth = None if settings.montecarlo is None else read(settings.montecarlo, client.detector.name)
    particles, pdg = (truth.particles, truth.pdg) if truth and not settings.primaries else read_primaries(source)
    some = np.unique(np.linspace(0, len(pdg) - 1, min(len(pdg), settings.most)).round().astype(np.int64))
    particles, pdg = (a[some].repeat(settings.responses, 0) for a in (particles, pdg))
    montecarlo = None if truth is None else truth.images if settings.primaries else truth.images[some]
    found = _compare(client, particles, pdg, montecarlo, settings)
    before = read_json(Path(folder) / CHECK)["responses"] if (Path(folder) / CHECK).is_file() else 0
    if before <= found["responses"] or found["failed"]:
        write_json(Path(folder) / CHECK, {"settings": asdict(settings), **found})
        atomic_write(Path(folder) / CARD, card(client.record, found))
    else:
        print(
            f"calosim: {folder}: keeps its check by {before} responses; this one has {found['responses']}",
            file=sys.stderr,
        )
    print(check_tables(found))
    if found["failed"]:
        raise ValueError(f"{folder}: the check failed: {'; '.join(found['failed'])}")
    print(f"{folder}: passed, by {found['responses']} responses, {found['dark']} of them dark")


def check_files(folder: Path) -> None:
    """Refuses files that are not those of which the folder's card tells, and models that are no longer those they were made of.

    Raises:
        ValueError: If there is one.
    """
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    for name, told in record.get("files", {}).items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest() if (folder / name).is_file() else "none"
        if found != told["sha256"]:
            raise ValueError(
                f"{folder / name}: expected the file that was exported, of SHA-256 {told['sha256']}, got {found}"
            )
    for source in record.get("models", {}).values():
        if Path(source["run"]).exists() and source.get("weights") not in (None, weights_hash(source["run"])):
            raise ValueError(f"{folder}: older than the weights of {source['run']}; export them anew to check that")


def _compare(
    client: Client, particles: np.ndarray, pdg: np.ndarray, montecarlo: np.ndarray | None, settings: CheckSettings
) -> dict[str, Any]:
    """What a check finds; under ``failed`` what is wrong, a line each."""
    failed, rng = client.wrong, np.random.default_rng(settings.seed)
    noise = rng.standard_normal((len(pdg), NORMALS)).astype(np.float32)
    images, simulated = client.images(particles, noise), client.simulates(particles)
    simulator = _simulator(client)
    equal = simulator.sample(particles, pdg, SEED, rows_of(noise))
    differences = _differences(images, equal, simulated)
    different, nonempty, cut, spared = (differences[key] for key in ("different_images", "lit", "cut", "spared"))
    if different > MOST_DIFFERENT * nonempty:
        failed.append(f"{different} of {nonempty} images with light differ from Python's with the same numbers")
    if (rng.binomial(spared, LEAST, DRAWS) >= cut).mean() < LEAST_CHANCE:
        failed.append(f"the classifier cut {cut} responses of {spared} that should have light in {LEAST:.1%} at most")
    other = simulator.sample(particles, pdg, SEED + 1 + settings.seed)
    channels = {"ONNX": images, "Python": equal, "Python, other numbers": other}
    if montecarlo is not None:
        channels["Monte Carlo"] = montecarlo
    sums = {name: client.detector.channels(value, "o2") for name, value in channels.items()}
    distance, chance = _shuffled(sums["ONNX"], sums["Python, other numbers"], settings.shuffles, rng)
    if chance < LEAST_CHANCE:
        failed.append(
            f"channel sums are of another distribution than Python's (W1 {distance:.3g}, chance {chance:.2g})"
        )
    reference = sums.get("Monte Carlo", sums["Python, other numbers"])
    return {
        "failed": failed,
        "onnxruntime": client.runtime,
        "responses": len(pdg),
        **differences,
        **_times(client, particles, noise),
        "distance": distance,
        "chance": chance,
        "reference": "Monte Carlo" if montecarlo is not None else "Python, other numbers",
        "mean": {name: value.mean(0).tolist() for name, value in sums.items()},
        "ws": {name: wasserstein(reference, value).tolist() for name, value in sums.items()},
        "channels": list(client.detector.channel_names("o2")),
    }


def _differences(images: np.ndarray, equal: np.ndarray, simulated: np.ndarray) -> dict[str, int]:
    """How images (N, nx, ny) differ from Python's with the same numbers.

    What the classifier cut is told apart: Python's images, ``equal``, know none. Of ``simulated`` rows (N,) it let the
    generator be asked; ``nonempty`` of them have light in either image.
    """
    light = images.any((1, 2)) | equal.any((1, 2))
    differ = (images != equal).any((1, 2)) & simulated
    change = (images - equal)[differ]
    more, fewer = (np.maximum(c, 0).sum((1, 2)) for c in (change, -change))
    return {
        "dark": int((~images.any((1, 2))).sum()),
        "lit": int((light & simulated).sum()),
        "different_images": int(differ.sum()),
        "different_sums": int((more != fewer).sum()),
        "moved_photons": int(np.minimum(more, fewer).sum()),
        "spared": int((~simulated).sum()),
        "cut": int((light & ~simulated).sum()),
    }


def _times(client: Client, particles: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    """Milliseconds of processor time that the generator takes for a response, as a mean over responses.

    Of each the least of some runs, which other processes on the machine disturb the least, and the median.
    """
    some = np.unique(np.linspace(0, len(noise) - 1, TIMED[0]).astype(np.int64))
    features, times = client.standardized(particles[some]), np.zeros((len(some), TIMED[1]))
    for row, given in enumerate(some):
        for again in range(TIMED[1]):
            start = time.thread_time()
            client.output(features[row], noise[given])
            times[row, again] = 1e3 * (time.thread_time() - start)
    return {"ms_least": float(times.min(1).mean()), "ms_median": float(np.median(times, 1).mean())}


def _simulator(client: Client) -> FastSimulator:
    """The models that a folder was made of."""
    runs = {role: source["run"] for role, source in client.record["models"].items()}
    missing = [path for path in runs.values() if not Path(path).exists()]
    if missing:
        raise ValueError(f"{client.folder}: was made of {', '.join(missing)}, which is no longer there to compare with")
    return FastSimulator.load(runs["shape"], runs["photons"], acceptance=runs.get("acceptance"))


def _shuffled(a: np.ndarray, b: np.ndarray, shuffles: int, rng: np.random.Generator) -> tuple[float, float]:
    """The mean distance of channel sums (N, 5) of the same primaries, and the share of shuffles that have a larger one.

    The two answers to a primary are exchanged at random: whatever they have in common is no difference.
    """
    distance, larger = float(wasserstein(a, b).mean()), 0
    for _ in range(shuffles):
        swap = rng.random(len(a))[:, None] < 0.5
        larger += float(wasserstein(np.where(swap, a, b), np.where(swap, b, a)).mean()) >= distance
    return distance, (larger + 1) / (shuffles + 1)
