"""Pictures of several models: how they trained, and how they compare."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calosim.plots.style import looks, picture, plain_log, save, typeset

__all__ = ["Curve", "Panel", "comparison", "training_curves"]

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
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(columns) + 1), fontsize="small", frameon=False
    )
    return save(figure, Path(path))
