"""How far metrics of a candidate would lie elsewhere with other primaries: resamples, and intervals from them.

Standard deviations over runs say how much draws matter; the same primaries are judged in every run, and with few of them
that is the smaller uncertainty.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from calosim.detectors import Detector
from calosim.evaluation.answers import Answers
from calosim.metrics.bootstrap import interval, resample, resampled_mean, resampled_wasserstein
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError
from calosim.particles import groups

__all__ = ["LEAST_PRIMARIES", "metric_intervals", "resampled_metrics"]

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
        answers: From :func:`calosim.evaluation.answers.ask`.
        mean: Their metrics, from :func:`calosim.evaluation.answers.measure`.
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
