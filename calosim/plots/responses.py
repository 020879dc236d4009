"""Pictures of responses, the Monte Carlo's beside generated ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calosim.plots.style import BAND, COLORS, looks, picture, plain_log, save, typeset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

__all__ = ["channel_edges", "channel_histograms", "draws", "image_rows", "spectra"]


#: Ratios beyond these are drawn as arrows at the edge.
RATIOS = (0.25, 4.0)
#: The least distance of two ticks, as a share of the axis.
APART = 0.13


def channel_edges(largest: float, bins: int = 30) -> NDArray[np.float64]:
    """Edges of bins of equal width on a square-root axis, at whole numbers, so that bins hold as many integers as they are wide.

    Most responses leave next to nothing in most channels: on a linear axis they all lie in the first bin.

    >>> channel_edges(1000, 5)
    array([   0.,   40.,  160.,  360.,  641., 1001.])
    """
    return np.unique(np.round(np.linspace(0, np.sqrt(max(largest, 1.0) + 1), bins + 1) ** 2))


@picture
def channel_histograms(
    reference: NDArray, generated: NDArray, names: Sequence[str], path: str | os.PathLike[str]
) -> Path:
    """Draws the distribution of each channel on a square-root axis, with the ratio generated over Monte Carlo below.

    Bands and bars are the statistical uncertainty of the counts, one standard deviation.

    Args:
        reference: Channel values of the Monte Carlo with shape (N, C).
        generated: Channel values of the generated responses with shape (M, C).
        names: The channels' names.
        path: The file to write; its suffix decides the format. Missing folders are made.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * len(names), 4.4), layout="constrained")
    axes = figure.subplots(2, len(names), sharex="col", sharey="row", squeeze=False, height_ratios=(3, 1.3))
    for (top, bottom), name, *sides in zip(axes.T, names, reference.T, generated.T, strict=True):
        edges = channel_edges(max(side.max() for side in sides))
        counts = [np.histogram(side, edges)[0] for side in sides]
        shares = [found / len(side) for found, side in zip(counts, sides, strict=True)]
        top.stairs(shares[0], edges, color=BAND, fill=True, label="Monte Carlo")
        top.stairs(shares[1], edges, color=COLORS[0], lw=1.3, label="generated")
        top.set(yscale="log", title=name)
        _ratio(bottom, edges, counts, len(sides[0]) / len(sides[1]))
        _square_root(bottom, edges[-1])
    axes[0, 0].set_ylabel("share of responses in a bin")
    axes[1, 0].set_ylabel("generated /\nMonte Carlo")
    axes[0, -1].legend(frameon=False, fontsize="small")
    return save(figure, Path(path))


def _ratio(axis: Axes, edges: NDArray, counts: Sequence[NDArray], scale: float) -> None:
    """Draws the ratio of counts with their uncertainties on a logarithmic axis; what is beyond it as an arrow at its edge.

    Args:
        axis: Where to.
        edges: The bins' edges.
        counts: Of the Monte Carlo and of the generated responses.
        scale: What the ratio of counts is multiplied by, for numbers of responses that differ.
    """
    low, high = RATIOS
    known, other = (np.asarray(side, dtype=np.float64) for side in counts)
    middle = ((np.sqrt(edges[1:]) + np.sqrt(edges[:-1])) / 2) ** 2
    both = (known > 0) & (other > 0)
    ratio = np.where(both, scale * other / np.maximum(known, 1), np.where(other > 0, np.inf, 0.0))
    error = 1 / np.sqrt(np.maximum(known, 1))
    there = known > 0
    axis.stairs(
        np.where(there, 1 + error, np.nan),
        edges,
        baseline=np.where(there, np.maximum(1 - error, low), np.nan),
        fill=True,
        color=BAND,
    )
    axis.axhline(1, color="0.4", lw=0.8)
    inside = both & (ratio > low) & (ratio < high)
    spread = ratio / np.sqrt(np.maximum(other, 1))
    bars = np.minimum(spread, ratio - low)[inside], spread[inside]
    axis.errorbar(middle[inside], ratio[inside], bars, fmt=".", ms=4, lw=1, color=COLORS[0])
    for beyond, place, arrow in ((ratio >= high, high, "^"), ((ratio <= low) & there, low, "v")):
        axis.plot(
            middle[beyond], np.full(beyond.sum(), place), arrow, ms=5, color=COLORS[0], clip_on=False, in_layout=False
        )
    axis.set(yscale="log", ylim=RATIOS, xlabel="photons")
    plain_log(axis.yaxis, (1, 2, 5))


def _square_root(axis: Axes, last: float) -> None:
    """Makes a horizontal axis a square-root one, from 0, with round ticks."""
    ticks, apart = [0.0], APART * np.sqrt(last)
    for tick in (digit * 10.0**power for power in range(5, -1, -1) for digit in (5, 2, 1)):
        if tick <= last and all(abs(np.sqrt(tick) - np.sqrt(other)) > apart for other in ticks):
            ticks.append(tick)
    # Lines may be drawn a little left of 0.
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axis.set(xlim=(0, last), xticks=ticks)
    axis.tick_params(axis="x", labelsize="small")


@picture
def spectra(
    sums: Mapping[str, NDArray], profiles: Mapping[str, NDArray], radii: NDArray, path: str | os.PathLike[str]
) -> Path:
    """Draws spectra of photon sums and radial profiles of several candidates.

    Args:
        sums: Photon sums with shape (N,) by candidate, the Monte Carlo first.
        profiles: Mean shares of photons with shape (K,) by candidate, the Monte Carlo first; may be empty.
        radii: Edges of the profiles' bins in cm with shape (K + 1,).
        path: The file to write.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if profiles else 1, squeeze=False)[0]
    first, *others = sums
    style = looks(others)
    lowest = max(1, sums[first].min())
    # At least a decade, be there a single response.
    edges = np.geomspace(lowest, max(10 * lowest, *(values.max() for values in sums.values())), 41)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in sums.items()}
    for axis, lines, bins in zip(axes, (shares, profiles), (edges, radii), strict=False):
        for name, values in lines.items():
            if name == first:
                axis.stairs(values, bins, label=name, color=BAND, fill=True)
            else:
                axis.stairs(values, bins, label=name, color=style[name].color, ls=style[name].line, lw=1.2)
    axes[0].set(xscale="log", yscale="log", xlabel="photon sum", ylabel="share of responses in a bin")
    plain_log(axes[0].xaxis, (1, 2, 5))
    if profiles:
        axes[1].set(
            yscale="log", xlabel="distance from the center of gravity, cm", ylabel="mean share of photons in a ring"
        )
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize="small"
    )
    return save(figure, Path(path))


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
