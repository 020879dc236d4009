"""The whole chain as one graph: noise and primary in, photon sum, coarse part and local splits inside, an image out.

Equal to :class:`~calosim.simulation.simulator.FastSimulator` up to rounding, see :mod:`calosim.export.numbers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from calosim import rng
from calosim.data.record import FEATURES
from calosim.detectors import Detector
from calosim.export.acceptance import probability
from calosim.export.builder import Builder
from calosim.export.coarse import coarse, places
from calosim.export.inverse import inverse_coarse, inverse_places
from calosim.export.local import children, grids_of, local_level, places_of, views
from calosim.export.numbers import NORMALS, SEED, Numbers, Wanted
from calosim.export.photons import numbers_of, photon_sum
from calosim.export.primary import CHARGE_UNIT, Primary
from calosim.flows import InverseSplits, MaskedSplits
from calosim.models.acceptance import Acceptance
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.representations import SplitRepresentation
from calosim.simulation.simulator import FastSimulator

__all__ = ["LEAST", "check_chain", "classifier", "generator", "logarithms", "simulator"]

#: Primaries that are less likely to leave a response are not simulated at all.
LEAST = 0.005

#: By what share of itself a logarithm is more than that of its count, see :func:`logarithms`.
_MORE = 2.0**-23

_INPUTS = {"noise": NORMALS, "features": len(FEATURES)}

_FLOAT, _DOUBLE = 1, 11


def check_chain(shape: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None) -> None:
    """Checks that models can be exported together.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    if not isinstance(shape.representation, SplitRepresentation):
        raise ValueError("expected a shower model of split coordinates to export, got another kind")
    FastSimulator(shape, photons, acceptance=acceptance)  # refuses what does not fit together


def generator(shape: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None = None) -> bytes:
    """A file for ALICE O2 with the whole chain.

    Args:
        shape: A teacher or a student of split coordinates.
        photons: The photon-sum model.
        acceptance: The acceptance model; without it every primary leaves a response.

    Returns:
        An ONNX model: inputs ``noise`` (1, 10), standard normal, and ``features`` (1, 9) in our order and O2's units; output
        ``image`` (ny, nx), log(1 + photons), with float32 throughout.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    g, detector = Builder(), shape.detector
    counts = _response(g, shape, photons, acceptance, CHARGE_UNIT)
    about = f"Fast simulation of ALICE's {detector.title}: log(1 + photons) at (y, x)"
    return g.model(_INPUTS, (logarithms(g, counts), "image", detector.shape[::-1]), about)


def logarithms(g: Builder, counts: str) -> str:
    r"""Logarithms that O2 reads as counts, whether it cuts the decimals of expm1 (hits) or rounds sums of it (debug output).

    .. math:: v = (1 + 2^{-23}) \log(1 + n)

    Half of that share makes up for the rounding of v to float32, half for the client's: expm1 of v is more than n by at least
    the distance of n to the next float32, and by less than a photon to n = 480,000. It is on average
    6e-7 n at n = 100 and 1.1e-6 n at 10,000, so that sums are right to some hundred thousand photons.

    Args:
        g: The graph.
        counts: The name of whole numbers, float32.

    Returns:
        The name of the logarithms, float32 of the same shape; 0 where it is dark.
    """
    log = g("Log", g("Add", g("Cast", counts, to=_DOUBLE), np.float64(1)))
    return g("Cast", g("Mul", log, np.float64(1 + _MORE)), to=_FLOAT)


def simulator(shape: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None = None) -> bytes:
    """A file for any program with the whole chain.

    Args:
        shape: A teacher or a student of split coordinates.
        photons: The photon-sum model.
        acceptance: The acceptance model; without it every primary leaves a response.

    Returns:
        An ONNX model: inputs ``noise`` (N, 10), standard normal, and ``features`` (N, 9) in our order and units; output
        ``images`` (N, nx, ny), photons, with float32 throughout.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    g = Builder()
    images = g("Transpose", _response(g, shape, photons, acceptance, 1.0), perm=[1, 0])
    about = f"Fast simulation of {shape.detector.title}: photons at (x, y)"
    return g.model(_INPUTS, (images, "images", shape.detector.shape), about, rows=True)


def _response(
    g: Builder, shape: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None, charge_unit: float
) -> str:
    """Photons of all pixels, (ny, nx) float32."""
    check_chain(shape, photons, acceptance)
    representation: Any = shape.representation
    flow: Any = shape.flow
    primary = Primary(g, "features", photons.features, charge_unit)
    numbers = Numbers(g, "noise")

    def nonempty() -> str:
        few, many = numbers.uniform(
            [
                Wanted(rng.PHOTON_STREAM, np.arange(numbers_of(photons)), 23),
                Wanted(rng.BASE_STREAM, _counters(representation), 52),
            ]
        )
        total = photon_sum(g, primary, photons, few, SEED)
        context = primary.standardized(shape.features, total)
        counts = _counts(g, representation, flow, primary, total, context, many)
        return g("Reshape", counts, np.array(shape.detector.shape[::-1]))

    if acceptance is None:
        return nonempty()
    whether = numbers.uniform([Wanted(rng.ACCEPTANCE_STREAM, np.arange(1), 23)])[0]
    accepted = g("Reshape", g("Less", whether, probability(g, primary, acceptance)), np.array([1]))
    return g.when(accepted, nonempty, np.zeros(shape.detector.shape[::-1], np.float32))


