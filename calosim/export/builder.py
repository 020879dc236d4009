r"""Writes ONNX graphs operation by operation: constants are shared, names are made, and onnx is needed at the end only.

The ten normals :math:`z_i` are hashed to one 64-bit row number,

.. math:: r = \sum_i \operatorname{mix}(\lfloor 2^{40} z_i \rfloor + i \gamma) \bmod 2^{64},

and row :math:`r` with seed 0 has the numbers that :class:`~calosim.simulation.simulator.FastSimulator` gives it. So a graph's
response is that of ``FastSimulator.sample(..., seed=0, rows=rows_of(noise))``, photon for photon up to rounding.

References:
    | Fast Splittable Pseudorandom Number Generators (Steele et al., 2014), https://doi.org/10.1145/2660193.2660195
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calosim import __version__, rng

__all__ = [
    "IR_VERSION",
    "NORMALS",
    "OPSET",
    "RUNTIMES",
    "SEED",
    "Builder",
    "Numbers",
    "Value",
    "Wanted",
    "require",
    "row_numbers",
    "rows_of",
]


#: The first operator set with bitwise operations.
OPSET, IR_VERSION = 18, 8

#: The oldest and the newest release of ONNX Runtime that files were loaded by, and images compared.
RUNTIMES = "1.15.0", "1.32.0"

Value = str | np.ndarray | np.generic | float | int


@dataclass(frozen=True)
class _Node:
    """An operation."""

    operation: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    def written(self, names: Mapping[str, str]) -> Any:
        """The node in ONNX's form, with some inputs called otherwise."""
        from onnx import helper

        attributes = {k: v.written(k, names) if isinstance(v, _Branch) else v for k, v in self.attributes.items()}
        return helper.make_node(self.operation, [names.get(n, n) for n in self.inputs], self.outputs, **attributes)


@dataclass(frozen=True)
class _Branch:
    """Operations that are done or not."""

    nodes: list[_Node]
    value: str
    shape: tuple[int, ...]

    def written(self, name: str, names: Mapping[str, str]) -> Any:
        """The branch in ONNX's form."""
        from onnx import helper

        nodes = [node.written(names) for node in self.nodes]
        return helper.make_graph(nodes, name, [], [_info(self.value, *self.shape)])


def require(*names: str) -> None:
    """Imports optional packages.

    Raises:
        ValueError: If one is missing.
    """
    import importlib

    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(
                f"expected {name} for exports, which is not installed; try pip install 'calosim[export]'"
            ) from None


