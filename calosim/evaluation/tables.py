r"""Judges a fast simulation on test rows, beside the Monte Carlo's own floor and a trivial model.

Protocol of P4: several responses are generated for every test row, several times over; the numbers are means and
standard deviations over those runs. The floor is the Monte Carlo against itself with another seed; the trivial model
answers with a random training response of the same particle type.

References:
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
      https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from calosim.evaluation.photons import INTERVALS
from calosim.particles import STUDY_PARTICLES, particle_name, particle_symbol

__all__ = ["METRICS", "csv_of", "tables_of"]

#: Metrics of the table: key, heading, format.
METRICS: tuple[tuple[str, str, str], ...] = (
    ("ws", "WS", ".2f"),
    ("mae_cond", "MAE_cond", ".2f"),
    ("mae_w", "MAE_w", ".2f"),
    ("delta", "δ", ".3f"),
    ("jacc", "JaccErr", ".3f"),
    ("center", "distance of the shower center from the straight flight, cm", ".3f"),
    ("center_sd", "its standard deviation, cm", ".3f"),
)


#: How many of them ``evaluation.md`` shows; all are in the other files.
PRINTED = 5


def tables_of(results: dict[str, Any]) -> str:
    """The results as Markdown tables, the study's particles first."""
    judged = next(iter(results["images"].values()))["mean"] if "images" in results else {}
    present = {*(k.removeprefix("ws_") for k in judged), *(n for r in results["photon_sum"].values() for n in r)}
    wanted = ["all", *(particle_name(c) for c in STUDY_PARTICLES)]
    names = [n for n in wanted if n in present]
    lacking = results.get("floor_rows_without_their_input")
    title = {"all": "all", **{particle_name(c): f"{particle_symbol(c)} {particle_name(c)}" for c in STUDY_PARTICLES}}
    lines = [
        f"{results['rows']} {results['split']} rows of {results['inputs']} primaries; {results['responses']} responses per "
        f"row, {results['runs']} runs; mean ± standard deviation over runs."
        + (
            f" The floor's sample lacks the primaries of {lacking} rows; others of their type answer there."
            if lacking
            else ""
        ),
    ]
    for key, heading, form in METRICS[:PRINTED] if "images" in results else ():
        lines += ["", f"| {heading} | " + " | ".join(title[n] for n in names) + " |", "|---" * (len(names) + 1) + "|"]
        for candidate, result in results["images"].items():
            cells = [_cell(result["mean"][f"{key}_{n}"], result["std"][f"{key}_{n}"], form) for n in names]
            lines.append(f"| {candidate} | " + " | ".join(cells) + " |")
    head = ("rows", "mae", "rmse", "median_error", "w1", *(f"coverage_{100 * p:.0f}" for p in INTERVALS))
    if results["photon_sum"]:
        lines += [
            "",
            "| photon sum | model | rows | MAE | RMSE | median error | W1 | inside 50 % | 68 % | 90 % | 95 % |",
        ]
        lines.append("|---" * 11 + "|")
    for n in names:
        for model, report in results["photon_sum"].items():
            v = [report[n][k] for k in head]
            cells = [f"{v[0]:.0f}", *(f"{x:.1f}" for x in v[1:3]), f"{100 * v[3]:.1f} %", f"{v[4]:.1f}"]
            lines.append(f"| {title[n]} | {model} | " + " | ".join([*cells, *(f"{100 * x:.1f}" for x in v[5:])]) + " |")
    return "\n".join(lines) + "\n"


def _cell(mean: float, std: float, form: str) -> str:
    """A mean with its standard deviation; a dash where there was nothing to compare."""
    return "–" if np.isnan(mean) else f"{mean:{form}} ± {std:{form}}"


def csv_of(results: dict[str, Any]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["candidate", "metric", "particle_or_channel", "mean", "std"])
    for candidate, result in results.get("images", {}).items():
        for key in result["mean"]:
            metric = max((m for m, _, _ in METRICS if key.startswith(f"{m}_")), key=len)
            table.writerow([candidate, metric, key[len(metric) + 1 :], result["mean"][key], result["std"][key]])
    for model, report in results["photon_sum"].items():
        for particle, values in report.items():
            for key, value in values.items():
                table.writerow([model, f"photon_sum_{key}", particle, value, ""])
    return stream.getvalue()
