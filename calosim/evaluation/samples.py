"""What is judged on what: loaded models, the judged rows, what is held against them, and the samples of them all.

Two uncertainties are told: standard deviations over runs say how much draws matter, intervals of a bootstrap how much it
matters which primaries were judged, the same in every run. With few primaries the second is the larger.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from calosim.data.record import Showers
from calosim.data.splits import ShowerData
from calosim.detectors import Detector
from calosim.evaluation.references import Floors, Reference
from calosim.evaluation.selection import Selection, select_rows
from calosim.evaluation.stored import TITLES, shown_particles
from calosim.io import markdown_table
from calosim.metrics.bootstrap import LEAST_PRIMARIES, interval, resample
from calosim.metrics.registry import METRICS, Metric, Rows, metric_values, resampled_metrics, with_spread
from calosim.metrics.wasserstein import VARIANTS, variant_metrics, wasserstein
from calosim.models.losses import shower_center
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.options import ClassifierOptions, Models, Protocol
from calosim.particles import groups, particle_heading, particle_name
from calosim.simulation.simulator import FastSimulator

__all__ = [
    "CHANNELS",
    "RADII",
    "VARIANT_CODES",
    "Candidate",
    "Judgement",
    "Samples",
    "Work",
    "best_requantizations",
    "center_offsets",
    "first_samples",
    "generated_points",
    "load_models",
    "measure",
    "monte_carlo",
    "over_runs",
    "packed",
    "radial_profile",
    "sample",
    "unrounded_channels",
]


#: Edges of the radial profile's bins, in pixels.
RADII = np.arange(0, 41)
#: Rows that are generated at once.
BATCH = 1024
#: Fewer validation rows than this do not choose a requantization.
MIN_ROWS_TO_CHOOSE = 20

#: Generates a batch: (run, row numbers with shape (B,)) -> photon images with shape (B, nx, ny).
Candidate = Callable[[int, np.ndarray], np.ndarray]


def batches(numbers: np.ndarray) -> list[np.ndarray]:
    """Row numbers (N,) in batches."""
    return np.split(numbers, range(BATCH, len(numbers), BATCH))


class Samples(NamedTuple):
    """What a candidate generated, reduced to what the metrics need.

    Attributes:
        channels: Channel values with shape (runs, N, responses, 5), int64.
        offsets: Distances in cm of the showers' centers of gravity from where the primary would hit if it flew straight,
            with shape (runs, N, responses), float32; NaN for empty images.
        profile: Mean share of an image's photons by distance from its center of gravity, :data:`RADII`, first run.
        seconds: Time per response.
    """

    channels: np.ndarray
    offsets: np.ndarray
    profile: np.ndarray
    seconds: float

    def runs(self, reference: np.ndarray, pdg: np.ndarray, primary_ids: np.ndarray, detector: Detector) -> list[Rows]:
        """Each run's samples beside what is known of the rows, see :class:`calosim.metrics.registry.Rows`."""
        pairs = zip(self.channels, self.offsets, strict=True)
        return [Rows(channels, offsets, reference, pdg, primary_ids, detector) for channels, offsets in pairs]


