"""The tools: from primaries to tables, options out of functions and settings, switches, and errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from calosim.__main__ import VERBS
from calosim.cli import tools


def test_generate_then_evaluate(run_folders, tmp_path, capsys, command):
    from calosim.showers.reading import read

    primaries = tmp_path / "primaries.csv"
    primaries.write_text("pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0,0,0,100\n2112,1000,0,0,0,0.1,0,-999.99955\n")
    models = ["--shape", run_folders["teacher"], "--photons", run_folders["photons"]]
    models += ["--acceptance", run_folders["acceptance"]]
    words = [*models, "--primaries", primaries, "--responses", 3, "--batch_size", 4, "--out", tmp_path / "made.root"]
    assert command("generate", *words) == 0
    assert read(tmp_path / "made.root", "zn").pdg.tolist() == [22, 22, 22, 2112, 2112, 2112]
    models[3] = f"[{run_folders['photons']}]"
    words = [*models, "--rows", 12, "--runs", 2, "--responses", 2, "--out", tmp_path / "evaluation", "--quiet", "true"]
    capsys.readouterr()
    assert command("evaluate", *words) == 0
    printed = capsys.readouterr().out
    for word in (
        "WS",
        "MAE_cond",
        "δ",
        "JaccErr",
        "floor",
        "trivial",
        "full chain",
        "mixture",
        "response at all",
        "Pictures",
    ):
        assert word in printed
    results = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert 5 <= results["rows"] <= 24
    assert results["data"]["data_hash"]
    written = set(os.listdir(tmp_path / "evaluation"))
    assert {"evaluation.csv", "evaluation.md", "responses.png", "channels.png", "acceptance.png"} <= written


def test_dark_attempts_are_written_if_asked_for(tmp_path, command, error_of):
    from calosim.showers.reading import read

    words = ["simulate", "--primaries", 20, "--responses_per_primary", 1, "--quiet", "true"]
    assert command(*words, "--keep_dark", "true", "--out", tmp_path / "dark.root") == 0
    dark = read(tmp_path / "dark.root", "zn")
    assert len(dark) == 20 * 6
    assert (dark.photon_sum == 0).any()
    both = ["--keep_dark", "true", "--match_sums", 2, "--primaries", tmp_path / "dark.root"]
    assert "expected one of them" in error_of(*words, *both, "--out", tmp_path / "x.root")


def test_evaluate_refuses_a_model_that_may_have_seen_the_rows(run_folders, photons, tmp_path, error_of):
    # As if it had been trained on another split.
    for name in ("config.yaml", "run.json"):
        text = (photons / name).read_text()
        assert "seed" in text
        (photons / name).write_text(_with_seed(name, text))
    judged = ["--shape", run_folders["teacher"], "--photons", f"[{photons.folder}]", "--rows", 5]
    line = error_of("evaluate", *judged, "--out", tmp_path / "e")
    assert "lest it has seen the rows it is judged on; it has seed 7, not" in line
    assert not (tmp_path / "e").exists()


def _with_seed(name: str, text: str, seed: int = 7) -> str:
    if name == "run.json":
        record = json.loads(text)
        record["data"]["seed"] = seed
        return json.dumps(record)
    head, data = text.split("\ndata:\n")
    return head + "\ndata:\n" + "\n".join("  seed: 7" if w.startswith("  seed:") else w for w in data.split("\n"))


def test_evaluate_refuses_changed_data(run_folders, tmp_path, make_showers, error_of):
    from calosim.showers.root import write

    other = tmp_path / "other.root"
    write(other, make_showers(seed=5))
    words = ["--shape", run_folders["teacher"], "--files", f"[{other}]", "--out", tmp_path / "e"]
    assert "not the data of" in error_of("evaluate", *words)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "unknown verb 'train'"),
        (["simulate", "--detector", "xx", "--out", "x.root"], "unknown detector 'xx'"),
        (["simulate", "--primaries", "5", "--out", "/proc/x/zn.root"], "/proc/x"),
        (["generate", "--shape", "nowhere", "--photons", "nowhere", "--primaries", "p", "--out", "o.root"], "nowhere"),
        (["evaluate", "--out", "e"], "nothing to evaluate"),
        (["simulate", "--seed", "-1", "--out", "x.root"], "--seed: expected a whole number from 0 to 2^63 - 1, got -1"),
        (["simulate", "--seed", str(2**64 + 1), "--out", "x.root"], "--seed: expected"),
        (["evaluate", "--shape", "x", "--out", "e", "--trust", "nosuch"], "--trust: no module 'nosuch'"),
    ],
)
def test_errors_are_one_line(words, said, tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    assert said in error_of(*words)
    assert not list(tmp_path.glob("*.root"))


def test_help_lists_every_verb(capsys, command):
    assert command() == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert set(tools.TOOLS) < set(VERBS)


def test_the_installed_command_answers():
    from pathlib import Path

    command = Path(sys.executable).with_name("calosim")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("calosim ")


# -- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """Settings that travel together.

    Attributes:
        width: How wide, in metres.
        names: How it is called.
    """

    width: float = 1.5
    names: tuple[str, ...] = ()


DEFAULT = Size()


def measure(out: str, size: Size = DEFAULT, quiet: bool = False) -> None:
    """Measures.

    Args:
        out: Where to.
        size: Its fields are options.
        quiet: Show no progress.
    """
    measured.append((out, size, quiet))


measured: list[tuple[str, Size, bool]] = []


@pytest.fixture
def tool(monkeypatch):
    """Runs :func:`measure` as a tool and returns what reached it."""
    monkeypatch.setitem(sys.modules, "test_tools_measure", sys.modules[__name__])
    monkeypatch.setitem(tools.TOOLS, "measure", "test_tools_measure:measure")

    def run(*words: str):
        measured.clear()
        tools.run(["measure", *words])
        return measured[0]

    return run


def test_fields_of_settings_are_options(tool, tmp_path):
    assert tool("--out", "x") == ("x", Size(), False)
    assert tool("--out", "x", "--width", "2", "--names", "[a,b]", "--quiet") == ("x", Size(2.0, ("a", "b")), True)
    (tmp_path / "size.yaml").write_text("width: 3\nout: y\n")
    assert tool("-c", str(tmp_path / "size.yaml"), "--out", "x") == ("x", Size(3.0), False)


@pytest.mark.parametrize(("words", "shown"), [(["--quiet"], False), (["--quiet=true"], False), ([], True)])
def test_switches_need_no_value_and_options_take_hyphens(words, shown, tmp_path, capfd, monkeypatch, command):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # where progress would be shown
    out = tmp_path / "zn.root"
    assert command("simulate", "--primaries", 20, "--responses-per-primary=2", *words, "--out", out) == 0
    assert out.exists()
    assert ("showers" in capfd.readouterr().err) == shown