class Builder:
    """A graph that grows: an operation returns the names of what it makes, and takes names and constants."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.made = 0
        self.constants: dict[tuple[str, tuple[int, ...], bytes], tuple[str, np.ndarray]] = {}

    def __call__(self, operation: str, *inputs: Value, **attributes: Any) -> str:
        """Appends an operation with one output.

        Args:
            operation: The operator's name.
            inputs: Names, or constants: arrays as they are, numbers as float32.
            attributes: Its attributes.

        Returns:
            The output's name.
        """
        return self.outputs(operation, 1, *inputs, **attributes)[0]

    def outputs(self, operation: str, outputs: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Appends an operation with several outputs, and returns their names."""
        made = [f"v{self.made}_{i}" for i in range(outputs)]
        self.made += 1
        self.nodes.append(_Node(operation, [self._name(value) for value in inputs], made, attributes))
        return made

    def when(self, condition: str, make: Callable[[], str], otherwise: np.ndarray) -> str:
        """What operations make if a condition holds, and a constant if not: they cost nothing then.

        Args:
            condition: The name of a boolean with one value.
            make: Appends the operations and returns the name of what they make, float32 of the constant's shape.
            otherwise: The constant.

        Returns:
            The name of the result.
        """
        outer, self.nodes = self.nodes, []
        value = make()
        inner, self.nodes = self.nodes, outer
        branches = {"then_branch": _Branch(inner, value, otherwise.shape)}
        constant = _Node("Identity", [self._name(otherwise)], [f"v{self.made}_else"], {})
        branches["else_branch"] = _Branch([constant], constant.outputs[0], otherwise.shape)
        return self("If", condition, **branches)

    def split(self, value: str, sizes: Sequence[int], axis: int = 0) -> list[str]:
        """Pieces along an axis; without an operation where there is one."""
        if len(sizes) == 1:
            return [value]
        return self.outputs("Split", len(sizes), value, np.asarray(sizes, np.int64), axis=axis)

    def pick(self, values: Value, at: Value) -> str:
        """Some of a vector's values, at positions (M,): many times faster than a plain gather of single numbers."""
        return self("GatherElements", values, at, axis=0)

    def sigmoid(self, value: str, one: Value = 1.0) -> str:
        """The logistic function, with a one of the value's type; see :meth:`silu`."""
        return self("Div", one, self("Add", self("Exp", self("Neg", value)), one))

    def silu(self, value: str, one: Value = 1.0) -> str:
        """The sigmoid-weighted linear unit, with a one of the value's type.

        As PyTorch has it, and not with ONNX's Sigmoid: runtimes fuse that with a product or with the layer before it
        (QuickGelu, FusedGemm), and most of them then have no kernel for float64 and do not load the file.
        """
        return self("Div", value, self("Add", self("Exp", self("Neg", value)), one))

    def _read(self, nodes: list[_Node], read: set[str]) -> list[_Node]:
        """The operations whose outputs are read, all of them; adds to the names that are.

        ONNX Runtime before 1.19 takes the memory of an output that nothing reads for others too early, and their values are
        wrong then (its pull request 21019). So a split some of whose pieces are read becomes slices.
        """
        kept: list[_Node] = []
        for node in reversed(nodes):
            whole = node.operation != "Split" or read.issuperset(node.outputs)
            for part in [node] if whole else self._slices(node):
                if read.isdisjoint(part.outputs):
                    continue
                attributes = dict(part.attributes)
                for name, branch in attributes.items():
                    if isinstance(branch, _Branch):
                        read.add(branch.value)
                        attributes[name] = replace(branch, nodes=self._read(branch.nodes, read))
                read.update(part.inputs)
                kept.append(replace(part, attributes=attributes))
        return kept[::-1]

    def _slices(self, split: _Node) -> list[_Node]:
        """A split's pieces, by an operation each."""
        value, sizes = split.inputs
        ends = np.cumsum(next(array for name, array in self.constants.values() if name == sizes))
        axis = self._name(np.array([split.attributes["axis"]]))
        edges = [self._name(np.array([end])) for end in (0, *ends)]
        return [_Node("Slice", [value, *edges[i : i + 2], axis], [made], {}) for i, made in enumerate(split.outputs)]

    def _name(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        array = np.asarray(value if isinstance(value, np.ndarray | np.generic) else np.float32(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        return self.constants.setdefault(key, (f"c{len(self.constants)}", array))[0]

    def model(
        self, inputs: dict[str, int], output: tuple[str, str, tuple[int, ...]], about: str, rows: bool = False
    ) -> bytes:
        """The file's bytes.

        Args:
            inputs: Names and widths of the inputs, each (1, width) float32, in their order.
            output: The value's name in the graph, its name outside, and its shape, float32.
            about: One line for people.
            rows: Whether inputs have any number of rows, each of which goes through the graph by itself, and outputs as many.

        Returns:
            An ONNX model.
        """
        from onnx import checker, helper, numpy_helper

        value, name, shape = output
        # Names inside of a loop's body must not be those outside.
        inside = {n: f"one_{n}" if rows else n for n in (*inputs, name)}
        read = {value}
        nodes = [node.written(inside) for node in self._read(self.nodes, read)]
        nodes.append(helper.make_node("Identity", [value], [inside[name]]))
        given, made = [_info(n, 1, width) for n, width in inputs.items()], _info(name, *shape)
        constants = [numpy_helper.from_array(array, n) for n, array in self.constants.values() if n in read]
        if rows:
            as_row = [helper.make_node("Reshape", [f"{n}_row", "row_shape"], [inside[n]]) for n in inputs]
            constants.append(numpy_helper.from_array(np.array([1, -1]), "row_shape"))
            body_inputs = [_info(f"{n}_row", width) for n, width in inputs.items()]
            body = helper.make_graph([*as_row, *nodes], "response", body_inputs, [_info(inside[name], *shape)])
            nodes = [helper.make_node("Scan", [*inputs], [name], body=body, num_scan_inputs=len(inputs))]
            given, made = [_info(n, "rows", width) for n, width in inputs.items()], _info(name, "rows", *shape)
        graph = helper.make_graph(nodes, "calosim", given, [made], constants, doc_string=about)
        model = helper.make_model(
            graph,
            producer_name="calosim",
            producer_version=__version__,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        checker.check_model(model)
        return model.SerializeToString()


def _info(name: str, *shape: int | str) -> Any:
    """A float32 input or output."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


#: How many normals a response is given, and the seed of what they are expanded to.
NORMALS, SEED = 10, 0

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

#: Steps that normals are cut into: none of a float32 beyond 2^-17 is lost. Beyond 2^20 there are no normals.
_STEPS, _FAR = 2.0**40, 2.0**20


def row_numbers(noise: Tensor) -> Tensor:
    """The row numbers that the noise stands for.

    Args:
        noise: Normals with shape (N, 10), float32.

    Returns:
        Rows with shape (N,), int64.
    """
    words = (noise.double().clamp(-_FAR, _FAR) * _STEPS).floor().long()
    return rng.mix(words + torch.from_numpy(_counted(np.arange(NORMALS)))).sum(1)


def rows_of(noise: np.ndarray) -> np.ndarray:
    """:func:`row_numbers` of arrays."""
    return row_numbers(torch.from_numpy(np.ascontiguousarray(noise))).numpy()


def _counted(counters: np.ndarray) -> np.ndarray:
    """What is added to a key for its numbers 0, 1 ...; int64."""
    return ((counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN).view(np.int64)


@dataclass(frozen=True)
class Wanted:
    """Numbers of a stream.

    Attributes:
        stream: One of the streams of :mod:`calosim.rng`.
        counters: Which of its numbers, (M,), int64.
        bits: How many bits they have: 23 as from :func:`calosim.rng.uniform`, or 52 as from
            :func:`calosim.rng.uniform_at`; 0 for the pairs of normal numbers of :func:`calosim.rng.normal`.
    """

    stream: int
    counters: np.ndarray
    bits: int


class Numbers:
    """The generator in a graph; products and sums of int64 wrap, shifts are those of uint64.

    Args:
        graph: The graph.
        noise: The name of the normals, (1, 10) float32.
    """

    def __init__(self, graph: Builder, noise: str):
        g = self.graph = graph
        wide = g("Clip", g("Cast", noise, to=_DOUBLE), np.float64(-_FAR), np.float64(_FAR))
        words = g("Cast", g("Floor", g("Mul", wide, np.float64(_STEPS))), to=_INT64)
        hashed = self._mixed(g("Add", words, _counted(np.arange(NORMALS))))
        # A product with ones wraps; ONNX Runtime's sum of int64 goes by way of float64.
        self.row = g("MatMul", g("Cast", hashed, to=_INT64), np.ones(NORMALS, np.int64))

    def _mixed(self, z: str) -> str:
        """SplitMix64's finalizer of int64; the result is uint64."""
        g = self.graph
        z = g("Cast", z, to=_UINT64)
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            z = g("BitwiseXor", z, g("BitShift", z, np.uint64(shift), direction="RIGHT"))
            z = g("Cast", g("Mul", g("Cast", z, to=_INT64), factor.view(np.int64)), to=_UINT64)
        return g("BitwiseXor", z, g("BitShift", z, np.uint64(31), direction="RIGHT"))

    def draw(self, wanted: Sequence[Wanted]) -> list[str]:
        """Random numbers of all streams at once.

        Args:
            wanted: What is wanted of each stream.

        Returns:
            Names of uniform numbers in (0, 1), float64, with the shape of their counters (M,); or of normal ones, float32,
            (2 M,).
        """
        g, golden = self.graph, _GOLDEN.view(np.int64)
        # `draws.row_keys` of the row, for all streams side by side.
        key = self.row
        for word in (np.array([w.stream for w in wanted]), np.int64(SEED)):
            key = g("Cast", self._mixed(g("Add", g("Mul", key, golden), word)), to=_INT64)
        keys = g("Cast", self._mixed(g("Add", key, golden)), to=_INT64)
        sizes = [len(w.counters) for w in wanted]
        each = zip(g.split(keys, (1,) * len(sizes)), wanted, strict=True)
        bits = self._mixed(g("Concat", *(g("Add", k, _counted(w.counters)) for k, w in each), axis=0))
        made = []
        for part, w in zip(g.split(bits, sizes), wanted, strict=True):
            if not w.bits:
                made.append(self._normal(part))
                continue
            steps = g("Cast", g("BitShift", part, np.uint64(64 - w.bits), direction="RIGHT"), to=_DOUBLE)
            made.append(g("Mul", g("Add", steps, np.float64(0.5)), np.float64(2.0**-w.bits)))
        return made

    def _normal(self, bits: str) -> str:
        """The transform of Box and Muller of uint64 (M,), as :func:`calosim.rng.normal` has it; (2 M,) float32."""
        g = self.graph
        high = g("Cast", g("BitShift", bits, np.uint64(32), direction="RIGHT"), to=_FLOAT)
        angle = g("Mul", g("Cast", g("BitwiseAnd", bits, np.uint64(0xFFFFFFFF)), to=_FLOAT), 2 * np.pi * 2.0**-32)
        share = g("Min", g("Mul", g("Add", high, 1.0), 2.0**-32), 1.0)
        radius = g("Sqrt", g("Mul", g("Log", share), -2.0))
        return g("Concat", g("Mul", radius, g("Cos", angle)), g("Mul", radius, g("Sin", angle)), axis=0)


#: ONNX's numbers of types.
_FLOAT, _INT64, _DOUBLE, _UINT64 = 1, 7, 11, 13
