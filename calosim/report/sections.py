"""What the report says of a folder: trainings, evaluations, studies, explanations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from calosim.detectors import Detector, get_detector
from calosim.evaluation.definitions import DEFINITIONS, HEADER, RADII, TITLES
from calosim.evaluation.stored import Evaluation
from calosim.io import read_json, read_npz
from calosim.models.checkpoints import older
from calosim.particles import particle_symbol
from calosim.report.page import Picture, Section
from calosim.runs import Run

__all__ = ["evaluation", "explanation", "folder_name", "picture_of", "response_picture", "study", "trainings"]


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
        section.fold("What the metrics are", HEADER, DEFINITIONS)
    if (picture := response_picture(found)) is not None:
        section.figures(picture)
    if (folder / Evaluation.ANSWERS).exists():
        arrays = read_npz(folder / Evaluation.ANSWERS)
        _distributions(section, arrays, get_detector(found.record["data"]["detector"]))
    return section


def response_picture(found: Evaluation, primaries: int | None = None, responses: int | None = None) -> Picture | None:
    """Some Monte Carlo responses beside generated ones; None where an evaluation kept none.

    Args:
        found: The evaluation.
        primaries: How many of the kept primaries; all if None.
        responses: How many of the kept responses to each, on either side; all if None.
    """
    from calosim.plots import draws

    if not found.has_answers or "examples_labels" not in found.names:
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
    """Channels, photon sums and radial profiles, of the answers' first run."""
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
