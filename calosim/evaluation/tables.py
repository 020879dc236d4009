"""What an evaluation found, as Markdown for people and as CSV for programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from calosim.evaluation.definitions import in_units, with_spread
from calosim.evaluation.samples import LEAST_PRIMARIES
from calosim.evaluation.sums import INTERVALS, acceptance_table, quantile_table, shown_particles
from calosim.evaluation.tests import classifier_rows, classifier_tables, likelihood_rows, likelihood_tables
from calosim.evaluation.variants import variant_rows, variant_tables
from calosim.io import csv_text, markdown_table
from calosim.particles import particle_heading

__all__ = ["METRICS", "as_csv", "as_markdown"]

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

#: How many of them the Markdown tables show; all are in the other files.
PRINTED = 5


def as_markdown(results: dict[str, Any]) -> str:
    """The results as Markdown tables, the study's particles first.

    Args:
        results: The content of ``evaluation.json``.
    """
    images, sums = results.get("images", {}), results["photon_sum"]
    judged = next(iter(images.values()))["mean"] if images else {}
    present = {*(key.removeprefix("ws_") for key in judged), *(name for report in sums.values() for name in report)}
    names = shown_particles(present)
    lacking = results.get("floor_rows_without_their_input")
    head = (
        f"{results['rows']} {results['split']} rows of {results['inputs']} primaries; {results['responses']} responses per "
        f"row, {results['runs']} runs; mean ± standard deviation over runs, where there are several"
    )
    intervals = any(result.get("low") for result in images.values())
    head += f" [95 % interval by bootstrap over primaries, from {LEAST_PRIMARIES} on]." if intervals else "."
    if images:
        head += " Lower is better, down to the floor: what the Monte Carlo itself reaches."
    if lacking:
        head += f" The floor's sample lacks the primaries of {_rows(lacking)}; others of their type answer there."
    if same := results.get("shape_floor"):
        median, most = (100 * same["differences"][key] for key in ("median", "most"))
        head += (
            f" The floor with the same photon sums answers with sums that differ by {median:.2g} % (median), 95 % of them by "
            f"less than {most:.2g} %"
        )
        without = same["rows_without_their_input"]
        head += f"; it lacks the primaries of {_rows(without)}." if without else "."
    tables = [_metric_table(images, names, *metric) for metric in METRICS[:PRINTED]] if images else []
    tables += variant_tables(results.get("variants", {}))
    tables += [_photon_table(sums, names), markdown_table(*quantile_table(sums, names))] if sums else []
    if "acceptance" in results:
        tables.append(markdown_table(*acceptance_table(results["acceptance"])))
    tables += classifier_tables(results.get("classifier", {})) + likelihood_tables(results.get("likelihood", {}))
    return "\n\n".join([head, *tables]) + "\n"


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _metric_table(images: dict[str, Any], names: list[str], key: str, heading: str, form: str) -> str:
    """One metric by candidate and particle type."""

    def cell(result: dict[str, Any], name: str) -> str:
        mean, std = (result[what][f"{key}_{name}"] for what in ("mean", "std"))
        low, high = (result.get(what, {}).get(f"{key}_{name}") for what in ("low", "high"))
        interval = "" if low is None else f" [{low:{form}}, {high:{form}}]"
        # A dash where there was nothing to compare.
        return "–" if np.isnan(mean) else with_spread(mean, std, form) + interval

    rows = [[candidate, *(cell(result, name) for name in names)] for candidate, result in images.items()]
    return markdown_table([in_units(heading), *map(particle_heading, names)], rows)


def _photon_table(sums: dict[str, Any], names: list[str]) -> str:
    """What :func:`calosim.evaluation.sums.photon_report` says, by particle type and model."""
    header = ["photon sum, in photons", "model", "rows", "MAE", "RMSE", "median error", "W1"]
    rows = []
    for name in names:
        for model, report in sums.items():
            v = report[name]
            errors = [f"{v['rows']:.0f}", f"{v['mae']:.1f}", f"{v['rmse']:.1f}", f"{100 * v['median_error']:.1f} %"]
            shares = [f"{100 * v[f'coverage_{100 * p:.0f}']:.1f} %" for p in INTERVALS]
            ends = f" [{v['w1_low']:.1f}, {v['w1_high']:.1f}]" if "w1_low" in v else ""
            rows.append([particle_heading(name), model, *errors, f"{v['w1']:.1f}{ends}", *shares])
    inside = [f"{100 * p:.0f} %" for p in INTERVALS]
    return markdown_table([*header, f"inside {inside[0]}", *inside[1:]], rows)


def as_csv(results: dict[str, Any]) -> str:
    """All numbers of the results as CSV: candidate, metric, particle type or channel, mean, standard deviation, 95 % interval.

    Areas under the ROC curve and differences of likelihoods have their standard errors in the place of the deviation.

    Args:
        results: The content of ``evaluation.json``.
    """
    rows: list[list[Any]] = []
    for candidate, result in results.get("images", {}).items():
        for key in result["mean"]:
            metric = max((m for m, _, _ in METRICS if key.startswith(f"{m}_")), key=len)
            interval = [result.get(what, {}).get(key, "") for what in ("low", "high")]
            rows.append([candidate, metric, key[len(metric) + 1 :], result["mean"][key], result["std"][key], *interval])
    rows += [*classifier_rows(results.get("classifier", {})), *likelihood_rows(results.get("likelihood", {}))]
    rows += variant_rows(results.get("variants", {}))
    for model, report in results["photon_sum"].items():
        for particle, values in report.items():
            rows += [[model, f"photon_sum_{key}", particle, value, "", "", ""] for key, value in values.items()]
    for who, report in results.get("acceptance", {}).items():
        for particle, values in report.items():
            kept = {key: value for key, value in values.items() if key != "reliability"}
            rows += [[f"acceptance {who}", key, particle, value, "", "", ""] for key, value in kept.items()]
    return csv_text(["candidate", "metric", "particle_or_channel", "mean", "std", "low", "high"], rows)
