"""Batch jobs of Slurm: what a job asks for, the script that says so, and the job that this process belongs to."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calosim.io import atomic_write
from calosim.processes import own_command

__all__ = [
    "SECONDS",
    "TASK",
    "Slurm",
    "drop_stale",
    "forget",
    "listen",
    "own_command",
    "own_job",
    "requeue",
    "starts_again",
    "told",
]

#: What stands for the number of a job in its array.
TASK = "{task}"
#: Variables by which srun tells a process which task of how many it is, and by which others do.
TASKS = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
#: Signals that told this process to make room.
_HEARD: list[int] = []
#: How long before its limit a training is told to write its checkpoint, in seconds.
SECONDS = 120
#: What Slurm takes as memory, as a time and as numbers of an array, with examples.
FORMS = {
    "mem": (r"\d+([KMGT]B?)?", "memory such as 16G"),
    "time": (r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", "minutes or a time such as 4:00:00 or 1-12"),
    "array": (r"\d+(-\d+(:[1-9]\d*)?)?(,\d+(-\d+(:[1-9]\d*)?)?)*(%\d+)?", "numbers such as 0-15 or 0-15%4"),
}


@dataclass(frozen=True)
class Slurm:
    """What a batch job asks Slurm for.

    What is not given is the cluster's default, or what sbatch finds in ``SBATCH_PARTITION``, ``SBATCH_ACCOUNT`` and so on.

    Args:
        partition: Partition.
        account: Account or grant that pays.
        nodes: Nodes.
        gpus: GPUs of each node, one for each task.
        tasks: Tasks, that is processes, of each node; one for each GPU if not given, or one.
        cpus: Processors of each task.
        mem: Memory of each node, such as 16G.
        time: Limit, such as 4:00:00 or 1-12; in a file between quotes.
        constraint: Features that the nodes must have.
        array: Numbers of equal jobs, such as 0-15 or 0-15%4; ``{task}`` in the command stands for each one's own.
        more: Other options of sbatch, such as ``[qos=long, exclusive]``.
        setup: Lines of shell before the command, such as ``[module load CUDA]``.
        folder: Where scripts and logs are written.
    """

    partition: str | None = None
    account: str | None = None
    nodes: int = 1
    gpus: int = 0
    tasks: int | None = None
    cpus: int | None = None
    mem: str | None = None
    time: str | None = None
    constraint: str | None = None
    array: str | None = None
    more: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    folder: str = "slurm"

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1}
        if low := [
            name for name, number in least.items() if (value := getattr(self, name)) is not None and value < number
        ]:
            raise ValueError(f"--slurm.{low[0]}: expected at least {least[low[0]]}, got {getattr(self, low[0])}")
        for name, (form, example) in FORMS.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(form, str(value)):
                raise ValueError(f"--slurm.{name}: expected {example}, got {value!r}")
        if self.array and not self.numbers:
            raise ValueError(f"--slurm.array: expected numbers that ascend, got {self.array!r}")

    @property
    def devices(self) -> int:
        """Tasks of each node."""
        return self.tasks or self.gpus or 1

    @property
    def numbers(self) -> list[int]:
        """Those of an array's jobs; none without an array."""
        found: list[int] = []
        for part in filter(None, (self.array or "").partition("%")[0].split(",")):
            ends, _, step = part.partition(":")
            first, _, last = ends.partition("-")
            found += range(int(first), int(last or first) + 1, int(step or 1))
        return found

    def script(self, command: Sequence[str], requeue: bool = False, name: str | None = None) -> str:
        """The batch script of a ``calosim`` command.

        Args:
            command: Subcommand and options.
            requeue: Whether the command goes on where it was when its job starts again: it is told before the limit.
            name: Path of the log up to the job's number; the subcommand if not given, as no folder is made for it.
        """
        log = f"{name or command[0]}-{'%A-%a' if self.array else '%j'}.out"
        asked = {
            "job-name": f"calosim-{command[0]}",
            "chdir": os.getcwd(),
            "output": log,
            "open-mode": "append",  # the log of a job that starts again is one
            "partition": self.partition,
            "account": self.account,
            "nodes": self.nodes,
            "ntasks-per-node": self.devices,
            "cpus-per-task": self.cpus,
            "gpus-per-node": self.gpus or None,
            "mem": self.mem,
            "time": self.time,
            "constraint": self.constraint,
            "array": self.array,
            "signal": f"USR1@{SECONDS}" if requeue else None,
        }
        options = [f"{key}={value}" for key, value in asked.items() if value is not None]
        options += (["requeue"] if requeue else []) + [f"{option}".lstrip("-") for option in self.more]
        # srun does not take the processors of a task from sbatch.
        srun = ["srun", "--kill-on-bad-exit=1", *([f"--cpus-per-task={self.cpus}"] if self.cpus else [])]
        words = [*srun, *own_command(command)]
        head = [
            "#!/bin/bash",
            "# A calosim job; `sbatch` of this file submits it again.",
            *(f"#SBATCH --{o}" for o in options),
        ]
        return "\n".join([*head, "", "set -euo pipefail", *self.setup, " ".join(map(_shell, words)), ""])

    def submit(self, command: Sequence[str], requeue: bool = False) -> tuple[str, Path]:
        """Writes the batch script and submits it.

        Args:
            command: Subcommand and options.
            requeue: As for :meth:`script`.

        Returns:
            The job's number and the script.

        Raises:
            ValueError: If there is no Slurm, or it refuses the job.
        """
        name = f"{self.folder}/{command[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        path = Path(f"{name}.sh")
        atomic_write(path, self.script(command, requeue, name))
        try:
            done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ValueError(
                f"{path}: written, but sbatch is not there: expected a machine that submits to Slurm"
            ) from None
        if done.returncode:
            raise ValueError(f"{path}: refused by sbatch: {' '.join(done.stderr.split())}")
        return done.stdout.strip().partition(";")[0], path


def drop_stale() -> None:
    """Drops what the environment says of a task that this process is not, which others would believe.

    A shell inside of a job, a notebook for instance, has the job's number of tasks, and srun has started none of them there.
    """
    for name in [name for name, value in os.environ.items() if name in (*TASKS, *RANKS) and not value]:
        del os.environ[name]
    if "SLURM_STEP_ID" not in os.environ:
        for name in TASKS:
            os.environ.pop(name, None)


def own_job() -> dict[str, str] | None:
    """The job that this process runs in, ``{"cluster": ..., "job": ...}``; None outside of jobs.

    A job that starts again keeps its number, and so does each one of an array.
    """
    job = os.environ.get("SLURM_JOB_ID")
    return None if not job else {"cluster": os.environ.get("SLURM_CLUSTER_NAME", ""), "job": job}


def starts_again() -> bool:
    """Whether the job that this process runs in was run before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def listen(number: int = signal.SIGUSR1) -> None:
    """Notes a signal in a job from now on, as long as this process lives, which would end it."""
    if own_job() and threading.current_thread() is threading.main_thread():
        signal.signal(number, lambda came, _: _HEARD.append(came))


def told() -> bool:
    """Whether this process was told to make room."""
    return bool(_HEARD)


def forget() -> None:
    """Begins a training that was not told yet."""
    _HEARD.clear()


def requeue(job: str) -> str:
    """Puts a job back into the queue, which ends it.

    Returns:
        An empty text, or why it could not be done.
    """
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"scontrol: {error.strerror}"
    return "" if done.returncode == 0 else " ".join(done.stderr.split())


def _shell(word: str) -> str:
    """A word as the shell takes it, with the job's number in its array."""
    if TASK not in word:
        return shlex.quote(word)
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in word.split(TASK))
