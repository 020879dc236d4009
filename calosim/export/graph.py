"""The whole chain as one graph: noise and primary in, photon sum, coarse part and local splits inside, an image out.

Equal to :class:`~calosim.simulation.simulator.FastSimulator` up to rounding, see :mod:`calosim.export.builder`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calosim import rng
from calosim.data.record import FEATURES
from calosim.detectors import Detector
from calosim.export.builder import NORMALS, SEED, Builder, Numbers, Value, Wanted
from calosim.flows import InverseSplits, MaskedSplits
from calosim.flows.mixture import LOG_SCALE
from calosim.models.acceptance import Acceptance
from calosim.models.photon_sum import MixtureHead, PhotonSum
from calosim.models.shower import ShowerModel
from calosim.representations import SplitRepresentation
from calosim.representations.features import FeatureScaler
from calosim.representations.splits import OUTSIDE, PLACE_SCALE, EventNetwork, LevelSplits
from calosim.simulation.simulator import FastSimulator

__all__ = ["CHARGE_UNIT", "LEAST", "check_chain", "classifier", "generator", "logarithms", "quantile", "simulator"]

_DOUBLE, _FLOAT, _INT64 = 11, 1, 7

_INPUTS = {"noise": NORMALS, "features": len(FEATURES)}

#: O2 counts charges in units of a third of e, as ROOT's `TParticlePDG::Charge` does.
CHARGE_UNIT = 3.0

#: Primaries that are less likely to leave a response are not simulated at all.
LEAST = 0.005

#: By what share of itself a logarithm is more than that of its count, see :func:`logarithms`.
_MORE = 2.0**-23

#: Phases of at most so many cells are split whole, dark cells too: that is cheaper than finding the others.
DENSE = 16

#: What is outside the face: the number whose logarithm, after adding one, is the mark of the outside.
_BORDER = np.float32(np.exp(OUTSIDE) - 1)

#: The search for a share: rounds, parts that a round cuts an interval into, and steps of Newton's method after them.
_ROUNDS, _PARTS, _STEPS = 2, 64, 3

#: Coefficients of the normal distribution's quantile, numerators and denominators from the constant on: in the middle, and
#: in tails up to five and beyond in sqrt(-log u).
#: References: Algorithm AS 241, The Percentage Points of the Normal Distribution (Wichura, 1988).
# fmt: off
_MIDDLE = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)

_TAIL = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
     1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)

_FAR_TAIL = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
     0.0265321895265761230930, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)

# fmt: on


# -- The whole chain ---------------------------------------------------------------------------------------------------


def generator(shower: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None = None) -> bytes:
    """A file for ALICE O2 with the whole chain.

    Args:
        shower: The shower model.
        photons: The photon-sum model.
        acceptance: The acceptance model; without it every primary leaves a response.

    Returns:
        An ONNX model: inputs ``noise`` (1, 10), standard normal, and ``features`` (1, 9) in our order and O2's units; output
        ``image`` (ny, nx), log(1 + photons), with float32 throughout.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    g, detector = Builder(), shower.detector
    counts = _response(g, shower, photons, acceptance, CHARGE_UNIT)
    about = f"Fast simulation of ALICE's {detector.title}: log(1 + photons) at (y, x)"
    return g.model(_INPUTS, (logarithms(g, counts), "image", detector.shape[::-1]), about)


def simulator(shower: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None = None) -> bytes:
    """A file for any program with the whole chain.

    Args:
        shower: The shower model.
        photons: The photon-sum model.
        acceptance: The acceptance model; without it every primary leaves a response.

    Returns:
        An ONNX model: inputs ``noise`` (N, 10), standard normal, and ``features`` (N, 9) in our order and units; output
        ``images`` (N, nx, ny), photons, with float32 throughout.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    g = Builder()
    images = g("Transpose", _response(g, shower, photons, acceptance, 1.0), perm=[1, 0])
    about = f"Fast simulation of {shower.detector.title}: photons at (x, y)"
    return g.model(_INPUTS, (images, "images", shower.detector.shape), about, rows=True)


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


def check_chain(shower: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None) -> None:
    """Checks that models can be exported together.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    if reason := shower.not_exportable():
        raise ValueError(f"expected a shower model that can be exported, but {reason}")
    FastSimulator(shower, photons, acceptance=acceptance)  # refuses what does not fit together


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


def _response(
    g: Builder, shower: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None, charge_unit: float
) -> str:
    """Photons of all pixels, (ny, nx) float32."""
    check_chain(shower, photons, acceptance)
    primary = Primary(g, "features", photons.features, charge_unit)
    numbers = Numbers(g, "noise")

    def nonempty() -> str:
        counts = shower.write(ShowerGraph(g, numbers, primary, photons, shower))
        return g("Reshape", counts, np.array(shower.detector.shape[::-1]))

    if acceptance is None:
        return nonempty()
    whether = numbers.draw([Wanted(rng.ACCEPTANCE_STREAM, np.arange(1), 23)])[0]
    accepted = g("Reshape", g("Less", whether, probability(g, primary, acceptance)), np.array([1]))
    return g.when(accepted, nonempty, np.zeros(shower.detector.shape[::-1], np.float32))


