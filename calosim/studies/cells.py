"""Compares the runs of a plan: metrics with their uncertainties, ranks, costs, speed, and the ensemble of the best.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over unique inputs: the same inputs are drawn for all models.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from calosim.evaluation.answers import TITLES
from calosim.evaluation.tables import METRICS
from calosim.metrics.bootstrap import Bootstrap, contrast, resample, resampled_mean, resampled_wasserstein
from calosim.metrics.conditional import ConditionalMAE, DispersionRatio, JaccardError
from calosim.particles import particle_code, particle_name
from calosim.studies.plan import Plan

__all__ = [
    "ENSEMBLE",
    "FORMATS",
    "HEADINGS",
    "LEAST_PRIMARIES",
    "REFERENCES",
    "Cells",
    "Row",
    "fill_cells",
    "judged_rows",
    "mean_ranks",
    "reference_rows",
    "stored_metrics",
]

HEADINGS = {key: heading for key, heading, _ in METRICS}


FORMATS = {key: form for key, _, form in METRICS}


REFERENCES = ("floor", "trivial")


CENTERS = ("center", "center_sd")


ENSEMBLE = "ensemble"


#: With fewer unique inputs a bootstrap is too sure of itself: of six, it calls one true null in five to seven significant.
LEAST_PRIMARIES = 10


@dataclass
class Row:
    """One line of the tables: a label's runs, which differ in particle or seed.

    Attributes:
        label: The training's label in the plan, or ``floor``, ``trivial``, ``ensemble``.
        title: What the tables call it.
        folders: Evaluation folders with the particle each is of; None for all.
    """

    label: str
    title: str
    folders: list[tuple[Path, str | None]] = field(default_factory=list)

    def of(self, particle: str) -> list[Path]:
        """The evaluations that answer for a particle type, or for ``all``."""
        return [folder for folder, own in self.folders if own is None or own == particle]


@dataclass
class Cell:
    """A metric of one row, column and mode.

    Attributes:
        mean: Over generation runs, and over training seeds if there are several.
        std: Over training seeds if there are several, else over generation runs.
        seeds: How many trainings the cell is of.
        target: What the metric should be: 0, or for center distances the Monte Carlo's own, below which showers are too
            much alike.
        primaries: The number of unique inputs.
        samples: The metric in each bootstrap resample of unique inputs, with shape (R,); None for the centers' standard
            deviation and for fewer than :data:`LEAST_PRIMARIES`.
        versus: The paired comparison with the reference row.
    """

    mean: float
    std: float
    seeds: int = 1
    target: float = 0.0
    primaries: int = 0
    samples: np.ndarray | None = None
    versus: Bootstrap | None = None

    @property
    def score(self) -> float:
        """What ranks the cell, lower being better."""
        return abs(self.mean - self.target)


#: Cells by mode, metric, particle and label.
Cells = dict[tuple[str, str, str, str], Cell]


def judged_rows(study: Plan) -> list[Row]:
    rows = []
    for label, names in study.trainings.items():
        title = (study.settings["trainings"][label] or {}).get("title", label)
        folders = []
        for name in names:
            step = study.steps[name]
            folder = step.folder / "evaluation"
            if (folder / "evaluation.json").exists() and f"{name}-evaluation" in study.steps:
                particle = step.options.get("data.particle")
                folders.append((folder, None if particle is None else particle_name(particle_code(particle))))
        if folders:
            rows.append(Row(label, title, folders))
    return rows


def reference_rows(rows: Sequence[Row]) -> list[Row]:
    """Floor and trivial model, from the first evaluation of all particles that has them."""
    for row in rows:
        for folder, particle in row.folders:
            if particle is None and TITLES["trivial"] in stored_metrics(folder):
                return [Row(name, TITLES[name], [(folder, None)]) for name in REFERENCES]
    return []


def stored_metrics(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """By candidate, ``mean`` and ``std`` of all metrics; those of the Monte Carlo itself by ``monte_carlo``."""
    record = json.loads((folder / "evaluation.json").read_text())
    images = record["images"] | {"monte_carlo": {"mean": record.get("monte_carlo", {})}}

    def number(value: float | None) -> float:  # null is what JSON has for NaN
        return float("nan") if value is None else value

    return {
        title: {kind: {key: number(x) for key, x in image[kind].items()} for kind in ("mean", "std") if kind in image}
        for title, image in images.items()
    }


def _candidate(row: Row, mode: str) -> str:
    """Which answers of an evaluation are the row's."""
    return row.label if row.label in REFERENCES else mode


