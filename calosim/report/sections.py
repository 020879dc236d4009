"""What the report says of a folder: trainings, evaluations, studies, explanations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from calosim.detectors import Detector, get_detector
from calosim.evaluation.samples import RADII
from calosim.evaluation.stored import TITLES, Evaluation
from calosim.io import read_csv, read_json, read_npz
from calosim.metrics.registry import HEADER, definitions
from calosim.models.checkpoints import older
from calosim.particles import STUDY_PARTICLES, particle_symbol
from calosim.report.page import Picture, Section
from calosim.runs import Run

if TYPE_CHECKING:
    from calosim.plots import Curve, Panel

__all__ = [
    "Verdict",
    "answer",
    "curves",
    "evaluation",
    "explanation",
    "folder_name",
    "picture_of",
    "response_picture",
    "study",
    "trainings",
    "verdict",
]


#: Quantities that are logged in training and validation alike, the first that is there: the losses of students and
#: Bayesian networks have parts in training, such as weights of rows, that validation has not.
PAIRS = (("train/kl", "val/kl"), ("train/nll", "val/loss"), ("train/loss", "val/loss"))
DIVERGENCE = "divergence from the teacher"
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
        kind = ", ".join(filter(None, (run.record["model"], run.record.get("representation"))))
        for label, curve in _logged(run).items():
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


def _logged(run: Run) -> dict[str, Curve]:
    """A run's curves by what they show: its loss, and the distance of channels if a callback measured it."""
    from calosim.plots import Curve

    lines = [line for path in run.metrics for line in read_csv(path)]

    def series(key: str) -> list[tuple[float, float]]:
        return [(float(line["step"]), float(line[key])) for line in lines if line.get(key)]

    losses = series("val/loss")
    best = min(losses, key=lambda point: point[1])[0] if losses else None
    train, val = next(((t, v) for t, v in PAIRS if series(t) and series(v)), PAIRS[-1])
    said = DIVERGENCE if val == "val/kl" else run.record.get("loss", "loss")
    unit = run.record.get("unit") if said != "loss" else ""
    found = {", ".join(filter(None, (said, unit))): Curve(series(train), series(val), best)}
    if len(distances := series("val/ws")) > 1:  # a point alone is no curve
        found["WS of the validation split, photons"] = Curve([], distances, best)
    return {label: curve for label, curve in found.items() if curve.train or curve.val}


#: A classifier that finds the generated response in no more pairs than that is close to guessing.
CLOSE, FAR = 0.6, 0.8
#: Primaries, and responses to each on either side, of the picture.
SHOWN = (4, 3)
LEGEND = (
    "WS ÷ floor: the Wasserstein distance of channel sums over that of the Monte Carlo itself (its responses with another seed "
    "or, without --floor, its other responses) and, for a shape alone, with the same photon sums; 1 is as good as the Monte "
    "Carlo. AUC: how often a trained classifier finds the generated one of a pair, 0.5 is guessing, with standard errors. ms a "
    "response: in batches of 1024 on the machine of the evaluation."
)
VERDICTS = ("model", "WS ÷ floor", "AUC images", "AUC features", "ms a response", "verdict")


class Verdict(NamedTuple):
    """What the C2ST says of a model, in words and as a level: good, fair, poor, or none without a test."""

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
        section.pieces.append(("verdicts", (VERDICTS, lines, LEGEND)))
    return section


def verdict(test: Mapping[str, Any], name: str) -> Verdict:
    """What a C2ST says of a candidate.

    A classifier can tell if the 95 % interval of its area under the ROC curve lies above 0.5.

    Args:
        test: The entry ``c2st`` of an evaluation's record; may be empty.
        name: The candidate.
    """
    found = test.get("candidates", {}).get(name, {}).get("verdicts")
    if not found:
        return Verdict("none", "not put before a classifier")
    told = [one["auc"] for one in found.values() if one["low"] > 0.5]
    if told:
        share = max(told)
        level = "good" if share < CLOSE else "fair" if share < FAR else "poor"
        return Verdict(level, f"a classifier tells it in {100 * share:.0f}\u00a0% of pairs")
    damaged = [result["verdicts"].values() for name, result in test.get("controls", {}).items() if "damaged" in name]
    if damaged and not any(one["low"] > 0.5 for verdicts in damaged for one in verdicts):
        return Verdict("none", "a classifier cannot tell, but neither can it find photons that were moved")
    return Verdict("good", "a classifier cannot tell")