def sample(
    test: Showers, candidates: Mapping[str, Candidate], runs: int = 5, responses: int = 5, quiet: bool = False
) -> dict[str, Samples]:
    """Lets each candidate generate responses to the test rows.

    Args:
        test: The test rows.
        candidates: By name, functions of (run, row numbers (B,)) that return generated images (B, nx, ny); the row
            numbers count test rows times ``responses``.
        runs: Repetitions with other seeds.
        responses: Responses generated for every row in each run.
        quiet: Show no progress.
    """
    detector, rows = test.geometry, len(test)
    size = rows * responses
    channels = {name: np.zeros((runs, size, 5), np.int64) for name in candidates}
    offsets = {name: np.zeros((runs, size), np.float32) for name in candidates}
    profiles = {name: np.zeros(len(RADII) - 1) for name in candidates}
    seconds = dict.fromkeys(candidates, 0.0)
    total = len(candidates) * runs * size
    with tqdm(total=total, unit="responses", unit_scale=True, disable=True if quiet else None) as progress:
        for run in range(runs):
            for name, candidate in candidates.items():
                progress.set_description(f"{TITLES.get(name, name)}, run {run + 1}/{runs}")
                for numbers in batches(np.arange(size)):
                    begin = time.perf_counter()
                    images = candidate(run, numbers)
                    seconds[name] += (time.perf_counter() - begin) / (runs * size)
                    channels[name][run, numbers] = detector.channels(images)
                    primaries = test.particles[numbers // responses]
                    offsets[name][run, numbers] = center_offsets(images, primaries, detector)
                    if run == 0:
                        profiles[name] += radial_profile(images, detector) * len(numbers) / size
                    progress.update(len(numbers))
    return {
        name: Samples(
            channels[name].reshape(runs, rows, responses, 5),
            offsets[name].reshape(runs, rows, responses),
            profiles[name],
            seconds[name],
        )
        for name in candidates
    }


def first_samples(candidate: Candidate, rows: int, responses: int, title: str, quiet: bool = False) -> np.ndarray:
    """The first response to each row in the first run, photon counts with shape (rows, nx, ny).

    Args:
        candidate: What generates; its row numbers count rows times ``responses``, see :func:`sample`.
        rows: The number of rows.
        responses: Responses to each row.
        title: For the progress bar.
        quiet: Show no progress.
    """
    progress = tqdm(
        batches(np.arange(rows) * responses), desc=f"to test: {title}", disable=True if quiet else None, leave=False
    )
    return np.concatenate([candidate(0, batch) for batch in progress])


def packed(samples: Mapping[str, Samples]) -> dict[str, np.ndarray]:
    """The samples as arrays: ``shape_channels``, ``shape_offsets``, ``shape_profile`` and so on.

    They are the part of ``samples.npz`` that comparisons of models on the same rows read.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, some in samples.items():
        arrays |= {
            f"{name}_channels": some.channels.astype(np.int32),
            f"{name}_offsets": some.offsets,
            f"{name}_profile": some.profile,
        }
    return arrays


def center_offsets(images: np.ndarray, particles: np.ndarray, detector: Detector) -> np.ndarray:
    """Distances of the centers of gravity from the straight flight's end in cm, shape (B,), NaN where empty."""
    light = torch.from_numpy(np.asarray(images, dtype=np.float64))
    distance = shower_center(light, torch.from_numpy(particles), detector)
    return torch.where(light.sum((1, 2)) > 0, distance, torch.nan).numpy()


def radial_profile(images: np.ndarray, detector: Detector) -> np.ndarray:
    """Mean share of an image's photons in each bin of :data:`RADII` around its center of gravity; empty ones count as 0."""
    x, y = (centers / detector.pitch for centers in detector.pixel_centers)
    nonempty, i, j = np.nonzero(images)
    share = images[nonempty, i, j] / images.sum((1, 2), dtype=np.float64)[nonempty]
    centers = [np.bincount(nonempty, share * axis, len(images)) for axis in (x[i], y[j])]
    radius = np.hypot(x[i] - centers[0][nonempty], y[j] - centers[1][nonempty])
    return np.histogram(radius, RADII, weights=share)[0] / len(images)


@dataclass(frozen=True)
class Work:
    """What is judged on what; samples are generated when they are first asked for.

    Attributes:
        models: Which models are judged.
        protocol: Which rows, and how often.
        classifier: How the C2ST is made.
        data: The data set.
        particle: PDG code of the only particle type that is judged; None for all.
        rows: The judged rows.
        device: Where models compute.
        simulator: The fast simulation; None where only photon sums are judged.
        photons: Photon-sum models by run.
        floors: Other simulations that references are made of.
        references: What is held against the models on the judged rows.
        requantization_ws: Distances by which requantizations were chosen, if they were.
        quiet: Show no progress.
    """

    models: Models
    protocol: Protocol
    classifier: ClassifierOptions
    data: ShowerData
    particle: int | None
    rows: Selection
    device: torch.device
    simulator: FastSimulator | None
    photons: Mapping[str, PhotonSum]
    floors: Floors = field(default_factory=Floors)
    references: Mapping[str, Reference] = field(default_factory=dict)
    requantization_ws: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    quiet: bool = False

    def eligible(self, name: str) -> np.ndarray:
        """The rows on which a candidate may be judged, shape (N,)."""
        everywhere = np.ones(len(self.rows), dtype=bool)
        return self.references[name].eligible if name in self.references else everywhere

    @property
    def candidates(self) -> dict[str, Candidate]:
        """What generates responses: the simulation with the true photon sums and with its own, and the references."""
        rows, seed, responses = self.rows, self.protocol.seed, self.protocol.responses
        showers, simulator = rows.showers, self.simulator

        def generated(photon_sum: np.ndarray | None) -> Candidate:
            def images(run: int, numbers: np.ndarray) -> np.ndarray:
                row = numbers // responses
                total = None if photon_sum is None else photon_sum[row]
                # A row's draws are keyed by where it is in the data, so that models of all and of one particle share them.
                keys = rows.positions[row] * responses + numbers % responses
                assert simulator is not None
                primaries = showers.particles[row], showers.pdg[row]
                return simulator.sample(*primaries, seed + run, keys, total, batch_size=BATCH)

            return images

        def drawn(reference: Reference) -> Candidate:
            return lambda run, numbers: reference.samples(numbers // responses, seed + run, numbers)

        found = {name: drawn(reference) for name, reference in self.references.items()}
        if simulator is not None:
            found["shape"] = generated(showers.photon_sum)
            if simulator.photons is not None:
                found["chain"] = generated(None)
        return {name: found[name] for name in TITLES if name in found}

    @cached_property
    def samples(self) -> dict[str, Samples]:
        """The samples of all candidates."""
        return sample(self.rows.showers, self.candidates, self.protocol.runs, self.protocol.responses, quiet=self.quiet)

    @cached_property
    def whole(self) -> dict[str, Samples]:
        """The samples of those that have one of every row: others cannot be compared row by row."""
        return {name: some for name, some in self.samples.items() if self.eligible(name).all()}

    @cached_property
    def monte_carlo(self) -> Samples:
        """The Monte Carlo's responses themselves: channels to compare with, and its centers' own offsets."""
        images = self.rows.showers.images
        return sample(self.rows.showers, {"": lambda run, n: images[n]}, runs=1, responses=1, quiet=True)[""]

    @property
    def reference(self) -> np.ndarray:
        """Channel values of the Monte Carlo with shape (N, 5)."""
        return self.monte_carlo.channels[0, :, 0]

    @cached_property
    def tested(self) -> tuple[Selection, dict[str, np.ndarray]]:
        """Rows of the tests, as metrics may be of fewer, and a response of each of the simulation's candidates to each row."""
        wanted = replace(self.protocol, rows=self.classifier.classifier_rows, rows_of_each=None)
        rows = select_rows(self.data, wanted, self.particle)
        candidates = replace(self, rows=rows, references={}).candidates
        size = len(rows), wanted.responses
        return rows, {
            name: first_samples(candidate, *size, TITLES[name], self.quiet) for name, candidate in candidates.items()
        }


@dataclass(frozen=True)
class Judgement:
    """One way of judging a simulation.

    Attributes:
        key: Where its results are in ``evaluation.json``.
        compute: From the work to results: dictionaries with short keys, numbers and lists; None where it is not asked for.
        tables: From results to Markdown, table by table.
        rows: From results to lines of ``evaluation.csv``: candidate, metric, particle type or channel, mean, standard
            deviation or error, lower and upper end of its 95 % interval.
    """

    key: str
    compute: Callable[[Work], Mapping[str, Any] | None]
    tables: Callable[[Mapping[str, Any]], list[str]]
    rows: Callable[[Mapping[str, Any]], Iterator[list[Any]]]


def load_models(
    models: Models,
    exceptions: Mapping[int, int],
    data: ShowerData,
    protocol: Protocol,
    device: torch.device,
    devices: int,
    quiet: bool = False,
) -> tuple[FastSimulator | None, dict[str, PhotonSum], dict[str, dict[int, float]]]:
    """Loads each model once.

    Args:
        models: Which models.
        exceptions: Requantizations by PDG code that are stronger than those chosen.
        data: The data set, on whose validation rows requantizations are chosen.
        protocol: How many of those, and the seed.
        device: Where to compute.
        devices: Processes that share the responses.
        quiet: Show no progress.

    Returns:
        The fast simulation, if there is a shower model; the photon-sum models by run; and the distances by which
        requantizations were chosen, if they were.
    """
    runs = models.photons or []
    if models.shower is None:
        return None, {run: PhotonSum.load(run, device) for run in runs}, {}
    first, methods = next(iter(runs), None), dict(exceptions)
    distances: dict[str, dict[int, float]] = {}
    if models.requantization == "best":
        count = protocol.rows_of_each or protocol.rows or 1000
        shower = ShowerModel.load(models.shower, device)
        best, distances = best_requantizations(shower, data, count, protocol.seed, quiet)
        methods = best | methods
    elif models.requantization is not None:
        methods |= {0: models.requantization}
    if models.requantization == "best" and devices == 1:
        simulator = FastSimulator(shower, PhotonSum.load(first, device) if first else None, methods)
    else:  # processes load models of their own
        simulator = FastSimulator.load(models.shower, first, methods, device, devices=devices)
    return (
        simulator,
        {run: (run == first and simulator.photons) or PhotonSum.load(run, device) for run in runs},
        distances,
    )


def generated_points(
    model: ShowerModel,
    rows: Selection,
    numbers: np.ndarray,
    responses: int,
    seed: int,
    photons: PhotonSum | None = None,
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """What a model generates before it becomes counts.

    Args:
        model: The model; its representation has points.
        rows: The rows.
        numbers: Which responses: rows times ``responses`` are counted.
        responses: Responses to each row.
        seed: Seed of the draws, which are those of :class:`Work`.
        photons: Draws the photon sums; the true ones if None.

    Yields:
        Numbers of a batch (B,), photon sums (B,), and points (B, size).
    """
    showers = rows.showers
    for batch in batches(numbers):
        row = batch // responses
        keys = torch.from_numpy(rows.positions[row] * responses + batch % responses).to(model.device)
        particles = torch.from_numpy(showers.particles[row]).to(model.device, torch.float32)
        total = torch.from_numpy(showers.photon_sum[row]).to(model.device)
        if photons is not None:
            total = photons.sample(particles, seed, keys)
        yield batch, total, model.generate_points(particles, total, seed, keys)


def best_requantizations(
    model: ShowerModel, data: ShowerData, rows: int, seed: int, quiet: bool = False
) -> tuple[dict[int, int], dict[str, dict[int, float]]]:
    """Chooses the requantization of each particle type by the Wasserstein distance on validation rows.

    Args:
        model: The shower model; photon sums are the true ones.
        data: The data set; of its validation split about ``rows`` rows of each type are taken.
        rows: See above; one response is generated for each.
        seed: Seed of the draws.
        quiet: Show no progress.

    Returns:
        The method by PDG code, 0 standing for all others, where there are rows enough to choose; and the distances by
        particle and method.

    Raises:
        ValueError: If the model's counts come out exactly.
    """
    known = model.requantizations
    if not known:
        raise ValueError("this model's counts come out exactly; there is no requantization to choose")
    val = select_rows(data, Protocol(split="val", rows=rows, rows_of_each=rows))
    showers = val.showers
    reference, pdg = showers.geometry.channels(showers.images), showers.pdg
    channels = {method: np.zeros((len(val), 5), dtype=np.int64) for method in known}
    with tqdm(total=len(val), desc="requantization", disable=True if quiet else None) as progress:
        for batch, total, points in generated_points(model, val, np.arange(len(val)), 1, seed):
            for method, values in channels.items():
                images = model.decode(points, total, method)
                values[batch] = showers.geometry.channels(images.cpu().numpy())
            progress.update(len(batch))
    selections = {0: val.natural} | {int(code): pdg == code for code in np.unique(pdg)}
    methods, distances = {}, {}
    for code, some in selections.items():
        # A handful of rows cannot tell four methods apart.
        if some.sum() < MIN_ROWS_TO_CHOOSE:
            continue
        found = {m: float(wasserstein(reference[some], values[some]).mean()) for m, values in channels.items()}
        methods[code] = min(found, key=lambda m: found[m])
        distances["all" if code == 0 else particle_name(code)] = found
    return methods, distances


def over_runs(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """``mean`` and ``std`` of each value; the deviation of a single run is 0."""
    series = {key: np.array([run[key] for run in runs]) for key in runs[0]}
    return {
        "mean": {key: float(v.mean()) for key, v in series.items()},
        "std": {key: float(v.std(ddof=1)) if len(runs) > 1 else 0.0 for key, v in series.items()},
    }


def measure(runs: Sequence[Rows], natural: np.ndarray | None = None, resamples: int = 0) -> dict[str, Any]:
    """The metrics of a candidate's samples, with 95 % intervals by bootstrap over primaries.

    Args:
        runs: Its samples, see :meth:`calosim.evaluation.samples.Samples.runs`.
        natural: Rows with shape (N,) that have the natural mix of particle types: ``all`` is their value; all if not given.
        resamples: Resamples of primaries; below 2 there are no intervals.

    Returns:
        ``mean`` and ``std`` over runs by metric (``ws_all``, ``mae_cond_gamma``), the values of all ``runs``, and ``low`` and
        ``high``, the latter not of particle types with fewer than :data:`~calosim.metrics.bootstrap.LEAST_PRIMARIES`
        primaries. Values of a particle type are over all its rows.
    """
    pdg, primary_ids = runs[0].pdg, runs[0].primary_ids
    types = tuple(f"_{name}" for name, _ in groups(pdg) if name != "all")
    mix = natural if natural is not None and natural.any() else np.ones(len(pdg), dtype=bool)
    values = []
    for rows in runs:
        result = metric_values(rows)
        if not mix.all():
            result |= {key: value for key, value in metric_values(rows.of(mix)).items() if not key.endswith(types)}
        values.append(result)
    found: dict[str, Any] = {**over_runs(values), "runs": values, "low": {}, "high": {}}
    for name, of_type in groups(pdg):
        own = mix if name == "all" else of_type
        primaries = len(np.unique(primary_ids[own]))
        if primaries < LEAST_PRIMARIES or resamples < 2:
            continue
        some = [rows.of(own) for rows in runs]
        for metric, resampled in resampled_metrics(some, resample(primaries, resamples), list(METRICS)).items():
            key = f"{metric}_{name}"
            if not np.isnan(resampled).all():
                found["low"][key], found["high"][key] = interval(found["mean"][key], resampled)
    return found


def _known(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray, Detector]:
    """What is known of the rows, for :meth:`calosim.evaluation.samples.Samples.runs`."""
    showers = work.rows.showers
    return work.reference, showers.pdg, work.rows.primary_ids, showers.geometry


def monte_carlo(work: Work) -> dict[str, float]:
    """The Monte Carlo's own metrics: 0 but for those that have a value of their own."""
    return measure(work.monte_carlo.runs(*_known(work)), work.rows.natural)["mean"]


def _compute(work: Work) -> dict[str, Any] | None:
    if work.simulator is None:
        return None
    found = {}
    for name, samples in work.samples.items():
        own = work.eligible(name)
        runs = [rows.of(own) for rows in samples.runs(*_known(work))]
        found[name] = measure(runs, work.rows.natural[own], work.protocol.resamples) | {"seconds": samples.seconds}
    return found


def _tables(results: Mapping[str, Any]) -> list[str]:
    names = shown_particles({key.removeprefix("ws_") for result in results.values() for key in result["mean"]})
    return [_metric_table(results, names, key, metric) for key, metric in METRICS.items() if metric.printed]


def _metric_table(results: Mapping[str, Any], names: list[str], key: str, metric: Metric) -> str:
    """One metric by candidate and particle type."""

    def cell(result: Mapping[str, Any], name: str) -> str:
        mean, std = (result[what].get(f"{key}_{name}", np.nan) for what in ("mean", "std"))
        low, high = (result.get(what, {}).get(f"{key}_{name}") for what in ("low", "high"))
        between = "" if low is None else f" [{low:{metric.form}}, {high:{metric.form}}]"
        # A dash where there was nothing to compare.
        return "–" if np.isnan(mean) else with_spread(mean, std, metric.form) + between

    lines = [[TITLES.get(who, who), *(cell(result, name) for name in names)] for who, result in results.items()]
    return markdown_table([metric.in_units, *map(particle_heading, names)], lines)


def _rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for who, result in results.items():
        for key, mean in result["mean"].items():
            metric = max((known for known in METRICS if key.startswith(f"{known}_")), key=len)
            ends = [result.get(what, {}).get(key, "") for what in ("low", "high")]
            yield [TITLES.get(who, who), metric, key[len(metric) + 1 :], mean, result["std"][key], *ends]


#: Channel values and centers of images.
CHANNELS = Judgement("images", _compute, _tables, _rows)

#: Metrics of public codes and what tables call them.
_THEIRS = {"ws": "WS", "mae": "MAE"}


def _compute_variants(work: Work) -> dict[str, dict[str, dict[str, dict[str, float]]]] | None:
    """By variant and candidate ``mean`` and ``std`` over runs, over the natural mix of particle types."""
    rows, protocol, simulator = work.rows, work.protocol, work.simulator
    if simulator is None or not protocol.variants:
        return None
    natural = rows.natural if rows.natural.any() else np.ones(len(rows), dtype=bool)
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name in protocol.variants:
        result[name] = {}
        for who, samples in work.whole.items():
            runs = []
            for run, channels in enumerate(samples.channels):
                exact = VARIANTS[name].rounded or not simulator.shower.requantizations
                if who in ("shape", "chain") and not exact:
                    channels = unrounded_channels(simulator, rows, protocol, run, who == "chain")
                runs.append(variant_metrics(VARIANTS[name], work.reference[natural], channels[natural]))
            result[name][who] = over_runs(runs)
    return result


def unrounded_channels(
    simulator: FastSimulator, rows: Selection, protocol: Protocol, run: int, own_sums: bool
) -> np.ndarray:
    """Channel values of a run's samples before they become whole photons, the expected noise subtracted.

    Args:
        simulator: A fast simulation whose representation has requantizations.
        rows: The rows.
        protocol: How they are sampled; the draws are those of the evaluation.
        run: The run.
        own_sums: Whether photon sums are drawn, or the true ones.

    Returns:
        With shape (N, responses, 5).
    """
    showers, responses = rows.showers, protocol.responses
    channels, codes = np.zeros((len(rows) * responses, 5)), np.repeat(showers.pdg, responses)
    photons = simulator.photons if own_sums else None
    for model, mine in simulator.groups(codes):
        numbers = np.flatnonzero(mine)
        for part, total, points in generated_points(model, rows, numbers, responses, protocol.seed + run, photons):
            images = model.expected(points, total)
            channels[part] = showers.geometry.channels(images).double().cpu().numpy()
    return channels.reshape(len(rows), responses, 5)


def _variant_tables(results: Mapping[str, Any]) -> list[str]:
    words = "; ".join(f"{name} ({VARIANTS[name].source}): {VARIANTS[name].words}" for name in results)
    header = ["as public codes compute it", *(f"{title} {name}" for name in results for title in _THEIRS.values())]

    def cell(found: Mapping[str, Mapping[str, float]], key: str) -> str:
        return with_spread(found["mean"][key], found["std"][key], ".2f")

    lines = [
        [TITLES[who], *(cell(results[name][who], key) for name in results for key in _THEIRS)]
        for who in next(iter(results.values()))
    ]
    return [f"Metrics of all types as public codes compute them. {words}.", markdown_table(header, lines)]


def _variant_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for name, candidates in results.items():
        for who, found in candidates.items():
            for key in _THEIRS:
                yield [TITLES[who], f"{key} of {name}", "all", found["mean"][key], found["std"][key], "", ""]


#: The same as public codes compute it.
VARIANT_CODES = Judgement("variants", _compute_variants, _variant_tables, _variant_rows)
