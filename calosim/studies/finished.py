"""What is there already: whether a step's result is the one that the plan wants."""

from __future__ import annotations

from pathlib import Path

from calosim.data.recipe import current_hash, primaries_hash, read_recipe
from calosim.evaluation.stored import Evaluation
from calosim.runs import Run, difference, identity
from calosim.studies.plan import Step
from calosim.studies.settings import files_of, simulated

__all__ = ["check_training", "is_finished", "unknown_origin"]

_ADVICE = "to make it anew, or choose another `out`"


def is_finished(step: Step) -> bool:
    """Whether a step's result is there, of the weights that are there.

    Raises:
        ValueError: If it was made with other settings or from other data than the plan's.
    """
    if not step.result.exists():
        return False
    if step.verb == "simulate":
        _check_data(step)
    elif step.verb == "fit":
        check_training(step, "finished")
    else:
        _check_evaluation(step)
        return not Evaluation(step.folder).older  # then it is made anew
    return True


def unknown_origin(step: Step) -> str:
    """A line about a data file without a record of how it was made, which is taken as it is; empty otherwise."""
    if step.verb != "simulate" or not step.result.exists() or read_recipe(step.result) is not None:
        return ""
    return f"{step.result}: taken as it is; no record tells that it was made as the plan says"


def check_training(step: Step, state: str) -> None:
    """Checks that a training in the step's folder is the plan's: same resolved settings, same content of the data.

    Args:
        step: A ``fit`` step.
        state: What it is, ``begun`` or ``finished``, for the message.

    Raises:
        ValueError: If it is another one, or none.
    """
    run = Run(step.folder)
    if not run.exists:
        raise ValueError(
            f"{step.folder}: expected the training of the plan or nothing, found a folder without {Run.RECORD}"
        )
    if differs := difference(identity(run.config), identity(step.settings)):
        raise ValueError(
            f"{step.folder}: {state} with other settings than the plan's (it has {differs}); remove the folder {_ADVICE}"
        )
    files = files_of(step.settings)
    # Missing data are made by the plan, or refused by the step that needs them.
    if all(Path(file).is_file() for file in files):
        detector = step.settings["data"]["detector"]
        trained, now = run.record["data"]["data_hash"], current_hash(files, detector)
        if trained != now:
            raise ValueError(
                f"{step.folder}: {state} on other data than {', '.join(files)} (it has hash {trained} instead of {now}); "
                f"remove the folder {_ADVICE}"
            )


def _check_data(step: Step) -> None:
    recipe = read_recipe(step.result)
    if recipe is None:
        return
    wanted = simulated(step.options)
    differs = difference(simulated(recipe["settings"]), wanted)
    source = wanted["primaries"]
    if not differs and isinstance(source, str) and Path(source).is_file():
        made, now = recipe.get("primaries_hash"), primaries_hash(source)
        differs = "" if made == now else f"the primaries of another {source}"
    if differs:
        raise ValueError(
            f"{step.result}: made with other settings than the plan's (it has {differs}); remove the file to make it anew, "
            "or name another one"
        )


def _check_evaluation(step: Step) -> None:
    evaluation = Evaluation(step.folder)
    arguments, wanted = evaluation.record["arguments"], step.settings
    made = {key: arguments[key] for key in step.options if key in arguments}
    differs = difference(made, {key: wanted[key] for key in made})
    if not differs:
        split = Run(step.options["shower"]).split
        trained, judged = split and split["data_hash"], evaluation.record["data"]["data_hash"]
        differs = f"data of hash {judged} instead of {trained}" if split and trained != judged else ""
    if differs:
        raise ValueError(
            f"{step.folder}: finished with other settings than the plan's (it has {differs}); remove the folder {_ADVICE}"
        )
