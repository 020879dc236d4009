"""Tests of a simulation: whether judges can tell its responses from the Monte Carlo's, and whether these surprise the model.

A model :math:`q` that is the Monte Carlo :math:`p` finds both equally likely. The mean negative log-likelihood of the Monte
Carlo's responses is the cross-entropy :math:`H(p, q)`, that of the model's own is its entropy :math:`H(q)`; what is reported
is their difference, which no judge has to be trained for. It is 0 for a perfect model, but not only for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from calosim.data.record import Showers
from calosim.evaluation.definitions import TITLES
from calosim.evaluation.references import Reference
from calosim.evaluation.selection import Selection
from calosim.io import markdown_table
from calosim.metrics.bootstrap import interval, resample, resampled_mean
from calosim.metrics.c2st import MIN_PRIMARIES, ClassifierSettings, classifier_controls, classifier_test, damaged
from calosim.models.base import evaluating
from calosim.models.student import Student
from calosim.options import ClassifierOptions
from calosim.processes import one_thread
from calosim.simulation.simulator import FastSimulator

__all__ = [
    "classifier_rows",
    "classifier_tables",
    "judge_by_classifier",
    "judge_by_likelihood",
    "likelihood_rows",
    "likelihood_tables",
]


#: The share of photons moved by one pixel that shows the judges' power.
DAMAGE = 0.1
#: What tables call the controls, by the short names that files use.
CONTROLS = {
    "mc": "control: Monte Carlo, other seed",
    "mc_sums": "control: Monte Carlo, same photon sums",
    f"damaged_{100 * DAMAGE:02.0f}": f"power: Monte Carlo, {100 * DAMAGE:.0f} % of photons moved by one pixel",
}
#: The judge that sees no response.
PRIMARY = "control: the primary alone"
#: How many groups of features the tables show.
SHOWN = 5


def judge_by_classifier(
    generated: Mapping[str, np.ndarray],
    rows: Selection,
    floors: Mapping[str, Reference],
    options: ClassifierOptions,
    seed: int,
    quiet: bool = False,
) -> dict[str, Any]:
    """Lets the judges of :mod:`calosim.metrics.c2st` tell one response to each row from the Monte Carlo's.

    Args:
        generated: Responses to the rows by the models' titles, photon counts with shape (N, nx, ny).
        rows: The rows.
        floors: For the controls, other simulations that answer the rows: ``floor``, with sums of their own, and
            ``shape_floor``, with those of the rows.
        options: How often judges are trained.
        seed: Seed of the draws of the controls' responses and of the judges.
        quiet: Show no progress.

    Returns:
        ``rows`` and ``inputs`` that were judged, results of the ``candidates`` by title and of the ``controls`` by short
        name, see :class:`calosim.metrics.ClassifierResult`; or the ``reason`` why there are none.
    """
    showers, inputs = rows.showers, len(np.unique(rows.inputs))
    found: dict[str, Any] = {"rows": len(rows), "inputs": inputs}
    if inputs < MIN_PRIMARIES:
        return {**found, "reason": f"needs {MIN_PRIMARIES} primaries or more, the rows to judge have {inputs}"}
    settings = ClassifierSettings(seeds=options.classifier_seeds, rows=len(rows), seed=seed)
    known = (showers.particles, rows.inputs, showers.geometry)
    found["candidates"] = {}
    for title, images in generated.items():
        tested = classifier_test(showers.images, images, *known, settings, quiet).to_dict()
        tested["verdicts"] |= _calochallenge(showers, images, rows.inputs, settings, options, quiet)
        found["candidates"][title] = tested
    controls: dict[str, Any] = {}
    for name, floor in floors.items():
        # No response twice, and none to another primary.
        positions = floor.chooser.distinct(seed)
        own = np.flatnonzero(positions >= 0)
        inputs = len(np.unique(rows.inputs[own]))
        if inputs < MIN_PRIMARIES:
            found["controls_reason"] = f"needs {MIN_PRIMARIES} primaries or more, the floor's sample has {inputs}"
            continue
        some, second = showers.select(own), floor.images(positions[own])
        # The same damage tells the same of either.
        shares = () if controls else (DAMAGE,)
        results = classifier_controls(
            some.images, second, some.particles, rows.inputs[own], some.geometry, settings, shares, quiet
        )
        told = {key: result.to_dict() for key, result in results.items()}
        told["mc"]["verdicts"] |= _calochallenge(some, second, rows.inputs[own], settings, options, quiet)
        same = {"mc": "mc_sums"} if name == "shape_floor" else {}
        controls |= {same.get(key, key): result for key, result in told.items()}
    return found | ({"controls": controls} if controls else {})


def _calochallenge(
    showers: Showers,
    images: np.ndarray,
    inputs: np.ndarray,
    settings: ClassifierSettings,
    options: ClassifierOptions,
    quiet: bool,
) -> dict[str, Any]:
    """The verdict of the CaloChallenge's classifier, where it is asked for."""
    if not options.classifier_calochallenge:
        return {}
    theirs = replace(ClassifierSettings.calochallenge(), seeds=settings.seeds, seed=settings.seed)
    known = (showers.particles, inputs, showers.geometry)
    return classifier_test(showers.images, images, *known, theirs, quiet).to_dict()["verdicts"]


