"""How well it is known which primaries leave a response, and sums of all attempts, with a response and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calosim.evaluation.photons import shown_particles
from calosim.evaluation.selection import rank_within, trained_data
from calosim.metrics.judges import auc
from calosim.metrics.probability import brier_score, calibration_error, reliability
from calosim.metrics.wasserstein import wasserstein
from calosim.models.acceptance import Acceptance
from calosim.models.photon_sum import PhotonSum
from calosim.particles import groups, particle_heading
from calosim.runs import Run

__all__ = ["acceptance_report", "acceptance_table", "draw_acceptance", "judge_acceptance"]


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
    rows, inputs = data.rows(split), data.inputs(split)  # type: ignore[arg-type]
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
