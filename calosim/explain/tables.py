"""The tables of an explanation as Markdown: the surrogates' fit, the ranks, the explainers and the uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from calosim.evaluation.photons import uncertainty_table
from calosim.explain.shap import NAMES
from calosim.io import markdown_table

__all__ = ["tables_of"]


def tables_of(results: Mapping[str, Any], report: dict[str, Any]) -> Iterator[str]:
    """The tables of an explanation, each with a paragraph that says what it shows.

    Args:
        results: The content of ``explain.json``.
        report: What :func:`calosim.evaluation.photons.photon_uncertainty` found.
    """
    if "surrogates" in results:
        yield _fits(results["surrogates"])
    yield _ranks(results)
    if "explainers" in results:
        yield _explainers(results["explainers"])
    head, *rows = uncertainty_table(report)
    yield _table(
        "Uncertainty of the photon sum: observed shares inside central predictive intervals, and the parts of its standard "
        "deviation: aleatoric (responses differ) and epistemic (networks of the posterior differ).",
        head,
        *rows,
    )


def _fits(surrogates: Mapping[str, Mapping[str, Any]]) -> str:
    keys = {
        "r2": "R²",
        "ceiling": "largest possible R²",
        "residual_mean": "residual mean, cm",
        "residual_std": "residual std, cm",
        "std": "values' std, cm",
    }
    return _table(
        "Surrogates of the shower center on primaries they have not seen; an explanation is worth their fit. "
        "No function of the primary can explain more than the share of the variance that lies between primaries.",
        ["center", *keys.values(), "rows", "primaries"],
        *(
            [axis, *("–" if f[k] is None else f"{f[k]:.3f}" for k in keys), str(f["rows"]), str(f["primaries"])]
            for axis, f in surrogates.items()
        ),
    )


def _ranks(results: Mapping[str, Any]) -> str:
    targets = results["targets"]
    columns = [
        [f"{f['feature']} {_with_error(f['mean_abs_shap'], f['posterior_std'])}" for f in target["features"]]
        for target in targets.values()
    ]
    return _table(
        f"Mean absolute SHAP value over {results['rows']} test rows ({results['particle']}), {results['background']} "
        f"background rows; ± standard deviation over networks ({results['posterior']} of a Bayesian posterior, or the "
        f"ensemble's); explainer: {results['method']}.",
        ["rank", *(f"{key.replace('_', ' ')}, {target['unit']}" for key, target in targets.items())],
        *([str(rank), *cells] for rank, cells in enumerate(zip(*columns, strict=True), 1)),
    )


def _explainers(explainers: Mapping[str, Mapping[str, Any]]) -> str:
    forms = {"seconds": ".3f", "evaluations": ".0f", "deviation": ".1%", "efficiency": ".3g"}
    heading = ["explainer", "seconds a row", "evaluations a row", "deviation", "sum of a row off by, photons"]
    return _table(
        "Explainers of the photon sum on the same rows; deviation is relative to the exact values.",
        [*heading, "features in place"],
        *(
            [name, *(f"{e[k]:{form}}" for k, form in forms.items()), f"{e['same_order']} of {len(NAMES)}"]
            for name, e in explainers.items()
        ),
    )


def _table(words: str, head: list[str], *rows: list[str]) -> str:
    """A paragraph and a Markdown table."""
    return f"{words}\n\n{markdown_table(head, rows)}"


def _with_error(value: float, error: float) -> str:
    """Both with the decimals that leave the error two digits."""
    decimals = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
