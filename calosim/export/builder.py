"""Writes ONNX graphs operation by operation: constants are shared, names are made, and onnx is needed at the end only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calosim import __version__

__all__ = ["IR_VERSION", "OPSET", "Builder", "Value", "require"]

#: The first operator set with bitwise operations; ONNX Runtime reads it since 1.14.
OPSET, IR_VERSION = 18, 8

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
        return self.several(operation, 1, *inputs, **attributes)[0]

    def several(self, operation: str, outputs: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Appends an operation with several outputs, whose names it returns."""
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
        return self.several("Split", len(sizes), value, np.asarray(sizes, np.int64), axis=axis)

    def pick(self, values: Value, at: Value) -> str:
        """Some of a vector's values, at positions (M,): many times faster than a plain gather of single numbers."""
        return self("GatherElements", values, at, axis=0)

    def silu(self, value: str) -> str:
        """The sigmoid-weighted linear unit."""
        return self("Mul", value, self("Sigmoid", value))

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
        nodes = [node.written(inside) for node in self.nodes]
        nodes.append(helper.make_node("Identity", [value], [inside[name]]))
        given, made = [_info(n, 1, width) for n, width in inputs.items()], _info(name, *shape)
        constants = [numpy_helper.from_array(array, n) for n, array in self.constants.values()]
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
