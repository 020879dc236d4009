"""The ensemble of the best: for each particle the model that ranks first on validation rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from calosim.evaluation.definitions import TITLES
from calosim.evaluation.stored import Evaluation
from calosim.io import read_json, write_json
from calosim.models.checkpoints import older
from calosim.options import Ensemble, Execution, Requantization
from calosim.particles import particle_code
from calosim.runs import Run, difference, identity
from calosim.simulation.ensemble import save_ensemble
from calosim.simulation.simulator import read_ensemble
from calosim.studies.layout import ENSEMBLE, Table
from calosim.studies.plan import Plan, Step, command_words
from calosim.studies.run import run_steps
from calosim.studies.statistics import mean_ranks

__all__ = ["make_ensemble"]


class _Choice(NamedTuple):
    """The model of one particle: its label, its training, and the noise removal that suits it best."""

    label: str
    step: Step
    requantization: int | None


def make_ensemble(
    plan: Plan, table: Table, execution: Execution, quiet: bool
) -> tuple[Evaluation, dict[str, str]] | str | None:
    """Joins the best model of each particle by mean rank on validation rows, and judges it; or why not.

    Args:
        plan: The plan, whose trainings and validations have run.
        table: Particles, metrics, and the labels to choose from.
        execution: Where and how it is judged.
        quiet: Show no progress.

    Returns:
        The ensemble's evaluation and the chosen labels by particle, or why there is none; None while it is in Slurm's queue.
    """
    assert table.ensemble is not None
    base = plan.runs(table.ensemble["default"])[0]
    choices = {p: found for p in table.particles if p != "all" and (found := _best(plan, table, p))}
    if not choices:
        return "no model was judged on validation rows; the plan needs `validate`"
    judged = plan.judged(base, Run.VALIDATION)
    if judged is None:
        return f"the default model, {base.name}, was not judged on validation rows"
    chosen = {particle: choice.label for particle, choice in choices.items()}
    members = {p: str(c.step.folder) for p, c in choices.items() if c.label != table.ensemble["default"]}
    removals = {particle: choice.requantization for particle, choice in choices.items()}
    folder = plan.out / ENSEMBLE
    record, choice = folder / "choice.json", {"chosen": chosen, "members": members, "removals": removals}
    if folder.exists() and (not record.exists() or difference(identity(read_json(record)), identity(choice))):
        return f"{folder} was made of other models; remove it"
    if folder.exists() and (said := older(read_ensemble(folder).get("weights"), folder)):
        return f"{folder} is {said}; remove it"
    if not folder.exists():
        photons = table.ensemble.get("photons")
        exceptions = [f"{p}={n}" for p, n in removals.items() if n is not None]
        requantization = Requantization(judged.requantization("all"), exceptions)
        photon_run = str(plan.runs(photons)[0].folder) if photons else None
        save_ensemble(Ensemble(str(folder), str(base.folder), members, photon_run, requantization))
        write_json(record, choice)
    step = _judging(plan, base)
    failed = run_steps(Plan(plan.path, plan.out, {ENSEMBLE: step}, {}, {}), execution, quiet)
    if failed is None:
        return None
    return failed[ENSEMBLE] if failed else (Evaluation(step.folder), chosen)


def _best(plan: Plan, table: Table, particle: str) -> _Choice | None:
    """The model that ranks first for a particle; None if none was judged on its validation rows."""
    found: dict[str, tuple[Step, Evaluation]] = {}
    means: list[dict[str, float]] = []
    for label in table.joined:
        for step in plan.runs(label):
            own = step.options.get("data.particle")
            if own is not None and particle_code(own) != particle_code(particle):
                continue
            judged = plan.judged(step, Run.VALIDATION)
            if judged is None or label in found:
                continue
            mean = judged.metrics[TITLES["shape"]]["mean"]
            if any(f"{metric}_{particle}" in mean for metric in table.metrics):
                found[label] = step, judged
                means.append(mean)
    if not found:
        return None
    ranks = mean_ranks(np.array([[m.get(f"{metric}_{particle}", np.nan) for m in means] for metric in table.metrics]))
    # The earlier of equals: the default comes first.
    label = list(found)[int(np.argmin(np.nan_to_num(ranks, nan=np.inf)))]
    step, judged = found[label]
    return _Choice(label, step, judged.requantization(particle))


def _judging(plan: Plan, base: Step) -> Step:
    """The ensemble's evaluation: that of its default model, on the same data."""
    folder = plan.out / ENSEMBLE
    options: dict[str, Any] = dict(plan.steps[f"{base.name}-{Run.EVALUATION}"].options)
    options |= {"shower": str(folder), "data": str(base.folder), "out": str(folder / Run.EVALUATION)}
    options |= {"requantization": None, "references": False}
    words = command_words({key: value for key, value in options.items() if value is not None})
    result = folder / Run.EVALUATION / Evaluation.RECORD
    return Step(ENSEMBLE, ENSEMBLE, {}, "evaluate", words, result, options=options)
