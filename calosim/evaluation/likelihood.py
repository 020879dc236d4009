r"""The likelihood's own test: does the Monte Carlo surprise a model as much as the model's own responses do?

A model :math:`q` that is the Monte Carlo :math:`p` finds both equally likely. The mean negative log-likelihood of the Monte
Carlo's responses is the cross-entropy :math:`H(p, q)`, that of the model's own is its entropy :math:`H(q)`; what is reported
is their difference, which no judge has to be trained for. It is 0 for a perfect model, but not only for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from calosim.evaluation.classifier import CONTROLS, DAMAGE
from calosim.evaluation.definitions import TITLES
from calosim.evaluation.references import Reference
from calosim.evaluation.selection import Selection
from calosim.io import markdown_table
from calosim.metrics.bootstrap import interval, resample, resampled_mean
from calosim.metrics.classifier import MIN_PRIMARIES
from calosim.metrics.controls import damaged
from calosim.models.base import evaluating
from calosim.models.student import Student
from calosim.simulation.simulator import FastSimulator
from calosim.threads import one_thread

__all__ = ["judge_by_likelihood", "likelihood_rows", "likelihood_tables"]

#: Rows whose likelihood is computed at once.
BATCH = 256
RESAMPLES = 2000


def judge_by_likelihood(
    simulator: FastSimulator,
    rows: Selection,
    generated: np.ndarray,
    floors: Mapping[str, Reference],
    seed: int,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compares the likelihoods of the Monte Carlo's responses and of generated ones to the same primaries with the same sums.

    Args:
        simulator: The fast simulation.
        rows: The rows.
        generated: A response of the model to each row with its photon sum, shape (N, nx, ny).
        floors: Of them ``shape_floor`` gives a control, responses of the Monte Carlo with the same sums.
        seed: Seed of the controls.
        quiet: Show no progress.

    Returns:
        ``per`` what a likelihood is, ``image`` or ``pixel``; ``monte_carlo``, its mean negative log-likelihood in nats; and by
        the short names of candidate and controls, ``difference`` of it from theirs with ``error``, ``low`` and ``high`` by
        bootstrap over primaries. Or the ``reason`` why there is none.
    """
    models = {0: simulator.shower, **simulator.members}
    if any(isinstance(model, Student) for model in models.values()):
        return {"reason": "is not made of students, whose likelihood takes long or is not known"}
    if (inputs := len(np.unique(rows.inputs))) < MIN_PRIMARIES:
        return {"reason": f"needs {MIN_PRIMARIES} primaries or more, the rows to judge have {inputs}"}
    images, every = rows.showers.images, np.arange(len(rows))
    others = {"shape": (every, generated), f"damaged_{100 * DAMAGE:02.0f}": (every, damaged(images, DAMAGE, seed))}
    if floor := floors.get("shape_floor"):
        positions = floor.chooser.distinct(seed)
        own = np.flatnonzero(positions >= 0)
        if len(np.unique(rows.inputs[own])) >= MIN_PRIMARIES:
            others["mc_sums"] = own, floor.images(positions[own])
    reference = _surprise(models, rows, images, every, quiet)
    found: dict[str, Any] = {"per": "image" if simulator.shower.representation.per == 1 else "pixel"}
    found["monte_carlo"] = float(reference.mean())
    for name, (own, some) in others.items():
        difference = reference[own] - _surprise(models, rows, some, own, quiet)
        found[name] = _mean_over_rows(difference, rows.inputs[own])
    return found


def _surprise(
    models: Mapping[int, Any], rows: Selection, images: np.ndarray, own: np.ndarray, quiet: bool
) -> np.ndarray:
    """Negative log-likelihoods in nats of images (M, nx, ny) as responses to some rows (M,), shape (M,)."""
    showers, result = rows.showers, np.zeros(len(own))
    rest = ~np.isin(showers.pdg[own], list(models))
    with tqdm(total=len(own), desc="likelihood", disable=True if quiet else None, leave=False) as progress:
        for code, model in models.items():
            mine = np.flatnonzero(rest if code == 0 else showers.pdg[own] == code)
            for part in np.split(mine, range(BATCH, len(mine), BATCH)):
                row = own[part]
                batch = {
                    "images": torch.from_numpy(np.ascontiguousarray(images[part])).to(model.device),
                    "particles": torch.from_numpy(showers.particles[row]).to(model.device, torch.float32),
                    "rows": torch.from_numpy(rows.positions[row]).to(model.device),
                }
                with evaluating(model), one_thread() if model.small_products else nullcontext():
                    result[part] = -model.log_likelihood(batch).double().cpu().numpy()
                progress.update(len(part))
    return result


def _mean_over_rows(values: np.ndarray, inputs: np.ndarray) -> dict[str, float]:
    """The mean of values (N,), and how far it would scatter with other primaries."""
    _, group, counts = np.unique(inputs, return_inverse=True, return_counts=True)
    means = np.bincount(group, values) / counts
    samples = resampled_mean(means, counts, resample(len(counts), RESAMPLES))
    low, high = interval(float(values.mean()), samples, least=-np.inf)
    return {"difference": float(values.mean()), "error": float(np.nanstd(samples, ddof=1)), "low": low, "high": high}


def likelihood_tables(results: Mapping[str, Any]) -> list[str]:
    """The test as Markdown.

    Args:
        results: From :func:`judge_by_likelihood`; nothing of nothing.
    """
    if not results:
        return []
    if "reason" in results:
        return [f"No likelihood test: it {results['reason']}."]
    head = (
        "Likelihood test on the same rows: the model's mean negative log-likelihood of the Monte Carlo's responses "
        f"({results['monte_carlo']:.4g} nats per {results['per']}) minus that of others to the same primaries with the same "
        "photon sums, ± its standard error by bootstrap over primaries. The closer to 0 the better: it is 0 for a model that is "
        "the Monte Carlo, above where the Monte Carlo surprises the model more than its own responses do, below where they "
        "surprise it more, as damaged responses do."
    )
    digits = 3 if results["per"] == "image" else 5
    rows = [
        [title, f"{value['difference']:+.{digits}f} ± {value['error']:.{digits}f}"] for title, value in _named(results)
    ]
    return [head, markdown_table(["likelihood test", f"nats per {results['per']}"], rows)]


def likelihood_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The test's rows of ``evaluation.csv``: differences with their standard errors and intervals.

    Args:
        results: From :func:`judge_by_likelihood`; nothing of nothing.
    """
    for title, value in _named(results):
        yield [title, "nll_difference", "all", *(value[key] for key in ("difference", "error", "low", "high"))]


def _named(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Candidate and controls by their titles."""
    for name, title in {"shape": TITLES["shape"], **CONTROLS}.items():
        if name in results:
            yield title, results[name]
