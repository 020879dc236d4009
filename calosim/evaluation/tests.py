"""Tests of a simulation: whether classifiers tell its responses from the Monte Carlo's, and whether these surprise the model.

A model :math:`q` that is the Monte Carlo :math:`p` finds both equally likely. The mean negative log-likelihood of the Monte
Carlo's responses is the cross-entropy :math:`H(p, q)`, that of the model's own is its entropy :math:`H(q)`; what is reported
is their difference, for which no classifier has to be trained. It is 0 for a perfect model, but not only for it.
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
from calosim.evaluation.references import Reference
from calosim.evaluation.samples import Judgement, Work
from calosim.evaluation.selection import Selection
from calosim.evaluation.stored import TITLES
from calosim.io import markdown_table
from calosim.metrics.bootstrap import interval, resample, resampled_mean
from calosim.metrics.c2st import MIN_PRIMARIES, C2STSettings, c2st, c2st_controls, damaged
from calosim.models.base import evaluating
from calosim.options import ClassifierOptions
from calosim.processes import one_thread
from calosim.simulation.simulator import FastSimulator

__all__ = ["C2ST", "CONTROLS", "LIKELIHOOD", "c2st_with_controls", "compare_likelihoods"]


#: The share of photons moved by one pixel that shows the classifiers' power.
DAMAGE = 0.1
#: What tables call the controls, by the short names that files use.
CONTROLS = {
    "mc": "control: Monte Carlo, other seed",
    "mc_sums": "control: Monte Carlo, same photon sums",
    f"damaged_{100 * DAMAGE:02.0f}": f"power: Monte Carlo, {100 * DAMAGE:.0f} % of photons moved by one pixel",
}
_TITLES = TITLES | CONTROLS
#: The classifier that sees no response.
PRIMARY = "control: the primary alone"
#: How many groups of features the tables show.
SHOWN = 5


def c2st_with_controls(
    generated: Mapping[str, np.ndarray],
    rows: Selection,
    floors: Mapping[str, Reference],
    options: ClassifierOptions,
    seed: int,
    quiet: bool = False,
) -> dict[str, Any]:
    """Lets the classifiers of :mod:`calosim.metrics.c2st` tell one response to each row from the Monte Carlo's.

    Args:
        generated: Responses to the rows by candidate, photon counts with shape (N, nx, ny).
        rows: The rows.
        floors: For the controls, other simulations that answer the rows: ``floor``, with sums of their own, and
            ``shape_floor``, with those of the rows.
        options: How often classifiers are trained.
        seed: Seed of the draws of the controls' responses and of the classifiers.
        quiet: Show no progress.

    Returns:
        ``rows`` and ``primaries`` that were tested, results of the ``candidates`` and of the ``controls`` by their short
        names, see :class:`calosim.metrics.c2st.C2STResult`; or the ``reason`` why there are none.
    """
    showers, primaries = rows.showers, len(np.unique(rows.primary_ids))
    found: dict[str, Any] = {"rows": len(rows), "primaries": primaries}
    if primaries < MIN_PRIMARIES:
        return {**found, "reason": f"needs {MIN_PRIMARIES} primaries or more, the rows to judge have {primaries}"}
    settings = C2STSettings(seeds=options.classifier_seeds, rows=len(rows), seed=seed)
    known = (showers.particles, rows.primary_ids, showers.geometry)
    found["candidates"] = {}
    for name, images in generated.items():
        tested = c2st(showers.images, images, *known, settings, quiet).to_dict()
        tested["verdicts"] |= _calochallenge(showers, images, rows.primary_ids, settings, options, quiet)
        found["candidates"][name] = tested
    controls: dict[str, Any] = {}
    for name, floor in floors.items():
        # No response twice, and none to another primary.
        positions = floor.chooser.distinct(seed)
        own = np.flatnonzero(positions >= 0)
        primaries = len(np.unique(rows.primary_ids[own]))
        if primaries < MIN_PRIMARIES:
            found["controls_reason"] = f"needs {MIN_PRIMARIES} primaries or more, the floor's sample has {primaries}"
            continue
        some, second = showers.select(own), floor.images(positions[own])
        # The same damage tells the same of either.
        shares = () if controls else (DAMAGE,)
        results = c2st_controls(
            some.images, second, some.particles, rows.primary_ids[own], some.geometry, settings, shares, quiet
        )
        told = {key: result.to_dict() for key, result in results.items()}
        told["mc"]["verdicts"] |= _calochallenge(some, second, rows.primary_ids[own], settings, options, quiet)
        same = {"mc": "mc_sums"} if name == "shape_floor" else {}
        controls |= {same.get(key, key): result for key, result in told.items()}
    return found | ({"controls": controls} if controls else {})


def _calochallenge(
    showers: Showers,
    images: np.ndarray,
    primary_ids: np.ndarray,
    settings: C2STSettings,
    options: ClassifierOptions,
    quiet: bool,
) -> dict[str, Any]:
    """The verdict of the CaloChallenge's classifier, where it is asked for."""
    if not options.classifier_calochallenge:
        return {}
    theirs = replace(C2STSettings.calochallenge(), seeds=settings.seeds, seed=settings.seed)
    known = (showers.particles, primary_ids, showers.geometry)
    return c2st(showers.images, images, *known, theirs, quiet).to_dict()["verdicts"]


