"""What surrounds a command changes nothing that it does: folders, users, clusters, readers of its output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from calosim import loggers
from calosim.__main__ import _have_home
from calosim.data.cache import cached_arrays
from calosim.processes import own_command
from calosim.runs import Run
from calosim.slurm import TASKS, drop_stale

#: As it is installed, which puts the folder of the program before all others, not the working folder.
PROGRAM = Path(sys.executable).with_name("calosim")
SMALL = ["simulate", "--primaries", "20", "--responses_per_primary", "5", "--quiet"]


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of shell in a folder, in which ``calosim`` is the program."""
    line = line.replace("calosim", str(PROGRAM), 1)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )


# -- what lies in the working folder ----------------------------------------------------------------------------------


def test_nothing_in_the_working_folder_takes_a_modules_place(tmp_path):
    for name in ("calosim/__init__.py", "calosim/__main__.py", "callbacks/__init__.py", "random.py", "yaml.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit(77)")
    given = {"detector": "zn", "primaries": 20, "responses_per_primary": 5}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"out": "o", "simulate": {"x.root": given}, "trainings": {}}))
    assert "nothing to compare" in shell("calosim compare --plan plan.yaml --quiet", tmp_path).stderr
    assert (tmp_path / "x.root").is_file()
    (tmp_path / "mine.py").write_text("open('was-read', 'w').close()")
    shell("calosim fit --model mine.Teacher --data.files x.root --run r", tmp_path)
    assert (tmp_path / "was-read").exists()  # but what is nowhere else is found there


@pytest.mark.parametrize(("first", "safe"), [("/usr/bin", ["-P"]), ("", []), (".", [])])
def test_commands_import_what_their_command_did(first, safe, monkeypatch):
    monkeypatch.setattr(sys, "path", [os.getcwd() if first == "." else first, *sys.path])
    assert own_command(["fit", "--quiet"]) == [sys.executable, *safe, "-m", "calosim", "fit", "--quiet"]


def test_a_working_folder_that_is_gone_is_said(tmp_path):
    done = shell("mkdir x; cd x; rmdir ../x; calosim report --runs /", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("calosim: error: the working folder is no longer there")


# -- who the user is --------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch):
    """A user without a home, a name and an entry among the users, as in a container."""
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "x")  # restored, whatever happens
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)


def test_no_home_is_needed_where_the_cache_is_beside_the_data(nobody, root_file, tmp_path):
    shutil.copy(root_file, tmp_path / "zn.root")
    assert cached_arrays([str(tmp_path / "zn.root")], "zn").parent == tmp_path / ".calosim_cache"


def test_libraries_find_a_home_and_a_name(nobody, monkeypatch):
    made = []
    monkeypatch.setattr("atexit.register", lambda *words, **_: made.append(words[1]))
    _have_home()
    assert [Path.home()] == [Path(folder) for folder in made]
    assert os.environ["USER"] == "4000000000"
    _have_home()
    assert len(made) == 1
    shutil.rmtree(made[0])


# -- servers ----------------------------------------------------------------------------------------------------------


def test_wandb_goes_offline_where_its_server_does_not_answer(monkeypatch, capsys):
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(loggers, "_server", lambda: address)
    loggers.wandb_offline_where_needed()
    assert os.environ["WANDB_MODE"] == "online"
    server.shutdown()
    server.server_close()
    loggers.wandb_offline_where_needed()
    assert os.environ["WANDB_MODE"] == "offline"
    loggers.wandb_offline_where_needed()  # asks no more
    assert capsys.readouterr().err.splitlines() == [
        f"calosim: {address} does not answer; Weights & Biases logs offline, `wandb sync` sends it"
    ]


# -- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", [{"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, {"SLURM_NTASKS": "", "RANK": ""}])
def test_a_shell_inside_of_a_job_is_no_task_of_it(stale, root_file, tmp_path, monkeypatch, command):
    for name, value in ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "jupyter"} | stale).items():
        monkeypatch.setenv(name, value)
    sizes = ["--model.hidden", "[8]", "--model.components", 2, "--model.members", 3, "--trainer.limit_train_batches", 1]
    words = ["-c", "conf/photons.yaml", "--data.files", root_file, *sizes, "--trainer.max_epochs", 1, "--quiet"]
    assert command("fit", *words, "--run", tmp_path / "r") == 0
    assert Run(tmp_path / "r").record["processes"] == 1


def test_a_task_of_srun_keeps_its_numbers(monkeypatch):
    for name in TASKS:
        monkeypatch.setenv(name, "1")
    drop_stale()
    assert all(os.environ[name] == "1" for name in TASKS)


# -- terminals and readers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["0", "1", "24", "10000", "x", ""])
def test_help_fits_any_terminal(columns, command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert command("generate", "--help") == 0
    assert "--responses" in capsys.readouterr().out


@pytest.mark.parametrize("reader", ["| true", "2>&1 | true", ">&-", ">&- 2>&- <&-"])
def test_a_command_outlives_its_readers(reader, tmp_path):
    done = shell(f"calosim {' '.join(SMALL)} --out s.root {reader}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"s.root"}
