"""A student's coarse part in a graph: all mixtures in one pass, then the shares of photons, then the photons."""

from __future__ import annotations

import numpy as np

from calosim.export.builder import Builder
from calosim.export.coarse import by_parameter, linear
from calosim.flows import InverseSplits
from calosim.flows.mixture import LOG_SCALE

__all__ = ["inverse_coarse", "inverse_places", "quantile"]

#: The search for a share: rounds, parts that a round cuts an interval into, and steps of Newton's method after them.
_ROUNDS, _PARTS, _STEPS = 2, 64, 3

_DOUBLE, _FLOAT = 11, 1

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


def _ratio(g: Builder, r: str, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
    """A ratio of two polynomials of r (M, 1); (M, 1)."""
    both = g("MatMul", g("Pow", r, np.arange(8.0)), np.array(coefficients).T)
    return g("Div", *g.split(both, (1, 1), axis=1))


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
