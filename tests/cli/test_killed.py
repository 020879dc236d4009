"""Commands that are asked to end or are killed at any moment: what they leave, and what the same command makes of it."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from calosim.data import read
from calosim.io import read_json, read_npz
from calosim.runs import Run

#: Runs commands, each in a process and a group of its own, forked from one that has imported what they need: what a moment
#: drawn at random falls into is then their work.
FORGE = """
import json, os, sys
import torch, lightning, matplotlib.pyplot, sklearn.ensemble, uproot, shap, onnx, torch._inductor.config
import calosim.cli.train, calosim.cli.tools, calosim.evaluation.evaluate, calosim.studies.compare, calosim.simulation.simulator
from calosim.__main__ import main
for line in sys.stdin:
    words, folder = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv[1:] = words
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
#: Seconds that an ended process may take to be gone.
PATIENCE = 10


class Done(NamedTuple):
    """A command that has ended: its status, the seconds it took, when it first wrote into its folder, and what it said."""

    code: int
    seconds: float
    first: float
    said: str


class Forge:
    """Starts commands in folders, and sends them a signal after some time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, words: Sequence[Any], folder: Path, signum: int = 0, after: float = 0.0) -> Done:
        log = folder / "log"
        log.unlink(missing_ok=True)
        before = set(folder.rglob("*"))
        print(json.dumps([list(map(str, words)), str(folder)]), file=self.process.stdin, flush=True)
        pid, start, first = int(self.process.stdout.readline()), time.perf_counter(), 0.0
        if signum:
            time.sleep(after)
            with suppress(ProcessLookupError):  # it was faster
                os.killpg(pid, signum)
        else:
            while not first and Path(f"/proc/{pid}/stat").exists() and time.perf_counter() - start < 60:
                new = set(folder.rglob("*")) - before - {log}
                first = time.perf_counter() - start if new else 0.0
                time.sleep(0.005)
        code = int(self.process.stdout.readline())
        return Done(code, time.perf_counter() - start, first, log.read_text(errors="replace") if log.exists() else "")

    def close(self) -> None:
        self.process.communicate("")


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    made = Forge()
    yield made
    made.close()


@pytest.fixture(scope="module")
def words(run_folders, root_file) -> dict[str, list[Any]]:
    """A command of each verb, whose outputs are relative to where it is started."""
    conf = Path("conf").absolute()
    models = ["--shower", run_folders["splits"], "--photons", run_folders["photons"]]
    fit = [
        "--data.files",
        root_file,
        "--data.batch_size",
        128,
        "--trainer.max_epochs",
        3,
        "--trainer.log_every_n_steps",
        1,
    ]
    tiny = ["--model.hidden", "[8]", "--model.members", 2, "--trainer.enable_model_summary", "false"]
    return {
        "simulate": ["simulate", "--primaries", 300, "--responses_per_primary", 20, "--out", "made.root", "--quiet"],
        "convert": ["convert", "--source", root_file, "--out", "made.root", "--quiet"],
        "fit": ["fit", "-c", conf / "photons.yaml", *fit, *tiny, "--run", "run"],
        "generate": ["generate", *models, "--primaries", root_file, "--out", "made.root", "--batch_size", 32],
        "evaluate": ["evaluate", *models, "--runs", 1, "--responses", 2, "--out", "judged", "--quiet"],
        "compare": ["compare", "--plan", "plan.yaml", "--resamples", 100],
        "explain": ["explain", "--photons", run_folders["photons"], "--out", "explained", "--quiet"],
        "report": ["report", "--runs", run_folders["photons"], "--quiet"],
        "export": ["export", *models, "--out", "exported"],
    }


def plan(root_file: Path) -> str:
    """A study of one tiny training, and what judges it."""
    options = {"data.files": [str(root_file)], "data.batch_size": 128, "trainer.max_epochs": 2}
    options |= {f"model.representation.{size}": 8 for size in ("hidden", "event", "local_hidden")}
    options |= {"trainer.callbacks.rows": 8, "trainer.callbacks.pictures": 2}
    entries = {
        "out": "study",
        "simulate": {"made.root": {"detector": "zn", "primaries": 20, "responses_per_primary": 2}},
        "trainings": {"base": {"config": ["conf/teacher.yaml"], "options": options}},
        "evaluate": {"runs": 1, "rows": 50},
    }
    return yaml.safe_dump(entries)


# -- killed ------------------------------------------------------------------------------------------------------------

#: What tells when something was made, how long it took, and in how many sessions.
TIMES = ("started", "finished", "seconds", "ms", "timing", "sessions")


#: What is no result: what the commands said, locks, temporaries, and what resumed sessions say of themselves.
ASIDE = r"\.calosim-part|resumed|\.lock$|log$|plan\.yaml$"


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What is in a file, all of which must be there, but for times."""
    match path.suffix:
        case ".root":
            read(path)
            return path.read_bytes()
        case ".json":
            return timeless(read_json(path))
        case ".npz":
            return {name: (values.dtype.str, values.tobytes()) for name, values in read_npz(path).items()}
        case ".npy":
            return np.load(path).tobytes()
        case ".ckpt":
            stored = torch.load(path, weights_only=True)
            leaves = torch.utils._pytree.tree_flatten_with_path([stored["state_dict"], stored["optimizer_states"]])[0]
            tensors = {str(key): value.numpy().tobytes() for key, value in leaves if isinstance(value, torch.Tensor)}
            return tensors, stored["epoch"], stored["global_step"]
        case ".md":
            return path.read_text().partition("## Cost")[0]  # what it took is told below
        case ".png":
            return path.read_bytes()[-8:]  # the end of every whole picture
    return path.read_bytes()