def _is_wanted(found: Evaluation) -> bool:
    """Whether it is of a model of all particle types, on test rows."""
    shape: str | None = found.record.get("shape")
    return shape is not None and found.record.get("split") == "test" and Run(shape).particle is None


def _lines(found: Evaluation, several: bool) -> list[tuple[Any, ...]]:
    """Cells of the lines about an evaluation's candidates, the verdict last."""
    test, metrics, lines = found.record.get("c2st", {}), found.metrics, []
    for name, floors in (("shape", ("shape_floor", "floor", "halves")), ("chain", ("floor", "halves"))):
        if name not in metrics:
            continue
        title, floor = TITLES[name], next((floor for floor in floors if floor in metrics), None)
        ws = metrics[name]["mean"]["ws_all"]
        ratio = f"{ws / metrics[floor]['mean']['ws_all']:.2f}" if floor else "–"
        if name == "shape" and floor in ("floor", "halves"):
            ratio += " (floor of other sums)"
        verdicts = test.get("candidates", {}).get(name, {}).get("verdicts", {})
        areas = [_area(verdicts.get(which)) for which in ("images", "features")]
        called = f"{folder_name(Path(found.record['shape']))}: {title}" if several else title
        called = f"{called} ({found.older})" if found.older else called
        seconds = found.record["images"][name]["seconds"]
        lines.append((called, ratio, *areas, f"{1000 * seconds:.2g}", verdict(test, name)))
    return lines


def _area(found: Mapping[str, float] | None) -> str:
    return f"{found['auc']:.3f} ± {found['error']:.3f}" if found else "–"


def folder_name(folder: Path) -> str:
    """A folder by its last two names."""
    return "/".join(folder.resolve().parts[-2:])


def trainings(folders: Sequence[Path]) -> Section:
    """A line of facts about each run folder, and its command and configuration."""
    section = Section("trained", "What was trained")
    rows, runs = [], [Run(folder) for folder in folders]
    for run in runs:
        record, done = run.record, run.training
        facts = {
            "run": folder_name(run.folder),
            "model": record["model"],
            "parameters": f"{record['parameters']:,}",
            "epochs": done["epochs"] if done else "",
            "samples": f"{done['samples']:,}" if done else "",
            "minutes": f"{done['seconds'] / 60:.1f}" if done else "not finished",
            "seed": record["seed"],
            "particle": "all" if run.particle is None else particle_symbol(run.particle),
            "data hash": record["data"]["data_hash"][:12],
            "git": (record["git"] or "")[:12],
        }
        rows.append(facts)
    if rows:
        section.table(list(rows[0]), [list(facts.values()) for facts in rows])
    for run in runs:
        config = run / Run.CONFIG
        commands = [f"calosim {' '.join(map(str, run.record['command']))}"]
        for session in run.record.get("sessions", []):
            commands.append(f"after step {session['step']}: calosim {' '.join(map(str, session['command']))}")
        section.details(
            f"{folder_name(run.folder)}: command and configuration",
            "\n".join(commands),
            config.read_text(encoding="utf-8") if config.exists() else "",
        )
    return section


def evaluation(folder: Path) -> Section:
    """The tables of a judged simulation, its pictures, and what the metrics are."""
    found = Evaluation(folder)
    name = folder_name(folder)
    section = Section(f"evaluation-{name.replace('/', '-')}", f"Evaluation: {name}")
    _warn(section, found.older)
    tables = folder / Evaluation.TABLES
    if tables.exists():
        section.markdown(tables.read_text(encoding="utf-8"))
        section.fold("What the metrics are", HEADER, definitions())
    if (picture := response_picture(found)) is not None:
        section.figures(picture)
    if found.samples.exists():
        _distributions(section, read_npz(found.samples), get_detector(found.record["data"]["detector"]))
    return section


def response_picture(found: Evaluation, primaries: int | None = None, responses: int | None = None) -> Picture | None:
    """Some Monte Carlo responses beside generated ones; None where an evaluation kept none.

    Args:
        found: The evaluation.
        primaries: How many of the kept primaries; all if None.
        responses: How many of the kept responses to each, on either side; all if None.
    """
    from calosim.plots import draws

    if "examples_labels" not in found.names:
        return None
    labels = found["examples_labels"].tolist()[:primaries]
    sides = [found[f"examples_{side}"][:primaries, :responses] for side in ("reference", "generated")]
    return picture_of(
        lambda path: draws(sides[0], sides[1], labels, path),
        f"Photon images of {', '.join(labels)}: Monte Carlo left, generated right",
        "Responses to the same primaries, one primary a row: the Monte Carlo's on the left, generated ones on the right, with "
        "their photon sums below. Responses to one primary differ; generated ones should differ as much.",
    )


