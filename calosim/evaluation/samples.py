"""Lets candidates answer the judged rows, reduces what they say to channels and centers, and measures it.

Standard deviations over runs say how much draws matter; the same primaries are judged in every run, and with few of them
that is the smaller uncertainty.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from tqdm import tqdm

from calosim.data.record import Showers
from calosim.detectors import Detector
from calosim.evaluation.definitions import RADII, TITLES
from calosim.metrics import channel_metrics
from calosim.metrics.bootstrap import interval, resample, resampled_mean, resampled_wasserstein
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError
from calosim.models.losses import shower_center
from calosim.particles import groups

__all__ = [
    "LEAST_PRIMARIES",
    "Answers",
    "Candidate",
    "ask",
    "center_offsets",
    "first_answers",
    "measure",
    "metric_intervals",
    "packed_answers",
    "radial_profile",
    "resampled_metrics",
]


#: Answers for a batch of rows: (run, row numbers with shape (B,)) -> photon images with shape (B, nx, ny).
Candidate = Callable[[int, np.ndarray], np.ndarray]


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

    def of(self, rows: np.ndarray) -> Self:
        """The channels and offsets of some rows, chosen by a mask with shape (N,)."""
        return self._replace(channels=self.channels[:, rows], offsets=self.offsets[:, rows])


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
                    answer.offsets[run, numbers] = center_offsets(
                        images, test.particles[numbers // responses], detector
                    )
                    if run == 0:
                        answer.profile[:] += radial_profile(images, detector) * len(numbers) / size
                    progress.update(len(numbers))
                answers[name] = answer._replace(seconds=answer.seconds + seconds / (runs * size))
    return {
        name: a._replace(
            channels=a.channels.reshape(runs, rows, responses, 5), offsets=a.offsets.reshape(runs, rows, responses)
        )
        for name, a in answers.items()
    }


def first_answers(candidate: Candidate, rows: int, responses: int, title: str, quiet: bool = False) -> np.ndarray:
    """The first response to each row in the first run, photon counts with shape (rows, nx, ny).

    Args:
        candidate: What answers; its row numbers count rows times ``responses``, see :func:`ask`.
        rows: The number of rows.
        responses: Responses to each row.
        title: For the progress bar.
        quiet: Show no progress.
    """
    numbers = np.arange(rows) * responses
    batches = np.split(numbers, range(1024, len(numbers), 1024))
    progress = tqdm(batches, desc=f"to judge: {title}", disable=True if quiet else None, leave=False)
    return np.concatenate([candidate(0, batch) for batch in progress])


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
    mixed = np.ones(len(pdg), dtype=bool) if natural is None else natural

    def values(run: int, rows: np.ndarray) -> dict[str, float]:
        found = answers.channels[run][rows], answers.offsets[run][rows]
        return _metrics(*found, reference[rows], pdg[rows], inputs[rows], detector)

    types = tuple(f"_{name}" for name, _ in groups(pdg) if name != "all")
    runs = []
    for run in range(len(answers.channels)):
        result = values(run, np.ones(len(pdg), dtype=bool))
        if mixed.any() and not mixed.all():
            result |= {key: value for key, value in values(run, mixed).items() if not key.endswith(types)}
        runs.append(result)
    series = {key: np.array([run[key] for run in runs]) for key in runs[0]}
    return {
        "mean": {key: float(v.mean()) for key, v in series.items()},
        "std": {key: float(v.std(ddof=1)) if len(runs) > 1 else 0.0 for key, v in series.items()},
        "runs": runs,
        "seconds": answers.seconds,
    }


def _metrics(
    channels: np.ndarray,
    offsets: np.ndarray,
    reference: np.ndarray,
    pdg: np.ndarray,
    inputs: np.ndarray,
    detector: Detector,
) -> dict[str, float]:
    """Metrics and center offsets of one run's channels (N, G, 5) and offsets (N, G); NaN offsets are dark images."""
    metrics = channel_metrics(detector)
    metrics.update(*(torch.from_numpy(np.asarray(x)) for x in (channels, reference, pdg.astype(np.int64), inputs)))
    result = {key: float(value) for key, value in metrics.compute().items()}
    for name, rows in groups(pdg):
        nonempty = offsets[rows]
        nonempty = nonempty[~np.isnan(nonempty)].astype(np.float64)
        result[f"center_{name}"] = nonempty.mean() if len(nonempty) else float("nan")
        result[f"center_sd_{name}"] = nonempty.std() if len(nonempty) else float("nan")
    return result


def center_offsets(images: np.ndarray, particles: np.ndarray, detector: Detector) -> np.ndarray:
    """Distances of the centers of gravity from the straight flight's end in cm, shape (B,), NaN where dark."""
    light = torch.from_numpy(np.asarray(images, dtype=np.float64))
    distance = shower_center(light, torch.from_numpy(particles), detector)
    return torch.where(light.sum((1, 2)) > 0, distance, torch.nan).numpy()