def _compute_c2st(work: Work) -> dict[str, Any] | None:
    if work.simulator is None or not work.classifier.classifier:
        return None
    rows, images = work.tested
    return c2st_with_controls(
        images, rows, work.floors.simulated(rows), work.classifier, work.protocol.seed, work.quiet
    )


def _c2st_tables(results: Mapping[str, Any]) -> list[str]:
    """What the test is of, areas under the ROC curve, and what gives each candidate away."""
    if "reason" in results:
        return [f"No C2ST: it {results['reason']}."]
    head = (
        f"C2ST (classifier two-sample test) on {results['rows']} rows of {results['primaries']} primaries; area under the ROC "
        "curve ± its standard error by bootstrap over primaries: 0.5 where a classifier cannot tell generated from Monte Carlo, "
        "1 where it always can. The AUC of a single feature is above 0.5 where generated responses have more of it."
    )
    if "controls_reason" in results:
        head += f" No controls: the test {results['controls_reason']}."
    controls, candidates = results.get("controls", {}), results["candidates"]
    first = next(iter(candidates.values()))["verdicts"]
    classifiers = [name for name in ("images", "features", "calochallenge") if name in first]
    rows = [
        [_TITLES.get(name, name), *(_area(result["verdicts"].get(which)) for which in classifiers)]
        for name, result in {**candidates, **{name: controls[name] for name in CONTROLS if name in controls}}.items()
    ]
    if controls:
        primary = next(iter(controls.values()))["verdicts"]["primary"]
        rows.append([PRIMARY, *(_area(primary if which == "features" else None) for which in classifiers)])
    areas = markdown_table(["C2ST", *(f"AUC {which}" for which in classifiers)], rows)
    return [head, areas, *(_feature_table(_TITLES.get(name, name), result) for name, result in candidates.items())]


def _area(verdict: Mapping[str, float] | None) -> str:
    return "–" if verdict is None else f"{verdict['auc']:.3f} ± {verdict['error']:.3f}"


def _feature_table(title: str, result: Mapping[str, Any]) -> str:
    """The groups of features that give a candidate away, the most important first."""
    rows = [
        [group["meaning"], f"{group['importance']:.3f}", group["best"], f"{group['single']:.3f}"]
        for group in result["features"][:SHOWN]
    ]
    return markdown_table([f"what tells the {title}", "importance", "best single feature", "its AUC"], rows)