class ShowerGraph:
    """What a shower model writes itself with, see :meth:`~calosim.models.shower.ShowerModel.write`.

    Args:
        graph: The graph, whose operations it may append too.
        numbers: The generator.
        primary: The primary.
        photons: The photon-sum model.
        shower: The shower model.
    """

    def __init__(self, graph: Builder, numbers: Numbers, primary: Primary, photons: PhotonSum, shower: ShowerModel):
        self.graph, self.numbers, self.primary = graph, numbers, primary
        self.photons, self.shower = photons, shower

    def given(self, counters: np.ndarray, bits: int) -> tuple[str, str, str]:
        """What a response is made of.

        Args:
            counters: Which numbers of the response's own it takes, see :class:`~calosim.export.builder.Wanted`.
            bits: How many bits they have; 0 for normal numbers.

        Returns:
            Names of the numbers; of the photon sum, (1, 1) float32; and of the context, (1, C) float32.
        """
        few, many = self.numbers.draw(
            [
                Wanted(rng.PHOTON_STREAM, np.arange(numbers_of(self.photons)), 23),
                Wanted(rng.BASE_STREAM, counters, bits),
            ]
        )
        total = photon_sum(self.graph, self.primary, self.photons, few, SEED)
        return many, total, self.primary.standardized(self.shower.features, total)

    def splits(self, representation: Any, flow: Any) -> str:
        """Photons of all pixels, row by row of y, (ny nx,) float32, split by a representation's flow and local networks."""
        numbers, total, context = self.given(_counters(representation), 52)
        return _counts(self.graph, representation, flow, self.primary, total, context, numbers)

    def network(self, layers: nn.Sequential, value: str) -> str:
        """What layers make of a value, the batch of which is one; in evaluation."""
        g = self.graph
        for layer in layers:
            weights = [p.detach().numpy() for p in layer.parameters()]
            match layer:
                case nn.Linear():
                    value = linear(g, value, layer)
                case nn.LeakyReLU():
                    value = g("LeakyRelu", value, alpha=layer.negative_slope)
                case nn.Unflatten():
                    value = g("Reshape", value, np.array([1, *layer.unflattened_size]))
                case nn.BatchNorm2d(running_mean=Tensor() as mean, running_var=Tensor() as var):
                    value = g("BatchNormalization", value, *weights, mean.numpy(), var.numpy(), epsilon=layer.eps)
                case nn.Conv2d() | nn.ConvTranspose2d():
                    operation = type(layer).__name__.removesuffix("2d")
                    value = g(operation, value, *weights, pads=[*layer.padding] * 2, strides=[*layer.stride])
                case _:
                    raise ValueError(f"expected layers that graphs know, got a {type(layer).__name__}")
        return value

    def with_sum(self, images: str, photon_sum: str) -> str:
        """Counts as :func:`calosim.models.images.with_sum` makes them.

        Args:
            images: The name of real numbers that are not negative, (1, nx, ny) float64.
            photon_sum: The name of the photon sum, (1, 1) float32.

        Returns:
            The name of the photons, row by row of y, (ny nx,) float32.
        """
        g, (nx, ny) = self.graph, self.shower.detector.shape
        light = g("Reshape", images, np.array([-1]))
        total = g("Reshape", g("Cast", photon_sum, to=_DOUBLE), np.array([1]))

        def summed(value: str) -> str:
            return g("ReduceSum", value, np.array([0]), keepdims=1)

        for enough in (0.5, 0.0):
            kept = g("Where", g("GreaterOrEqual", light, np.float64(enough)), light, np.float64(0))
            otherwise = light if enough else g("Add", light, np.float64(1))
            light = g("Where", g("Greater", summed(kept), np.float64(0)), kept, otherwise)
        scaled = g("Mul", light, g("Div", total, summed(light)))
        counts = g("Floor", scaled)
        missing = g("Cast", g("Sub", total, summed(counts)), to=_INT64)
        remainders, most = g.outputs("TopK", 2, g("Sub", scaled, counts), missing, axis=0)
        # One each: no remainder is negative. An output that nothing reads is not safe, see `Builder`.
        more = g("Cast", g("GreaterOrEqual", remainders, np.float64(0)), to=_DOUBLE)
        counts = g("ScatterElements", counts, most, g("Add", g.pick(counts, most), more), axis=0)
        return g("Cast", g.pick(counts, np.arange(nx * ny).reshape(nx, ny).T.flatten()), to=_FLOAT)


# -- The primary, its photon sum and whether it leaves a response ------------------------------------------------------


