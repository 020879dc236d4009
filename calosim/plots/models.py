"""Pictures of several models: how they trained, and how they compare."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calosim.plots.style import COLORS, looks, picture, plain_log, save, typeset

__all__ = [
    "Curve",
    "Panel",
    "beeswarm",
    "comparison",
    "importances",
    "predictive_intervals",
    "reliability_diagram",
    "training_curves",
]


#: Panels of training curves beside each other.
ABREAST = 3
#: The share of training losses that may lie above the picture: the steep beginning would press all else into a line.
BEYOND = 0.1
#: Groups of training batches whose mean is a point.
GROUPS = 40


class Curve(NamedTuple):
    """One quantity of one training.

    Attributes:
        train: Pairs of step and value, of single training batches; may be empty.
        val: Pairs of step and value, over the validation split.
        best: The step of the checkpoint that is kept, or None.
    """

    train: Sequence[tuple[float, float]]
    val: Sequence[tuple[float, float]]
    best: float | None = None


class Panel(NamedTuple):
    """What can be compared: the vertical axis' label, and the curves by run."""

    label: str
    runs: dict[str, Curve]


@picture
def training_curves(panels: Mapping[str, Panel], path: str | os.PathLike[str]) -> Path:
    """Draws quantities over training steps, a panel for those that can be compared and a color for each run.

    Pale lines are means over groups of training batches, dots the validation split after an epoch, and a ring is the best epoch.

    Args:
        panels: By title.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    down = -(-len(panels) // ABREAST)
    across = -(-len(panels) // down)
    figure = Figure(figsize=(max(5.5, 4.4 * across), 3.7 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, (label, runs)) in zip(axes, panels.items(), strict=False):
        style = looks(runs)
        for run, (train, val, best) in runs.items():
            color, _, marker = style[run]
            axis.plot(*_means(train), color=color, lw=0.9, alpha=0.45)
            axis.plot(*_columns(val), color=color, lw=1.3, marker=marker, ms=4, label=run)
            kept = [point for point in val if point[0] == best]
            axis.plot(*_columns(kept), "o", ms=10, mfc="none", color=color)
        axis.set(xlabel="training step", ylabel=label, title=typeset(title), xlim=(0, None), ylim=_range(runs.values()))
        if len(runs) <= 8:
            axis.legend(frameon=False, fontsize="x-small")
    return save(figure, Path(path))


def _columns(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Steps and values, in order."""
    return np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T


def _means(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Steps and values, the means of neighbors where there are many."""
    groups = np.array_split(_columns(points), min(GROUPS, max(1, len(points))), axis=1)
    return np.stack([group.mean(1) for group in groups if group.size], 1) if points else _columns(points)


def _range(curves: Collection[Curve]) -> tuple[float, float]:
    """The lowest and the highest value to show."""
    shown = [value for curve in curves for _, value in curve.val]
    for curve in (curve for curve in curves if curve.train):
        shown += np.quantile(_means(curve.train)[1], (0, 1 - BEYOND)).tolist()
    lowest, highest = min(shown), max(shown)
    # One value is not stretched over the panel.
    margin = 0.06 * (highest - lowest) or 0.1 * abs(highest) or 1.0
    return lowest - margin, highest + margin


@picture
def comparison(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float] | None]]],
    columns: Sequence[str],
    path: str | os.PathLike[str],
) -> Path:
    """Draws values of several models with intervals, a panel for each metric.

    Args:
        panels: By metric and model, for each column (value, low, high), or None where there is none.
        columns: Names of the columns.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 1.7 * len(columns)), 2.4 * len(panels) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (metric, models) in zip(axes, panels.items(), strict=True):
        width, style = 0.8 / max(len(models), 1), looks(models)
        for i, (model, points) in enumerate(models.items()):
            drawn = [(x, *point) for x, point in enumerate(points) if point is not None]
            if not drawn:
                continue
            x, value, low, high = np.array(drawn).T
            # A resampled interval need not hold the value itself.
            error = np.maximum([value - low, high - value], 0)
            color, _, marker = style[model]
            place = x - 0.4 + (i + 0.5) * width
            axis.errorbar(place, value, error, fmt=marker, ms=4, capsize=2, lw=1.2, color=color, label=model)
        axis.set(yscale="log", xlim=(-0.5, len(columns) - 0.5))
        axis.set_title(metric, loc="left", fontsize="medium")
        plain_log(axis.yaxis)
        for x in range(1, len(columns)):
            axis.axvline(x - 0.5, color="0.85", lw=0.8)
    axes[-1].set_xticks(range(len(columns)), [typeset(column) for column in columns])
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        named.values(),
        named.keys(),
        loc="outside upper center",
        ncols=min(4, len(columns) + 1),
        fontsize="small",
        frameon=False,
    )
    return save(figure, Path(path))


