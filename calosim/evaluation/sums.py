r"""How good photon sums are, and how well it is known which primaries leave a response at all.

References:
    | Verification of forecasts expressed in terms of probability (Brier, 1950)
    | On Calibration of Modern Neural Networks (Guo et al., 2017), https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from calosim import rng
from calosim.data.splits import ShowerData
from calosim.evaluation.samples import Judgement, Work
from calosim.evaluation.selection import rank_within, trained_data
from calosim.evaluation.stored import shown_particles
from calosim.io import markdown_table
from calosim.metrics.bootstrap import LEAST_PRIMARIES, interval, resample, resampled_wasserstein
from calosim.metrics.c2st import auc
from calosim.metrics.wasserstein import wasserstein
from calosim.models.acceptance import Acceptance
from calosim.models.photon_sum import PhotonSum
from calosim.particles import groups, particle_heading
from calosim.runs import Run

__all__ = [
    "ACCEPTANCE",
    "INTERVALS",
    "LEVELS",
    "PHOTON_SUMS",
    "acceptance_report",
    "brier_score",
    "calibration_error",
    "draw_acceptance",
    "draw_uncertainty",
    "interval_contents",
    "judge_acceptance",
    "photon_report",
    "photon_uncertainty",
    "reliability",
    "uncertainty_table",
]


#: Photon sums that each model draws for a row.
SUMS_PER_ROW = 50

#: What tables call who drew them, where that is not its key.
_DRAWN_BY = {"halves": "floor of halves"}

#: Nominal contents of the central predictive intervals whose coverage is tabulated.
INTERVALS = (0.5, 0.68, 0.9, 0.95)

#: Nominal contents at which the curve of coverage is drawn.
LEVELS = (*(round(0.05 * k, 2) for k in range(1, 20)), 0.99)

#: Quantiles of the sums that are tabulated, in percent.
TABULATED = (1, 5, 25, 50, 75, 95, 99, 99.9)

#: Quantiles that are kept of each row's predictive distribution.
QUANTILES = {"median": 0.5, "low_68": 0.16, "high_68": 0.84, "low_95": 0.025, "high_95": 0.975}


def photon_report(
    samples: np.ndarray,
    photon_sum: np.ndarray,
    pdg: np.ndarray,
    primary_ids: np.ndarray | None = None,
    resamples: int = 0,
) -> dict[str, dict[str, float]]:
    """How well predictive samples of the photon sum agree with the Monte Carlo.

    Args:
        samples: Predictive samples with shape (N, K).
        photon_sum: True photon sums with shape (N,).
        pdg: PDG codes with shape (N,).
        primary_ids: Identifiers of the primaries with shape (N,), to resample.
        resamples: Resamples of the primaries; below 2 there are no intervals.

    Returns:
        For ``all`` and each particle type: ``rows``; ``mae`` and ``median_error`` (relative) of the predictive median;
        ``rmse`` of the predictive mean; ``w1`` between the distributions of sums, of :data:`LEAST_PRIMARIES` primaries or more
        with ``w1_low`` and ``w1_high``, its 95 % interval by bootstrap over primaries; ``coverage_50`` and so on, the share of
        sums inside the central predictive intervals (nominally that percentage), limits included; ``quantile_50`` and so on
        of all samples, ``true_quantile_50`` of the sums, and ``largest`` and ``true_largest``.
    """
    median, mean = np.median(samples, axis=1), samples.mean(axis=1)
    limits = {p: np.quantile(samples, [(1 - p) / 2, (1 + p) / 2], axis=1) for p in INTERVALS}
    report = {}
    for name, rows in groups(pdg):
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
        if primary_ids is not None:
            values |= _w1_interval(samples[rows], photon_sum[rows], primary_ids[rows], values["w1"], resamples)
        for prefix, sums in (("", samples[rows]), ("true_", photon_sum[rows])):
            found = zip(TABULATED, np.quantile(sums, [p / 100 for p in TABULATED]), strict=True)
            values |= {f"{prefix}quantile_{p}": value for p, value in found} | {f"{prefix}largest": sums.max()}
        report[name] = {key: float(value) for key, value in values.items()}
    return report


def _w1_interval(
    samples: np.ndarray, photon_sum: np.ndarray, primary_ids: np.ndarray, w1: float, resamples: int
) -> dict[str, float]:
    """The 95 % interval of a distance of sums; nothing with few primaries."""
    ids, group = np.unique(primary_ids, return_inverse=True)
    if len(ids) < LEAST_PRIMARIES or resamples < 2:
        return {}
    counts = resample(len(ids), resamples)
    found = resampled_wasserstein(photon_sum[:, None], samples[..., None], group.ravel(), counts)
    return dict(zip(("w1_low", "w1_high"), interval(w1, found), strict=True))


def _compute_sums(work: Work) -> dict[str, dict[str, dict[str, float]]]:
    """Photon sums that models and references draw, against the true ones."""
    showers, seed = work.rows.showers, work.protocol.seed
    numbers = np.arange(len(work.rows) * SUMS_PER_ROW)
    particles = torch.from_numpy(showers.particles).to(work.device, torch.float32)
    sums: dict[str, np.ndarray] = {}
    for run, model in work.photons.items():
        parts = [
            model.sample(particles[part // SUMS_PER_ROW], seed, torch.from_numpy(part).to(work.device)).cpu().numpy()
            for part in np.array_split(numbers, max(1, len(numbers) // 65536))
        ]
        sums[f"{model.head.name} ({run})"] = np.concatenate(parts)
    for name, reference in work.references.items():
        if name != "shape_floor":  # which is given the sums
            sums[name] = reference.photon_sums(numbers // SUMS_PER_ROW, seed, numbers)
    report, true_sum = {}, showers.photon_sum
    for name, drawn in sums.items():
        some = work.eligible(name)
        known = true_sum[some], showers.pdg[some], work.rows.primary_ids[some]
        report[name] = photon_report(drawn.reshape(-1, SUMS_PER_ROW)[some], *known, work.protocol.resamples)
    return report


def _sum_tables(results: Mapping[str, Any]) -> list[str]:
    """Errors, and quantiles below the Monte Carlo's, by particle type and by who drew the sums."""
    if not results:
        return []
    reports = {_DRAWN_BY.get(who, who): report for who, report in results.items()}
    errors, quantiles = [], []
    for name in shown_particles({name for report in reports.values() for name in report}):
        heading, there = (
            particle_heading(name),
            {who: report[name] for who, report in reports.items() if name in report},
        )
        for who, v in there.items():
            shares = [f"{100 * v[f'coverage_{100 * p:.0f}']:.1f} %" for p in INTERVALS]
            ends = f" [{v['w1_low']:.1f}, {v['w1_high']:.1f}]" if "w1_low" in v else ""
            means = [f"{v['rows']:.0f}", f"{v['mae']:.1f}", f"{v['rmse']:.1f}", f"{100 * v['median_error']:.1f} %"]
            errors.append([heading, who, *means, f"{v['w1']:.1f}{ends}", *shares])
        keys = (*(f"quantile_{p}" for p in TABULATED), "largest")
        true = next(iter(there.values()))
        quantiles.append([heading, "Monte Carlo", *(f"{true[f'true_{key}']:.0f}" for key in keys)])
        quantiles += [[heading, who, *(f"{v[key]:.0f}" for key in keys)] for who, v in there.items()]
    inside = [f"{100 * p:.0f} %" for p in INTERVALS]
    header = ["photon sum, in photons", "model", "rows", "MAE", "RMSE", "median error", "W1"]
    return [
        markdown_table([*header, f"inside {inside[0]}", *inside[1:]], errors),
        markdown_table(
            ["quantiles of the photon sum, in photons", "", *(f"{p} %" for p in TABULATED), "largest"], quantiles
        ),
    ]