class Primary:
    """What is known of a primary.

    Args:
        graph: The graph.
        features: The name of the nine features, (1, 9) float32, in our order and units but for the charge.
        scaler: A scaler, for the detector's geometry.
        charge_unit: How many units of charge are one e; O2's by default.

    Attributes:
        energy: In GeV, (1, 1) float32.
        end: Where the straight flight ends in cm, bounded, x and y, (1, 2) float32.
    """

    def __init__(self, graph: Builder, features: str, scaler: FeatureScaler, charge_unit: float = CHARGE_UNIT):
        g = self.graph = graph
        self.energy, vertex, _, momentum, pz, rest = g.split(features, (1, 2, 1, 2, 1, 2), axis=1)
        others = g.split(features, (6, 3), axis=1)[0]
        mass, charge = g.split(rest, (1, 1), axis=1)
        pz = g("Abs", pz)
        detector = scaler.detector
        lever = g("Div", abs(detector.front_z[0]), g("Max", pz, 1e-3))
        center = np.array([[detector.center_x, 0.0]], np.float32)
        spot = g("Sub", g("Add", vertex, g("Mul", momentum, lever)), center)
        self.end = g("Clip", spot, -detector.farthest, detector.farthest)
        half = np.array([detector.size], np.float32) / 2
        inside = g("ReduceMin", g("Sub", half, g("Abs", spot)), np.array([1]), keepdims=1)
        bent = g("Asinh", g("Concat", spot, g("Div", inside, detector.core_width), axis=1))
        log_energy = g("Log", g("Max", self.energy, 1e-3))
        nine = (others, pz, mass, g("Div", charge, charge_unit))
        self._columns = {False: g("Concat", *nine, axis=1), True: g("Concat", *nine, log_energy, bent, axis=1)}

    def standardized(self, scaler: FeatureScaler, photon_sum: str | None = None) -> str:
        """The columns of a scaler, (1, width) float32.

        Args:
            scaler: The scaler.
            photon_sum: The name of the photon sum, (1, 1) float32, if it has that column.
        """
        g, columns = self.graph, self._columns[scaler.physics]
        if photon_sum is not None:
            columns = g("Concat", columns, g("Log", g("Add", photon_sum, 1.0)), axis=1)
        mean, scale = (buffer.numpy()[None] for buffer in (scaler.mean, scaler.scale))
        return g("Div", g("Sub", columns, mean), scale)


def numbers_of(model: PhotonSum) -> int:
    """How many uniform numbers a photon sum takes.

    Raises:
        ValueError: If its head cannot be exported.
    """
    if not isinstance(model.head, MixtureHead):
        raise ValueError(f"expected a photon-sum model with a mixture head to export, got a {model.head.name} head")
    return 1 + model.head.numbers


def photon_sum(graph: Builder, primary: Primary, model: PhotonSum, numbers: str, seed: int) -> str:
    """Draws the photon sum as :meth:`PhotonSum.sample` does.

    Args:
        graph: The graph.
        primary: The primary.
        model: The photon-sum model.
        numbers: The name of the uniform numbers, float64, as many as :func:`numbers_of` says.
        seed: Seed of the networks.

    Returns:
        The name of the photon sum, (1, 1) float32.
    """
    g, head = graph, model.head
    *drawn, member = g.split(numbers, (1,) * numbers_of(model))
    networks = model.networks(seed)
    h = binned(g, g("Cast", primary.standardized(model.features), to=_DOUBLE), networks[0][0])  # type: ignore[index]
    chosen = g("Cast", g("Mul", member, np.float64(len(networks))), to=_INT64)
    for depth, tables in enumerate(layers(networks)):
        h = g("Gemm", g.silu(h, np.float64(1)) if depth else h, *(_one(g, table, chosen) for table in tables))
    assert isinstance(head, MixtureHead)
    return _drawn(g, head, h, primary.energy, drawn)


def _drawn(g: Builder, head: MixtureHead, outputs: str, energy: str, numbers: list[str]) -> str:
    """The draw of :meth:`MixtureHead.draw` from outputs (1, 3 K)."""
    u, v, artefact = numbers
    one, lower = np.float64(1), np.float64(head.lower)
    expected = g("Mul", g("Cast", energy, to=_DOUBLE), np.float64(head.light_yield))
    wide = g("Add", g("Add", expected, g("Mul", g("Sqrt", expected), np.float64(6))), np.float64(20))
    capacity = g("Ceil", g("Max", wide, lower))
    parameters = g("Reshape", outputs, np.array([3, head.components]))
    logits, rest = g.split(parameters, (1, 2))
    steps = g("CumSum", g("Softmax", logits, axis=1), np.int64(1))
    first = g.split(steps, (head.components - 1, 1), axis=1)[0]
    chosen = g("ReduceSum", g("Cast", g("Less", first, u), to=_INT64), keepdims=0)
    location, raw = g.split(g("Gather", rest, chosen, axis=1), (1, 1))
    scale = g("Exp", g("Div", raw, g("Add", g("Div", g("Abs", raw), np.float64(7)), one)))
    y = g("Log", g("Div", v, g("Sub", one, v)))
    share = g.sigmoid(g("Add", location, g("Mul", scale, y)), one)
    n = g("Sub", capacity, lower)
    usual = g("Add", g("Min", g("Floor", g("Mul", share, g("Add", n, one))), n), lower)
    far = g("Div", artefact, np.float64(head.weight))
    more = g("Div", g("Add", capacity, one), g("Max", far, np.float64(1e-9)))
    more = g("Floor", g("Min", more, np.float64(head.upper)))
    is_artefact = g("And", g("Less", far, one), g("Greater", more, capacity))
    return g("Cast", g("Where", is_artefact, more, usual), to=_FLOAT)