def _c2st_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Areas with their standard errors, importances with their spread over seeds."""
    for name, result in {**results.get("candidates", {}), **results.get("controls", {})}.items():
        title = _TITLES.get(name, name)
        for which, verdict in result["verdicts"].items():
            ends = verdict["low"], verdict["high"]
            yield [title, f"auc_{which}", "all", verdict["auc"], verdict["error"], *ends]
        for group in result["features"]:
            yield [title, "importance", group["group"], group["importance"], group["spread"], "", ""]


#: Whether classifiers can tell.
C2ST = Judgement("c2st", _compute_c2st, _c2st_tables, _c2st_rows)


#: Rows whose likelihood is computed at once.
BATCH = 256
RESAMPLES = 2000


def compare_likelihoods(
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
    if any(model.nll_unit is None or not model.fast_likelihood for model in models.values()):
        return {"reason": "is not made of models whose likelihood takes long or is not known, such as students"}
    if (primaries := len(np.unique(rows.primary_ids))) < MIN_PRIMARIES:
        return {"reason": f"needs {MIN_PRIMARIES} primaries or more, the rows to judge have {primaries}"}
    images, every = rows.showers.images, np.arange(len(rows))
    others = {"shape": (every, generated), f"damaged_{100 * DAMAGE:02.0f}": (every, damaged(images, DAMAGE, seed))}
    if floor := floors.get("shape_floor"):
        positions = floor.chooser.distinct(seed)
        own = np.flatnonzero(positions >= 0)
        if len(np.unique(rows.primary_ids[own])) >= MIN_PRIMARIES:
            others["mc_sums"] = own, floor.images(positions[own])
    reference = _surprise(models, rows, images, every, quiet)
    _, _, per = str(simulator.shower.nll_unit).split(" ", 2)  # nats an image
    found: dict[str, Any] = {"per": per}
    found["monte_carlo"] = float(reference.mean())
    for name, (own, some) in others.items():
        difference = reference[own] - _surprise(models, rows, some, own, quiet)
        found[name] = _mean_over_rows(difference, rows.primary_ids[own])
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


def _mean_over_rows(values: np.ndarray, primary_ids: np.ndarray) -> dict[str, float]:
    """The mean of values (N,), and how far it would scatter with other primaries."""
    _, group, counts = np.unique(primary_ids, return_inverse=True, return_counts=True)
    means = np.bincount(group, values) / counts
    samples = resampled_mean(means, counts, resample(len(counts), RESAMPLES))
    low, high = interval(float(values.mean()), samples, least=-np.inf)
    return {"difference": float(values.mean()), "error": float(np.nanstd(samples, ddof=1)), "low": low, "high": high}


def _compute_likelihood(work: Work) -> dict[str, Any] | None:
    if work.simulator is None or not work.classifier.classifier:
        return None
    rows, images = work.tested
    floors = work.floors.simulated(rows)
    return compare_likelihoods(work.simulator, rows, images["shape"], floors, work.protocol.seed, work.quiet)


def _likelihood_tables(results: Mapping[str, Any]) -> list[str]:
    if "reason" in results:
        return [f"No likelihood test: it {results['reason']}."]
    head = (
        "Likelihood test on the same rows: the model's mean negative log-likelihood of the Monte Carlo's responses "
        f"({results['monte_carlo']:.4g} nats per {results['per']}) minus that of others to the same primaries with the same "
        "photon sums, ± its standard error by bootstrap over primaries. The closer to 0 the better: it is 0 for a model that is "
        "the Monte Carlo, above where the Monte Carlo surprises the model more than its own responses do, below where they "
        "surprise it more, as damaged responses do."
    )
    digits = 5 if results["per"] == "pixel" else 3
    rows = [
        [_TITLES[name], f"{results[name]['difference']:+.{digits}f} ± {results[name]['error']:.{digits}f}"]
        for name in _TITLES
        if name in results
    ]
    return [head, markdown_table(["likelihood test", f"nats per {results['per']}"], rows)]


def _likelihood_rows(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Differences with their standard errors and intervals."""
    for name in _TITLES:
        if name in results:
            values = (results[name][key] for key in ("difference", "error", "low", "high"))
            yield [_TITLES[name], "nll_difference", "all", *values]


#: Whether the Monte Carlo surprises the model.
LIKELIHOOD = Judgement("likelihood", _compute_likelihood, _likelihood_tables, _likelihood_rows)