def _sum_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for who, report in results.items():
        for particle, values in report.items():
            for key, value in values.items():
                yield [_DRAWN_BY.get(who, who), f"photon_sum_{key}", particle, value, "", "", ""]


#: Photon sums of models and references.
PHOTON_SUMS = Judgement("photon_sum", _compute_sums, _sum_tables, _sum_rows)


def interval_contents(samples: np.ndarray, photon_sum: np.ndarray, seed: int = 0) -> np.ndarray:
    """The nominal content of the smallest central predictive interval that holds each observation.

    Uniform in (0, 1) for a calibrated prediction; the share of rows below p is the observed coverage of the interval of
    nominal content p. Ranks between equal integers are drawn.

    Args:
        samples: Predictive samples with shape (N, S).
        photon_sum: Observed sums with shape (N,).
        seed: Seed of the draws.

    Returns:
        Contents with shape (N,).
    """
    below = (samples < photon_sum[:, None]).sum(1)
    equal = (samples == photon_sum[:, None]).sum(1)
    u = rng.uniform(rng.row_keys(torch.arange(len(samples)), rng.EVALUATION_STREAM, seed), 1)[:, 0].numpy()
    rank = (below + u * (equal + 1)) / (samples.shape[1] + 1)
    return np.abs(2 * rank - 1)