def fill_cells(rows: Sequence[Row], table: Mapping[str, Any], resamples: int, quiet: bool) -> Cells:
    cells: Cells = {}
    detector = json.loads((rows[0].folders[0][0] / "evaluation.json").read_text())["data"]["detector"]
    work = [(mode, particle, row) for mode in table["modes"] for particle in table["particles"] for row in rows]
    counts: dict[str, np.ndarray] = {}
    seen: dict[str, tuple[dict[str, np.ndarray], Row]] = {}
    primaries: dict[str, int] = {}
    unpacked: dict[tuple[Path, str], np.ndarray] = {}

    def answers(folder: Path, name: str) -> np.ndarray:
        if (folder, name) not in unpacked:
            with np.load(folder / "answers.npz") as stored:
                unpacked[folder, name] = stored[name]
        return unpacked[folder, name]

    def held(folder: Path) -> list[str]:
        with np.load(folder / "answers.npz") as stored:
            return stored.files

    for mode, particle, row in tqdm(work, desc="bootstrap", unit="cell", disable=True if quiet else None):
        parts: dict[str, list[tuple[float, float, float, np.ndarray | None]]] = {}
        for folder in row.of(particle):
            title = TITLES[_candidate(row, mode)]
            found = stored_metrics(folder)
            if title not in found or f"ws_{particle}" not in found[title]["mean"]:
                continue
            mine = (
                answers(folder, "natural") if particle == "all" else answers(folder, "pdg") == particle_code(particle)
            )
            data = {name: answers(folder, name)[mine] for name in ("rows", "pdg", "inputs", "reference")}
            if particle not in counts:
                counts[particle] = resample(len(np.unique(data["inputs"])), resamples)
                seen[particle] = data, row
            # The floor may have been judged on the very same rows only; another selection cannot be paired.
            if any(not np.array_equal(seen[particle][0][name], data[name]) for name in data):
                raise ValueError(
                    f"{folder}: judged on other rows of {particle} than {seen[particle][1].label}; evaluate both with the same "
                    "rows, rows_of_each and data"
                )
            primaries[particle] = len(np.unique(data["inputs"]))
            samples: dict[str, np.ndarray] = {}
            given = [f"{_candidate(row, mode)}_{what}" for what in ("channels", "offsets")]
            # A floor of halves has no answers to every row.
            if primaries[particle] >= LEAST_PRIMARIES and given[0] in held(folder):
                channels, offsets = (answers(folder, name)[:, mine] for name in given)
                samples = _resampled(channels, offsets, data, counts[particle], table["metrics"], detector)
            truth = found["monte_carlo"]["mean"]
            for metric in table["metrics"]:
                result = found[title]
                name = f"{metric}_{particle}"
                target = truth.get(name, 0.0) if metric in CENTERS else 0.0
                part = result["mean"][name], result["std"][name], target, samples.get(metric)
                parts.setdefault(metric, []).append(part)
        for metric, values in parts.items():
            means, stds, targets, drawn = zip(*values, strict=True)
            several = len(values) > 1
            cells[mode, metric, particle, row.label] = Cell(
                float(np.mean(means)),
                float(np.std(means, ddof=1) if several else stds[0]),
                len(values),
                float(np.mean(targets)),
                primaries[particle],
                None if any(s is None for s in drawn) else np.mean(drawn, axis=0),
            )
    if table["reference"]:
        for (mode, metric, particle, label), cell in cells.items():
            other = cells.get((mode, metric, particle, table["reference"]))
            if other is None or label in REFERENCES or cell.samples is None or other.samples is None or cell is other:
                continue
            cell.versus = contrast(cell.mean, other.mean, cell.samples, other.samples)
    return cells


def _resampled(
    channels: np.ndarray,
    offsets: np.ndarray,
    data: Mapping[str, np.ndarray],
    counts: np.ndarray,
    metrics: Sequence[str],
    detector: str,
) -> dict[str, np.ndarray]:
    """Metrics in each resample, averaged over runs; ``channels`` (runs, N, G, 5), ``offsets`` (runs, N, G)."""
    ids, group = np.unique(data["inputs"], return_inverse=True)
    kinds: dict[str, Any] = {
        "mae_cond": ConditionalMAE("log"),
        "mae_w": ConditionalMAE("count"),
        "delta": DispersionRatio(),
        "jacc": JaccardError(detector),
    }
    result: dict[str, np.ndarray] = {}
    if "ws" in metrics:
        runs = [resampled_wasserstein(data["reference"], run, group, counts) for run in channels]
        result["ws"] = np.mean(runs, axis=0)
    if "center" in metrics:
        lit = ~np.isnan(offsets)
        light = np.bincount(group, lit.sum((0, 2)).astype(np.float64))
        total = np.bincount(group, np.where(lit, offsets, 0).sum((0, 2), dtype=np.float64))
        result["center"] = resampled_mean(total / np.maximum(light, 1), light, counts)
    for name in set(kinds) & set(metrics):
        values, weights = np.zeros(len(ids)), np.zeros(len(ids))
        for run in channels:
            metric = kinds[name]
            metric.reset()
            tensors = [
                torch.from_numpy(x) for x in (run, data["reference"], data["pdg"].astype(np.int64), data["inputs"])
            ]
            metric.update(*tensors)
            each = metric.per_input()
            place = np.searchsorted(ids, each.input)
            values[place] += each.value / len(channels)
            weights[place] = each.weight
        result[name] = resampled_mean(values, weights, counts)
    return result


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks of some models over the metrics that all of them have.

    Args:
        values: Metrics with shape (metrics, models, ...), lower being better; NaN where there is none.

    Returns:
        With shape (models, ...): ties share a rank; NaN for models without any metric.
    """
    known = ~np.isnan(values)
    present = known.any(0)
    counted = known & (known | ~present).all(1, keepdims=True)
    below = (values[:, None] < values[:, :, None]).sum(2)
    equal = (values[:, None] == values[:, :, None]).sum(2)
    ranks = np.where(counted, below + (equal + 1) / 2, 0).sum(0)
    return np.where(counted.any(0), ranks / np.maximum(counted.sum(0), 1), np.nan)
