"""Commands that are asked to end or are killed at any moment: what they leave, and what the same command makes of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from calosim.files import read_json, read_npz
from calosim.runs import Run
from calosim.showers import read

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
            try:
                os.killpg(pid, signum)
            except ProcessLookupError:
                pass  # it was faster
        else:
            while not first and Path(f"/proc/{pid}/stat").exists() and time.perf_counter() - start < 60:
                new = set(folder.rglob("*")) - before - {log}
                first = time.perf_counter() - start if new else 0.0
                time.sleep(0.005)
        code = int(self.process.stdout.readline())
        return Done(code, time.perf_counter() - start, first, log.read_text(errors="replace") if log.exists() else "")