def classifier(detector: Detector, acceptance: Acceptance | None = None) -> bytes:
    """A file for ALICE O2 that says which primaries are worth a call of the generator, which then decides.

    Args:
        detector: The detector.
        acceptance: The acceptance model; without it all primaries are, whatever their features.

    Returns:
        An ONNX model: input ``features`` (1, 9) in our order and O2's units; output ``simulate`` (1, 1), 1 or 0, float32.
    """
    g = Builder()
    if acceptance is None:
        lost = g("Less", g("ReduceSum", "features", np.array([1]), keepdims=1), 0.0)
        worth = g("Or", lost, g("Not", lost))  # a constant would leave nothing that reads the input
        about = f"Every primary may leave a response in ALICE's {detector.title}"
    else:
        likely = probability(g, Primary(g, "features", acceptance.features), acceptance)
        worth = g("GreaterOrEqual", likely, np.float64(LEAST))
        about = f"Whether a primary may leave a response in ALICE's {detector.title}"
    return g.model({"features": len(FEATURES)}, (g("Cast", worth, to=_FLOAT), "simulate", (1, 1)), about)


def _counters(representation: SplitRepresentation) -> np.ndarray:
    """Which uniform numbers the splits take: all that choose components, then all that are turned into quantiles."""
    m = representation.size
    choose, turn, done = [np.arange(m)], [m + np.arange(m)], 2 * m
    for local in representation.local:
        at = done + 2 * np.arange(local.level.cells)
        choose.append(at)
        turn.append(at + 1)
        done += 2 * local.level.cells
    return np.concatenate(choose + turn)


def _counts(
    g: Builder,
    representation: SplitRepresentation,
    flow: MaskedSplits | InverseSplits,
    primary: Primary,
    total: str,
    context: str,
    numbers: str,
) -> str:
    """Photons of all pixels, row by row of y, (ny nx,) float32."""
    local, m = list(representation.local), representation.size
    cells = [level.level.cells for level in local]
    u, v = g.split(numbers, (m + sum(cells),) * 2)
    # The ratio holds all digits that its logarithm needs, which is fast in float32.
    y = g("Log", g("Cast", g("Div", g("Sub", np.float64(1), v), v), to=_FLOAT))
    if isinstance(flow, MaskedSplits):
        sizes = [step.stop - step.start for step in flow.plan()]
        us, ys = (g.split(t, sizes + cells) for t in (g("Cast", u, to=_FLOAT), y))
        counts, place = coarse(g, flow, total, context, us, ys), places(flow)
        us, ys = us[len(sizes) :], ys[len(sizes) :]
    else:
        one, rest = g.split(u, (m, sum(cells))) if cells else (u, u)
        counts, place = inverse_coarse(g, flow, total, context, one), inverse_places(flow)
        us, ys = g.split(g("Cast", rest, to=_FLOAT), cells), g.split(y, [m, *cells])[1:]
    counts, grid = g("Reshape", counts, np.array([-1])), _coarse_cells(representation, place)
    if not local:
        return g.pick(counts, grid.T.flatten())
    return _refined(g, representation, (counts, grid), primary.end, context, (us, ys))


def _refined(
    g: Builder,
    representation: SplitRepresentation,
    given: tuple[str, np.ndarray],
    end: str,
    context: str,
    numbers: tuple[list[str], list[str]],
) -> str:
    """The local splits, from the coarse part's counts and where its cells are among them."""
    local = list(representation.local)
    counts = children(g, given[0], np.zeros(0, np.float32), given[1], local[0].reach)
    assert representation.event is not None
    light = g("Log", g("Add", g("Reshape", counts[0], np.array([1, -1])), 1.0))
    events, away = views(g, representation.event, light, context), places_of(g, local, end)
    grids = grids_of(representation)
    for i, level in enumerate(local):
        first = local_level(g, level, counts, events[i], away[i], numbers[0][i], numbers[1][i])
        second = g("Sub", counts[0], first)
        if i + 1 < len(local):
            counts = children(g, first, second, grids[i], level.reach)
    return g.pick(g("Concat", first, second, axis=0), grids[-1].T.flatten())


def _coarse_cells(representation: SplitRepresentation, places: np.ndarray) -> np.ndarray:
    """Where the coarse part's cells are among its counts, a grid (a, b), given where both children of its nodes are."""
    place = torch.from_numpy(places).index_select(0, representation.rank)
    tree, grid = representation.tree, torch.zeros(1, 1, 1, dtype=torch.int64)
    for level, start, stop in zip(
        tree.levels[: representation.coarse_levels], tree.starts, tree.starts[1:], strict=False
    ):
        first, second = (grid.flatten(1).index_copy(1, level.nodes, place[start:stop, c][None]) for c in (0, 1))
        first, second = (t.view(1, *level.shape) for t in (first, second))
        grid = level.divide(first + second, first)
    return grid[0].numpy()
