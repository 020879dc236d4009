r"""Which features decide the photon sum and the shower's center: SHAP values of Bayesian networks.

The photon-sum network is explained directly. A flow is too slow for the thousands of evaluations that an explanation
takes, so small Bayesian networks learn the center of gravity of the responses that the whole simulation generates, and
those surrogates are explained, after it was said how well they fit.

The explained function is the predictive mean, in photons or cm, of the nine physical features, even where a network
derives further columns from them. Networks drawn from the posterior are explained together,

.. math:: \phi_j = \frac{1}{K} \sum_{k=1}^{K} \phi_j^{(k)},

which are the SHAP values of the mean over the posterior, SHAP values being linear in the function; their spread over
:math:`k` says how sure the network is of an explanation. Features are masked by background rows, one feature
independently of another. A masked primary need not be on its mass shell, and what the networks make of such a primary
decides how energy and :math:`|p_z|`, which are nearly the same number, share what they say together.

References:
    | A Unified Approach to Interpreting Model Predictions (Lundberg and Lee, 2017), https://arxiv.org/abs/1705.07874
    | ZDC Fast Simulation with Normalizing Flows (Majerz and Dzwinel, poster)
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calosim.evaluation.photons import draw_uncertainty, uncertainty_table
from calosim.explain.shap import NAMES
from calosim.files import atomic_write, to_json

__all__ = ["TARGETS", "tables_of", "write_explanation"]

#: What can be explained: its name and its unit.
TARGETS = {
    "photon_sum": ("photon sum", "photons"),
    "center_x": ("shower center x", "cm"),
    "center_y": ("shower center y", "cm"),
}


def write_explanation(
    folder: Path, results: dict[str, Any], stored: dict[str, Any], report: dict[str, Any], by_row: dict[str, np.ndarray]
) -> None:
    """All files, each whole or not there; ``explain.json`` is the last."""
    from calosim.pictures import beeswarm, importances

    ranks = [
        {"target": key, "particle": results["particle"], "unit": target["unit"], **feature}
        for key, target in results["targets"].items()
        for feature in target["features"]
    ]
    quantities = [
        {"particle": name, "quantity": quantity, "nominal": nominal, "value": value}
        for name, values in report.items()
        for quantity, of in values.items()
        for nominal, value in (of.items() if isinstance(of, dict) else [("", of)])
    ]
    for name, arrays, lines in (("shap", stored, ranks), ("photon_uncertainty", by_row, quantities)):
        packed, lined = io.BytesIO(), io.StringIO()
        np.savez_compressed(packed, **arrays)
        atomic_write(folder / f"{name}.npz", packed.getvalue())
        table = csv.DictWriter(lined, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
        atomic_write(folder / f"{name}.csv", lined.getvalue())
    atomic_write(folder / "photon_uncertainty.json", to_json(report))
    for key, target in results["targets"].items():
        label = "SHAP value of the {}, {}".format(*TARGETS[key])
        names = [feature["feature"] for feature in target["features"]]
        lengths, errors = (np.array([f[k] for f in target["features"]]) for k in ("mean_abs_shap", "posterior_std"))
        order = [NAMES.index(name) for name in names]
        values = stored[f"{key}_values"].mean(2)[:, order]
        beeswarm(values, stored["features"][:, order], names, label, folder / f"{key}_beeswarm.png")
        importances(lengths, errors, names, f"mean absolute {label}", folder / f"{key}_bar.png")
    draw_uncertainty(report, by_row, folder / "photon_uncertainty.png")
    text = "\n\n".join(tables_of(results, report)) + "\n"
    atomic_write(folder / "explain.md", text)
    atomic_write(folder / "explain.json", to_json(results))
    print(text)
    print(f"Results: {folder}/explain.md, .json, shap.csv, .npz, photon_uncertainty.json, .csv, .npz and pictures")


def _table(words: str, *rows: list[str]) -> str:
    """A paragraph and a Markdown table, the first row being its heading."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([words, "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _with_error(value: float, error: float) -> str:
    """Both with the decimals that leave the error two digits."""
    decimals = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def tables_of(results: dict[str, Any], report: dict[str, Any]) -> Iterator[str]:
    """The surrogates' fit, the ranks, the explainers and the uncertainty."""
    if "surrogates" in results:
        keys = {
            "r2": "R²",
            "ceiling": "largest possible R²",
            "residual_mean": "residual mean, cm",
            "residual_std": "residual std, cm",
            "std": "values' std, cm",
        }
        yield _table(
            "Surrogates of the shower center on primaries they have not seen; an explanation is worth their fit. "
            "No function of the primary can explain more than the share of the variance that lies between primaries.",
            ["center", *keys.values(), "rows", "primaries"],
            *(
                [axis, *("–" if f[k] is None else f"{f[k]:.3f}" for k in keys), str(f["rows"]), str(f["primaries"])]
                for axis, f in results["surrogates"].items()
            ),
        )
    targets = results["targets"]
    columns = [
        [f"{f['feature']} {_with_error(f['mean_abs_shap'], f['posterior_std'])}" for f in target["features"]]
        for target in targets.values()
    ]
    yield _table(
        f"Mean absolute SHAP value over {results['rows']} test rows ({results['particle']}), {results['background']} "
        f"background rows; ± standard deviation over {results['posterior']} networks of the posterior; explainer: "
        f"{results['method']}.",
        ["rank", *(f"{key.replace('_', ' ')}, {target['unit']}" for key, target in targets.items())],
        *([str(rank), *cells] for rank, cells in enumerate(zip(*columns, strict=True), 1)),
    )
    if "explainers" in results:
        forms = {"seconds": ".3f", "evaluations": ".0f", "deviation": ".1%", "efficiency": ".3g"}
        heading = ["explainer", "seconds a row", "evaluations a row", "deviation", "sum of a row off by, photons"]
        yield _table(
            "Explainers of the photon sum on the same rows; deviation is relative to the exact values.",
            [*heading, "features in place"],
            *(
                [name, *(f"{e[k]:{form}}" for k, form in forms.items()), f"{e['same_order']} of {len(NAMES)}"]
                for name, e in results["explainers"].items()
            ),
        )
    yield _table(
        "Uncertainty of the photon sum: observed shares inside central predictive intervals, and the parts of its standard "
        "deviation: aleatoric (responses differ) and epistemic (networks of the posterior differ).",
        *uncertainty_table(report),
    )
