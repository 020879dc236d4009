"""Metrics of samples: their values over runs and their intervals, as registered and as public codes compute them.

Standard deviations over runs say how much draws matter; the same primaries are judged in every run, and with few of them
that is the smaller uncertainty.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calosim.detectors import Detector
from calosim.evaluation.samples import Judgement, Work, generated_points
from calosim.evaluation.selection import Selection
from calosim.evaluation.stored import TITLES, shown_particles
from calosim.io import markdown_table
from calosim.metrics.bootstrap import LEAST_PRIMARIES, interval, resample
from calosim.metrics.registry import METRICS, Metric, Rows, metric_values, resampled_metrics, with_spread
from calosim.metrics.wasserstein import VARIANTS, variant_metrics
from calosim.options import Protocol
from calosim.particles import groups, particle_heading
from calosim.simulation.simulator import FastSimulator

__all__ = ["CHANNELS", "VARIANT_CODES", "measure", "monte_carlo", "over_runs", "unrounded_channels"]


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
