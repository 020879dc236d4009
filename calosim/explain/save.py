"""The files of an explanation: arrays, tables and pictures in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calosim.evaluation.photons import draw_uncertainty
from calosim.explain.shap import NAMES
from calosim.explain.tables import tables_of
from calosim.io import atomic_write, csv_text, write_json, write_npz

__all__ = ["TARGETS", "save_explanation"]

#: What can be explained: its name and its unit.
TARGETS = {
    "photon_sum": ("photon sum", "photons"),
    "center_x": ("shower center x", "cm"),
    "center_y": ("shower center y", "cm"),
}


def save_explanation(
    folder: Path,
    results: dict[str, Any],
    stored: dict[str, np.ndarray],
    report: dict[str, Any],
    by_row: dict[str, np.ndarray],
) -> None:
    """Writes all files, each whole or not there, ``explain.json`` being the last; prints the tables.

    Args:
        folder: The folder; made if missing.
        results: The content of ``explain.json``.
        stored: The content of ``shap.npz``: ``features`` (N, 9), and by target SHAP values (N, 9, K), bases (K,) and
            predictions (N, K), in photons or cm.
        report: What :func:`calosim.evaluation.photons.photon_uncertainty` found, by particle type.
        by_row: And by row.
    """
    write_npz(folder / "shap.npz", **stored)
    ranks = [
        [key, results["particle"], target["unit"], *feature.values()]
        for key, target in results["targets"].items()
        for feature in target["features"]
    ]
    columns = next(iter(results["targets"].values()))["features"][0]
    atomic_write(folder / "shap.csv", csv_text(["target", "particle", "unit", *columns], ranks))
    quantities = [
        [name, quantity, nominal, value]
        for name, values in report.items()
        for quantity, of in values.items()
        for nominal, value in (of.items() if isinstance(of, dict) else [("", of)])
    ]
    write_npz(folder / "photon_uncertainty.npz", **by_row)
    header = ["particle", "quantity", "nominal", "value"]
    atomic_write(folder / "photon_uncertainty.csv", csv_text(header, quantities))
    write_json(folder / "photon_uncertainty.json", report)
    _draw_targets(folder, results["targets"], stored)
    draw_uncertainty(report, by_row, folder / "photon_uncertainty.png")
    text = "\n\n".join(tables_of(results, report)) + "\n"
    atomic_write(folder / "explain.md", text)
    write_json(folder / "explain.json", results)
    print(text)
    print(f"Results: {folder}/explain.md, .json, shap.csv, .npz, photon_uncertainty.json, .csv, .npz and pictures")


def _draw_targets(folder: Path, targets: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> None:
    """Two pictures of each target, the most important feature on top."""
    from calosim.plots import beeswarm, importances

    for key, target in targets.items():
        label = "SHAP value of the {}, {}".format(*TARGETS[key])
        names = [feature["feature"] for feature in target["features"]]
        lengths, errors = (np.array([f[k] for f in target["features"]]) for k in ("mean_abs_shap", "posterior_std"))
        order = [NAMES.index(name) for name in names]
        values = stored[f"{key}_values"].mean(2)[:, order]
        beeswarm(values, stored["features"][:, order], names, label, folder / f"{key}_beeswarm.png")
        importances(lengths, errors, names, f"mean absolute {label}", folder / f"{key}_bar.png")