def made(folder: Path) -> dict[str, Any]:
    """All that a command has made, by name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not re.search(ASIDE, str(path))]
    return {str(path.relative_to(folder)): content(path) for path in files}


def again(words: list[Any], folder: Path) -> list[Any]:
    """What goes on with a killed command: the same, which of a training that has a checkpoint says so; none if it was done."""
    run = Run(folder / "run")
    if words[0] != "fit" or run.begun_only or not run.exists:
        return words
    return [] if run.training else [*words, "--ckpt_path", "last"]


OTHERS = ("explain", "report", "export")
VERBS = ("simulate", "convert", "fit", "generate", "evaluate", "compare")


@pytest.mark.parametrize(
    ("verb", "moments"),
    [
        *((verb, 2) for verb in VERBS[:4]),
        *(pytest.param(verb, 20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]) for verb in VERBS),
    ],
)
def test_a_killed_command_ends_with_the_same_bits(verb, moments, forge, words, root_file, tmp_path):
    def begin(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plan.yaml").write_text(plan(root_file))
        return folder

    straight = forge(words[verb], begin("straight"))
    assert straight.code == 0, straight.said
    whole = made(tmp_path / "straight")
    rng, left = random.Random(verb), 0
    for k in range(moments):
        folder = begin(str(k))
        moment = rng.uniform((0, straight.first)[k % 2], straight.seconds)
        killed = forge(words[verb], folder, signal.SIGKILL, moment)
        for name, value in made(folder).items():
            # What is there is whole. Trainings write what they log line by line, and their models epoch by epoch.
            assert "run/" in name or "study/" in name or value == whole[name], (moment, name)
        left += any(folder.rglob("*.calosim-part"))
        if line := again(words[verb], folder):
            resumed = forge(line, folder)
            assert resumed.code == 0, (moment, resumed.said)
        result = made(folder)
        different = [name for name, value in whole.items() if result.get(name) != value]
        assert different == [], (moment, [result.get(name) for name in different if name.endswith(".csv")])
        assert set(result) == set(whole), moment
        assert not list(folder.rglob("*.calosim-part")), moment
        assert killed.code in (0, -signal.SIGKILL)
        shutil.rmtree(folder)
    print(f"{verb}: {moments} moments within {straight.seconds:.2f} s, {left} of which left temporaries")


# -- asked to end ------------------------------------------------------------------------------------------------------

SAID = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


@pytest.mark.parametrize("signum", SAID)
@pytest.mark.parametrize(
    ("verb", "moments"),
    [
        *((verb, 1) for verb in ("simulate", "fit", "generate")),
        *(pytest.param(verb, 5, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]) for verb in (*VERBS, *OTHERS)),
    ],
)
def test_who_is_asked_to_end_says_so_and_leaves_no_temporaries(
    verb, moments, signum, forge, words, root_file, tmp_path
):
    def begin(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plan.yaml").write_text(plan(root_file))
        return folder

    seconds, rng = forge(words[verb], begin("straight")).seconds, random.Random(f"{verb} {signum}")
    (code, word), asked = SAID[signum], 0
    for k in range(moments):
        folder, moment = begin(str(k)), rng.uniform(0.05, 0.7 * seconds)
        done = forge(words[verb], folder, signum, moment)
        assert not list(folder.rglob("*.calosim-part"))
        if done.code == 0:  # it was faster
            continue
        asked += 1
        assert (done.code, "Traceback" in done.said) == (code, False), done.said
        assert done.said.splitlines()[-1].startswith(f"calosim: {word}"), done.said
        assert done.seconds < moment + PATIENCE
    assert asked or moments == 1


def test_a_training_that_was_ended_is_no_success_and_goes_on(words, tmp_path):
    """The real command, with its start: `fit && next` does not go on to what is next."""
    line = [sys.executable, "-m", "calosim", *map(str, words["fit"]), "--trainer.max_epochs", "1000"]
    shell = subprocess.Popen(
        ["bash", "-c", f"{shlex.join(line)} && touch next"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    last, deadline = Run(tmp_path / "run").last, time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(shell.pid, signal.SIGTERM)
    said = shell.communicate(timeout=60)[1].splitlines()
    assert [line for line in said if line.startswith("calosim: ")] == [
        "calosim: terminated; run goes on with --ckpt_path last"
    ]
    assert not (tmp_path / "next").exists()
    assert not (tmp_path / "run" / Run.TRAINING).exists()


def test_what_was_asked_to_end_never_succeeds(capfd):
    """Even where other people's code took the interrupt for an error, or forgot it."""
    from calosim.processes import ended_in_order

    handler = signal.getsignal(signal.SIGTERM)
    for become in (None, SystemExit(0), ImportError("half"), KeyboardInterrupt("where it goes on")):
        with ended_in_order() as status:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            if become:
                raise become
        assert status(0) == 143
    assert capfd.readouterr().err.splitlines() == [
        *["calosim: terminated"] * 3,
        "calosim: terminated; where it goes on",
    ]
    assert signal.getsignal(signal.SIGTERM) is handler
    with ended_in_order() as status:
        pass
    assert status(2) == 2


def test_an_interrupt_that_was_lost_comes_again(capfd):
    """Python ignores what is raised in a callback of C, such as numba's compiler makes."""
    from calosim.processes import ended_in_order

    callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGTERM))
    with ended_in_order() as status:
        callback()
        time.sleep(20)
        pytest.fail("the interrupt was lost")
    assert status(0) == 143
    assert capfd.readouterr().err == "calosim: terminated\n"
