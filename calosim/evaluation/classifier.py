"""Whether judges can tell a simulation's responses from the Monte Carlo's, beside what they make of the Monte Carlo itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from calosim.data.record import Showers
from calosim.evaluation.protocol import ClassifierOptions
from calosim.evaluation.references import Reference
from calosim.evaluation.selection import Selection
from calosim.io import markdown_table
from calosim.metrics.classifier import MIN_PRIMARIES, ClassifierSettings, classifier_test
from calosim.metrics.controls import classifier_controls

__all__ = ["classifier_rows", "classifier_tables", "judge_by_classifier"]

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
    """Lets the judges of :mod:`calosim.metrics.classifier` tell one response to each row from the Monte Carlo's.

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
