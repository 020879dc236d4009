"""Compares the runs of a plan: metrics with their uncertainties, ranks, costs, speed, and the ensemble of the best.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over unique inputs: the same inputs are drawn for all models.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calosim.evaluation.answers import TITLES
from calosim.files import atomic_write
from calosim.particles import particle_code
from calosim.simulation.ensemble import save_ensemble
from calosim.studies.cells import ENSEMBLE, mean_ranks, stored_metrics
from calosim.studies.plan import Plan, Step
from calosim.studies.runner import run_steps

__all__ = ["ensemble_labels", "make_ensemble"]


def ensemble_labels(table: Mapping[str, Any]) -> list[str]:
    settings = table["ensemble"]
    if not settings:
        return []
    if not isinstance(settings, dict) or not {"default", "members"} <= set(settings) <= {
        "default",
        "members",
        "photons",
    }:
        raise ValueError(f"expected table.ensemble with default, members and perhaps photons, got {settings!r}")
    return [settings["default"], *settings["members"]]


def make_ensemble(study: Plan, table: Mapping[str, Any], jobs: int, quiet: bool) -> tuple[Path, dict[str, str]] | str:
    """Joins the best model of each particle by mean rank on validation rows, and judges it; or why not."""
    settings = table["ensemble"]
    base = study.runs(settings["default"])[0]
    folder, judged = study.out / ENSEMBLE, study.out / ENSEMBLE / "evaluation"
    particles = [p for p in table["particles"] if p != "all"]
    chosen: dict[str, str] = {}
    members: dict[str, str] = {}
    removals: dict[str, int] = {}
    for particle in particles:
        runs: dict[str, Step] = {}
        means: list[dict[str, float]] = []
        for label in [settings["default"], *settings["members"]]:
            for step in study.runs(label):
                own = step.options.get("data.particle")
                if own is not None and particle_code(own) != particle_code(particle):
                    continue
                record = step.folder / "validation" / "evaluation.json"
                if not record.exists() or label in runs:
                    continue
                mean = stored_metrics(record.parent)[TITLES["shape"]]["mean"]
                if any(f"{metric}_{particle}" in mean for metric in table["metrics"]):
                    runs[label] = step
                    means.append(mean)
        if not runs:
            continue
        ranks = mean_ranks(
            np.array([[m.get(f"{metric}_{particle}", np.nan) for m in means] for metric in table["metrics"]])
        )
        best = list(runs)[
            int(np.argmin(np.nan_to_num(ranks, nan=np.inf)))
        ]  # the earlier of equals: the default comes first
        chosen[particle] = best
        if best != settings["default"]:
            members[particle] = str(runs[best].folder)
        removals[particle] = _removal(runs[best], particle)
    if not chosen:
        return "no model was judged on validation rows; the plan needs `validate`"
    record = folder / "choice.json"
    choice = {"chosen": chosen, "members": members, "removals": removals}
    if folder.exists() and not (record.exists() and json.loads(record.read_text()) == choice):
        return f"{folder} was made of other models; remove it"
    if not folder.exists():
        photons = settings.get("photons")
        save_ensemble(
            str(folder),
            str(base.folder),
            members,
            str(study.runs(photons)[0].folder) if photons else None,
            _removal(base, "all"),
            [f"{particle}={method}" for particle, method in removals.items()],
        )
        atomic_write(record, json.dumps(choice, indent=2) + "\n")
    options = dict(study.steps[f"{base.name}-evaluation"].options)
    options |= {"shape": str(folder), "data": str(base.folder), "out": str(judged), "noise_removal": None}
    options |= {"references": False}
    words = tuple(
        w for k, v in options.items() if v is not None for w in (f"--{k}", v if isinstance(v, str) else json.dumps(v))
    )
    step = Step(ENSEMBLE, ENSEMBLE, {}, "evaluate", words, judged / "evaluation.json", (), options)
    alone = Plan(study.out, {ENSEMBLE: step}, {}, {})
    if failed := run_steps(alone, jobs, quiet):
        return failed[ENSEMBLE]
    return judged, chosen


def _removal(step: Step, particle: str) -> int:
    """The noise removal that an evaluation used, which chose it on validation rows."""
    methods = json.loads((step.folder / "validation" / "evaluation.json").read_text())["noise_removal"]
    code = 0 if particle == "all" else particle_code(particle)
    return int(methods.get(str(code), methods["0"]))
