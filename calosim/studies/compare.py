"""Compares the runs of a plan: metrics with their uncertainties, ranks, costs, speed, and the ensemble of the best.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over unique inputs: the same inputs are drawn for all models.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import json
from typing import Any

from calosim.files import atomic_write
from calosim.particles import STUDY_PARTICLES, particle_code, particle_name
from calosim.studies.cells import ENSEMBLE, HEADINGS, Row, fill_cells, judged_rows, reference_rows
from calosim.studies.cost import print_plan
from calosim.studies.ensemble import ensemble_labels, make_ensemble
from calosim.studies.plan import load_plan
from calosim.studies.runner import run_steps
from calosim.studies.speed import measure_speeds, speed_table
from calosim.studies.tables import csv_of, draw_comparison, report_of

__all__ = ["compare"]

#: Entries of a plan's ``table`` and their defaults.
TABLE: dict[str, Any] = {
    "particles": ["all", *(particle_name(code) for code in STUDY_PARTICLES)],
    "metrics": ["ws", "mae_cond", "delta", "jacc"],
    "modes": ["shape", "chain"],
    "reference": None,
    "ensemble": None,
    "speed": False,
}


def compare(
    plan: str,
    out: str | None = None,
    jobs: int = 1,
    dry_run: bool = False,
    options: dict[str, Any] | None = None,
    resamples: int = 10_000,
    quiet: bool = False,
) -> None:
    """Runs a plan of trainings, skipping what is finished, and compares them with statistics.

    A killed study resumes when it is started again; a failed run is shown and the rest goes on.

    Args:
        plan: The plan, a YAML file; see conf/study.
        out: Another folder than the plan's.
        jobs: Runs at once.
        dry_run: Only print the plan with estimated times.
        options: Further options of every training, for instance '{"trainer.max_epochs": 1}'.
        resamples: Bootstrap resamples of unique inputs.
        quiet: Show no progress.
    """
    study = load_plan(plan, out, options)
    table = {**TABLE, **(study.settings.get("table") or {})}
    if unknown := set(table) - set(TABLE):
        raise ValueError(f"{plan}: unknown entries {', '.join(sorted(unknown))} of table; expected {', '.join(TABLE)}")
    # One name of a particle in all tables, however the plan writes it.
    table["particles"] = [p if p == "all" else particle_name(particle_code(p)) for p in table["particles"]]
    for metric in table["metrics"]:
        if metric not in HEADINGS:
            raise ValueError(f"{plan}: unknown metric {metric!r}; expected {', '.join(HEADINGS)}")
    labels = [x for x in [table["reference"], *ensemble_labels(table)] if x is not None]
    if unknown := {label for label in labels if label not in study.trainings}:
        raise ValueError(f"{plan}: the table names {', '.join(sorted(unknown))}, which is none of its trainings")
    if dry_run:
        print_plan(study, jobs)
        return
    failed = run_steps(study, jobs, quiet)
    rows = judged_rows(study)
    if not rows:
        raise ValueError(f"{plan}: nothing to compare; " + "; ".join(f"{k}: {v}" for k, v in failed.items()))
    chosen: dict[str, str] = {}
    if table["ensemble"]:
        made = make_ensemble(study, table, jobs, quiet)
        if isinstance(made, str):
            failed[ENSEMBLE] = made
        else:
            folder, chosen = made
            rows.append(Row(ENSEMBLE, "ensemble of the best", [(folder, None)]))
    rows += reference_rows(rows)
    cells = fill_cells(rows, table, resamples, quiet)
    text = report_of(study, table, rows, cells, failed, chosen)
    atomic_write(study.out / "comparison.csv", csv_of(cells, rows))
    if table["speed"]:
        speeds = measure_speeds(study, quiet)
        text += "\n" + speed_table(study, speeds, cells)
        atomic_write(study.out / "speed.json", json.dumps(speeds, indent=2) + "\n")
    atomic_write(study.out / "comparison.md", text)
    for mode in table["modes"]:
        if any(key[0] == mode for key in cells):
            draw_comparison(study.out / f"comparison-{mode}.png", mode, table, rows, cells)
    print(text)
    print(f"Tables: {study.out}/comparison.md, .csv; pictures: {study.out}/comparison-*.png")
    if failed:
        raise ValueError(f"{len(failed)} of {len(study.steps)} steps failed: {', '.join(failed)}; see above")