def probability(g: Builder, primary: Primary, model: Acceptance) -> str:
    """The probability of a response as :meth:`Acceptance.probability` has it.

    Args:
        g: The graph.
        primary: The primary.
        model: The acceptance model.

    Returns:
        Its name, (1, 1) float64.
    """
    h = g("Cast", binned(g, primary.standardized(model.features), model.encoding), to=_DOUBLE)
    for depth, (weight, bias) in enumerate(layers(model.networks.draw(model.networks.members))):
        product = g("MatMul", g.silu(h, np.float64(1)) if depth else h, weight.astype(np.float64))
        h = g("Add", product, bias[:, None].astype(np.float64))
    return g("ReduceMean", g.sigmoid(h, np.float64(1)), np.array([0]), keepdims=0)


def binned(g: Builder, h: str, encoding: Any) -> str:
    """Bins beside the columns (1, width), see :class:`calosim.models.uncertainty.PiecewiseLinear`."""
    if not encoding.columns:
        return h
    low, size = (t.numpy().reshape(1, -1) for t in (encoding.low, encoding.size))
    number = low.dtype.type
    passed = g("Div", g("Sub", g("Gather", h, np.repeat(encoding.columns, encoding.bins), axis=1), low), size)
    passed = g("Clip", passed, number(0), number(1))
    return g("Concat", h, g("Sub", g("Mul", passed, number(2)), number(1)), axis=1)