def classifier_tables(results: dict[str, Any]) -> list[str]:
    """The test as Markdown: what it is of, areas under the ROC curve, and what gives each candidate away.

    Args:
        results: From :func:`judge_by_classifier`; nothing of nothing.
    """
    if not results:
        return []
    if "reason" in results:
        return [f"No classifier test: it {results['reason']}."]
    head = (
        f"Classifier test on {results['rows']} rows of {results['inputs']} primaries; area under the ROC curve ± its "
        "standard error by bootstrap over primaries: 0.5 where a judge cannot tell generated from Monte Carlo, 1 where it "
        "always can. The AUC of a single feature is above 0.5 where generated responses have more of it."
    )
    if "controls_reason" in results:
        head += f" No controls: the test {results['controls_reason']}."
    first = next(iter(results["candidates"].values()))["verdicts"]
    judges = [judge for judge in ("images", "features", "calochallenge") if judge in first]
    controls = results.get("controls", {})
    named = results["candidates"] | {title: controls[name] for name, title in CONTROLS.items() if name in controls}
    rows = [[title, *(_area(result["verdicts"].get(judge)) for judge in judges)] for title, result in named.items()]
    if controls:
        primary = next(iter(controls.values()))["verdicts"]["primary"]
        rows.append([PRIMARY, *(_area(primary if judge == "features" else None) for judge in judges)])
    areas = markdown_table(["classifier test", *(f"AUC {judge}" for judge in judges)], rows)
    return [head, areas, *(_feature_table(title, result) for title, result in results["candidates"].items())]


def _area(verdict: dict[str, float] | None) -> str:
    return "–" if verdict is None else f"{verdict['auc']:.3f} ± {verdict['error']:.3f}"


def _feature_table(title: str, result: dict[str, Any]) -> str:
    """The groups of features that give a candidate away, the most important first."""
    rows = [
        [group["meaning"], f"{group['importance']:.3f}", group["best"], f"{group['single']:.3f}"]
        for group in result["features"][:SHOWN]
    ]
    return markdown_table([f"what tells the {title}", "importance", "best single feature", "its AUC"], rows)


def classifier_rows(results: dict[str, Any]) -> Iterator[list[Any]]:
    """The test's rows of ``evaluation.csv``: areas with their standard errors, importances with their spread over seeds.

    Args:
        results: From :func:`judge_by_classifier`; nothing of nothing.
    """
    controls = {CONTROLS[name]: result for name, result in results.get("controls", {}).items()}
    for title, result in (results.get("candidates", {}) | controls).items():
        for judge, verdict in result["verdicts"].items():
            interval = verdict["low"], verdict["high"]
            yield [title, f"auc_{judge}", "all", verdict["auc"], verdict["error"], *interval]
        for group in result["features"]:
            yield [title, "importance", group["group"], group["importance"], group["spread"], "", ""]


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