def _distributions(section: Section, arrays: Mapping[str, np.ndarray], detector: Detector) -> None:
    """Channels, photon sums and radial profiles, of the samples' first run."""
    from calosim.plots import channel_histograms, spectra

    channels = {n: arrays[f"{n}_channels"][0].reshape(-1, 5) for n in TITLES if f"{n}_channels" in arrays}
    full = "chain" if "chain" in channels else "shape"
    names = detector.channel_names()
    section.figures(
        picture_of(
            lambda path: channel_histograms(arrays["reference"], channels[full], names, path),
            "Histograms of photons in each of the five channels, with ratios below",
            f"Photons in each read-out channel, {TITLES[full]}, with the ratio to the Monte Carlo; bands are one standard "
            "deviation of the counts.",
        )
    )
    sums = {"Monte Carlo": arrays["reference"].sum(1)} | {TITLES[n]: c.sum(1) for n, c in channels.items()}
    profiles = {"Monte Carlo": arrays["reference_profile"]} if "reference_profile" in arrays else {}
    profiles |= {TITLES[n]: arrays[f"{n}_profile"] for n in TITLES if f"{n}_profile" in arrays}
    section.figures(
        picture_of(
            lambda path: spectra(sums, profiles, RADII * detector.pitch, path),
            "Spectrum of photon sums, and radial profile of showers",
            "Left: spectrum of photon sums. Right: mean share of the photons by distance from the shower's center of gravity.",
        )
    )


def study(folder: Path) -> Section:
    """A comparison's tables and pictures."""
    name = folder.resolve().name
    section = Section(f"study-{name}", f"Study: {name}")
    if (record := folder / "comparison.json").is_file():
        _warn(section, older(read_json(record).get("weights"), folder))
    section.markdown((folder / "comparison.md").read_text(encoding="utf-8"))
    for path in sorted(folder.glob("comparison-*.png")):
        title = TITLES[path.stem.partition("-")[2]]
        section.figures(
            Picture(
                path.read_bytes(),
                f"Metrics of all models by particle, {title}",
                f"{title[0].upper()}{title[1:]}: metrics by particle with 95 % bootstrap intervals (standard deviations "
                "where they cannot be had); lower is better.",
            )
        )
    return section


def explanation(folder: Path) -> Section:
    """An explanation's tables and pictures."""
    section = Section(f"explanation-{folder.resolve().name}", f"Explanation: {folder_name(folder)}")
    _warn(section, older(read_json(folder / "explain.json").get("weights"), folder))
    section.markdown((folder / "explain.md").read_text(encoding="utf-8"))
    words = {
        "bar": "mean absolute SHAP values with their spread over the posterior",
        "beeswarm": "SHAP values of single responses, colored by the feature's value",
    }
    uncertainty = (
        "Photon sum: predictive intervals against observed sums, the coverage curve, and the parts of the variance."
    )
    pairs = [
        {f"{target}_{kind}": f"{target.replace('_', ' ').capitalize()}: {said}." for kind, said in words.items()}
        for target in read_json(folder / "explain.json")["targets"]
    ]
    for captions in (*pairs, {"photon_uncertainty": uncertainty}):
        found = {path: said for name, said in captions.items() if (path := folder / f"{name}.png").exists()}
        if found:
            section.figures(*(Picture(path.read_bytes(), said, said) for path, said in found.items()))
    return section


def _warn(section: Section, older: str) -> None:
    """Says what is older than the models that it is of, before what it tells."""
    if older:
        section.markdown(f"**This is {older}: it tells of models that are no longer there.**")


def picture_of(draw: Callable[[Path], Path | None], alt: str, caption: str) -> Picture | None:
    """A picture that a function draws into a file; None where it could not."""
    with tempfile.TemporaryDirectory() as folder:
        path = draw(Path(folder) / "picture.png")
        return None if path is None else Picture(path.read_bytes(), alt, caption)