def radial_profile(images: np.ndarray, detector: Detector) -> np.ndarray:
    """Mean share of an image's photons in each bin of :data:`RADII` around its center of gravity; dark ones count as 0."""
    x, y = (centers / detector.pitch for centers in detector.pixel_centers)
    nonempty, i, j = np.nonzero(images)
    share = images[nonempty, i, j] / images.sum((1, 2), dtype=np.float64)[nonempty]
    centers = [np.bincount(nonempty, share * axis, len(images)) for axis in (x[i], y[j])]
    radius = np.hypot(x[i] - centers[0][nonempty], y[j] - centers[1][nonempty])
    return np.histogram(radius, RADII, weights=share)[0] / len(images)


def packed_answers(answers: dict[str, Answers]) -> dict[str, np.ndarray]:
    """The answers by title as arrays by short name: ``shape_channels``, ``shape_offsets``, ``shape_profile`` and so on.

    They are the part of ``answers.npz`` that comparisons of models on the same rows read.
    """
    packed: dict[str, np.ndarray] = {}
    for name, title in TITLES.items():
        if title in answers:
            packed |= {
                f"{name}_channels": answers[title].channels.astype(np.int32),
                f"{name}_offsets": answers[title].offsets,
                f"{name}_profile": answers[title].profile,
            }
    return packed


#: With fewer unique inputs a bootstrap is too sure of itself: of six, it calls one true null in five to seven significant.
LEAST_PRIMARIES = 10
#: Metrics that can be resampled.
RESAMPLED = ("ws", "mae_cond", "mae_w", "delta", "jacc", "center")


def metric_intervals(
    answers: Answers,
    mean: Mapping[str, float],
    data: Mapping[str, np.ndarray],
    natural: np.ndarray,
    detector: Detector,
    resamples: int,
) -> dict[str, dict[str, float]]:
    """The 95 % intervals of a candidate's metrics by bootstrap over unique inputs.

    Args:
        answers: From :func:`calosim.evaluation.samples.ask`.
        mean: Their metrics, from :func:`calosim.evaluation.samples.measure`.
        data: ``reference``, channel values (N, 5); ``pdg`` and ``inputs`` with shape (N,).
        natural: Rows with shape (N,) that have the natural mix of particle types.
        detector: The detector.
        resamples: Resamples of unique inputs; below 2 there are no intervals.

    Returns:
        ``low`` and ``high`` by metric (``ws_all``, ``mae_cond_gamma``); nothing of particle types with fewer than
        :data:`LEAST_PRIMARIES` inputs.
    """
    result: dict[str, dict[str, float]] = {"low": {}, "high": {}}
    for name, of_type in groups(data["pdg"]):
        own = natural if name == "all" and natural.any() else of_type
        primaries = len(np.unique(data["inputs"][own]))
        if primaries < LEAST_PRIMARIES or resamples < 2:
            continue
        some, mine = answers.of(own), {key: values[own] for key, values in data.items()}
        found = resampled_metrics(
            some.channels, some.offsets, mine, resample(primaries, resamples), RESAMPLED, detector.name
        )
        for metric, values in found.items():
            key = f"{metric}_{name}"
            if not np.isnan(values).all():
                result["low"][key], result["high"][key] = interval(mean[key], values)
    return result


def resampled_metrics(
    channels: np.ndarray,
    offsets: np.ndarray,
    data: Mapping[str, np.ndarray],
    counts: np.ndarray,
    metrics: Sequence[str],
    detector: str,
) -> dict[str, np.ndarray]:
    """Metrics in each resample of unique inputs, averaged over runs.

    Args:
        channels: Channel values with shape (runs, N, G, 5).
        offsets: Distances of the showers' centers with shape (runs, N, G), NaN where dark.
        data: ``reference``, channel values (N, 5); ``pdg`` and ``inputs`` with shape (N,).
        counts: How often each of the K inputs, ascending, is in each resample, shape (R, K).
        metrics: Some of ``ws``, ``mae_cond``, ``mae_w``, ``delta``, ``jacc``, ``center``.
        detector: The detector's name.

    Returns:
        By metric, values with shape (R,).
    """
    ids, group = np.unique(data["inputs"], return_inverse=True)
    conditional: dict[str, Any] = {
        "mae_cond": ConditionalMAE("log"),
        "mae_w": ConditionalMAE("count"),
        "delta": DispersionRatio(),
        "jacc": JaccardError(detector),
    }
    result: dict[str, np.ndarray] = {}
    if "ws" in metrics:
        runs = [resampled_wasserstein(data["reference"], run, group, counts) for run in channels]
        result["ws"] = np.mean(runs, axis=0)
    if "center" in metrics:
        nonempty = ~np.isnan(offsets)
        light = np.bincount(group, nonempty.sum((0, 2)).astype(np.float64))
        total = np.bincount(group, np.where(nonempty, offsets, 0).sum((0, 2), dtype=np.float64))
        result["center"] = resampled_mean(total / np.maximum(light, 1), light, counts)
    for name in set(conditional) & set(metrics):
        values, weights = np.zeros(len(ids)), np.zeros(len(ids))
        for run in channels:
            metric = conditional[name]
            metric.reset()
            tensors = [
                torch.from_numpy(x) for x in (run, data["reference"], data["pdg"].astype(np.int64), data["inputs"])
            ]
            metric.update(*tensors)
            each = metric.per_input()
            place = np.searchsorted(ids, each.input)
            values[place] += each.value / len(channels)
            weights[place] = each.weight
        result[name] = resampled_mean(values, weights, counts)
    return result
