"""One self-contained HTML page from any set of run folders: trainings, responses, metrics, studies, explanations.

What is reported follows from what a folder holds: a training (``config.yaml`` and ``run.json``), an evaluation
(``evaluation.json``), a study (``comparison.md``), an explanation (``explain.json``). Sections without data are left out.
"""

from __future__ import annotations

import csv
import html
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calosim.detectors import get_detector
from calosim.evaluation.answers import RADII, TITLES
from calosim.report.page import Section

__all__ = ["curves", "evaluation", "explanation", "folder_name", "study", "trainings"]


def folder_name(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])


def trainings(folders: Sequence[Path]) -> Section:
    section = Section("trained", "What was trained")
    rows = []
    for folder in folders:
        run = json.loads((folder / "run.json").read_text())
        done = folder / "training.json"
        training = json.loads(done.read_text()) if done.exists() else {}
        minutes = f"{training['seconds'] / 60:.1f}" if training else "not finished"
        data = run["data"]
        rows.append(
            [
                folder_name(folder),
                run["model"].rpartition(".")[2],
                f"{run['parameters']:,}",
                training.get("epochs", ""),
                f"{training['samples']:,}" if training else "",
                minutes,
                run["seed"],
                data["particle"] or "all",
                data["data_hash"][:12],
                (run["git"] or "")[:12],
            ]
        )
    if rows:
        head = ["run", "model", "parameters", "epochs", "samples", "minutes", "seed", "particle", "data hash", "git"]
        section.table(head, rows)
    for folder in folders:
        config = html.escape((folder / "config.yaml").read_text()) if (folder / "config.yaml").exists() else ""
        command = " ".join(map(str, json.loads((folder / "run.json").read_text())["command"]))
        section.body += (
            f"<details><summary>{html.escape(folder_name(folder))}: command and configuration</summary>"
            f"<pre>calosim {html.escape(command)}</pre><pre>{config}</pre></details>\n"
        )
    return section


def curves(folders: Sequence[Path]) -> Section:
    section = Section("curves", "Training curves")
    curves: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    short = [folder_name(folder) for folder in folders]
    called = {f: str(f) if short.count(name) > 1 else name for f, name in zip(folders, short, strict=True)}
    for folder in folders:
        model = json.loads((folder / "run.json").read_text())["model"].rpartition(".")[2]
        for path in sorted(folder.glob("metrics.csv")) + sorted(folder.glob("fit-*/metrics.csv")):
            with path.open() as file:
                for line in csv.DictReader(file):
                    for key in ("train/loss", "val/loss", "val/ws"):
                        if line.get(key):
                            series = curves.setdefault(model, {}).setdefault(key, {}).setdefault(called[folder], [])
                            series.append((float(line["step"]), float(line[key])))
    for model, panels in curves.items():
        from calosim.pictures import training_curves

        png = _png(lambda path, panels=panels: training_curves(panels, path))
        names = ", ".join(panels)
        section.picture(
            png, f"Curves of {names} over training steps for {model}", f"{model}: {names} over training steps."
        )
    return section


def evaluation(folder: Path) -> Section:
    from calosim.pictures import channel_histograms, draws, spectra

    results = json.loads((folder / "evaluation.json").read_text())
    section = Section("evaluation-" + "-".join(folder.resolve().parts[-2:]), f"Evaluation: {folder_name(folder)}")
    tables = folder / "evaluation.md"
    stored = folder / "answers.npz"
    if stored.exists():
        with np.load(stored) as file:
            arrays = {key: file[key] for key in file.files}
        detector = get_detector(results["data"]["detector"])
        if "examples_labels" in arrays:
            labels = arrays["examples_labels"].tolist()
            png = _png(lambda path: draws(arrays["examples_reference"], arrays["examples_generated"], labels, path))
            section.picture(
                png,
                f"Photon images of {', '.join(labels)}: Monte Carlo left, generated right",
                "Responses to the same primaries, one primary a row: draws of the Monte Carlo on the left, generated ones on "
                "the right. Draws of one primary differ; generated ones should differ as much.",
            )
        full = "chain" if "chain_channels" in arrays else "shape"
        generated = arrays[f"{full}_channels"][0].reshape(-1, 5)
        png = _png(lambda path: channel_histograms(arrays["reference"], generated, detector.channel_names(), path))
        section.picture(
            png,
            "Histograms of photons in each of the five channels, with ratios below",
            f"Photons in each read-out channel, {TITLES[full]}, with the ratio to the Monte Carlo; bands are one standard "
            "deviation of the counts.",
        )
        sums = {"Monte Carlo": arrays["reference"].sum(1)}
        sums |= {
            TITLES[n]: arrays[f"{n}_channels"][0].reshape(-1, 5).sum(1) for n in TITLES if f"{n}_channels" in arrays
        }
        profiles = {"Monte Carlo": arrays["reference_profile"]} if "reference_profile" in arrays else {}
        profiles |= {TITLES[n]: arrays[f"{n}_profile"] for n in TITLES if f"{n}_profile" in arrays}
        png = _png(lambda path: spectra(sums, profiles, RADII * detector.pitch, path))
        section.picture(
            png,
            "Spectrum of photon sums, and radial profile of showers",
            "Left: spectrum of photon sums. Right: mean share of the photons by distance from the shower's center of gravity.",
        )
    if tables.exists():
        section.markdown(tables.read_text())
    return section


def study(folder: Path) -> Section:
    section = Section("study-" + folder.resolve().name, f"Study: {folder.resolve().name}")
    text = (folder / "comparison.md").read_text()
    section.markdown("\n".join(line for line in text.splitlines() if not line.startswith("# ")))
    for path in sorted(folder.glob("comparison-*.png")):
        mode = path.stem.partition("-")[2]
        section.picture(
            path.read_bytes(),
            f"Metrics of all models by particle, {TITLES[mode]}",
            f"{TITLES[mode][0].upper()}{TITLES[mode][1:]}: metrics by particle with 95 % bootstrap intervals (standard "
            "deviations where they cannot be had); lower is better.",
        )
    return section


def explanation(folder: Path) -> Section:
    section = Section("explanation-" + folder.resolve().name, f"Explanation: {folder_name(folder)}")
    section.markdown(
        "\n".join(line for line in (folder / "explain.md").read_text().splitlines() if not line.startswith("# "))
    )
    captions = {
        "bar": "mean absolute SHAP values with their spread over the posterior",
        "beeswarm": "SHAP values of single responses, colored by the feature's value",
    }
    for target in json.loads((folder / "explain.json").read_text())["targets"]:
        section.body += '<div class="pair">\n'
        for kind, words in captions.items():
            path = folder / f"{target}_{kind}.png"
            if path.exists():
                caption = f"{target.replace('_', ' ').capitalize()}: {words}."
                section.picture(path.read_bytes(), caption, caption)
        section.body += "</div>\n"
    path = folder / "photon_uncertainty.png"
    if path.exists():
        caption = (
            "Photon sum: predictive intervals against observed sums, the coverage curve, and the parts of the variance."
        )
        section.picture(path.read_bytes(), caption, caption)
    return section


def _png(draw: Any) -> bytes:
    """The bytes of a picture that a function draws into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return path.read_bytes()
