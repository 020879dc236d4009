"""The whole chain as one graph: noise and primary in, photon sum, coarse part and local splits inside, an image out.

Equal to :class:`~calosim.simulation.simulator.FastSimulator` up to rounding, see :mod:`calosim.export.numbers`.
"""

from __future__ import annotations

import numpy as np
import torch

from calosim import draws
from calosim.export.acceptance import probability
from calosim.export.builder import Builder
from calosim.export.coarse import coarse, places
from calosim.export.local import children, grids_of, local_level, places_of, views
from calosim.export.numbers import NORMALS, SEED, Numbers, Wanted
from calosim.export.photons import numbers_of, photon_sum
from calosim.export.primary import Primary
from calosim.flows import MaskedSplits
from calosim.models.acceptance import Acceptance
from calosim.models.photons import PhotonSum
from calosim.models.shape import ShapeModule
from calosim.shapes import SplitCoordinates
from calosim.simulation.simulator import FastSimulator

__all__ = ["LEAST", "classifier", "generator"]

#: Primaries that are less likely to leave a response are not simulated at all.
LEAST = 0.005

#: Added to counts, so that who cuts the decimals of expm1 gets the count: more than float32 loses, in photons and in share.
_MARGIN, _SHARE = 0.01, 4e-6

_FLOAT = 1


def generator(shape: ShapeModule, photons: PhotonSum, acceptance: Acceptance | None = None) -> bytes:
    """A file for ALICE O2 with the whole chain.

    Args:
        shape: A teacher of split coordinates.
        photons: The photon-sum model.
        acceptance: The acceptance model; without it every primary leaves a response.

    Returns:
        An ONNX model: inputs ``noise`` (1, 10), standard normal, and ``features`` (1, 9) in our order and O2's units; output
        ``image`` (ny, nx), log(1 + photons), with float32 throughout.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    FastSimulator(shape, photons, acceptance=acceptance)  # refuses what does not fit together
    coordinates, flow = shape.coordinates, shape.flow
    if not isinstance(coordinates, SplitCoordinates) or not isinstance(flow, MaskedSplits):
        raise ValueError("expected a teacher of split coordinates to export, got another kind of shape model")
    g, detector = Builder(), shape.detector
    primary = Primary(g, "features", photons.features)
    wanted = [
        Wanted(draws.PHOTON_STREAM, np.arange(numbers_of(photons)), 23),
        Wanted(draws.BASE_STREAM, _counters(coordinates), 52),
    ]
    if acceptance is not None:
        wanted.append(Wanted(draws.ACCEPTANCE_STREAM, np.arange(1), 23))
    few, many, *whether = Numbers(g, "noise").uniform(wanted)
    total = photon_sum(g, primary, photons, few, SEED)
    if acceptance is not None:
        total = g("Where", g("Less", *whether, probability(g, primary, acceptance)), total, 0.0)
    counts = _counts(g, coordinates, flow, primary, total, primary.standardized(shape.features, total), many)
    value = g("Log", g("Add", g("Mul", counts, 1 + _SHARE), 1 + _MARGIN))
    image = g("Where", g("Greater", counts, 0.0), value, 0.0)
    image = g("Reshape", image, np.array(detector.shape[::-1]))
    about = f"Fast simulation of ALICE's {detector.title}: log(1 + photons) at (y, x)"
    return g.model({"noise": (1, NORMALS), "features": (1, 9)}, (image, "image", detector.shape[::-1]), about)


def classifier(acceptance: Acceptance) -> bytes:
    """A file for ALICE O2 that says which primaries are worth a call of the generator, which then decides.

    Args:
        acceptance: The acceptance model.

    Returns:
        An ONNX model: input ``features`` (1, 9) in our order and O2's units; output ``simulate`` (1, 1), 1 or 0, float32.
    """
    g = Builder()
    likely = probability(g, Primary(g, "features", acceptance.features), acceptance)
    simulate = g("Cast", g("GreaterOrEqual", likely, np.float64(LEAST)), to=_FLOAT)
    about = f"Whether a primary may leave a response in ALICE's {acceptance.detector.title}"
    return g.model({"features": (1, 9)}, (simulate, "simulate", (1, 1)), about)


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
    events, away = views(g, coordinates.event, light, context), places_of(g, local, primary.end)
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
