"""Compares the runs of a plan: metrics with their uncertainties, ranks, costs, speed, and the ensemble of the best.

Cells are means over generation runs with the standard deviation over them (over training seeds where there are several).
Whether two models differ is told by a paired bootstrap over unique inputs: the same inputs are drawn for all models.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 4,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from calosim import __version__
from calosim.base import ShapeModule, evaluating
from calosim.evaluation import METRICS, TITLES, trained_data
from calosim.metrics import (
    Bootstrap,
    ConditionalMAE,
    DispersionRatio,
    JaccardError,
    contrast,
    resample,
    resampled_mean,
    resampled_wasserstein,
)
from calosim.particles import STUDY_PARTICLES, particle_code, particle_name, particle_symbol
from calosim.provenance import atomic_write, git_hash
from calosim.rootio import Showers
from calosim.simulator import save_ensemble
from calosim.study import Plan, Step, load_plan, print_plan, run_steps

__all__ = ["compare", "generation_times"]

#: Entries of a plan's ``table`` and their defaults.
TABLE: dict[str, Any] = {
    "particles": ["all", *(particle_name(code) for code in STUDY_PARTICLES)],
    "metrics": ["ws", "mae_cond", "delta", "jacc"],
    "modes": ["shape", "chain"],
    "reference": None,
    "ensemble": None,
    "speed": False,
}
HEADINGS = {key: heading for key, heading, _ in METRICS}
FORMATS = {key: form for key, _, form in METRICS}
REFERENCES = ("floor", "trivial")
CENTERS = ("center", "center_sd")
ENSEMBLE = "ensemble"
#: How often each model's speed is measured.
SPEED_TURNS = 3
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
    labels = [x for x in [table["reference"], *_members(table)] if x is not None]
    if unknown := {label for label in labels if label not in study.trainings}:
        raise ValueError(f"{plan}: the table names {', '.join(sorted(unknown))}, which is none of its trainings")
    if dry_run:
        print_plan(study, jobs)
        return
    failed = run_steps(study, jobs, quiet)
    rows = _rows(study)
    if not rows:
        raise ValueError(f"{plan}: nothing to compare; " + "; ".join(f"{k}: {v}" for k, v in failed.items()))
    chosen: dict[str, str] = {}
    if table["ensemble"]:
        made = _ensemble(study, table, jobs, quiet)
        if isinstance(made, str):
            failed[ENSEMBLE] = made
        else:
            folder, chosen = made
            rows.append(Row(ENSEMBLE, "ensemble of the best", [(folder, None)]))
    rows += _reference_rows(rows)
    cells = _cells(rows, table, resamples, quiet)
    text = _report(study, table, rows, cells, failed, chosen)
    atomic_write(study.out / "comparison.csv", _csv(cells, rows))
    if table["speed"]:
        speeds = _speeds(study, quiet)
        text += "\n" + _speed_table(study, speeds, cells)
        atomic_write(study.out / "speed.json", json.dumps(speeds, indent=2) + "\n")
    atomic_write(study.out / "comparison.md", text)
    for mode in table["modes"]:
        if any(key[0] == mode for key in cells):
            _picture(study.out / f"comparison-{mode}.png", mode, table, rows, cells)
    print(text)
    print(f"Tables: {study.out}/comparison.md, .csv; pictures: {study.out}/comparison-*.png")
    if failed:
        raise ValueError(f"{len(failed)} of {len(study.steps)} steps failed: {', '.join(failed)}; see above")


# -- which evaluations make which row -------------------------------------------------------------------------------


def _rows(study: Plan) -> list[Row]:
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


def _reference_rows(rows: Sequence[Row]) -> list[Row]:
    """Floor and trivial model, from the first evaluation of all particles that has them."""
    for row in rows:
        for folder, particle in row.folders:
            if particle is None and TITLES["trivial"] in _images(folder):
                return [Row(name, TITLES[name], [(folder, None)]) for name in REFERENCES]
    return []


def _images(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
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


# -- cells ----------------------------------------------------------------------------------------------------------


def _cells(rows: Sequence[Row], table: Mapping[str, Any], resamples: int, quiet: bool) -> Cells:
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
            found = _images(folder)
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


def _ranks(values: np.ndarray) -> np.ndarray:
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


# -- the ensemble ---------------------------------------------------------------------------------------------------


def _members(table: Mapping[str, Any]) -> list[str]:
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


def _ensemble(study: Plan, table: Mapping[str, Any], jobs: int, quiet: bool) -> tuple[Path, dict[str, str]] | str:
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
                mean = _images(record.parent)[TITLES["shape"]]["mean"]
                if any(f"{metric}_{particle}" in mean for metric in table["metrics"]):
                    runs[label] = step
                    means.append(mean)
        if not runs:
            continue
        ranks = _ranks(
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


# -- speed ----------------------------------------------------------------------------------------------------------


def generation_times(
    model: ShapeModule, showers: Showers, batches: Sequence[int] = (1, 256), repeats: int = 5, sequential: bool = False
) -> dict[str, float]:
    """Seconds per response of a shape model, medians, photon sums given.

    Args:
        model: The model.
        showers: Responses whose primaries and photon sums are taken.
        batches: Batch sizes.
        repeats: How often each is measured at least; what is over soon is measured for a second.
        sequential: Also what a feature-by-feature inverse would take, as most libraries do it: the number of pixels times
            one full pass, extrapolated from a few passes, at the last batch size.

    Returns:
        ``batch 1`` and so on, and ``sequential``.
    """
    times = {}
    for batch in batches:
        row = np.arange(batch) % len(showers)
        particles = torch.from_numpy(showers.particles[row]).to(model.device, torch.float32)
        photon_sum = torch.from_numpy(showers.photon_sum[row]).to(model.device)
        rows = torch.from_numpy(row).to(model.device)

        def generate(seed: int, particles=particles, photon_sum=photon_sum, rows=rows) -> None:
            model.generate(particles, photon_sum, seed, rows)

        times[f"batch {batch}"] = _median(generate, model.device, repeats) / batch
        if sequential and batch == batches[-1]:
            with evaluating(model):
                transform = model.flow(model.context(particles, photon_sum)).transform
                logits = torch.zeros(batch, model.detector.pixels, device=model.device)
                one = _median(lambda seed, t=transform, x=logits: t(x), model.device, repeats)
            times["sequential"] = one * model.detector.pixels / batch
    return times


def _median(function: Any, device: torch.device, repeats: int) -> float:
    times: list[float] = []
    while len(times) <= repeats or sum(times) < 1:
        begin = time.perf_counter()
        function(len(times))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))  # the first warms up


def _speeds(study: Plan, quiet: bool) -> dict[str, dict[str, float]]:
    """Times on one thread, parameters and the size of each label's first run."""
    from calosim.teacher import Teacher

    labels = [
        label for label, names in study.trainings.items() if (study.steps[names[0]].folder / "evaluation").exists()
    ]
    runs = {label: study.runs(label)[0].folder for label in labels}
    models = {label: ShapeModule.load(run) for label, run in runs.items()}
    measured: dict[str, list[dict[str, float]]] = {label: [] for label in labels}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # In turns: a machine's speed drifts by more than models differ.
        turns = [label for _ in range(SPEED_TURNS) for label in labels]
        for label in tqdm(turns, desc="speed", disable=True if quiet else None):
            data, _ = trained_data(runs[label])
            showers = data.showers("test", np.arange(min(256, len(data.rows("test")))))
            sequential = isinstance(models[label], Teacher)
            measured[label].append(generation_times(models[label], showers, sequential=sequential))
    finally:
        torch.set_num_threads(threads)
    return {
        label: {"parameters": sum(p.numel() for p in models[label].parameters())}
        | {key: float(np.median([one[key] for one in times])) for key in times[0]}
        for label, times in measured.items()
    }


