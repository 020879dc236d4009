"""How good photon sums are, and how well it is known which primaries leave a response at all."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calosim import rng
from calosim.data.splits import ShowerData
from calosim.evaluation.samples import LEAST_PRIMARIES
from calosim.evaluation.selection import rank_within, trained_data
from calosim.metrics.bootstrap import interval, resample, resampled_wasserstein
from calosim.metrics.c2st import auc
from calosim.metrics.probability import brier_score, calibration_error, reliability
from calosim.metrics.wasserstein import wasserstein
from calosim.models.acceptance import Acceptance
from calosim.models.photon_sum import PhotonSum
from calosim.particles import STUDY_PARTICLES, groups, particle_heading, particle_name
from calosim.runs import Run

__all__ = [
    "INTERVALS",
    "LEVELS",
    "acceptance_report",
    "acceptance_table",
    "draw_acceptance",
    "draw_uncertainty",
    "interval_contents",
    "judge_acceptance",
    "photon_report",
    "photon_uncertainty",
    "quantile_table",
    "shown_particles",
    "uncertainty_table",
]


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
    inputs: np.ndarray | None = None,
    resamples: int = 0,
) -> dict[str, dict[str, float]]:
    """How well predictive samples of the photon sum agree with the Monte Carlo.

    Args:
        samples: Predictive samples with shape (N, K).
        photon_sum: True photon sums with shape (N,).
        pdg: PDG codes with shape (N,).
        inputs: Unique-input numbers with shape (N,), to resample.
        resamples: Resamples of the inputs; below 2 there are no intervals.

    Returns:
        For ``all`` and each particle type: ``rows``; ``mae`` and ``median_error`` (relative) of the predictive median;
        ``rmse`` of the predictive mean; ``w1`` between the distributions of sums, of :data:`LEAST_PRIMARIES` inputs or more
        with ``w1_low`` and ``w1_high``, its 95 % interval by bootstrap over inputs; ``coverage_50`` and so on, the share of
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
        if inputs is not None:
            values |= _w1_interval(samples[rows], photon_sum[rows], inputs[rows], values["w1"], resamples)
        for prefix, sums in (("", samples[rows]), ("true_", photon_sum[rows])):
            found = zip(TABULATED, np.quantile(sums, [p / 100 for p in TABULATED]), strict=True)
            values |= {f"{prefix}quantile_{p}": value for p, value in found} | {f"{prefix}largest": sums.max()}
        report[name] = {key: float(value) for key, value in values.items()}
    return report


def _w1_interval(
    samples: np.ndarray, photon_sum: np.ndarray, inputs: np.ndarray, w1: float, resamples: int
) -> dict[str, float]:
    """The 95 % interval of a distance of sums; nothing with few inputs."""
    ids, group = np.unique(inputs, return_inverse=True)
    if len(ids) < LEAST_PRIMARIES or resamples < 2:
        return {}
    counts = resample(len(ids), resamples)
    found = resampled_wasserstein(photon_sum[:, None], samples[..., None], group.ravel(), counts)
    return dict(zip(("w1_low", "w1_high"), interval(w1, found), strict=True))


def quantile_table(sums: dict[str, Any], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table of quantiles of the sums, the Monte Carlo's first.

    Args:
        sums: :func:`photon_report` by who drew the sums.
        names: ``all`` and names of particle types, as tables list them.
    """
    rows = []
    for name in names:
        reports = [("Monte Carlo", next(iter(sums.values())), "true_"), *((who, r, "") for who, r in sums.items())]
        for who, report, prefix in reports:
            found = [report[name][f"{prefix}{key}"] for key in (*(f"quantile_{p}" for p in TABULATED), "largest")]
            rows.append([particle_heading(name), who, *(f"{value:.0f}" for value in found)])
    return ["quantiles of the photon sum, in photons", "", *(f"{p} %" for p in TABULATED), "largest"], rows


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


def shown_particles(present: Container[str]) -> list[str]:
    """The names among those present that tables and pictures show: ``all``, then the study's types in its order."""
    return [name for name in ("all", *map(particle_name, STUDY_PARTICLES)) if name in present]


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
    run: str, photons: str | None, split: str, seed: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Judges an acceptance model on the held-out attempts of its own data set.

    Args:
        run: Its run folder.
        photons: That of a photon-sum model, which joins it if it was trained on the same data and split.
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
    rows, inputs = data.rows(split), data.primary_ids(split)  # type: ignore[arg-type]
    if particle is not None:
        own = data.arrays["pdg"][rows] == particle
        rows, inputs = rows[own], inputs[own]
    model = Acceptance.load(run, device)
    total, pdg = data.arrays["photon_sum"][rows], data.arrays["pdg"][rows]
    nonempty = total >= model.min_photons
    if not len(rows) or nonempty.all() or not nonempty.any():
        raise ValueError(f"{run}: its {split} split has no attempts with and without a response to judge it on")
    ids, first, place = np.unique(inputs, return_index=True, return_inverse=True)
    particles = torch.from_numpy(data.arrays["particles"][rows[first]]).to(device, torch.float32)
    probability = model.probability(particles).cpu().numpy()[place.ravel()]
    drawn = None
    if photons is not None and Run(photons).split == Run(run).split:
        drawn = _chain(model, PhotonSum.load(photons, device), particles[torch.from_numpy(place.ravel())], rows, seed)
    report = {"model": acceptance_report(probability, nonempty, total, pdg, drawn)}
    answering = rank_within(inputs) % 2 == 1
    tried = np.bincount(place.ravel()[answering], minlength=len(ids))
    share = np.bincount(place.ravel()[answering], nonempty[answering], len(ids)) / np.maximum(tried, 1)
    eligible = ~answering & (tried[place.ravel()] > 0)
    # Each attempt is answered by the one after it, of the same primary.
    other = np.full(len(rows), -1)
    order = np.lexsort((rank_within(inputs), inputs))
    other[order[:-1]] = np.where(inputs[order[:-1]] == inputs[order[1:]], order[1:], -1)
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
        ``brier`` and ``ece``, see :mod:`calosim.metrics.probability`, and ``auc``; ``w1`` in photons between the sums of all
        attempts; and of ``all`` the ``reliability`` diagram.
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


def acceptance_table(report: dict[str, dict[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    """The header and the rows of a table of :func:`judge_acceptance`'s report, the study's particles first."""
    header = ["response at all", "answered by", "attempts", "with a response", "predicted", "calibration error"]
    titles = {"model": "acceptance model", "floor": "floor (other attempts of the Monte Carlo)"}
    rows = []
    for name in shown_particles(report["model"]):
        for who, title in titles.items():
            if (v := report[who].get(name)) is None:
                continue
            shares = [f"{100 * v[key]:.2f} %" for key in ("share", "predicted", "ece")]
            sums = f"{v['w1']:.1f}" if "w1" in v else "–"
            rows.append(
                [particle_heading(name), title, str(v["rows"]), *shares, f"{v['brier']:.4f}", f"{v['auc']:.4f}", sums]
            )
    return [*header, "Brier score", "AUC", "W1 of all sums"], rows


def draw_acceptance(report: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the reliability diagram of model and floor.

    Args:
        report: From :func:`judge_acceptance`.
        path: The file to write.
    """
    from calosim.plots import reliability_diagram

    titles = {"model": "acceptance model", "floor": "floor (other attempts of the Monte Carlo)"}
    reliability_diagram({title: report[who]["all"]["reliability"] for who, title in titles.items()}, path)
