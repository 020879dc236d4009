"""The whole chain as one graph: noise and primary in, photon sum, coarse part and local splits inside, an image out.

Equal to :class:`~calosim.simulation.simulator.FastSimulator` up to rounding, see :mod:`calosim.export.numbers`.
"""

from __future__ import annotations

import numpy as np
import torch

from calosim.export.builder import Builder
from calosim.export.coarse import coarse, places
from calosim.export.local import children, grids_of, local_level, places_of, views
from calosim.export.numbers import NORMALS, SEED, Numbers
from calosim.export.photons import numbers_of, photon_sum
from calosim.export.primary import Primary
from calosim.flows import MaskedSplits
from calosim.models.photons import PhotonSum
from calosim.models.shape import ShapeModule
from calosim.shapes import SplitCoordinates

__all__ = ["generator"]

#: Added to counts, so that who cuts the decimals of expm1 gets the count: more than float32 loses, in photons and in share.
_MARGIN, _SHARE = 0.01, 4e-6

_FLOAT = 1


def generator(shape: ShapeModule, photons: PhotonSum) -> bytes:
    """A file for ALICE O2 with the whole chain.

    Args:
        shape: A teacher of split coordinates.
        photons: The photon-sum model.

    Returns:
        An ONNX model: inputs ``noise`` (1, 10), standard normal, and ``features`` (1, 9) in our order and O2's units; output
        ``image`` (ny, nx), log(1 + photons), with float32 throughout.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    if shape.detector != photons.detector:
        raise ValueError(f"expected models of one detector, got {shape.detector.title} and {photons.detector.title}")
    coordinates, flow = shape.coordinates, shape.flow
    if not isinstance(coordinates, SplitCoordinates) or not isinstance(flow, MaskedSplits):
        raise ValueError("expected a teacher of split coordinates to export, got another kind of shape model")
    g = Builder()
    primary = Primary(g, "features", photons.features)
    few, shaped = Numbers(g, "noise").uniform(numbers_of(photons), _counters(coordinates))
    total = photon_sum(g, primary, photons, few, SEED)
    counts = _counts(g, coordinates, flow, primary, total, primary.standardized(shape.features, total), shaped)
    positive = g("Greater", counts, 0.0)
    value = g("Log", g("Add", g("Mul", counts, 1 + _SHARE), 1 + _MARGIN))
    image = g("Reshape", g("Where", positive, value, 0.0), np.array(shape.detector.shape[::-1]))
    inputs = {"noise": (1, NORMALS), "features": (1, 9)}
    about = f"Fast simulation of ALICE's {shape.detector.title}: log(1 + photons) at (y, x)"
    return g.model(inputs, (image, "image", shape.detector.shape[::-1]), about)


def _counters(coordinates: SplitCoordinates) -> np.ndarray:
    """Which uniform numbers the splits take: all that choose components, then all that are turned into quantiles."""
    m = coordinates.size
    choose, turn, done = [np.arange(m)], [m + np.arange(m)], 2 * m
    for local in coordinates.local:
        at = done + 2 * np.arange(local.level.cells)
        choose.append(at)
        turn.append(at + 1)
        done += 2 * local.level.cells
    return np.concatenate(choose + turn)


def _counts(
    g: Builder,
    coordinates: SplitCoordinates,
    flow: MaskedSplits,
    primary: Primary,
    total: str,
    context: str,
    numbers: str,
) -> str:
    """Photons of all pixels, row by row of y, (ny nx,) float32."""
    plan, local = flow._plan(), list(coordinates.local)
    sizes = [s.stop - s.start for s in plan] + [level.level.cells for level in local]
    u, v = g.split(numbers, (sum(sizes),) * 2)
    against = g("Log", g("Div", g("Sub", np.float64(1), v), v))
    us, ys = (g.split(g("Cast", t, to=_FLOAT), sizes) for t in (u, against))
    steps = len(plan)
    flat = coarse(g, flow, total, context, us[:steps], ys[:steps])
    if not local:
        return g("Gather", g("Reshape", flat, np.array([-1])), _coarse_cells(coordinates, flow).T.flatten())
    cells, nothing = _coarse_cells(coordinates, flow), np.zeros(0, np.float32)
    counts = children(g, g("Reshape", flat, np.array([-1])), nothing, cells, local[0].reach)
    assert coordinates.event is not None
    light = g("Log", g("Add", g("Reshape", counts[0], np.array([1, -1])), 1.0))
    events, away = views(g, coordinates.event, light, context), places_of(g, local, primary.end).away
    grids = grids_of(coordinates)
    for i, level in enumerate(local):
        first = local_level(g, level, counts, events[i], away[i], us[steps + i], ys[steps + i])
        second = g("Sub", counts[0], first)
        if i + 1 < len(local):
            counts = children(g, first, second, grids[i], level.reach)
    both = g("Concat", first, second, axis=0)
    return g("Gather", both, grids[-1].T.flatten())


def _coarse_cells(coordinates: SplitCoordinates, flow: MaskedSplits) -> np.ndarray:
    """Where the coarse part's cells are among its counts, a grid (a, b)."""
    place = torch.from_numpy(places(flow)).index_select(0, coordinates.rank)
    tree, grid = coordinates.tree, torch.zeros(1, 1, 1, dtype=torch.int64)
    for level, start, stop in zip(tree.levels[: coordinates.coarse_levels], tree.starts, tree.starts[1:], strict=False):
        first, second = (grid.flatten(1).index_copy(1, level.nodes, place[start:stop, c][None]) for c in (0, 1))
        first, second = (t.view(1, *level.shape) for t in (first, second))
        grid = level.divide(first + second, first)
    return grid[0].numpy()
