"""Files that every ONNX Runtime loads and runs rightly, this one and those before it: laws of their operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from calosim.export.builder import Builder
from calosim.export.graph import classifier, generator, simulator
from calosim.models.acceptance import Acceptance
from calosim.models.photon_sum import PhotonSum
from calosim.models.student import Student
from calosim.models.teacher import Teacher

KINDS = ("teacher", "teacher, accepted", "student", "student, many rows", "classifier", "classifier of all")

#: Operations in float64 that no runtime joins with others to one that has no kernel for it. Not among them, for instance:
#: Sigmoid, Tanh, Erf, Relu, Softplus (QuickGelu, Gelu, FastGelu, FusedGemm), Transpose (FusedMatMul).
PLAIN = {
    *("Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "CumSum", "Div", "Exp", "Floor", "Gather", "Gemm", "Greater"),
    *(
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Log",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "ReduceMax",
        "ReduceMean",
    ),
    *("ReduceMin", "ReduceSum", "Reshape", "Sign", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Where"),
}

_DOUBLE, _GRAPH = 11, 5


@pytest.fixture(scope="module", params=KINDS)
def model(request, run_folders) -> bytes:
    """The file of a kind."""
    teacher, photons = Teacher.load(run_folders["splits"]), PhotonSum.load(run_folders["photons"])
    acceptance = Acceptance.load(run_folders["acceptance"])
    student = Student(init_from=run_folders["splits"]).eval()
    make = {
        "teacher": lambda: generator(teacher, photons),
        "teacher, accepted": lambda: generator(teacher, photons, acceptance),
        "student": lambda: generator(student, photons),
        "student, many rows": lambda: simulator(student, photons, acceptance),
        "classifier": lambda: classifier(teacher.detector, acceptance),
        "classifier of all": lambda: classifier(teacher.detector),
    }
    return make[request.param]()


def nodes(graph: Any) -> Iterator[Any]:
    """All operations of a graph and of what is in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == _GRAPH:
                yield from nodes(attribute.g)


def graphs(graph: Any) -> list[Any]:
    """A graph and all graphs in it."""
    return [graph, *(a.g for node in nodes(graph) for a in node.attribute if a.type == _GRAPH)]


def types(model: bytes) -> dict[str, int]:
    """ONNX's number of the type of every value."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True).graph
    found = {}
    for graph in graphs(inferred):
        found |= {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        found |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return found


def test_every_value_is_read(model):
    # ONNX Runtime before 1.19 gives the memory of others away: images of a student were wrong in an eighth of the rows.
    import onnx

    graph = onnx.load_from_string(model).graph
    read = {name for node in nodes(graph) for name in node.input} | {o.name for g in graphs(graph) for o in g.output}
    made = [name for node in nodes(graph) for name in node.output]
    assert len(made) == len(set(made))
    assert [name for name in made if name not in read] == []
    assert {tensor.name for tensor in graph.initializer} <= read
    assert {value.name for value in graph.input} <= read


def test_float64_is_of_plain_operations(model):
    import onnx

    kind, graph = types(model), onnx.load_from_string(model).graph
    of = {name: node for node in nodes(graph) for name in node.output}
    read = [(name, node) for node in nodes(graph) for name in node.input]
    scalars = {t.name for g in graphs(graph) for t in g.initializer if np.prod(t.dims) == 1}
    wide = [node for node in nodes(graph) if any(kind.get(name) == _DOUBLE for name in (*node.input, *node.output))]
    assert {node.op_type for node in wide} - {"If", "Scan"} <= PLAIN
    scaling = lambda node: node.op_type in ("Mul", "Div") and any(name in scalars for name in node.input)  # noqa: E731
    for node in wide:
        if node.op_type == "MatMul":  # with a factor before or after: FusedMatMul, whose factor is float32
            neighbors = [of[name] for name in node.input if name in of] + [
                n for name, n in read if name == node.output[0]
            ]
            assert not any(map(scaling, neighbors))
        if node.op_type == "ReduceMean":  # what is left of a mean: LayerNormalization
            assert "Sub" not in [n.op_type for name, n in read if name == node.output[0]]


def test_what_this_runtime_joins_is_float32(model, tmp_path):
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this machine only
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kind, graph = types(model), onnx.load(options.optimized_model_filepath).graph
    joined = [node for node in nodes(graph) if node.domain not in ("", "ai.onnx")]
    assert [node.op_type for node in joined if any(kind[name] == _DOUBLE for name in node.output)] == []


def test_a_split_that_is_read_in_part_is_cut_out():
    import onnx
    import onnxruntime

    g = Builder()
    g("Exp", "x")  # nothing comes of it
    first, _, third = g.split("x", (1, 2, 3), axis=1)
    made = g("Concat", third, first, *g.split(first, (1,), axis=1), axis=1)
    model = g.model({"x": 6}, (made, "y", (1, 5)), "")
    operations = [node.op_type for node in nodes(onnx.load_from_string(model).graph)]
    assert sorted(operations) == ["Concat", "Identity", "Slice", "Slice"]
    x = np.arange(6, dtype=np.float32)[None]
    run = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run
    assert run(None, {"x": x})[0].tolist() == [[3, 4, 5, 0, 0]]


def test_sigmoid_and_its_unit_in_either_precision():
    import onnxruntime

    x = np.array([[-2000, -700, -90, -30, -1, -1e-9, 0, 0.5, 30, 90, 2000]], np.float32)
    for one, to in ((1.0, 1), (np.float64(1), 11)):
        g = Builder()
        wide = g("Cast", "x", to=to)
        both = g("Concat", g.sigmoid(wide, one), g.silu(wide, one), axis=0)
        model = g.model({"x": x.size}, (g("Cast", both, to=1), "y", (2, x.size)), "")
        found = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        with np.errstate(over="ignore"):
            expected = 1 / (1 + np.exp(-x.astype(np.float64)))
        assert np.allclose(found, np.concatenate((expected, x * expected)), rtol=1e-6, atol=1e-37)
