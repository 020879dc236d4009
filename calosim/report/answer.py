"""What a report opens with: responses beside the Monte Carlo's, and a line about each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from calosim.evaluation.definitions import TITLES
from calosim.evaluation.stored import Evaluation
from calosim.report.page import Picture, Section
from calosim.report.sections import folder_name, response_picture
from calosim.runs import Run

__all__ = ["Verdict", "answer", "verdict"]

#: A judge that finds the generated response in no more pairs than that is close to guessing.
CLOSE, FAR = 0.6, 0.8
#: Primaries, and responses to each on either side, of the picture.
SHOWN = (4, 3)
LEGEND = (
    "WS ÷ floor: the Wasserstein distance of channel sums over that of the Monte Carlo itself (its answers with another seed or, "
    "without --floor, its other responses) and, for a shape alone, with the same photon sums; 1 is as good as the Monte Carlo. "
    "AUC: how often a trained judge finds the generated one of a pair, 0.5 is guessing, with standard errors. ms a response: in "
    "batches of 1024 on the machine of the evaluation."
)
HEADER = ("model", "WS ÷ floor", "AUC images", "AUC features", "ms a response", "verdict")


class Verdict(NamedTuple):
    """What the classifier test says of a model, in words and as a level: good, fair, poor, or none without a test."""

    level: str
    words: str


def answer(folders: Sequence[Path]) -> Section:
    """The answer of all evaluations of models of all particle types on test rows.

    Args:
        folders: Folders of evaluations.
    """
    section = Section("answer", "At a glance")
    judged = [found for found in map(Evaluation, folders) if _is_wanted(found)]
    drawn: Picture | None = None
    for found in judged:
        drawn = drawn or response_picture(found, *SHOWN)
    section.figures(drawn)
    lines = [line for found in judged for line in _lines(found, len(judged) > 1)]
    if lines:
        section.pieces.append(("verdicts", (HEADER, lines, LEGEND)))
    return section


def verdict(test: Mapping[str, Any], title: str) -> Verdict:
    """What a classifier test says of a candidate.

    A judge can tell if the 95 % interval of its area under the ROC curve lies above 0.5.

    Args:
        test: The entry ``classifier`` of an evaluation's record; may be empty.
        title: The candidate.
    """
    judges = test.get("candidates", {}).get(title, {}).get("verdicts")
    if not judges:
        return Verdict("none", "not put before a classifier")
    told = [judge["auc"] for judge in judges.values() if judge["low"] > 0.5]
    if told:
        share = max(told)
        level = "good" if share < CLOSE else "fair" if share < FAR else "poor"
        return Verdict(level, f"a classifier tells it in {100 * share:.0f}\u00a0% of pairs")
    damaged = [result["verdicts"].values() for name, result in test.get("controls", {}).items() if "damaged" in name]
    if damaged and not any(judge["low"] > 0.5 for verdicts in damaged for judge in verdicts):
        return Verdict("none", "a classifier cannot tell, but neither can it find photons that were moved")
    return Verdict("good", "a classifier cannot tell")


def _is_wanted(found: Evaluation) -> bool:
    """Whether it is of a model of all particle types, on test rows."""
    shape: str | None = found.record.get("shape")
    return shape is not None and found.record.get("split") == "test" and Run(shape).particle is None


def _lines(found: Evaluation, several: bool) -> list[tuple[Any, ...]]:
    """Cells of the lines about an evaluation's candidates, the verdict last."""
    test, metrics, lines = found.record.get("classifier", {}), found.metrics, []
    for name, floors in (("shape", ("shape_floor", "floor", "halves")), ("chain", ("floor", "halves"))):
        title = TITLES[name]
        if title not in metrics:
            continue
        floor = next((TITLES[f] for f in floors if TITLES[f] in metrics), None)
        ws = metrics[title]["mean"]["ws_all"]
        ratio = f"{ws / metrics[floor]['mean']['ws_all']:.2f}" if floor else "–"
        if name == "shape" and floor in (TITLES["floor"], TITLES["halves"]):
            ratio += " (floor of other sums)"
        judges = test.get("candidates", {}).get(title, {}).get("verdicts", {})
        areas = [_area(judges.get(judge)) for judge in ("images", "features")]
        called = f"{folder_name(Path(found.record['shape']))}: {title}" if several else title
        called = f"{called} ({found.older})" if found.older else called
        seconds = found.record["images"][title]["seconds"]
        lines.append((called, ratio, *areas, f"{1000 * seconds:.2g}", verdict(test, title)))
    return lines


def _area(judge: Mapping[str, float] | None) -> str:
    return f"{judge['auc']:.3f} ± {judge['error']:.3f}" if judge else "–"
