"""Pictures of responses, the Monte Carlo's beside generated ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calosim.plots.style import picture, save, typeset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

__all__ = ["draws", "image_rows"]

SIDES = ("Monte Carlo", "generated")
#: A dark pixel's color, below the first of the color map.
DARK = "#14122a"


@picture
def image_rows(reference: NDArray, generated: NDArray, labels: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draws a row of Monte Carlo responses with the generated ones below, on one color scale.

    Args:
        reference: Photon counts with shape (B, nx, ny), B at least 1; dark where there is no response to show.
        generated: Photon counts with shape (B, nx, ny).
        labels: A title for each column; one title for neighbors that share it.
        path: The file to write; its suffix decides the format. Missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: If the numbers of images and labels differ, or there is none.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    if not 0 < len(labels) == len(reference) == len(generated):
        raise ValueError(
            f"expected one label for each pair of images, got {len(reference)} Monte Carlo images, "
            f"{len(generated)} generated ones and {len(labels)} labels"
        )
    figure = Figure(figsize=(1.35 * len(labels) + 1.2, 3.5), layout="constrained")
    axes = figure.subplots(2, len(labels), squeeze=False)
    norm = _scale(reference, generated)
    for line, images, side in zip(axes, (reference, generated), SIDES, strict=True):
        _show(line, images, norm, side)
        line[0].set_ylabel(side)
    for column, label in enumerate(labels):
        if label not in labels[:column]:
            axes[0, column].set_title(typeset(label), fontsize="medium", loc="left")
    _bar(axes, norm)
    return save(figure, Path(path))


@picture
def draws(reference: NDArray, generated: NDArray, labels: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draws several Monte Carlo and generated responses to each primary, one primary a row, on one color scale.

    Args:
        reference: Photon counts with shape (P, R, nx, ny); dark where there is no response to show.
        generated: Photon counts with shape (P, R, nx, ny).
        labels: A title for each primary.
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    primaries, number = reference.shape[:2]
    figure = Figure(figsize=(1.25 * 2 * number + 1.6, 1.35 * primaries + 0.4), layout="constrained")
    # One grid, with a gap in the middle, so that rows are in line.
    axes = figure.subplots(primaries, 2 * number + 1, squeeze=False, width_ratios=[*[1] * number, 0.15, *[1] * number])
    for gap in axes[:, number]:
        gap.set_axis_off()
    norm = _scale(reference, generated)
    for part, images, side in zip(
        (axes[:, :number], axes[:, number + 1 :]), (reference, generated), SIDES, strict=True
    ):
        part[0, 0].set_title(side, loc="left", fontsize="medium")
        for line, of_primary in zip(part, images, strict=True):
            _show(line, of_primary, norm, side)
    for line, label in zip(axes, labels, strict=True):
        line[0].set_ylabel(typeset(label), fontsize="small")
    _bar(axes, norm)
    return save(figure, Path(path))


def _scale(*images: NDArray) -> LogNorm:
    """One color scale for all; it begins far below 1, so that single photons show on dark ground."""
    from matplotlib.colors import LogNorm

    return LogNorm(vmin=0.1, vmax=max(2, *(part.max() for part in images)))


def _show(axes: Iterable[Axes], images: NDArray, norm: LogNorm, side: str) -> None:
    """Draws images, with their photon sums below."""
    for axis, image in zip(axes, images, strict=True):
        # x runs to the right and y upwards.
        axis.imshow(np.ma.masked_less_equal(image.T, 0), norm=norm, origin="lower", cmap="inferno")
        axis.set(xticks=[], yticks=[], facecolor=DARK)
        axis.spines[:].set_visible(False)
        # The Monte Carlo keeps no dark response: there was none to show.
        none = side == SIDES[0] and not image.any()
        axis.set_xlabel("no other response" if none else f"{image.sum():.0f} photons", fontsize="small", labelpad=2)


def _bar(axes: Any, norm: LogNorm) -> None:
    """The color bar at the right of some axes."""
    from matplotlib.cm import ScalarMappable

    figure = axes.flat[0].figure
    bar = figure.colorbar(ScalarMappable(norm, "inferno"), ax=axes, aspect=40, pad=0.015, label="photons in a pixel")
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if tick <= (norm.vmax or 0)]
    bar.set_ticks(ticks, labels=[str(tick) for tick in ticks], minor=False)
    bar.ax.set_ylim(1, norm.vmax)
    bar.minorticks_off()
