"""What the classifier test said of a study's models: areas under the ROC curve as cells, and their table with the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calosim.evaluation.definitions import TITLES
from calosim.io import markdown_table
from calosim.studies.cells import Cell, Cells
from calosim.studies.layout import Row

__all__ = ["judge_cells", "judge_table"]

#: Judges by the metrics that their areas are, and what tables call them.
JUDGES = {"auc_images": ("images", "AUC images"), "auc_features": ("features", "AUC features")}
#: The controls that are floors, by the answers that they judge.
CONTROLS = {"floor": "mc", "shape_floor": "mc_sums"}


def judge_cells(rows: Sequence[Row], modes: Sequence[str]) -> Cells:
    """The areas of all models of all particle types that were put before judges, and of the floor.

    Args:
        rows: The rows of the study.
        modes: ``shape``, ``chain``.

    Returns:
        Cells of ``auc_images`` and ``auc_features`` for ``all``: means over trainings with their standard deviation, or that
        of one training with its standard error.
    """
    cells: Cells = {}
    for mode in modes:
        for row in rows:
            found = [_verdicts(e.record.get("classifier", {}), row.candidate(mode)) for e in row.of("all")]
            for metric, (judge, _) in JUDGES.items():
                told = [verdicts[judge] for verdicts in found if judge in verdicts]
                if told:
                    areas = [verdict["auc"] for verdict in told]
                    spread = np.std(areas, ddof=1) if len(areas) > 1 else told[0]["error"]
                    cell = Cell(float(np.mean(areas)), float(spread), len(areas), target=0.5)
                    cells[mode, metric, "all", row.label] = cell
    return cells


def judge_table(rows: Sequence[Row], cells: Cells, mode: str) -> str:
    """The areas of one mode as a Markdown section; empty where no model was put before judges.

    Args:
        rows: The rows of the study.
        cells: With those of :func:`judge_cells`.
        mode: The mode.
    """
    lines = []
    for row in rows:
        found = [cells.get((mode, metric, "all", row.label)) for metric in JUDGES]
        if any(found):
            seeds = max(cell.seeds for cell in found if cell)
            title = f"{row.called(mode)} ({seeds} seeds)" if seeds > 1 else row.called(mode)
            lines.append([title, *(f"{cell.mean:.3f} ± {cell.std:.3f}" if cell else "–" for cell in found)])
    if not lines:
        return ""
    text = (
        "Area under the ROC curve: how often a trained judge finds the generated one of a pair, 0.5 is guessing; ± its standard "
        "error, or the standard deviation over training seeds."
    )
    return f"### Classifier test\n\n{text}\n\n{markdown_table(['', *(title for _, title in JUDGES.values())], lines)}"


def _verdicts(test: Mapping[str, Any], candidate: str) -> Mapping[str, Mapping[str, float]]:
    """By judge, what an evaluation's classifier test says of a candidate or a floor."""
    if candidate in CONTROLS:
        return test.get("controls", {}).get(CONTROLS[candidate], {}).get("verdicts", {})
    return test.get("candidates", {}).get(TITLES[candidate], {}).get("verdicts", {})
