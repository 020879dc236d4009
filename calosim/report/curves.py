"""What was logged while models trained, drawn so that what is in one panel can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calosim.io import read_csv
from calosim.particles import STUDY_PARTICLES, particle_symbol
from calosim.report.page import Section
from calosim.report.sections import folder_name, picture_of
from calosim.runs import Run

if TYPE_CHECKING:
    from calosim.plots import Curve, Panel

__all__ = ["curves"]

#: Quantities that are logged in training and validation alike, the first that is there: the losses of students and
#: Bayesian networks have parts in training, such as weights of rows, that validation has not.
PAIRS = (("train/kl", "val/kl"), ("train/nll", "val/loss"), ("train/loss", "val/loss"))
#: What they are, by the model's class: the loss of others is a sum of their own.
WORDS = {"Teacher": "negative log-likelihood", "PhotonSum": "negative log-likelihood", "Acceptance": "cross-entropy"}
DIVERGENCE = "divergence from the teacher"
UNITS = {"splits": "nats an image", "pixels": "nats a pixel"}
CAPTION = (
    "{}: pale lines are means over groups of training batches, dots the validation split after an epoch; the ring is the "
    "epoch whose checkpoint is kept. Particle types have panels of their own: their rows differ."
)


def curves(folders: Sequence[Path]) -> Section:
    """The training curves, a picture for each kind of model.

    Args:
        folders: Run folders.
    """
    from calosim.plots import Panel, training_curves

    section = Section("curves", "Training curves")
    kinds: dict[str, dict[str, Panel]] = {}
    short = [folder_name(folder) for folder in folders]
    for run, name in sorted(zip(map(Run, folders), short, strict=True), key=lambda found: _place(found[0])):
        called = str(run.folder) if short.count(name) > 1 else name
        model = run.record["model"].replace("FineTune", "Teacher")  # the same likelihood
        kind = ", ".join(filter(None, (model, run.record.get("representation"))))
        for label, curve in _logged(run, model).items():
            rows = "all particles" if run.particle is None else particle_symbol(run.particle)
            title = f"{rows}: channels" if label.startswith("WS") else rows
            panel = kinds.setdefault(kind, {}).setdefault(title, Panel(label, {}))
            panel.runs[called] = curve
    for kind, panels in kinds.items():
        said = f"{kind}: {', '.join(dict.fromkeys(panel.label for panel in panels.values()))}"
        section.figures(
            picture_of(partial(training_curves, panels), f"Training curves of {said}", CAPTION.format(said))
        )
    return section


def _place(run: Run) -> int:
    """Where a run's panel stands: all particles, the study's in its order, others."""
    order = (None, *STUDY_PARTICLES)
    return order.index(run.particle) if run.particle in order else len(order)


def _logged(run: Run, model: str) -> dict[str, Curve]:
    """A run's curves by what they show: its loss, and the distance of channels if a callback measured it."""
    from calosim.plots import Curve

    lines = [line for path in run.metrics for line in read_csv(path)]

    def series(key: str) -> list[tuple[float, float]]:
        return [(float(line["step"]), float(line[key])) for line in lines if line.get(key)]

    losses = series("val/loss")
    best = min(losses, key=lambda point: point[1])[0] if losses else None
    train, val = next(((t, v) for t, v in PAIRS if series(t) and series(v)), PAIRS[-1])
    said = DIVERGENCE if val == "val/kl" else WORDS.get(model, "loss")
    unit = UNITS.get(run.record.get("representation") or "", "nats" if said != "loss" else "")
    found = {", ".join(filter(None, (said, unit))): Curve(series(train), series(val), best)}
    if len(distances := series("val/ws")) > 1:  # a point alone is no curve
        found["WS of the validation split, photons"] = Curve([], distances, best)
    return {label: curve for label, curve in found.items() if curve.train or curve.val}