def _speed_table(study: Plan, speeds: Mapping[str, Mapping[str, float]], cells: Cells) -> str:
    lines = [
        "## Size and speed",
        "",
        "One thread; ms per response with given photon sums, medians. Sequential: one pass for each",
    ]
    lines += [
        "pixel, extrapolated from single passes.",
        "",
        "| | parameters | WS all | batch 1 | batch 256 | sequential |",
    ]
    lines.append("|---" * 6 + "|")
    for label, speed in speeds.items():
        ws = cells.get(("shape", "ws", "all", label))
        texts = [f"{1e3 * speed[key]:.2f}" if key in speed else "" for key in ("batch 1", "batch 256", "sequential")]
        quality = f"{ws.mean:.2f} ± {ws.std:.2f}" if ws else ""
        lines.append(f"| {_title(study, label)} | {speed['parameters']:,} | {quality} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


# -- texts and pictures ---------------------------------------------------------------------------------------------


def _title(study: Plan, label: str) -> str:
    return (study.settings["trainings"][label] or {}).get("title", label)


def _columns(table: Mapping[str, Any]) -> dict[str, str]:
    return {
        p: p if p == "all" else f"{particle_symbol(particle_code(p))} {particle_name(particle_code(p))}"
        for p in table["particles"]
    }


def _report(
    study: Plan,
    table: Mapping[str, Any],
    rows: Sequence[Row],
    cells: Cells,
    failed: Mapping[str, str],
    chosen: Mapping[str, str],
) -> str:
    columns = _columns(table)
    first = json.loads((rows[0].folders[0][0] / "evaluation.json").read_text())
    data = first["data"]
    primaries = {p: max((c.primaries for k, c in cells.items() if k[2] == p), default=0) for p in columns}
    lines = [
        f"# Comparison: {study.out.name}",
        "",
        f"calosim {__version__}, git {git_hash()}, data {data['data_hash']}, {first['rows']} test rows of {first['inputs']} "
        f"primaries, {first['responses']} responses per row, {first['runs']} runs. Cells: mean ± standard deviation over runs, "
        "or over training seeds where a line says how many; the best model of a column in bold.",
        "",
        f"Primaries of a column: {', '.join(f'{columns[p]} {count}' for p, count in primaries.items())}. With fewer than "
        f"{LEAST_PRIMARIES} there are no intervals, p-values or winners.",
    ]
    if failed:
        lines += ["", "Failed: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()) + "."]
    titles = {row.label: row.title for row in rows if row.label not in REFERENCES}
    lines += _winners(table, cells, titles)
    head = "| | " + " | ".join(columns.values()) + " |"
    rule = "|---" * (len(columns) + 1) + "|"
    for mode in table["modes"]:
        if not any(key[0] == mode for key in cells):
            continue
        lines += ["", f"## {TITLES[mode][0].upper()}{TITLES[mode][1:]}"]
        for metric in table["metrics"]:
            lines += ["", f"### {HEADINGS[metric]}", "", head, rule]
            for row in rows:
                texts = []
                for particle in columns:
                    cell = cells.get((mode, metric, particle, row.label))
                    if cell is None or np.isnan(cell.mean):
                        texts.append("–")
                        continue
                    text = f"{cell.mean:{FORMATS[metric]}} ± {cell.std:{FORMATS[metric]}}"
                    rivals = [cells[k].score for x in titles if (k := (mode, metric, particle, x)) in cells]
                    best = row.label in titles and len(rivals) > 1 and cell.score == np.nanmin(rivals)
                    texts.append(f"**{text}**" if best else text)
                seeds = max((c.seeds for k, c in cells.items() if k[3] == row.label), default=1)
                title = f"{row.title} ({seeds} seeds)" if seeds > 1 else row.title
                lines.append(f"| {title} | " + " | ".join(texts) + " |")
            contrasts = [
                r for r in rows if any((c := cells.get((mode, metric, p, r.label))) and c.versus for p in columns)
            ]
            if contrasts:
                lines += [
                    "",
                    f"Difference from {_title(study, table['reference'])} [95 % interval], p, share of resamples in favor:",
                ]
                lines += ["", head, rule]
                for row in contrasts:
                    found = [cells.get((mode, metric, particle, row.label)) for particle in columns]
                    texts = [_contrast(c.versus, FORMATS[metric]) if c and c.versus else "–" for c in found]
                    lines.append(f"| {row.title} | " + " | ".join(texts) + " |")
        lines += ["", "### Mean rank over the metrics", "", head, rule]
        ranks: dict[str, list[str]] = {label: [] for label in titles}
        for particle in columns:
            contestants = _contestants(cells, mode, particle, titles)
            scores = _scores(cells, table["metrics"], mode, particle, contestants)
            placed = dict(zip(contestants, _ranks(scores), strict=True))
            for label, texts in ranks.items():
                texts.append(f"{placed[label]:.2f}" if not np.isnan(placed.get(label, np.nan)) else "–")
        lines += [f"| {titles[label]} | " + " | ".join(texts) + " |" for label, texts in ranks.items()]
    if chosen:
        lines += ["", "## The ensemble", "", "Chosen by mean rank on validation rows: "]
        lines[-1] += ", ".join(f"{columns[p]}: {_title(study, label)}" for p, label in chosen.items()) + "."
    lines += ["", "## Cost", "", "Time on the machine as it was: other jobs beside a training make it longer.", ""]
    lines += ["| | runs | samples seen | with those it starts from | training, min |", "|---|---|---|---|---|"]
    for label in study.trainings:
        own = {step.name for step in study.runs(label) if step.result.exists()}
        if own:
            samples, total = (
                _total(study, some, "samples") for some in (own, own.union(*(_needs(study, n) for n in own)))
            )
            minutes = _total(study, own, "seconds") / 60
            lines.append(f"| {_title(study, label)} | {len(own)} | {samples:,} | {total:,} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def _total(study: Plan, names: Iterable[str], what: str) -> Any:
    """The sum over finished trainings of what their ``training.json`` says."""
    return sum(json.loads(study.steps[name].result.read_text())[what] for name in names)


def _needs(study: Plan, name: str) -> set[str]:
    """The finished trainings that a training starts or learns from, and those they do."""
    own = {
        need
        for need in study.steps[name].after
        if study.steps[need].verb == "fit" and study.steps[need].result.exists()
    }
    return own.union(*(_needs(study, need) for need in own))


def _contestants(cells: Cells, mode: str, particle: str, labels: Iterable[str]) -> list[str]:
    """The models that have something to say of a particle; of a single one the ensemble says what a member says."""
    found = {label for m, _, p, label in cells if (m, p) == (mode, particle)}
    return [x for x in labels if x in found and (x != ENSEMBLE or particle == "all")]


def _scores(cells: Cells, metrics: Sequence[str], mode: str, particle: str, labels: Sequence[str]) -> np.ndarray:
    """Scores of some models for a particle, with shape (metrics, models); NaN where there are none."""
    keys = [[(mode, metric, particle, label) for label in labels] for metric in metrics]
    return np.array([[cells[k].score if k in cells else np.nan for k in row] for row in keys]).reshape(len(metrics), -1)


def _winners(table: Mapping[str, Any], cells: Cells, titles: Mapping[str, str]) -> list[str]:
    """Who is best for which particle, by mean rank over the metrics, and in how many resamples of the primaries."""
    lines, used = [], []
    for mode in table["modes"]:
        for particle, name in _columns(table).items():
            rivals = _contestants(cells, mode, particle, titles)
            drawn: dict[str, list[np.ndarray]] = {}
            for metric in table["metrics"]:
                found = [cells.get((mode, metric, particle, label)) for label in rivals]
                known = [c for c in found if c is not None and not np.isnan(c.score)]
                samples = [np.abs(c.samples - c.target) for c in known if c.samples is not None]
                if len(samples) == len(rivals):
                    drawn[metric] = samples
            if len(rivals) < 2 or not drawn:
                continue
            used = list(drawn)
            ranks = _ranks(_scores(cells, used, mode, particle, rivals))
            resampled = np.nan_to_num(_ranks(np.array(list(drawn.values()))), nan=np.inf)
            first = resampled == resampled.min(0)
            shares = (first / first.sum(0)).mean(1)
            best = int(ranks.argmin())
            other = max((i for i in range(len(rivals)) if i != best), key=lambda i: shares[i])
            versus = cells[mode, used[0], particle, rivals[best]].versus
            line = [
                name,
                TITLES[mode],
                f"**{titles[rivals[best]]}** ({ranks[best]:.2f})",
                f"{100 * shares[best]:.0f} %",
                f"{titles[rivals[other]]} ({100 * shares[other]:.0f} %)",
                f"{HEADINGS[used[0]]} {_contrast(versus, FORMATS[used[0]])}" if versus else "(itself)",
            ]
            lines.append("| " + " | ".join(line) + " |")
    if not lines:
        return []
    return [
        "",
        "## Winners",
        "",
        f"The lowest mean rank over {', '.join(HEADINGS[metric] for metric in used)}; in which share of bootstrap resamples of "
        "the primaries the same model has it, and which other has it most often. That is about these networks and other "
        "primaries: it does not cover another training, and is no confidence level. The p-values are of single "
        "comparisons: of twenty without any difference one falls below 0.05. Resampling draws differences of WS towards 0.",
        "",
        f"| | | best (mean rank) | wins in | next | difference from {titles.get(table['reference'], 'the reference')} "
        "[95 % interval], p, in favor |",
        "|---" * 6 + "|",
        *lines,
    ]


def _contrast(versus: Bootstrap, form: str) -> str:
    if np.isnan(versus.difference):
        return "–"
    p = f"p {versus.p_value:.3f}" if versus.p_value >= 0.001 else "p < 0.001"
    return f"{versus.difference:+{form}} [{versus.low:+{form}}, {versus.high:+{form}}], {p}, {100 * versus.share:.0f} %"


def _csv(cells: Cells, rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "mode",
            "metric",
            "particle",
            "model",
            "mean",
            "std",
            "low",
            "high",
            *(f"versus_{name}" for name in Bootstrap._fields),
        ]
    )
    for (mode, metric, particle, label), cell in cells.items():
        limits = ["", ""] if cell.samples is None else np.nanquantile(cell.samples, [0.025, 0.975]).tolist()
        versus = list(cell.versus) if cell.versus else [""] * 5
        writer.writerow([mode, metric, particle, label, cell.mean, cell.std, *limits, *versus])
    return stream.getvalue()


def _picture(path: Path, mode: str, table: Mapping[str, Any], rows: Sequence[Row], cells: Cells) -> None:
    from calosim.plotting import comparison

    panels: dict[str, dict[str, list[tuple[float, float, float] | None]]] = {}
    for metric in table["metrics"]:
        panel = panels.setdefault(HEADINGS[metric], {})
        for row in rows:
            points: list[tuple[float, float, float] | None] = []
            for particle in table["particles"]:
                cell = cells.get((mode, metric, particle, row.label))
                if cell is None or np.isnan(cell.mean):
                    points.append(None)
                elif cell.samples is None:
                    points.append((cell.mean, cell.mean - cell.std, cell.mean + cell.std))
                else:
                    low, high = np.nanquantile(cell.samples, [0.025, 0.975])
                    points.append((cell.mean, float(low), float(high)))
            panel[row.title] = points
    comparison(panels, list(_columns(table).values()), path)
