"""Drawing of responses, distributions and tables; every picture is a file that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calosim.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "beeswarm",
    "channel_histograms",
    "comparison",
    "draws",
    "image_rows",
    "importances",
    "predictive_intervals",
    "reliability_diagram",
    "spectra",
    "training_curves",
]


def image_rows(reference: NDArray, generated: NDArray, labels: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draws a row of Monte Carlo responses with the generated ones below, on one color scale a pair.

    Args:
        reference: Photon counts with shape (B, nx, ny), B at least 1; dark where there is no response to show.
        generated: Photon counts with shape (B, nx, ny).
        labels: A title for each column.
        path: The file to write; its suffix decides the format. Missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: If the numbers of images and labels differ, or there is none.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    if not 0 < len(labels) == len(reference) == len(generated):
        raise ValueError(
            f"expected one label for each pair of images, got {len(reference)} Monte Carlo images, "
            f"{len(generated)} generated ones and {len(labels)} labels"
        )
    figure = Figure(figsize=(1.7 * len(labels) + 0.6, 4.2), layout="constrained")
    axes = figure.subplots(2, len(labels), squeeze=False)
    for column, label in enumerate(labels):
        pair = np.asarray(reference[column]), np.asarray(generated[column])
        norm = LogNorm(vmin=1, vmax=max(2, *(image.max() for image in pair)))
        for axis, image, side in zip(axes[:, column], pair, ("Monte Carlo", "generated"), strict=True):
            # x runs to the right and y upwards; dark pixels stay white.
            axis.imshow(np.ma.masked_less_equal(image.T, 0), norm=norm, origin="lower", cmap="viridis")
            # The Monte Carlo keeps no dark response: there was none to show.
            none = side == "Monte Carlo" and not image.any()
            axis.set(xticks=[], yticks=[], xlabel="no other response" if none else f"{image.sum():.0f} photons")
            if column == 0:
                axis.set_ylabel(side)
        axes[0, column].set_title(label, fontsize="medium")
    return _save(figure, Path(path))


def channel_histograms(
    reference: NDArray, generated: NDArray, names: Sequence[str], path: str | os.PathLike[str]
) -> Path:
    """Draws the distribution of each channel with the ratio generated over Monte Carlo below.

    Bands are the statistical uncertainty of the counts, one standard deviation.

    Args:
        reference: Channel values of the Monte Carlo with shape (N, C).
        generated: Channel values of the generated responses with shape (M, C).
        names: The channels' names.
        path: The file to write; its suffix decides the format. Missing folders are made.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(names), 4.2), layout="constrained")
    axes = figure.subplots(2, len(names), sharex="col", squeeze=False, height_ratios=(3, 1))
    for column, name in enumerate(names):
        sides = np.asarray(reference)[:, column], np.asarray(generated)[:, column]
        # The tail beyond the 99.9th percentile would press everything else into one bin.
        edges = np.linspace(0, max(1.0, np.quantile(sides[0], 0.999)), 31)
        densities, errors = [], []
        for values in sides:
            counts = np.histogram(values, edges)[0]
            densities.append(counts / len(values))
            errors.append(np.sqrt(counts) / len(values))
        top, bottom = axes[0, column], axes[1, column]
        for density, color, label in zip(densities, ("0.35", "C0"), ("Monte Carlo", "generated"), strict=True):
            top.stairs(
                density, edges, color=color, label=label, fill=color == "0.35", alpha=0.5 if color == "0.35" else 1
            )
        top.set(yscale="log", title=name)
        safe = np.maximum(densities[0], 1e-12)
        for ratio, error, color in (
            (np.ones_like(safe), errors[0] / safe, "0.35"),
            (densities[1] / safe, errors[1] / safe, "C0"),
        ):
            shown = densities[0] > 0
            low, high = np.where(shown, ratio - error, np.nan), np.where(shown, ratio + error, np.nan)
            bottom.stairs(high, edges, baseline=low, fill=True, color=color, alpha=0.4)
        bottom.set(ylim=(0, 2), xlabel="photons")
    axes[0, 0].set_ylabel("share of responses")
    axes[1, 0].set_ylabel("ratio")
    axes[0, -1].legend(frameon=False, fontsize="small")
    return _save(figure, Path(path))


