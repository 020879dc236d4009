"""The ensemble of the best: for each particle the model that ranks first on validation rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from calosim.evaluation.stored import Evaluation
from calosim.io import read_json, write_json
from calosim.models.checkpoints import older
from calosim.options import Ensemble, Execution, Requantization
from calosim.particles import particle_code
from calosim.runs import Run, difference, identity
from calosim.simulation.simulator import read_ensemble, save_ensemble
from calosim.studies.plan import ENSEMBLE, Step, Study, command_words
from calosim.studies.run import run_steps
from calosim.studies.statistics import mean_ranks

__all__ = ["make_ensemble"]


class _Choice(NamedTuple):
    """The model of one particle: its training, and the requantization that suits it best."""

    step: Step
    requantization: int | None


def make_ensemble(study: Study, execution: Execution, quiet: bool) -> tuple[Evaluation, dict[str, str]] | str | None:
    """Joins the best model of each particle by mean rank on validation rows, and evaluates it; or why not.

    Args:
        study: The study, whose trainings and validations have run; its table says which models to choose from.
        execution: Where and how it is evaluated.
        quiet: Show no progress.

    Returns:
        The ensemble's evaluation and the chosen labels by particle, or why there is none; None while it is in Slurm's queue.
    """
    settings = study.table.ensemble
    assert settings is not None
    base = study.runs[settings["default"]][0]
    choices = {p: found for p in study.table.particles if p != "all" and (found := _best(study, p))}
    if not choices:
        return "no model was evaluated on validation rows; the plan needs `validate`"
    validation = study.evaluation(base, Run.VALIDATION)
    if validation is None:
        return f"the default model, {base.name}, was not evaluated on validation rows"
    chosen = {particle: choice.step.label for particle, choice in choices.items()}
    members = {p: str(c.step.folder) for p, c in choices.items() if c.step.label != settings["default"]}
    removals = {particle: choice.requantization for particle, choice in choices.items()}
    folder = study.out / ENSEMBLE
    record, choice = folder / "choice.json", {"chosen": chosen, "members": members, "removals": removals}
    if folder.exists() and (not record.exists() or difference(identity(read_json(record)), identity(choice))):
        return f"{folder} was made of other models; remove it"
    if folder.exists() and (said := older(read_ensemble(Run(folder)).get("weights"), folder)):
        return f"{folder} is {said}; remove it"
    if not folder.exists():
        photons = settings.get("photons")
        exceptions = [f"{p}={n}" for p, n in removals.items() if n is not None]
        requantization = Requantization(validation.requantization("all"), exceptions)
        photon_run = str(study.runs[photons][0].folder) if photons else None
        save_ensemble(Ensemble(str(folder), str(base.folder), members, photon_run, requantization))
        write_json(record, choice)
    # Evaluated as its default model is, on the same data.
    as_base = study.steps[f"{base.name}-{Run.EVALUATION}"]
    result = folder / Run.EVALUATION / Evaluation.RECORD
    options = {**as_base.options, "shower": str(folder), "data": str(base.folder), "out": str(result.parent)}
    options = {k: v for k, v in (options | {"requantization": None, "references": False}).items() if v is not None}
    about = as_base.about.with_name(ENSEMBLE)
    step = Step(ENSEMBLE, ENSEMBLE, {}, "evaluate", command_words(options), result, about, options=options)
    failed = run_steps({ENSEMBLE: step}, execution, quiet)
    if failed is None:
        return None
    return failed[ENSEMBLE] if failed else (Evaluation(step.folder), chosen)


def _best(study: Study, particle: str) -> _Choice | None:
    """The model that ranks first for a particle; None if none was evaluated on its validation rows."""
    metrics, found = study.table.metrics, []
    for label in study.table.joined:
        for step in study.runs[label]:
            own = step.options.get("data.particle")
            if own is not None and particle_code(own) != particle_code(particle):
                continue
            if validation := study.evaluation(step, Run.VALIDATION):
                mean = validation.metrics["shape"]["mean"]
                if any(f"{metric}_{particle}" in mean for metric in metrics):
                    found.append((step, validation, [mean.get(f"{metric}_{particle}", np.nan) for metric in metrics]))
                    break  # of several seeds the first stands for all
    if not found:
        return None
    ranks = mean_ranks(np.array([values for *_, values in found]).T)
    # The earlier of equals: the default comes first.
    step, validation, _ = found[int(np.argmin(np.nan_to_num(ranks, nan=np.inf)))]
    return _Choice(step, validation.requantization(particle))
