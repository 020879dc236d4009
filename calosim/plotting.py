"""Pictures that several commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["channel_histograms", "comparison", "image_rows"]


def image_rows(reference: NDArray, generated: NDArray, labels: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draws a row of Monte Carlo responses with the generated ones below, on one color scale a pair.

    Args:
        reference: Photon counts with shape (B, nx, ny), B at least 1.
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
            axis.set(xticks=[], yticks=[], xlabel=f"{image.sum():.0f} photons")
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

    figure = Figure(figsize=(10, 2.6 * len(panels) + 0.8), layout="constrained")
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
        axis.set(
            xticks=range(len(columns)), ylabel=metric.partition(",")[0], yscale="log", xlim=(-0.5, len(columns) - 0.5)
        )
        axis.set_xticklabels(columns)
        for x in range(1, len(columns)):
            axis.axvline(x - 0.5, color="0.85", lw=0.8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that nobody ever reads half a picture.
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    figure.savefig(partial, dpi=130)
    partial.replace(path)
    return path