def draws(reference: NDArray, generated: NDArray, labels: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draws several Monte Carlo and generated responses to each primary, one primary a row.

    Args:
        reference: Photon counts with shape (P, R, nx, ny); dark where there is no response to show.
        generated: Photon counts with shape (P, R, nx, ny).
        labels: A title for each primary.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    primaries, number = reference.shape[:2]
    figure = Figure(figsize=(1.25 * 2 * number + 1, 1.35 * primaries + 0.4), layout="constrained")
    sides = figure.subfigures(1, 2, wspace=0.03, squeeze=False)[0]
    for side, images, title in zip(sides, (reference, generated), ("Monte Carlo", "generated"), strict=True):
        side.suptitle(title)
        axes = side.subplots(primaries, number, squeeze=False)
        for p in range(primaries):
            # One scale for all draws of a primary; it begins below 1, so that single photons show on dark ground.
            norm = LogNorm(vmin=0.3, vmax=max(2, reference[p].max(), generated[p].max()))
            for axis, image in zip(axes[p], images[p], strict=True):
                axis.imshow(np.ma.masked_less_equal(image.T, 0), norm=norm, origin="lower", cmap="inferno")
                axis.set(xticks=[], yticks=[], facecolor="#14122a")
                axis.spines[:].set_visible(False)
                # The Monte Carlo keeps no dark response: there was none to show.
                none = title == "Monte Carlo" and not image.any()
                axis.set_xlabel("no other" if none else f"{image.sum():.0f}", fontsize="x-small", labelpad=1)
            if title == "Monte Carlo":
                axes[p, 0].set_ylabel(labels[p], fontsize="small")
    return _save(figure, Path(path))


def spectra(
    sums: Mapping[str, NDArray], profiles: Mapping[str, NDArray], radii: NDArray, path: str | os.PathLike[str]
) -> Path:
    """Draws spectra of photon sums and radial profiles of several candidates.

    Args:
        sums: Photon sums with shape (N,) by candidate, the Monte Carlo first.
        profiles: Mean shares of photons with shape (K,) by candidate; may be empty.
        radii: Edges of the profiles' bins in cm with shape (K + 1,).
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 2 if profiles else 1, squeeze=False)[0]
    first = next(iter(sums.values()))
    low = max(1, first.min())
    edges = np.geomspace(low, max(10 * low, first.max()), 41)  # at least a decade, be there a single response
    for i, (name, values) in enumerate(sums.items()):
        style = {"color": "0.35", "fill": True, "alpha": 0.4} if i == 0 else {"color": f"C{i - 1}"}
        axes[0].stairs(np.histogram(values, edges)[0] / len(values), edges, label=name, **style)
    axes[0].set(xscale="log", yscale="log", xlabel="photon sum", ylabel="share of responses")
    for i, (name, shares) in enumerate(profiles.items()):
        style = {"color": "0.35", "fill": True, "alpha": 0.4} if i == 0 else {"color": f"C{i - 1}"}
        axes[1].stairs(shares, radii, label=name, **style)
    if profiles:
        axes[1].set(yscale="log", xlabel="distance from the center of gravity, cm", ylabel="mean share of photons")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize="small"
    )
    return _save(figure, Path(path))


def training_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: str | os.PathLike[str]
) -> Path:
    """Draws logged values over training steps, a panel for each quantity and a line for each run.

    Args:
        panels: By quantity and run, pairs of step and value.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5, 4.2 * len(panels)), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (quantity, runs) in zip(axes, panels.items(), strict=True):
        for i, (run, points) in enumerate(runs.items()):
            step, value = np.array(sorted(points)).T
            axis.plot(step, value, color=f"C{i % 10}", lw=1.2, marker="." if len(step) < 20 else "", label=run)
        axis.set(xlabel="step", title=quantity)
    handles, labels = max((a.get_legend_handles_labels() for a in axes), key=lambda found: len(found[1]))
    if len(labels) <= 12:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="x-small")
    return _save(figure, Path(path))


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

    figure = Figure(figsize=(max(6, 1.7 * len(columns)), 2.6 * len(panels) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (metric, models) in zip(axes, panels.items(), strict=True):
        width = 0.8 / max(len(models), 1)
        for i, (model, points) in enumerate(models.items()):
            drawn = [(x, *point) for x, point in enumerate(points) if point is not None]
            if not drawn:
                continue
            x, value, low, high = np.array(drawn).T
            # A resampled interval need not hold the value itself.
            error = np.maximum([value - low, high - value], 0)
            place = x - 0.4 + (i + 0.5) * width
            axis.errorbar(place, value, error, fmt="o", ms=4, capsize=2, color=f"C{i}", label=model)
        axis.set(xticks=range(len(columns)), yscale="log", xlim=(-0.5, len(columns) - 0.5))
        axis.set_title(metric, loc="left", fontsize="medium")
        axis.set_xticklabels(columns)
        for x in range(1, len(columns)):
            axis.axvline(x - 0.5, color="0.85", lw=0.8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(columns) + 1), fontsize="small", frameon=False
    )
    return _save(figure, Path(path))


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
    return _save(figure, Path(path))


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
    axis.barh(lines, values, xerr=errors, color="C0", error_kw={"lw": 1, "capsize": 2})
    axis.set(yticks=lines, xlabel=label, ylim=(len(names) - 0.4, -0.6))
    axis.set_yticklabels(names)
    axis.set_xlim(left=0)
    return _save(figure, Path(path))


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
        left.fill_between(rows, low, high, step="mid", color="C0", alpha=shade, lw=0, label=f"{level} %")
    left.step(rows, intervals["median"][order], where="mid", color="C0", lw=1, label="median")
    left.plot(rows, observed[order], "k.", ms=3, label="observed")
    left.set(yscale="log", xlabel="test rows by predicted median", ylabel="photon sum")
    left.legend(frameon=False, fontsize="small")
    middle.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    for name, points in coverage.items():
        nominal, found = np.array(points).T
        middle.plot(nominal, found, color="k" if name == "all" else None, lw=2 if name == "all" else 1, label=name)
    middle.set(xlabel="nominal content of the interval", ylabel="observed share inside", xlim=(0, 1), ylim=(0, 1))
    middle.legend(frameon=False, fontsize="small")
    for shift, (label, which) in zip((-0.1, 0.1), (("aleatoric", 0), ("epistemic", 1)), strict=True):
        right.plot(np.arange(len(parts)) + shift, [p[which] for p in parts.values()], "o", label=label)
    right.set(xticks=range(len(parts)), ylabel="standard deviation, photons", yscale="log")
    right.set_xticklabels(list(parts))
    right.legend(frameon=False, fontsize="small")
    return _save(figure, Path(path))


def reliability_diagram(curves: Mapping[str, Mapping[str, Sequence[float]]], path: str | os.PathLike[str]) -> Path:
    """Draws observed shares over predicted probabilities: ``predicted``, ``observed`` and ``rows`` of bins, by title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    for title, curve in curves.items():
        predicted, observed, rows = (np.asarray(curve[key]) for key in ("predicted", "observed", "rows"))
        error = np.sqrt(observed * (1 - observed) / np.maximum(rows, 1))
        axis.errorbar(predicted, observed, error, marker="o", ms=4, lw=1, capsize=2, label=title)
    axis.set(xlabel="predicted probability", ylabel="observed share", xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False, fontsize="small")
    return _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> Path:
    with writing(path) as part:
        figure.savefig(part, dpi=130)
    return path
