r"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

Protocol of P4: several responses are generated for every test row, several times over; the numbers are means and
standard deviations over those runs. The floor is the Monte Carlo against itself with another seed; the trivial model
answers with a random training response of the same particle type.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import yaml
from tqdm import tqdm

from calosim import __version__, draws
from calosim.base import ShapeModule
from calosim.data import RootDataModule, describe
from calosim.detectors import Detector
from calosim.losses import shower_center
from calosim.metrics import channel_metrics, wasserstein
from calosim.particles import STUDY_PARTICLES, particle_code, particle_name, particle_symbol
from calosim.photons import PhotonSum
from calosim.preprocessing import NOISE_REMOVALS
from calosim.provenance import atomic_write, check_writable, git_hash, to_json
from calosim.rootio import Showers, read
from calosim.simulator import FastSimulator, noise_removals, pick_device, split_of

__all__ = ["Answers", "Pool", "ask", "evaluate_run", "measure", "photon_report", "trained_data"]

#: Metrics of the table: key, heading, format.
METRICS: tuple[tuple[str, str, str], ...] = (
    ("ws", "WS", ".2f"),
    ("mae_cond", "MAE_cond", ".2f"),
    ("mae_w", "MAE_w", ".2f"),
    ("delta", "δ", ".3f"),
    ("jacc", "JaccErr", ".3f"),
    ("center", "distance of the shower center from the straight flight, cm", ".3f"),
    ("center_sd", "its standard deviation, cm", ".3f"),
)

#: How many of them ``evaluation.md`` shows; all are in the other files.
PRINTED = 5

SHAPE_ALONE, FULL_CHAIN = "shape alone (true photon sums)", "full chain"
#: Candidates by their short names, which are those in ``answers.npz``.
TITLES = {
    "shape": SHAPE_ALONE,
    "chain": FULL_CHAIN,
    "floor": "floor (Monte Carlo, other seed)",
    "trivial": "trivial (random training response)",
}

#: Primaries and draws of each that are kept as examples.
EXAMPLES = (6, 4)

#: Edges of the radial profile's bins, in pixels.
RADII = np.arange(0, 41)

#: Fewer validation rows than this do not choose a noise removal.
MIN_ROWS_TO_CHOOSE = 20

#: Nominal contents of the central predictive intervals whose coverage is reported.
INTERVALS = (0.5, 0.68, 0.9, 0.95)

#: Answers for a batch of rows: (run, row numbers with shape (B,)) -> photon images with shape (B, nx, ny).
Candidate = Callable[[int, np.ndarray], np.ndarray]


class Pool:
    """Answers a row with random responses from a pool of Monte Carlo responses that share a key with it.

    With the unique input as key, and a pool simulated with another seed, this is the floor; with the particle type as
    key, and the training split as pool, it is the trivial model.

    Args:
        keys: The pool's keys with shape (M,).
        fallback: A second key with shape (M,), for rows whose first key the pool lacks.
    """

    def __init__(self, keys: np.ndarray, fallback: np.ndarray):
        self.orders = [np.argsort(k, kind="stable") for k in (keys, fallback)]
        self.sorted = [k[o] for k, o in zip((keys, fallback), self.orders, strict=True)]

    def draw(self, keys: np.ndarray, fallback: np.ndarray, seed: int, rows: np.ndarray) -> np.ndarray:
        """Positions in the pool.

        Args:
            keys: Keys of the rows with shape (B,).
            fallback: Second keys of the rows with shape (B,).
            seed: Seed of the draws.
            rows: Row numbers with shape (B,) that key the draws.

        Returns:
            Positions with shape (B,); any of the pool's where it has neither key.
        """
        row_keys = draws.row_keys(torch.from_numpy(rows), draws.EVALUATION_STREAM, seed)
        u = draws.uniform(row_keys, 1)[:, 0].numpy().astype(np.float64)
        position = (u * len(self.orders[0])).astype(np.int64)
        for wanted, order, present in zip((fallback, keys), self.orders[::-1], self.sorted[::-1], strict=True):
            low, high = (np.searchsorted(present, wanted, side=s) for s in ("left", "right"))
            found = high > low
            position[found] = order[(low + u * (high - low)).astype(np.int64)[found]]
        return position


class Answers(NamedTuple):
    """What a candidate answered, reduced to what the metrics need.

    Attributes:
        channels: Channel values with shape (runs, N, responses, 5), int64.
        offsets: Distances in cm of the showers' centers of gravity from where the primary would hit if it flew straight,
            with shape (runs, N, responses), float32; NaN for dark images.
        profile: Mean share of an image's photons by distance from its center of gravity, :data:`RADII`, first run.
        seconds: Time per response.
    """

    channels: np.ndarray
    offsets: np.ndarray
    profile: np.ndarray
    seconds: float