def photon_uncertainty(
    model: PhotonSum, data: ShowerData, rows: np.ndarray, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Predictive intervals of the photon sum against what was observed.

    Args:
        model: The photon-sum model.
        data: The data set.
        rows: Row numbers in its files with shape (N,); they key the draws too.
        seed: Seed of networks and draws.

    Returns:
        By ``all`` and particle type: ``coverage`` (observed, by nominal content), ``aleatoric`` and ``epistemic`` (root
        mean squares in photons), ``epistemic_share`` of the variance, ``width_68`` (median width of the interval over the
        median prediction), and what :func:`photon_report` says. And by row, each with shape (N,): :data:`QUANTILES`,
        ``aleatoric_variance``, ``epistemic_variance``, ``rows``, ``pdg`` and ``observed``.
    """
    particles, pdg = data.arrays["particles"][rows], data.arrays["pdg"][rows]
    observed = data.arrays["photon_sum"][rows].astype(np.int64)
    found = model.predictive(torch.from_numpy(particles), seed, torch.from_numpy(rows))
    samples, aleatoric, epistemic = (tensor.numpy() for tensor in found)
    contents = interval_contents(samples, observed, seed)
    by_row = dict(zip(QUANTILES, np.quantile(samples, list(QUANTILES.values()), axis=1), strict=True))
    by_row |= {"aleatoric_variance": aleatoric, "epistemic_variance": epistemic}
    by_row |= {"rows": rows, "pdg": pdg, "observed": observed}
    report: dict[str, Any] = photon_report(samples, observed, pdg)
    for name, some in groups(pdg):
        parts = aleatoric[some].mean(), epistemic[some].mean()
        width = (by_row["high_68"] - by_row["low_68"])[some] / np.maximum(by_row["median"][some], 1)
        report[name] |= {
            "coverage": {str(p): float((contents[some] <= p).mean()) for p in LEVELS},
            "aleatoric": float(np.sqrt(parts[0])),
            "epistemic": float(np.sqrt(parts[1])),
            "epistemic_share": float(parts[1] / max(sum(parts), 1e-12)),
            "width_68": float(np.median(width)),
        }
    return report, by_row


def uncertainty_table(report: dict[str, Any]) -> list[list[str]]:
    """The header and the rows of a table of :func:`photon_uncertainty`'s report."""
    header = ["particle", "rows", "inside 50 %", "90 %", "95 %", "aleatoric, photons", "epistemic, photons"]
    rows = [[*header, "epistemic share of variance"]]
    for name in shown_particles(report):
        u = report[name]
        shares = [f"{100 * u['coverage'][p]:.1f} %" for p in ("0.5", "0.9", "0.95")]
        parts = [f"{u['aleatoric']:.1f}", f"{u['epistemic']:.1f}", f"{100 * u['epistemic_share']:.1f} %"]
        rows.append([name, str(int(u["rows"])), *shares, *parts])
    return rows


def draw_uncertainty(report: dict[str, Any], by_row: dict[str, np.ndarray], path: Path) -> None:
    """Draws intervals of some rows with what was observed, coverage, and the parts of the uncertainty.

    Args:
        report: From :func:`photon_uncertainty`.
        by_row: From it as well.
        path: The file to write.
    """
    from calosim.plots import predictive_intervals

    shown = np.unique(np.linspace(0, len(by_row["rows"]) - 1, 120).astype(np.int64))
    curves, parts = {}, {}
    for name in shown_particles(report):
        symbol, u = particle_heading(name), report[name]
        curves[symbol] = [(float(p), share) for p, share in u["coverage"].items()]
        parts[symbol] = u["aleatoric"], u["epistemic"]
    intervals = {key: by_row[key][shown] for key in QUANTILES}
    predictive_intervals(intervals, by_row["observed"][shown], curves, parts, path)


def judge_acceptance(
    run: str, photons: tuple[str, PhotonSum] | None, split: Literal["test", "val"], seed: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Judges an acceptance model on the held-out attempts of its own data set.

    Args:
        run: Its run folder.
        photons: A photon-sum model and its run folder; it joins if it was trained on the same data and split.
        split: ``test`` or ``val``.
        seed: Seed of the draws.
        device: Where to compute.

    Returns:
        For ``model`` and ``floor`` (one half of each primary's attempts answers for the other, on which alone it is judged),
        what :func:`acceptance_report` says.

    Raises:
        ValueError: If the split has no attempt without a response, or none with one.
    """
    data, particle = trained_data(run)
    rows, primary_ids = data.rows(split), data.primary_ids(split)
    if particle is not None:
        own = data.arrays["pdg"][rows] == particle
        rows, primary_ids = rows[own], primary_ids[own]
    model = Acceptance.load(run, device)
    total, pdg = data.arrays["photon_sum"][rows], data.arrays["pdg"][rows]
    nonempty = total >= model.min_photons
    if not len(rows) or nonempty.all() or not nonempty.any():
        raise ValueError(f"{run}: its {split} split has no attempts with and without a response to judge it on")
    ids, first, place = np.unique(primary_ids, return_index=True, return_inverse=True)
    particles = torch.from_numpy(data.arrays["particles"][rows[first]]).to(device, torch.float32)
    probability = model.probability(particles).cpu().numpy()[place.ravel()]
    drawn = None
    if photons is not None and Run(photons[0]).split == Run(run).split:
        drawn = _chain(model, photons[1], particles[torch.from_numpy(place.ravel())], rows, seed)
    report = {"model": acceptance_report(probability, nonempty, total, pdg, drawn)}
    answering = rank_within(primary_ids) % 2 == 1
    tried = np.bincount(place.ravel()[answering], minlength=len(ids))
    share = np.bincount(place.ravel()[answering], nonempty[answering], len(ids)) / np.maximum(tried, 1)
    eligible = ~answering & (tried[place.ravel()] > 0)
    # Each attempt is answered by the one after it, of the same primary.
    other = np.full(len(rows), -1)
    order = np.lexsort((rank_within(primary_ids), primary_ids))
    other[order[:-1]] = np.where(primary_ids[order[:-1]] == primary_ids[order[1:]], order[1:], -1)
    report["floor"] = acceptance_report(
        share[place.ravel()][eligible], nonempty[eligible], total[eligible], pdg[eligible], total[other[eligible]]
    )
    return report


def _chain(model: Acceptance, sums: PhotonSum, particles: torch.Tensor, rows: np.ndarray, seed: int) -> np.ndarray:
    """Photon sums of attempts (N,), 0 where there is no response."""
    drawn = []
    for part in torch.arange(len(rows)).split(65536):
        keys, some = torch.from_numpy(rows[part.numpy()]).to(particles.device), particles[part]
        total = sums.sample(some, seed, keys)
        drawn.append(torch.where(model.sample(some, seed, keys), total, 0).cpu().numpy())
    return np.concatenate(drawn)


#: Bins of equal width of the reliability diagram.
BINS = 20


def brier_score(probability: NDArray, happened: NDArray) -> float:
    r"""The mean squared difference :math:`\frac{1}{N} \sum_i (p_i - y_i)^2`, probabilities (N,) and outcomes (N,)."""
    return float(np.square(probability - happened).mean())


def reliability(probability: NDArray, happened: NDArray, bins: int = BINS) -> dict[str, NDArray[Any]]:
    """What happened where it was predicted with what probability.

    Args:
        probability: With shape (N,), from 0 to 1.
        happened: Booleans with shape (N,).
        bins: Bins of equal width.

    Returns:
        ``predicted`` (mean probability), ``observed`` (share that happened) and ``rows`` of the bins that are not empty.
    """
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    rows = np.bincount(index, minlength=bins)
    some = rows > 0
    means = [np.bincount(index, values, bins)[some] / rows[some] for values in (probability, happened.astype(float))]
    return {"predicted": means[0], "observed": means[1], "rows": rows[some]}


def calibration_error(probability: NDArray, happened: NDArray, bins: int = BINS) -> float:
    """The expected calibration error: the mean over rows of how far their bin's share is from its mean probability."""
    curve = reliability(probability, happened, bins)
    return float(np.average(np.abs(curve["predicted"] - curve["observed"]), weights=curve["rows"]))


def acceptance_report(
    probability: np.ndarray, nonempty: np.ndarray, total: np.ndarray, pdg: np.ndarray, drawn: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Scores of predicted probabilities of a response.

    Args:
        probability: With shape (N,).
        nonempty: Whether there was one, shape (N,).
        total: Photons of each attempt, shape (N,).
        pdg: PDG codes with shape (N,).
        drawn: Photons of a simulated attempt each, shape (N,), if there are any.

    Returns:
        For ``all`` and each particle type: ``rows``; ``share`` with a response and ``predicted``, its mean probability;
        ``brier`` and ``ece``, see :func:`brier_score` and :func:`calibration_error`, and ``auc``; ``w1`` in photons between
        the sums of all attempts; and of ``all`` the ``reliability`` diagram.
    """
    report: dict[str, dict[str, Any]] = {}
    for name, some in groups(pdg):
        p, y = probability[some], nonempty[some]
        report[name] = {"rows": int(some.sum()), "share": float(y.mean()), "predicted": float(p.mean())}
        report[name] |= {"brier": brier_score(p, y), "auc": float(auc(p, y)[0]), "ece": calibration_error(p, y)}
        if drawn is not None:
            report[name]["w1"] = wasserstein(total[some], drawn[some])
    curve = reliability(probability, nonempty)
    report["all"]["reliability"] = {key: values.tolist() for key, values in curve.items()}
    return report


def _compute_acceptance(work: Work) -> dict[str, Any] | None:
    if not work.models.acceptance:
        return None
    first, protocol = next(iter(work.photons.items()), None), work.protocol
    return judge_acceptance(work.models.acceptance, first, protocol.split, protocol.seed, work.device)


def _acceptance_tables(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for name in shown_particles(results["model"]):
        for who, title in _ANSWERED_BY.items():
            if (v := results[who].get(name)) is None:
                continue
            shares = [f"{100 * v[key]:.2f} %" for key in ("share", "predicted", "ece")]
            scores = [f"{v['brier']:.4f}", f"{v['auc']:.4f}", f"{v['w1']:.1f}" if "w1" in v else "–"]
            rows.append([particle_heading(name), title, str(v["rows"]), *shares, *scores])
    header = ["response at all", "answered by", "attempts", "with a response", "predicted", "calibration error"]
    return [markdown_table([*header, "Brier score", "AUC", "W1 of all sums"], rows)]


def _acceptance_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for who, report in results.items():
        for particle, values in report.items():
            for key, value in values.items():
                if key != "reliability":
                    yield [f"acceptance {who}", key, particle, value, "", "", ""]


#: Which primaries leave a response at all.
ACCEPTANCE = Judgement("acceptance", _compute_acceptance, _acceptance_tables, _acceptance_rows)
#: What tables call who said so.
_ANSWERED_BY = {"model": "acceptance model", "floor": "floor (other attempts of the Monte Carlo)"}


def draw_acceptance(report: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the reliability diagram of model and floor.

    Args:
        report: From :func:`judge_acceptance`.
        path: The file to write.
    """
    from calosim.plots import reliability_diagram

    reliability_diagram({title: report[who]["all"]["reliability"] for who, title in _ANSWERED_BY.items()}, path)