def layers(networks: list[nn.Module]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (members, n, m) and biases (members, m) of networks side by side, layer by layer."""
    linear = [[m for m in network.modules() if isinstance(m, nn.Linear)] for network in networks]
    return [
        (
            np.stack([layer.weight.detach().numpy().T for layer in same]),
            np.stack([layer.bias.detach().numpy() for layer in same]),
        )
        for same in zip(*linear, strict=True)
    ]


def _one(g: Builder, table: np.ndarray, chosen: str) -> Any:
    """The chosen member's part of a table (members, *)."""
    if len(table) == 1:
        return table[0]
    return g("Squeeze", g("Gather", table, chosen, axis=0), np.array([0]))


# -- Splits of photons -------------------------------------------------------------------------------------------------


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


def rows(table: np.ndarray, components: int) -> np.ndarray:
    """Outputs as a draw wants them: locations negated and raw scales divided by their bound, once and for all.

    Args:
        table: Weights or biases of mixtures, laid out (3, K) along the first axis.
        components: Components K.

    Returns:
        The same, float32.
    """
    factors = np.repeat([1.0, -1.0, 1.0 / LOG_SCALE], components).reshape(-1, *[1] * (table.ndim - 1))
    return (table * factors).astype(np.float32)


def drawn(g: Builder, outputs: str, components: int, u: str, y: str, n: str) -> str:
    """How many of n photons go the first way, as :func:`calosim.flows.mixture.draw` says.

    Args:
        g: The graph.
        outputs: The mixtures as :func:`rows` has them, with shape (3 K, P).
        components: Components K.
        u: Uniform numbers that choose the component, float32, with shape (P,).
        y: Negated logits of other uniform numbers, float32, with shape (P,).
        n: Photons, whole numbers as float32, with shape (P,).

    Returns:
        The name of k, float32, with shape (1, P).
    """
    logits, location, raw = g.split(outputs, (components,) * 3)
    # Of all components: choosing one first takes more and slower operations.
    scale = g("Exp", g("Mul", g("Softsign", raw), LOG_SCALE))
    each = g("Add", g("Mul", y, scale), location)
    enough = g("LessOrEqual", u, g("CumSum", g("Softmax", logits, axis=0), np.int64(0)))
    chosen = g("ArgMax", g("Cast", enough, to=_FLOAT), axis=0, keepdims=1)
    one = g("GatherElements", each, chosen, axis=0)
    # k = floor(v (n + 1)) with v = 1 / (1 + e^-t): relatively exact at both ends.
    return g("Min", g("Floor", g("Div", g("Add", n, 1.0), g("Add", g("Exp", one), 1.0))), n)


# -- The coarse part of a teacher --------------------------------------------------------------------------------------


def coarse(g: Builder, flow: MaskedSplits, total: str, context: str, u: list[str], y: list[str]) -> str:
    """Splits photons as :meth:`MaskedSplits.sample` does.

    Args:
        g: The graph.
        flow: The network.
        total: The name of the photon sum, (1, 1) float32.
        context: The name of the context, (1, C) float32.
        u: Names of the uniform numbers of every step, float32, (nodes of the step,).
        y: Names of the negated logits of every step, float32, (nodes of the step,).

    Returns:
        The name of all counts, (1, 1 + 2 M) float32: the whole; then step by step first children and their siblings.
    """
    k = flow.components
    plan, place = flow.plan(), places(flow)
    h = g.silu(linear(g, g.silu(linear(g, context, flow.context[0])), flow.context[2]))
    first, second, output = _from_context(g, flow, h)
    counts, a, b = total, "", ""
    for s, step in enumerate(plan):
        w1, w2, w3, w4 = (w.numpy() for w in step.weights)
        x = g("Log", g("Add", counts, 1.0)) if s else ""
        if step.new > step.old:
            pre = g("Gemm", x, _inputs(w1, place, step.start), first[s]) if s else first[s]
            new = g.silu(pre)
            a = g("Concat", a, new, axis=1) if a else new
            new = g.silu(g("Gemm", a, w2, second[s]))
            b = g("Concat", b, new, axis=1) if b else new
        out = output[s]
        if s:
            out = g("Gemm", x, _inputs(by_parameter(w4, k), place, step.start), out)
        if b:
            out = g("Gemm", b, by_parameter(w3, k), out)
        out = g("Reshape", out, np.array([3 * k, -1]))
        nodes = np.arange(step.start, step.stop)
        source, child = flow.source.numpy()[nodes], flow.child.numpy()[nodes]
        where = np.where(source < 0, 0, place[np.maximum(source, 0), child])
        n = g("Gather", counts, where, axis=1)
        first_children = drawn(g, out, k, u[s], y[s], n)
        counts = g("Concat", counts, first_children, g("Sub", n, first_children), axis=1)
    return counts


def places(flow: MaskedSplits) -> np.ndarray:
    """Where the counts of both children of every node are, with shape (M, 2)."""
    place, done = np.zeros((flow.nodes, 2), np.int64), 1
    for step in flow.plan():
        m = step.stop - step.start
        place[step.start : step.stop] = done + np.stack((np.arange(m), m + np.arange(m)), 1)
        done += 2 * m
    return place


def _inputs(weight: np.ndarray, place: np.ndarray, known: int) -> np.ndarray:
    """Weights (2 known, H) of interleaved children as weights of all counts; the whole has none."""
    table = np.zeros((1 + 2 * known, weight.shape[1]), np.float32)
    table[place[:known].flatten()] = weight
    return table


def by_parameter(table: np.ndarray, components: int, ready: bool = True) -> np.ndarray:
    """Columns (*, m 3 K), node by node, to parameters of all nodes side by side (*, 3 K m).

    Args:
        table: Weights of mixtures, or biases as one row.
        components: Components K.
        ready: As a draw wants them, see :func:`rows`.
    """
    lead = table.shape[0]
    mixtures = np.moveaxis(table.reshape(lead, -1, 3 * components), 2, 0)
    return np.moveaxis(rows(mixtures, components) if ready else mixtures, 1, 0).reshape(lead, -1)


def _from_context(g: Builder, flow: MaskedSplits, h: str) -> tuple[list[str], list[str], list[str]]:
    """What the context adds to both hidden layers and the outputs, step by step, biases included."""
    weight = flow.from_context.weight.detach().numpy().T
    biases = [layer.bias for layer in (flow.first, flow.second, flow.output)]
    bias = flow.from_context.bias.detach().numpy() + np.concatenate([b.detach().numpy() for b in biases])
    table, hidden = np.concatenate((weight, bias[None])), flow.hidden
    parts, sizes, width = [table[:, : 2 * hidden]], [], 3 * flow.components
    plan = flow.plan()
    sizes += [step.new - step.old for step in plan] * 2
    for step in plan:
        out = table[:, 2 * hidden + step.start * width : 2 * hidden + step.stop * width]
        parts.append(by_parameter(out, flow.components))
        sizes.append(parts[-1].shape[1])
    table = np.concatenate(parts, 1)
    all_of_it = g("Gemm", h, table[:-1], table[-1])
    pieces = g.split(all_of_it, sizes, axis=1)
    n = len(plan)
    return pieces[:n], pieces[n : 2 * n], pieces[2 * n :]


# -- The coarse part of a student --------------------------------------------------------------------------------------


def inverse_coarse(g: Builder, flow: InverseSplits, total: str, context: str, u: str) -> str:
    """Splits photons as :meth:`InverseSplits.sample` does.

    Args:
        g: The graph.
        flow: The network.
        total: The name of the photon sum, (1, 1) float32.
        context: The name of the context, (1, C) float32.
        u: The name of the uniform numbers of all nodes, (M,) float64.

    Returns:
        The name of all counts, (1, 1 + 2 M) float32, laid out as :func:`inverse_places` says.
    """
    k, hidden = flow.components, flow.hidden
    h = g.silu(linear(g, g.silu(linear(g, context, flow.context[0])), flow.context[2]))
    weights = [layer.weight.detach() for layer in (flow.first, flow.second, flow.output)]
    masks = (flow._mask_first, flow._mask_second, flow._mask_output)
    w1, w2, w3 = ((w * mask).numpy().T for w, mask in zip(weights, masks, strict=True))
    table, bias = flow.from_context.weight.detach().numpy().T, flow.from_context.bias.detach().numpy()
    bias = bias + np.concatenate([layer.bias.detach().numpy() for layer in (flow.first, flow.second, flow.output)])
    cut = 2 * hidden
    table = np.concatenate((table[:, :cut], by_parameter(table[:, cut:], k, False)), 1)
    bias = np.concatenate((bias[:cut], by_parameter(bias[None, cut:], k, False)[0]))
    first, second, output = g.split(g("Gemm", h, table, bias), (hidden, hidden, flow.nodes * 3 * k), axis=1)
    z = g("Reshape", g("Cast", quantile(g, u), to=_FLOAT), np.array([1, -1]))
    h = g.silu(g("Gemm", g.silu(g("Gemm", z, w1, first)), w2, second))
    outputs = g("Reshape", g("Gemm", h, by_parameter(w3, k, False), output), np.array([3 * k, -1]))
    v = _share(g, u, g("Cast", outputs, to=_DOUBLE), k)
    counts, place = g("Cast", total, to=_DOUBLE), inverse_places(flow)
    for d in range(flow.generations):
        nodes = getattr(flow, f"_generation{d}").numpy()
        source = flow._source.numpy()[nodes]
        where = np.where(source == 0, 0, place[(source - 1) // 2, (source - 1) % 2])
        n = g("Gather", counts, where, axis=1)
        share = g("Mul", g("Gather", v, nodes, axis=1), g("Add", n, np.float64(1)))
        one = g("Min", g("Floor", share), n)
        counts = g("Concat", counts, one, g("Sub", n, one), axis=1)
    return g("Cast", counts, to=_FLOAT)


def inverse_places(flow: InverseSplits) -> np.ndarray:
    """Where the counts of both children of every node are, with shape (M, 2)."""
    place, done = np.zeros((flow.nodes, 2), np.int64), 1
    for d in range(flow.generations):
        nodes = getattr(flow, f"_generation{d}").numpy()
        m = len(nodes)
        place[nodes] = done + np.stack((np.arange(m), m + np.arange(m)), 1)
        done += 2 * m
    return place


def _share(g: Builder, u: str, outputs: str, components: int) -> str:
    """Which share of its photons a node's first child has.

    As :func:`calosim.flows.mixture.inverse`: the quantile lies between those of the components. Cut into parts, in float32, it
    is found as well as Newton's method needs, in float64.

    Args:
        g: The graph.
        u: The name of the uniform numbers, (M,) float64.
        outputs: The name of the mixtures, (3 K, M) float64.
        components: Components K.

    Returns:
        The name of the shares, (1, M) float64.
    """
    logits, location, raw = g.split(outputs, (components,) * 3)
    scale = g("Exp", g("Div", raw, g("Add", g("Div", g("Abs", raw), np.float64(LOG_SCALE)), np.float64(1))))
    logit = g("Log", g("Div", u, g("Sub", np.float64(1), u)))
    each = g("Add", location, g("Mul", logit, scale))
    ends = g("ReduceMin", each, np.array([0]), keepdims=1), g("ReduceMax", each, np.array([0]), keepdims=1)
    mixed = g("Softmax", logits, axis=0), location, g("Div", np.float64(1), scale)
    y = g("Cast", _searched(g, u, ends, mixed), to=_DOUBLE)
    weights, location, narrow = mixed
    for _ in range(_STEPS):
        share = g.sigmoid(g("Mul", g("Sub", y, location), narrow), np.float64(1))
        parts = g("Mul", weights, share)
        off = g("Sub", g("ReduceSum", parts, np.array([0]), keepdims=1), u)
        slopes = g("Mul", g("Mul", parts, narrow), g("Sub", np.float64(1), share))
        slope = g("Max", g("ReduceSum", slopes, np.array([0]), keepdims=1), np.float64(1e-300))
        y = g("Min", g("Max", g("Sub", y, g("Div", off, slope)), ends[0]), ends[1])
    return g.sigmoid(y, np.float64(1))


def _searched(g: Builder, u: str, ends: tuple[str, str], mixed: tuple[str, str, str]) -> str:
    """About where mixtures (weights, locations and inverse scales, each (K, M)) reach u between the ends; (1, M) float32."""
    u, low, high, weights, location, narrow = (g("Cast", value, to=_FLOAT) for value in (u, *ends, *mixed))
    width = g("Sub", high, low)
    inner = (np.arange(1.0, _PARTS).reshape(-1, 1, 1) / _PARTS).astype(np.float32)
    for _ in range(_ROUNDS):
        y = g("Add", low, g("Mul", width, inner))
        parts = g("Mul", weights, g("Sigmoid", g("Mul", g("Sub", y, location), narrow)))
        below = g("Less", g("ReduceSum", parts, np.array([1]), keepdims=1), u)
        passed = g("ReduceSum", g("Cast", below, to=_FLOAT), np.array([0]), keepdims=0)
        width = g("Mul", width, 1 / _PARTS)
        low = g("Add", low, g("Mul", passed, width))
    return g("Add", low, g("Mul", width, 0.5))


def quantile(g: Builder, u: str) -> str:
    """The standard normal quantiles of uniform numbers, whole multiples of 2^-53, (M,) float64; (M,)."""
    q = g("Sub", g("Reshape", u, np.array([-1, 1])), np.float64(0.5))
    middle = g("Mul", q, _ratio(g, g("Sub", np.float64(0.180625), g("Mul", q, q)), _MIDDLE))
    rest = g("Sub", np.float64(0.5), g("Abs", q))
    r = g("Sqrt", g("Neg", g("Log", rest)))
    tail = _ratio(g, g("Sub", r, np.float64(1.6)), _TAIL)
    far = _ratio(g, g("Sub", r, np.float64(5.0)), _FAR_TAIL)
    tail = g("Mul", g("Sign", q), g("Where", g("Greater", r, np.float64(5.0)), far, tail))
    z = g("Where", g("LessOrEqual", g("Abs", q), np.float64(0.425)), middle, tail)
    return g("Reshape", z, np.array([-1]))


def _ratio(g: Builder, r: str, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
    """A ratio of two polynomials of r (M, 1); (M, 1)."""
    both = g("MatMul", g("Pow", r, np.arange(8.0)), np.array(coefficients).T)
    return g("Div", *g.split(both, (1, 1), axis=1))


# -- Local splits ------------------------------------------------------------------------------------------------------


def places_of(g: Builder, levels: list[LevelSplits], end: str) -> list[str]:
    """Where cells are from the end of the straight flight.

    Args:
        g: The graph.
        levels: The local levels.
        end: The name of where the flight ends in cm, (1, 2).

    Returns:
        One name a level: the hyperbolic area sines of the distances in cm of its columns, then of its rows, (a + b,).
    """
    centers = [_centers(level, axis) for level in levels for axis in range(2)]
    axis = np.repeat(np.tile([0, 1], len(levels)), [len(c) for c in centers])
    away = g("Sub", np.concatenate(centers), g("Gather", g("Reshape", end, np.array([-1])), axis))
    return g.split(g("Asinh", away), [sum(level.level.shape) for level in levels])


def _centers(level: LevelSplits, axis: int) -> np.ndarray:
    """Centers of columns or rows in cm from the face's center, float32, rounded as in Python."""
    a, b = level.level.shape
    return (level.place[:, axis].view(a, b) * PLACE_SCALE).select(1 - axis, 0).numpy()


def views(g: Builder, event: EventNetwork, light: str, context: str) -> list[str]:
    """What local networks know of the event, one view (1, H) a level; `light` has the coarse cells' logarithms, (1, *)."""
    h = g("Concat", light, context, axis=1)
    for layer in (event.shared[0], event.shared[2]):
        h = g.silu(linear(g, h, layer))
    heads: list[nn.Linear] = list(event.heads)  # type: ignore[arg-type]
    joined = nn.Linear(heads[0].in_features, sum(head.out_features for head in heads))
    joined.weight.data = torch.cat([head.weight.detach() for head in heads])
    joined.bias.data = torch.cat([head.bias.detach() for head in heads])
    return g.split(linear(g, h, joined), [head.out_features for head in heads], axis=1)


def children(g: Builder, first: Value, second: Value, where: np.ndarray, border: int = 0) -> tuple[str, str]:
    """The next level's cells, and the logarithms of one plus their counts inside a border.

    Args:
        g: The graph.
        first: Photons of first children, (cells,).
        second: Photons of second children, (cells,).
        where: The next level's cells among first, then second children; a grid (a, b).
        border: The border's width.

    Returns:
        Names: counts (a b,) and logarithms ((a + 2 border) (b + 2 border),).
    """
    both = g("Concat", first, second, np.array([_BORDER]), axis=0)
    wide = np.pad(where, border, constant_values=-1)  # the last one
    return g.pick(both, where.flatten()), g("Log", g("Add", g.pick(both, wide.flatten()), 1.0))


class _Tables:
    """Constants of a level: what a cell's network reads, as positions in one vector of all that it may read.

    That vector has how neighbors of the first phase were split, a zero for those outside, the logarithms of the counts with
    their border, the distances of columns and rows, and the few values that places and sizes have.

    Attributes:
        zeros: What the vector begins with.
        values: What it ends with.
        read: Positions in it, in the order of the network's inputs, (cells, inputs).
    """

    def __init__(self, level: LevelSplits):
        a, b = level.level.shape
        cells, reach, wide = a * b, level.reach, b + 2 * level.reach
        light = cells + 1
        away = light + (a + 2 * reach) * wide
        i, j = (t.flatten() for t in np.indices((a, b)))
        self.zeros = np.zeros(light, np.float32)
        around = light + level.corner.numpy()[:, None] + level.around.numpy()
        self.values, which = np.unique(level.place.numpy(), return_inverse=True)
        place = away + a + b + which.reshape(cells, -1)
        # Positions beside a cell that are outside of the face read the zero.
        x, y = np.divmod(level.corner.numpy()[:, None] + level.beside.numpy(), wide)
        x, y = x - reach, y - reach
        inside = (x >= 0) & (x < a) & (y >= 0) & (y < b)
        lean = np.where(inside, x * b + y, cells)
        self.read = np.concatenate((around, place, np.stack((away + i, away + a + j), 1), lean), 1).astype(np.int32)


def local_level(g: Builder, level: LevelSplits, counts: tuple[str, str], event: str, away: str, u: str, y: str) -> str:
    """Splits a level's cells as :meth:`SplitRepresentation.generate` does.

    Args:
        g: The graph.
        level: Its network.
        counts: From :func:`children`, with a border of the network's reach.
        event: Its view of the event, (1, H).
        away: Its distances, from :func:`places_of`.
        u: Uniform numbers that choose components, one a cell, float32.
        y: Negated logits of other uniform numbers, one a cell, float32.

    Returns:
        The name of the photons of the first children, (cells,).
    """
    grid, light = counts
    tables, first = _Tables(level), grid
    known = g("Concat", tables.zeros, light, away, tables.values, axis=0)
    components = level.output.out_features // 3
    output, bias = (rows(t.detach().numpy(), components) for t in (level.output.weight, level.output.bias))
    for phase in range(level.phases):
        some = _chosen(g, grid, level.chosen[phase].numpy())
        inputs = tables.read.shape[1] - (0 if phase else len(level.beside))
        read = g("Reshape", _pick(g, tables.read[:, :inputs], some), np.array([-1]))
        seen = g("Reshape", g.pick(known, read), np.array([-1, inputs]))
        h = g("Relu", g("Gemm", seen, level.first.weight.detach().numpy().T[:inputs], event))
        h = g("Relu", g("Gemm", h, level.second.weight.detach().numpy().T, level.second.bias.detach().numpy()))
        n, one, two = (g.pick(value, some) for value in (grid, u, y))
        k = drawn(g, g("Gemm", output, h, bias[:, None], transB=1), components, one, two, n)
        k = g("Reshape", k, np.array([-1]))
        first = g("ScatterElements", first, some, k, axis=0)
        if phase + 1 < level.phases:
            halves = g("Add", k, 1.0), g("Add", g("Sub", n, k), 1.0)
            known = g("ScatterElements", known, some, g("Log", g("Div", *halves)), axis=0)
    return first


def _chosen(g: Builder, grid: str, chosen: np.ndarray) -> str | np.ndarray:
    """Cells to split: those with photons, or all that may have some where they are few."""
    index = np.arange(len(chosen), dtype=np.int64)
    if chosen.sum() <= DENSE:
        return index[chosen]
    return g("Compress", index, g("Greater", grid, np.where(chosen, 0, np.inf).astype(np.float32)), axis=0)


def _pick(g: Builder, table: np.ndarray, some: str | np.ndarray) -> str | np.ndarray:
    return g("Gather", table, some) if isinstance(some, str) else table[some]


def grids_of(representation: SplitRepresentation) -> list[np.ndarray]:
    """Of every local level, where the next level's cells are among first, then second children; grids (a, b)."""
    found = []
    for level in representation.local:
        tree = level.level
        cells = torch.arange(tree.cells).view(1, *tree.shape)
        # Dividing (both, first) numbers the children: the first as their cells, the second after them.
        found.append(tree.divide(cells + cells + tree.cells, cells)[0].numpy())
    return found


# -- Layers ------------------------------------------------------------------------------------------------------------


def linear(g: Builder, value: str, layer: nn.Module) -> str:
    """A linear layer of a row (1, n)."""
    assert isinstance(layer, nn.Linear)
    return g("Gemm", value, layer.weight.detach().numpy().T, layer.bias.detach().numpy())