def ask(
    test: Showers,
    candidates: dict[str, Candidate],
    runs: int = 5,
    responses: int = 5,
    batch_size: int = 1024,
    quiet: bool = False,
) -> dict[str, Answers]:
    """Lets each candidate answer the test rows.

    Args:
        test: The test rows.
        candidates: By name, functions of (run, row numbers (B,)) that return generated images (B, nx, ny); the row
            numbers count test rows times ``responses``.
        runs: Repetitions with other seeds.
        responses: Responses generated for every row in each run.
        batch_size: Rows asked for at once.
        quiet: Show no progress.
    """
    detector, rows = test.geometry, len(test)
    size = rows * responses
    answers = {
        name: Answers(
            np.zeros((runs, size, 5), np.int64), np.zeros((runs, size), np.float32), np.zeros(len(RADII) - 1), 0.0
        )
        for name in candidates
    }
    total = len(candidates) * runs * size
    with tqdm(total=total, unit="responses", unit_scale=True, disable=True if quiet else None) as progress:
        for run in range(runs):
            for name, candidate in candidates.items():
                progress.set_description(f"{name}, run {run + 1}/{runs}")
                answer, seconds = answers[name], 0.0
                for start in range(0, size, batch_size):
                    numbers = np.arange(start, min(start + batch_size, size))
                    begin = time.perf_counter()
                    images = candidate(run, numbers)
                    seconds += time.perf_counter() - begin
                    answer.channels[run, numbers] = detector.channels(images)
                    answer.offsets[run, numbers] = _offsets(images, test.particles[numbers // responses], detector)
                    if run == 0:
                        answer.profile[:] += _profile(images, detector) * len(numbers) / size
                    progress.update(len(numbers))
                answers[name] = answer._replace(seconds=answer.seconds + seconds / (runs * size))
    return {
        name: a._replace(
            channels=a.channels.reshape(runs, rows, responses, 5), offsets=a.offsets.reshape(runs, rows, responses)
        )
        for name, a in answers.items()
    }


def measure(
    answers: Answers,
    reference: np.ndarray,
    pdg: np.ndarray,
    inputs: np.ndarray,
    detector: Detector,
    natural: np.ndarray | None = None,
) -> dict[str, Any]:
    """The published metrics of a candidate's answers, and the offset of its shower centers.

    Args:
        answers: From :func:`ask`.
        reference: Channel values of the test rows with shape (N, 5).
        pdg: PDG codes with shape (N,).
        inputs: Unique-input numbers with shape (N,).
        detector: The detector.
        natural: Rows with shape (N,) that have the natural mix of particle types: ``all`` is their value; all if not given.

    Returns:
        ``mean`` and ``std`` over runs by metric (``ws_all``, ``mae_cond_gamma``), the values of all ``runs``, and
        ``seconds`` per response. Values of a particle type are over all its rows.
    """
    tensors = [torch.from_numpy(np.asarray(x)) for x in (reference, pdg.astype(np.int64), inputs)]
    mixed = np.ones(len(pdg), dtype=bool) if natural is None else natural

    def values(run: int, rows: np.ndarray) -> dict[str, float]:
        metrics = channel_metrics(detector)
        metrics.update(torch.from_numpy(answers.channels[run][rows]), *(t[torch.from_numpy(rows)] for t in tensors))
        result = {key: float(value) for key, value in metrics.compute().items()}
        offsets = answers.offsets[run]
        for code in (None, *np.unique(pdg[rows])):
            some = offsets[rows if code is None else rows & (pdg == code)]
            some = some[~np.isnan(some)].astype(np.float64)
            name = "all" if code is None else particle_name(int(code))
            result[f"center_{name}"] = some.mean() if len(some) else float("nan")
            result[f"center_sd_{name}"] = some.std() if len(some) else float("nan")
        return result

    runs = []
    for run in range(len(answers.channels)):
        result = values(run, np.ones(len(pdg), dtype=bool))
        if not mixed.all():
            particles = {f"_{particle_name(int(code))}" for code in np.unique(pdg)}
            natural_values = values(run, mixed) if mixed.any() else {}
            result |= {k: v for k, v in natural_values.items() if not any(k.endswith(p) for p in particles)}
        runs.append(result)
    series = {key: np.array([run[key] for run in runs]) for key in runs[0]}
    return {
        "mean": {key: float(v.mean()) for key, v in series.items()},
        "std": {key: float(v.std(ddof=1)) if len(runs) > 1 else 0.0 for key, v in series.items()},
        "runs": runs,
        "seconds": answers.seconds,
    }


def best_noise_removals(
    model: ShapeModule, data: RootDataModule, rows: int, seed: int, quiet: bool = False
) -> tuple[dict[int, int], dict[str, dict[int, float]]]:
    """Chooses the noise removal of each particle type by the Wasserstein distance on validation rows.

    Args:
        model: The shape model; photon sums are the true ones.
        data: The data set; of its validation split about ``rows`` rows of each type are taken.
        rows: See above; one response is generated for each.
        seed: Seed of the draws.
        quiet: Show no progress.

    Returns:
        The method by PDG code, 0 standing for all others, and the distances by particle and method.
    """
    inputs, pdg = data.inputs("val"), data.arrays["pdg"][data.rows("val")]
    chosen, natural = mixed_rows(inputs, pdg, rows, rows)
    val = data.showers("val", chosen)
    channels = {method: np.zeros((len(val), 5), dtype=np.int64) for method in NOISE_REMOVALS}
    batches = [np.arange(i, min(i + 1024, len(val))) for i in range(0, len(val), 1024)]
    for batch in tqdm(batches, desc="noise removal", disable=True if quiet else None):
        particles = torch.from_numpy(val.particles[batch]).to(model.device, torch.float32)
        photon_sum = torch.from_numpy(val.photon_sum[batch]).to(model.device)
        logits = model.generate_logits(particles, photon_sum, seed, torch.from_numpy(chosen[batch]).to(model.device))
        for method, values in channels.items():
            values[batch] = val.geometry.channels(model.logits.photons(logits, photon_sum, method).cpu().numpy())
    reference = val.geometry.channels(val.images)
    selections = {0: natural} | {int(code): val.pdg == code for code in np.unique(val.pdg)}
    methods, distances = {}, {}
    for code, some in selections.items():
        # A handful of rows cannot tell four methods apart.
        if some.sum() < MIN_ROWS_TO_CHOOSE:
            continue
        found = {m: float(wasserstein(reference[some], values[some]).mean()) for m, values in channels.items()}
        methods[code] = min(found, key=lambda m: found[m])
        distances["all" if code == 0 else particle_name(code)] = found
    return {0: 3, **methods}, distances


def photon_report(samples: np.ndarray, photon_sum: np.ndarray, pdg: np.ndarray) -> dict[str, dict[str, float]]:
    """How well predictive samples of the photon sum agree with the Monte Carlo.

    Args:
        samples: Predictive samples with shape (N, K).
        photon_sum: True photon sums with shape (N,).
        pdg: PDG codes with shape (N,).

    Returns:
        For ``all`` and each particle type: ``rows``; ``mae`` and ``median_error`` (relative) of the predictive median;
        ``rmse`` of the predictive mean; ``w1`` between the distributions of sums; ``coverage_50`` and so on, the share of
        sums inside the central predictive intervals (nominally that percentage), limits included.
    """
    median, mean = np.median(samples, axis=1), samples.mean(axis=1)
    limits = {p: np.quantile(samples, [(1 - p) / 2, (1 + p) / 2], axis=1) for p in INTERVALS}
    report = {}
    for code in (None, *np.unique(pdg)):
        rows = np.ones(len(pdg), dtype=bool) if code is None else pdg == code
        error = np.abs(median - photon_sum)[rows]
        values = {
            "rows": int(rows.sum()),
            "mae": error.mean(),
            "rmse": np.sqrt(np.square(mean - photon_sum)[rows].mean()),
            "median_error": np.median(error / np.maximum(photon_sum[rows], 1)),
            "w1": wasserstein(photon_sum[rows], samples[rows].ravel()),
        }
        for p, (low, high) in limits.items():
            values[f"coverage_{100 * p:.0f}"] = ((low <= photon_sum) & (photon_sum <= high))[rows].mean()
        report["all" if code is None else particle_name(int(code))] = {k: float(v) for k, v in values.items()}
    return report


def evaluate_run(
    out: str,
    shape: str | None = None,
    photons: list[str] | None = None,
    files: list[str] | None = None,
    data: str | None = None,
    split: Literal["test", "val"] = "test",
    floor: str | None = None,
    runs: int = 5,
    responses: int = 5,
    rows: int | None = None,
    rows_of_each: int | None = None,
    noise_removal: int | Literal["best"] | None = None,
    noise_removal_of: list[str] | None = None,
    references: bool = True,
    seed: int = 1,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Judges a fast simulation on the test split and writes tables and pictures.

    The data set and its split are those that the shape model (else the first photon-sum model) was trained with; a model
    of one particle is judged on that particle's rows.

    Args:
        out: Folder for the results.
        shape: Run folder, checkpoint or ensemble of the shape model; without it only the photon sums are judged.
        photons: Run folders or checkpoints of photon-sum models; the first is used with the shape model, all are compared.
        files: Data files, if they are no longer where the models were trained.
        data: Run folder whose data set and split are used; that of the shape model if not given.
        split: The rows to judge on; choices between models are made on val, results are reported on test.
        floor: Showers of the same primaries simulated with another seed (``calosim simulate --primaries FILE``). Without
            it, one half of each input's responses answers for the other, on whose rows alone the floor is judged then.
        runs: Repetitions with other seeds.
        responses: Responses generated for every row in each run.
        rows: About that many rows, spread over particle types and inputs, up to five of an input; all if not given.
        rows_of_each: In addition up to about that many rows of each particle type, for its own column; "all" stays with the
            natural mix.
        noise_removal: 1 floor, 2 subtract and round, 3 floor and renormalize, 4 subtract, round and renormalize; or best:
            for each particle the one with the smallest Wasserstein distance on validation rows. An ensemble's own by
            default, else 3.
        noise_removal_of: Exceptions by particle, for instance "[neutron=1,k0s=2]".
        references: Whether the floor and the trivial model are judged too.
        seed: Seed of the draws.
        device: auto, cpu, cuda or mps.
        quiet: Show no progress.
    """
    arguments = {key: value for key, value in locals().items() if key != "quiet"}
    for name, value in (("runs", runs), ("responses", responses), ("rows", rows), ("rows_of_each", rows_of_each)):
        if value is not None and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    photons = photons or []
    if shape is None and not photons:
        raise ValueError("nothing to evaluate: name a shape model with --shape or photon-sum models with --photons")
    check_writable(out)
    exceptions = noise_removals(3, noise_removal_of or [])
    where = pick_device(device)
    source, particle = trained_data(data or shape or photons[0], files, shape)
    check_splits(data or shape or photons[0], [m for m in (shape, *photons) if m], data is not None)
    models = {str(p): PhotonSum.load(p, where) for p in photons}
    # All types' rows are chosen, then those of the particle: the same rows whichever model is judged.
    all_inputs, all_pdg = source.inputs(split), source.arrays["pdg"][source.rows(split)]
    chosen, natural = mixed_rows(all_inputs, all_pdg, rows, rows_of_each)
    if particle is not None:
        keep = all_pdg[chosen] == particle
        chosen, natural = chosen[keep], natural[keep]
    test, inputs = source.showers(split, chosen), all_inputs[chosen]
    if not len(test):
        raise ValueError(f"{', '.join(source.files)}: the {split} split has no row to evaluate")
    results: dict[str, Any] = {
        "calosim": __version__,
        "git": git_hash(),
        "arguments": arguments,
        "seed": seed,
        "split": split,
        "shape": shape,
        "photons": list(models),
        "rows": len(test),
        "inputs": len(np.unique(inputs)),
        "runs": runs,
        "responses": responses,
        "data": describe(source),
    }
    draws_per_row = 50
    asked = np.ones(len(test), dtype=bool)  # the rows that the floor is judged on
    pools: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[..., np.ndarray]]] = {}
    if references:
        pools, asked, lacking = _reference_pools(source, split, chosen, test, inputs, floor)
        results["floor_rows_without_their_input"] = lacking
        results["floor"] = (
            floor or f"{asked.sum()} rows, one half of each input's {split} responses, against the other half"
        )
    # -- photon sums
    numbers = np.arange(len(test) * draws_per_row)
    sums: dict[str, np.ndarray] = {}
    particles = torch.from_numpy(test.particles).to(where, torch.float32)
    for name, model in models.items():
        parts = [
            model.sample(particles[part // draws_per_row], seed, torch.from_numpy(part).to(where)).cpu().numpy()
            for part in np.array_split(numbers, max(1, len(numbers) // 65536))
        ]
        sums[f"{model.head} ({name})"] = np.concatenate(parts).reshape(len(test), draws_per_row)
    for title, (images, positions) in pools.items():
        drawn_rows = positions(numbers // draws_per_row, seed, numbers)
        distinct, back = np.unique(drawn_rows, return_inverse=True)
        pool_sums = np.concatenate(
            [
                images(part).sum(axis=(1, 2), dtype=np.int64)
                for part in np.array_split(distinct, len(distinct) // 4096 + 1)
            ]
        )
        sums[title] = pool_sums[back.ravel()].reshape(len(test), draws_per_row)
    results["photon_sum"] = {}
    for title, drawn in sums.items():
        rated = asked if title == "floor" else np.ones_like(asked)
        results["photon_sum"][title] = photon_report(drawn[rated], test.photon_sum[rated], test.pdg[rated])
    # -- images
    folder = Path(out)
    if shape is not None:
        methods = {code: method for code, method in exceptions.items() if code}
        if noise_removal == "best":
            chosen_for = rows_of_each or rows or 1000
            best, results["noise_removal_ws"] = best_noise_removals(
                ShapeModule.load(shape, where), source, chosen_for, seed, quiet
            )
            methods = best | methods
        elif noise_removal is not None:
            methods |= {0: noise_removal}
        simulator = FastSimulator.load(shape, photons[0] if photons else None, methods, where)
        results["noise_removal"] = simulator.noise_removal
        true_sum = test.photon_sum

        def generated(full: bool) -> Candidate:
            def images(run: int, numbers: np.ndarray) -> np.ndarray:
                row = numbers // responses
                total = None if full else true_sum[row]
                # A row's draws are keyed by where it is in the data, so that models of all and of one particle share them.
                keys = chosen[row] * responses + numbers % responses
                return simulator.sample(test.particles[row], test.pdg[row], seed + run, keys, total, batch_size=1024)

            return images

        def from_pool(name: str) -> Candidate:
            pool_images, positions = pools[name]
            return lambda run, n: pool_images(positions(n // responses, seed + run, n))

        candidates: dict[str, Candidate] = {SHAPE_ALONE: generated(False)}
        if simulator.photons is not None:
            candidates[FULL_CHAIN] = generated(True)
        candidates |= {TITLES[name]: from_pool(name) for name in pools}
        answers = ask(test, candidates, runs, responses, quiet=quiet)
        # The Monte Carlo itself: channels to compare with, and its centers' own offsets.
        itself = ask(test, {"": lambda run, n: test.images[n]}, runs=1, responses=1, quiet=True)[""]
        reference, detector = itself.channels[0, :, 0], test.geometry
        results["images"] = {}
        for title, answer in answers.items():
            rated = asked if title == TITLES["floor"] else np.ones_like(asked)
            answer = answer._replace(channels=answer.channels[:, rated], offsets=answer.offsets[:, rated])
            results["images"][title] = measure(
                answer, reference[rated], test.pdg[rated], inputs[rated], detector, natural[rated]
            )
        results["monte_carlo"] = measure(itself, reference, test.pdg, inputs, detector, natural)["mean"]
        examples = _examples(test, inputs, simulator, seed)
        # A floor that answers for half of the rows cannot be compared row by row.
        kept = answers if asked.all() else {t: a for t, a in answers.items() if t != TITLES["floor"]}
        atomic_write(
            folder / "answers.npz",
            _packed(kept, chosen, test.pdg, inputs, natural, reference, itself.profile, **examples),
        )
        whole = answers[SHAPE_ALONE if simulator.photons is None else FULL_CHAIN].channels[0, :, 0]
        _pictures(folder, detector, reference, whole, **examples)
    atomic_write(folder / "evaluation.csv", _csv(results))
    tables = tables_of(results)
    atomic_write(folder / "evaluation.md", tables)
    atomic_write(folder / "evaluation.json", to_json(results))
    print(tables)
    print(f"Tables: {folder}/evaluation.md, .csv, .json", end="")
    print(f"\nPictures: {folder}/responses.png, {folder}/channels.png" if shape else "")


def _reference_pools(
    data: RootDataModule, split: Any, chosen: np.ndarray, test: Showers, inputs: np.ndarray, floor: str | None
) -> tuple[dict[str, Any], np.ndarray, int]:
    """Floor and trivial model as (images of positions, positions of rows).

    And the rows on which the floor is to be judged: all, or without another simulation those of one half of each input's
    responses, answered from the other half. (Each half answered from the other would be a resample of the reference
    itself, which no simulation can match.) And how many of their inputs the floor lacks.
    """
    stored = data.arrays["images"]
    pool_images: Callable[[np.ndarray], np.ndarray]
    if floor:
        pool = read(floor, data.detector.name)
        pool_pdg, pool_images, floor_keys = pool.pdg, pool.images.__getitem__, inputs
        pool_keys, asked = _match_inputs(pool, test, inputs), np.ones(len(test), dtype=bool)
    else:
        split_rows, of_pool = data.rows(split), data.inputs(split)
        half = _rank_within(of_pool) % 2
        asked, floor_keys = half[chosen] == 0, inputs
        others, pool_keys = split_rows[half == 1], of_pool[half == 1]
        pool_pdg, pool_images = data.arrays["pdg"][others], lambda positions: stored[others[positions]]
    train = data.rows("train")
    train_pdg = data.arrays["pdg"][train]
    floor_pool, trivial_pool = Pool(pool_keys, pool_pdg), Pool(train_pdg, np.zeros(len(train)))

    def floor_rows(row: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        return floor_pool.draw(floor_keys[row], test.pdg[row], seed, numbers)

    def trivial_rows(row: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
        return trivial_pool.draw(test.pdg[row], np.zeros(len(row)), seed, numbers)

    return (
        {
            "floor": (pool_images, floor_rows),
            "trivial": (lambda positions: stored[train[positions]], trivial_rows),
        },
        asked,
        int((~np.isin(floor_keys[asked], pool_keys)).sum()),
    )


def _offsets(images: np.ndarray, particles: np.ndarray, detector: Detector) -> np.ndarray:
    """Distances of the centers of gravity from the straight flight's end in cm, shape (B,), NaN where dark."""
    light = torch.from_numpy(np.asarray(images, dtype=np.float64))
    distance = shower_center(light, torch.from_numpy(particles), detector)
    return torch.where(light.sum((1, 2)) > 0, distance, torch.nan).numpy()


def _profile(images: np.ndarray, detector: Detector) -> np.ndarray:
    """Mean share of an image's photons in each bin of :data:`RADII` around its center of gravity; dark ones count as 0."""
    x, y = (centers / detector.pitch for centers in detector.pixel_centers)
    lit, i, j = np.nonzero(images)
    share = images[lit, i, j] / images.sum((1, 2), dtype=np.float64)[lit]
    centers = [np.bincount(lit, share * axis, len(images)) for axis in (x[i], y[j])]
    radius = np.hypot(x[i] - centers[0][lit], y[j] - centers[1][lit])
    return np.histogram(radius, RADII, weights=share)[0] / len(images)


def _packed(answers: dict[str, Answers], *arrays: np.ndarray, **more: np.ndarray) -> bytes:
    """The answers as the content of ``answers.npz``, for comparisons of models on the same rows."""
    packed = more | dict(
        zip(("rows", "pdg", "inputs", "natural", "reference", "reference_profile"), arrays, strict=True)
    )
    for name, title in TITLES.items():
        if title in answers:
            packed |= {
                f"{name}_channels": answers[title].channels.astype(np.int32),
                f"{name}_offsets": answers[title].offsets,
                f"{name}_profile": answers[title].profile,
            }
    stream = io.BytesIO()
    np.savez_compressed(stream, **packed)  # type: ignore[arg-type]
    return stream.getvalue()


def mixed_rows(
    inputs: np.ndarray, pdg: np.ndarray, rows: int | None, of_each: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows of the natural mix, and further rows of rare particle types.

    Args:
        inputs: Unique-input numbers with shape (N,).
        pdg: PDG codes with shape (N,).
        rows: About how many rows of the natural mix; all if None.
        of_each: About how many rows of each type at least, as far as there are; none beyond the mix if None.

    Returns:
        Positions, ascending, shape (M,); and which of them are of the natural mix, shape (M,).
    """
    mix = some_rows(inputs, pdg, rows)
    parts = [mix]
    for code in np.unique(pdg) if of_each else []:
        own = np.flatnonzero(pdg == code)
        if (pdg[mix] == code).sum() < (of_each or 0):
            parts.append(own[some_rows(inputs[own], pdg[own], of_each)])
    chosen = np.unique(np.concatenate(parts))
    return chosen, np.isin(chosen, mix)


def some_rows(inputs: np.ndarray, pdg: np.ndarray, rows: int | None, together: int = 5) -> np.ndarray:
    """Positions of some rows that keep the mix of particle types and several responses of an input together, ascending.

    Conditional metrics need several responses of an input; evenly spread rows would leave one or two of each.

    Args:
        inputs: Unique-input numbers with shape (N,).
        pdg: PDG codes with shape (N,).
        rows: About how many rows are wanted; all if None.
        together: Responses of one input that stay together.
    """
    if rows is None or rows >= len(inputs):
        return np.arange(len(inputs))
    rank = _rank_within(inputs)
    order = np.lexsort((rank, inputs, pdg))
    starts = np.flatnonzero(rank[order] % together == 0)
    blocks = np.split(order, starts[1:])
    # Evenly spread over blocks sorted by particle type: every type with its share of the blocks.
    wanted = max(1, round(len(blocks) * rows / len(inputs)))
    picked = np.linspace(0, len(blocks) - 1, wanted).round().astype(np.int64)
    return np.sort(np.concatenate([blocks[i] for i in picked]))


def trained_data(
    run: str | Path, files: list[str] | None = None, model: str | Path | None = None
) -> tuple[RootDataModule, int | None]:
    """The data set that a run was trained with, split as it was then, all particle types.

    Args:
        run: A run folder or a checkpoint in it.
        files: Other places of its files.
        model: The run whose particle is wanted; ``run`` if not given.

    Returns:
        The data, and the PDG code of the only particle that the model was trained with, if so.

    Raises:
        ValueError: If the run folder has no ``config.yaml``, or the files' contents have changed since.
    """
    folder = _run_folder(run)
    for name in ("config.yaml", "run.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected a run folder with {name}, which names the data of the training")
    settings = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    data = RootDataModule(**{**settings, "files": files or settings["files"], "particle": None})
    data.setup()
    trained = json.loads((folder / "run.json").read_text())["data"]["data_hash"]
    if data.data_hash != trained:
        raise ValueError(
            f"{', '.join(data.files)}: not the data of {folder} (hash {data.data_hash}, expected {trained}); its test split "
            "would not be the one held out in training"
        )
    own = _run_folder(model or run) / "config.yaml"
    particle = yaml.safe_load(own.read_text())["data"].get("particle") if own.is_file() else None
    return data, None if particle is None else particle_code(particle)


def check_splits(judge: str | Path, models: Sequence[str | Path], given: bool) -> None:
    """Refuses models that may have been trained on the rows they are to be judged on.

    Args:
        judge: The run whose data set and split are used.
        models: Run folders, checkpoints or ensembles.
        given: Whether that run was named for its data: then models of another data set are meant to be there.

    Raises:
        ValueError: If a model was trained on another split of the data set, or unasked on another data set.
    """
    wanted = split_of(_run_folder(judge))
    for model in models:
        found = split_of(_run_folder(model))
        if None in (wanted, found) or found == wanted:
            continue
        if not given or found["data_hash"] == wanted["data_hash"]:  # type: ignore[index]
            differs = ", ".join(f"{k} {found[k]}, not {wanted[k]}" for k in wanted if found[k] != wanted[k])  # type: ignore[index,union-attr]
            raise ValueError(
                f"{model}: expected a model trained on the data and split of {judge}, lest it has seen the rows it is judged "
                f"on; it has {differs}"
            )


def _run_folder(run: str | Path) -> Path:
    return Path(run) if Path(run).is_dir() else Path(run).parent.parent


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """Counts the earlier rows with the same number, shape (N,)."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return rank


def _match_inputs(pool: Showers, test: Showers, inputs: np.ndarray) -> np.ndarray:
    """The pool's unique-input numbers in the numbering of the test rows, -1 for primaries that are not among them."""
    columns = [np.ascontiguousarray(np.column_stack([s.particles, s.pdg])) for s in (test, pool)]
    known = {row.tobytes(): number for row, number in zip(columns[0], inputs, strict=True)}
    return np.array([known.get(row.tobytes(), -1) for row in columns[1]], dtype=np.int64)


def tables_of(results: dict[str, Any]) -> str:
    """The results as Markdown tables, the study's particles first."""
    judged = next(iter(results["images"].values()))["mean"] if "images" in results else {}
    present = {*(k.removeprefix("ws_") for k in judged), *(n for r in results["photon_sum"].values() for n in r)}
    wanted = ["all", *(particle_name(c) for c in STUDY_PARTICLES)]
    names = [n for n in wanted if n in present]
    lacking = results.get("floor_rows_without_their_input")
    title = {"all": "all", **{particle_name(c): f"{particle_symbol(c)} {particle_name(c)}" for c in STUDY_PARTICLES}}
    lines = [
        f"{results['rows']} {results['split']} rows of {results['inputs']} primaries; {results['responses']} responses per "
        f"row, {results['runs']} runs; mean ± standard deviation over runs."
        + (
            f" The floor's sample lacks the primaries of {lacking} rows; others of their type answer there."
            if lacking
            else ""
        ),
    ]
    for key, heading, form in METRICS[:PRINTED] if "images" in results else ():
        lines += ["", f"| {heading} | " + " | ".join(title[n] for n in names) + " |", "|---" * (len(names) + 1) + "|"]
        for candidate, result in results["images"].items():
            cells = [_cell(result["mean"][f"{key}_{n}"], result["std"][f"{key}_{n}"], form) for n in names]
            lines.append(f"| {candidate} | " + " | ".join(cells) + " |")
    head = ("rows", "mae", "rmse", "median_error", "w1", *(f"coverage_{100 * p:.0f}" for p in INTERVALS))
    if results["photon_sum"]:
        lines += [
            "",
            "| photon sum | model | rows | MAE | RMSE | median error | W1 | inside 50 % | 68 % | 90 % | 95 % |",
        ]
        lines.append("|---" * 11 + "|")
    for n in names:
        for model, report in results["photon_sum"].items():
            v = [report[n][k] for k in head]
            cells = [f"{v[0]:.0f}", *(f"{x:.1f}" for x in v[1:3]), f"{100 * v[3]:.1f} %", f"{v[4]:.1f}"]
            lines.append(f"| {title[n]} | {model} | " + " | ".join([*cells, *(f"{100 * x:.1f}" for x in v[5:])]) + " |")
    return "\n".join(lines) + "\n"


def _cell(mean: float, std: float, form: str) -> str:
    """A mean with its standard deviation; a dash where there was nothing to compare."""
    return "–" if np.isnan(mean) else f"{mean:{form}} ± {std:{form}}"


def _csv(results: dict[str, Any]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["candidate", "metric", "particle_or_channel", "mean", "std"])
    for candidate, result in results.get("images", {}).items():
        for key in result["mean"]:
            metric = max((m for m, _, _ in METRICS if key.startswith(f"{m}_")), key=len)
            table.writerow([candidate, metric, key[len(metric) + 1 :], result["mean"][key], result["std"][key]])
    for model, report in results["photon_sum"].items():
        for particle, values in report.items():
            for key, value in values.items():
                table.writerow([model, f"photon_sum_{key}", particle, value, ""])
    return stream.getvalue()


def _examples(test: Showers, inputs: np.ndarray, simulator: FastSimulator, seed: int) -> dict[str, np.ndarray]:
    """Monte Carlo and generated responses to some primaries, several draws of each.

    Returns:
        ``examples_reference`` and ``examples_generated`` with shape (P, R, nx, ny), and P ``examples_labels``. Where the
        Monte Carlo has fewer than R responses to a primary, dark images stand for the others.
    """
    codes = [
        code for code in dict.fromkeys((*STUDY_PARTICLES, *np.unique(test.pdg).tolist())) if (test.pdg == code).any()
    ]
    shown, missing = [], []
    for code in codes[: EXAMPLES[0]]:
        # The input with most responses: diversity shows.
        rows = np.flatnonzero(test.pdg == code)
        ids, counts = np.unique(inputs[rows], return_counts=True)
        own = rows[inputs[rows] == ids[counts.argmax()]]
        shown.append(np.resize(own, EXAMPLES[1]))
        missing.append(np.arange(EXAMPLES[1]) >= len(own))
    picked = np.concatenate(shown)
    reference = np.where(np.concatenate(missing)[:, None, None], 0, test.images[picked]).astype(np.int32)
    total = test.photon_sum[picked] if simulator.photons is None else None
    images = simulator.sample(test.particles[picked], test.pdg[picked], seed, np.arange(len(picked)), total)
    shape = (len(shown), EXAMPLES[1], *test.images.shape[1:])
    labels = [f"{particle_symbol(int(test.pdg[r[0]]))}, {test.particles[r[0], 0]:.0f} GeV" for r in shown]
    return {
        "examples_reference": reference.reshape(shape),
        "examples_generated": images.reshape(shape),
        "examples_labels": np.array(labels),
    }


def _pictures(
    folder: Path,
    detector: Detector,
    reference: np.ndarray,
    generated: np.ndarray,
    examples_reference: np.ndarray,
    examples_generated: np.ndarray,
    examples_labels: np.ndarray,
) -> None:
    """Responses to some primaries, Monte Carlo above and generated below, and the channel distributions."""
    from calosim.plotting import channel_histograms, image_rows

    above, below = (e[:5, :2].reshape(-1, *detector.shape) for e in (examples_reference, examples_generated))
    image_rows(above, below, np.repeat(examples_labels[:5], 2).tolist(), folder / "responses.png")
    channel_histograms(reference, generated, detector.channel_names(), folder / "channels.png")
