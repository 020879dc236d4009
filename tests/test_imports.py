"""Imports point one way, and asking for help costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("calosim", "callbacks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}
CALOSIM = [name for name in SOURCES if name.split(".")[0] == "calosim"]
every = pytest.mark.parametrize("name", SOURCES)

#: What each of the lower rooms may import from calosim; anything here that is missing imports nothing of calosim.
ALLOWED = {
    "detectors": set(),
    "draws": set(),
    "particles": set(),
    "provenance": set(),
    "plotting": {"detectors", "particles", "rootio"},
    "rootio": {"detectors", "particles", "provenance"},
    "montecarlo": {"detectors", "particles", "rootio"},
    "calibration": {"detectors", "particles", "rootio", "montecarlo", "metrics"},
    "data": {"detectors", "draws", "particles", "rootio"},
    "preprocessing": {"detectors", "draws"},
    "losses": {"detectors"},
    "metrics": {"detectors", "particles"},
    "base": {"detectors", "draws", "preprocessing"},
}
MODELS = {"teacher", "student", "photons", "finetune"}
MODEL_IMPORTS = {"base", "detectors", "draws", "flows", "losses", "metrics", "particles", "preprocessing", *MODELS}
#: Tools on top of run folders: only the command line knows them, by name.
TOP = {"explain", "compare", "report", "export"}
#: Slow, optional or graphical: imported in the function that needs them.
HEAVY = {"shap", "wandb", "matplotlib", "scipy", "onnx", "onnxruntime", "pandas"}


def imports(name: str, everywhere: bool = True) -> Iterator[str]:
    """Full names of what a module imports; without `everywhere` only what importing it imports."""
    path = SOURCES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in SOURCES else base
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def rooms(name: str, everywhere: bool = True) -> set[str]:
    """The parts of calosim a module imports: `calosim.flows.made` is `flows`."""
    found = {i.split(".")[1] for i in imports(name, everywhere) if i.startswith("calosim.")}
    return found - {name.split(".")[1] if "." in name else ""}


def test_the_reader_of_imports_sees_what_is_there():
    assert "calosim.rootio" in imports("calosim.data")
    assert "calosim.flows.autoregressive" in imports("calosim.flows")
    assert "particle" in set(imports("calosim.particles")) - set(imports("calosim.particles", everywhere=False))
    assert "matplotlib.figure" not in imports("calosim.plotting", everywhere=False)
    assert "base" in rooms("calosim.teacher")


@pytest.mark.parametrize("name", CALOSIM)
def test_calosim_never_imports_callbacks(name):
    assert not [i for i in imports(name) if i.split(".")[0] in ("callbacks", "tests", "benchmarks")]
    # Nor by name at run time: only YAML knows both.
    strings = [n.value for n in ast.walk(ast.parse(SOURCES[name].read_text())) if isinstance(n, ast.Constant)]
    assert not [s for s in strings if isinstance(s, str) and s.startswith("callbacks.")]


@pytest.mark.parametrize("name", [n for n in CALOSIM if n.startswith("calosim.flows")])
def test_flows_know_torch_and_zuko_only(name):
    known = {"torch", "zuko", "numpy", "__future__", *sys.stdlib_module_names}
    foreign = [i for i in imports(name) if i.split(".")[0] not in known and not i.startswith("calosim.flows")]
    assert not foreign


@pytest.mark.parametrize("room", [r for r in ALLOWED if f"calosim.{r}" in SOURCES])
def test_lower_rooms_import_only_what_is_below_them(room):
    assert rooms(f"calosim.{room}") <= ALLOWED[room]


@pytest.mark.parametrize("model", sorted(m for m in MODELS if f"calosim.{m}" in SOURCES))
def test_models_know_neither_files_nor_tools(model):
    assert rooms(f"calosim.{model}") <= MODEL_IMPORTS


@every
def test_nothing_imports_the_tools_on_top(name):
    if name.split(".")[-1] not in TOP:
        assert not rooms(name) & TOP


@every
def test_importing_a_module_imports_nothing_heavy(name):
    found = {i.split(".")[0] for i in imports(name, everywhere=False)}
    # Pictures are a callback's purpose, but it does not need them to be imported either.
    assert not found & HEAVY


def test_imports_have_no_cycle():
    below = {n: rooms(n, everywhere=False) for n in CALOSIM if n.count(".") == 1}
    graph = {n.split(".")[1]: targets for n, targets in below.items()}
    while graph:
        free = {room for room, targets in graph.items() if not targets & set(graph)}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {room: targets for room, targets in graph.items() if room not in free}


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["nonsense"]], ids=str)
def test_help_is_light(arguments):
    code = (
        "import sys\nfrom calosim.__main__ import main\n"
        f"status = main({arguments!r})\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules}), status, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "calosim" in loaded
    assert not loaded & {"torch", "lightning", "numpy", "jsonargparse", "uproot", *HEAVY}


def test_the_command_runs_as_a_module():
    command = [sys.executable, "-m", "calosim", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for verb in ("simulate", "convert", "fit", "generate", "evaluate"):
        assert f"  {verb} " in done.stdout
