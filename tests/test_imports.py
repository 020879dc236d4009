"""Imports point down only, and asking for help costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import calosim
from calosim.cli.tools import TOOLS

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("calosim", "callbacks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}
#: The house from bottom to top. A room imports from the layers below its own; of its own layer only from itself. All may
#: import `calosim` itself, for its version.
LAYERS = (
    ("detectors", "io", "loggers", "particles", "processes", "rng"),
    ("plots", "runs", "slurm"),
    ("options",),
    ("data", "flows", "metrics"),
    ("montecarlo", "representations"),
    ("models",),
    ("simulation",),
    ("evaluation",),
    ("explain", "export", "report"),
    ("cli",),
    ("studies",),
    ("__main__",),
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
#: Slow, optional or graphical: imported in the function that needs them.
HEAVY = {"shap", "wandb", "mlflow", "matplotlib", "scipy", "sklearn", "onnx", "onnxruntime", "pandas"}
every = pytest.mark.parametrize("name", SOURCES)


def imports(name: str, everywhere: bool = True) -> Iterator[str]:
    """Full names of what a module imports; without `everywhere` only what importing it imports."""
    path = SOURCES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (full if (full := f"{base}.{alias.name}") in SOURCES else base for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def rooms(name: str) -> set[str]:
    """The other rooms that a module imports from: `calosim.flows.made` is in `flows`."""
    found = {i.split(".")[1] for i in imports(name) if i.startswith("calosim.")}
    return found - ({name.split(".")[1]} if name.startswith("calosim.") else set())


def test_the_reader_of_imports_sees_what_is_there():
    assert {"calosim.flows.autoregressive", "calosim.flows.build"} <= set(imports("calosim.flows"))
    assert "particle" in set(imports("calosim.particles")) - set(imports("calosim.particles", everywhere=False))
    assert {"flows", "representations", "models"} - rooms("calosim.models.teacher") == {"models"}
    assert {name.split(".")[1] for name in SOURCES if name.startswith("calosim.")} == set(LAYER)


@every
def test_imports_point_down_and_nothing_of_calosim_knows_what_stands_on_it(name):
    layer = LAYER["cli"] if name.startswith("callbacks") else LAYER.get(name.partition(".")[2].partition(".")[0], 0)
    assert not [room for room in rooms(name) if LAYER[room] >= layer]
    if name.startswith("calosim"):
        assert not {"callbacks", "tests", "benchmarks"} & {i.split(".")[0] for i in imports(name)}
        # Nor by name at run time: only YAML knows both.
        strings = [n.value for n in ast.walk(ast.parse(SOURCES[name].read_text())) if isinstance(n, ast.Constant)]
        assert not [s for s in strings if isinstance(s, str) and s.startswith("callbacks.")]


def test_imports_have_no_cycle():
    TopologicalSorter({name: set(imports(name, everywhere=False)) & set(SOURCES) for name in SOURCES}).prepare()


@every
def test_what_a_room_may_know_of_the_world(name):
    found = {i.split(".")[0] for i in imports(name)} - {"calosim", "__future__", *sys.stdlib_module_names}
    if name.startswith("calosim.flows"):
        assert not rooms(name)
        assert found <= {"torch", "zuko", "numpy"}
    if name.startswith(("calosim.metrics", "calosim.representations", "calosim.montecarlo")):
        assert not found & {"lightning", "zuko"}  # no networks
    assert not {i.split(".")[0] for i in imports(name, everywhere=False)} & HEAVY


@pytest.mark.parametrize(
    "code", ["import calosim", *(f"main({a!r})" for a in (["--help"], [], ["--version"], ["nonsense"]))]
)
def test_what_costs_nothing(code):
    code = f"import sys; from calosim.__main__ import main; {code}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "calosim" in loaded
    assert not loaded & {"torch", "lightning", "numpy", "jsonargparse", "uproot", "yaml", *HEAVY}


@pytest.mark.parametrize("tool", [*TOOLS, "submit"])
def test_help_imports_nothing_slow(tool):
    code = f"import sys; from calosim.__main__ import main; main(['{tool}', '--help'])"
    code += "; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *text, loaded = done.stdout.splitlines()
    assert not set(loaded.split()) & {"torch", "lightning", "uproot", *HEAVY}
    assert text[0].startswith(f"usage: calosim {tool} ")


def test_showers_are_simulated_and_written_without_torch(tmp_path):
    words = [
        "simulate",
        "--primaries",
        "20",
        "--responses_per_primary",
        "2",
        "--workers",
        "1",
        "--quiet",
        "--out",
        "x.root",
    ]
    code = f"import os, sys; from calosim.__main__ import main; os.chdir({str(tmp_path)!r}); main({words!r})"
    code += "; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "uproot" in loaded
    assert not loaded & {"torch", "lightning", *HEAVY}


def test_public_names_come_when_they_are_asked_for():
    from calosim import FastSimulator, RootDataModule, Teacher, evaluate, read

    for thing in (FastSimulator, RootDataModule, Teacher, evaluate, read):
        assert getattr(calosim, thing.__name__) is thing
    assert set(calosim.__all__) == set(dir(calosim))
    assert all(getattr(calosim, name) for name in calosim.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = calosim.nothing