@picture
def beeswarm(
    values: NDArray, features: NDArray, names: Sequence[str], label: str, path: str | os.PathLike[str]
) -> Path:
    """Draws SHAP values, a line for each feature, a dot for each row, colored by how large the feature is.

    Args:
        values: SHAP values with shape (N, F), the first feature on top.
        features: The features' values with shape (N, F).
        names: The features' names.
        label: What is on the horizontal axis.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.42 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="0.6", lw=0.8)
    lowest, highest = float(values.min()), float(values.max())
    bins = np.linspace(lowest, max(highest, lowest + 1e-12), 101)
    for line in range(len(names)):
        # Dots of one bin are stacked alternately above and below the line, so that density shows as width.
        places = np.clip(np.digitize(values[:, line], bins) - 1, 0, 99)
        order = np.lexsort((values[:, line], places))
        first = np.searchsorted(places[order], places[order], side="left")
        rank = np.arange(len(order)) - first
        height = np.where(rank % 2 == 0, 1, -1) * ((rank + 1) // 2)
        offset = np.empty(len(order))
        offset[order] = height * min(0.08, 0.8 / max(1, np.ptp(height)))
        # Ranks, not values: one artefact must not leave all others in one color.
        distinct, position = np.unique(features[:, line], return_inverse=True)
        color = position.ravel() / (len(distinct) - 1) if len(distinct) > 1 else np.full(len(order), 0.5)
        axis.scatter(values[:, line], offset - line, c=color, cmap="coolwarm", vmin=0, vmax=1, s=9, linewidths=0)
    axis.set(yticks=-np.arange(len(names)), xlabel=label, ylim=(-len(names) + 0.4, 0.6))
    axis.set_yticklabels(names)
    bar = figure.colorbar(ScalarMappable(cmap="coolwarm"), ax=axis, ticks=[0, 1], aspect=40, pad=0.01)
    bar.ax.set_yticklabels(["low", "high"])
    bar.set_label("feature (rank among the rows)")
    return save(figure, Path(path))


@picture
def importances(
    values: NDArray, errors: NDArray, names: Sequence[str], label: str, path: str | os.PathLike[str]
) -> Path:
    """Draws a bar for each feature.

    Args:
        values: Lengths with shape (F,), the first on top.
        errors: Their standard deviations with shape (F,).
        names: The features' names.
        label: What is on the horizontal axis.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.34 * len(names) + 1.0), layout="constrained")
    axis = figure.subplots()
    lines = np.arange(len(names))
    axis.barh(lines, values, xerr=errors, color=COLORS[0], error_kw={"lw": 1, "capsize": 2})
    axis.set(yticks=lines, xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axis.set_yticklabels(names)
    axis.set_xlim(left=0)
    return save(figure, Path(path))


@picture
def predictive_intervals(
    intervals: Mapping[str, NDArray],
    observed: NDArray,
    coverage: Mapping[str, Sequence[tuple[float, float]]],
    parts: Mapping[str, tuple[float, float]],
    path: str | os.PathLike[str],
) -> Path:
    """Draws predictive intervals with what was observed, their coverage, and the parts of the uncertainty.

    Args:
        intervals: ``median``, ``low_68``, ``high_68``, ``low_95`` and ``high_95``, each with shape (N,).
        observed: Observed values with shape (N,), in photons.
        coverage: By particle, pairs of nominal and observed content.
        parts: By particle, aleatoric and epistemic standard deviations in photons.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    order = np.argsort(intervals["median"], kind="stable")
    rows = np.arange(len(order))
    for level, shade in ((95, 0.2), (68, 0.4)):
        low, high = intervals[f"low_{level}"][order], intervals[f"high_{level}"][order]
        left.fill_between(rows, low, high, step="mid", color=COLORS[0], alpha=shade, lw=0, label=f"{level} %")
    left.step(rows, intervals["median"][order], where="mid", color=COLORS[0], lw=1, label="median")
    left.plot(rows, observed[order], "k.", ms=3, label="observed")
    left.set(yscale="log", xlabel="test rows by predicted median", ylabel="photon sum")
    left.legend(frameon=False, fontsize="small")
    middle.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    style = looks(name for name in coverage if name != "all")
    for name, points in coverage.items():
        nominal, found = np.array(points).T
        color, width = ("black", 2.0) if name == "all" else (style[name].color, 1.2)
        middle.plot(nominal, found, color=color, lw=width, label=typeset(name))
    middle.set(xlabel="nominal content of the interval", ylabel="observed share inside", xlim=(0, 1), ylim=(0, 1))
    middle.legend(frameon=False, fontsize="small")
    for which, (label, look) in enumerate(looks(("aleatoric (responses)", "epistemic (networks)")).items()):
        places = np.arange(len(parts)) + 0.2 * which - 0.1
        right.plot(places, [p[which] for p in parts.values()], look.marker, color=look.color, label=label)
    right.set(ylabel="standard deviation, photons", yscale="log", xlim=(-0.5, len(parts) - 0.5))
    right.set_xticks(range(len(parts)), [typeset(name) for name in parts])
    for axis in (left, right):
        plain_log(axis.yaxis)
    right.legend(frameon=False, fontsize="small")
    return save(figure, Path(path))


@picture
def reliability_diagram(curves: Mapping[str, Mapping[str, Sequence[float]]], path: str | os.PathLike[str]) -> Path:
    """Draws observed shares over predicted probabilities: ``predicted``, ``observed`` and ``rows`` of bins, by title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    style = looks(curves)
    for title, curve in curves.items():
        predicted, observed, rows = (np.asarray(curve[key]) for key in ("predicted", "observed", "rows"))
        error = np.sqrt(observed * (1 - observed) / np.maximum(rows, 1))
        color, line, marker = style[title]
        axis.errorbar(
            predicted, observed, error, color=color, ls=line, marker=marker, ms=4, lw=1, capsize=2, label=title
        )
    axis.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False, fontsize="small")
    return save(figure, Path(path))
