"""Runs the steps of a plan: skips what is finished, resumes what was killed, several at once."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tqdm import tqdm

from calosim.commands import own_command
from calosim.slurm import Slurm
from calosim.studies.finished import is_finished, unknown_origin
from calosim.studies.plan import Plan, Step
from calosim.studies.queue import queued, submit_steps
from calosim.studies.steps import beside, command, hold, last_line, sign

__all__ = ["Execution", "run_steps"]

#: How often it is seen whether a step has ended, in seconds.
_PAUSE = 0.1
#: Seconds that commands have to end when they are asked to.
PATIENCE = 20


@dataclass(frozen=True)
class Execution:
    """Where and how the steps of a plan run.

    Attributes:
        executor: local, or slurm: all steps are submitted at once, each after those it needs. The same command again shows how
            they stand, and collects when they are over.
        jobs: Runs at once, locally; they share the processor cores, and take turns at the CUDA devices.
        slurm: What each job asks Slurm for: --slurm.partition, --slurm.gpus, --slurm.time and so on, as of `calosim submit`.
        retry: Submit the steps that failed in Slurm again. Locally they always are.
    """

    executor: Literal["local", "slurm"] = "local"
    jobs: int = 1
    slurm: Slurm | None = None
    retry: bool = False

    def __post_init__(self) -> None:
        if self.executor == "local" and (self.slurm or self.retry):
            raise ValueError("slurm and retry are of `--executor slurm`; expected it beside them")
        if self.jobs < 1:
            raise ValueError(f"expected at least one job, got {self.jobs}")


def run_steps(plan: Plan, execution: Execution = Execution(), quiet: bool = False) -> dict[str, str] | None:
    """Runs what is not finished.

    Args:
        plan: The plan.
        execution: Where and how.
        quiet: Print nothing and show no progress.

    Returns:
        Why steps failed, by name; a step whose need failed is among them. None while steps are in Slurm's queue.

    Raises:
        ValueError: If a finished step was made with other settings than the plan's, or from other data.
    """
    if execution.executor == "slurm":
        return submit_steps(plan, execution.slurm or Slurm(), execution.retry, quiet)
    done: set[str] = set()
    for name, step in plan.steps.items():
        # What is judged anew when its training is: an evaluation that is there is of weights that were there.
        if is_finished(step) and (step.verb != "evaluate" or done.issuperset(step.after)):
            done.add(name)
    with tqdm(total=len(plan.steps), initial=len(done), unit="step", disable=True if quiet else None) as progress:
        study = _Study(plan, list(range(execution.jobs)), progress, quiet, done)
        for line in filter(None, map(unknown_origin, plan.steps.values())):
            study.say(line)
        with _interruptions() as seen:
            try:
                while study.advance():
                    if seen:
                        raise KeyboardInterrupt
                    time.sleep(_PAUSE)
            finally:
                study.end()  # an interrupted study leaves nothing running; it resumes later
    return study.failed


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Ctrl-C and requests to end, such as a batch system's, as they come: none falls between a command's start and its note.

    They are passed on at the end, to what ends the whole command.
    """
    seen: list[int] = []
    before = {kind: signal.signal(kind, lambda k, _: seen.append(k)) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        if seen:
            signal.raise_signal(seen[0])


@dataclass
class _Study:
    """A plan while it runs.

    Attributes:
        plan: The plan.
        slots: Numbers of the commands that may still be started.
        progress: Shows how many steps are over.
        quiet: Whether nothing but failures is said.
        done: Steps that are finished.
        failed: Why steps failed.
        running: Commands with their slots, by step.
        told: Who is waited for, by step.
    """

    plan: Plan
    slots: list[int]
    progress: tqdm[Any]
    quiet: bool
    done: set[str]
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[subprocess.Popen[bytes], int]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.jobs = len(self.slots)

    def say(self, line: str) -> None:
        if not self.quiet:
            tqdm.write(line)

    def advance(self) -> bool:
        """Takes note of what has ended and starts what can be; False if nothing is left."""
        for name, (child, slot) in list(self.running.items()):
            if child.poll() is not None:
                del self.running[name]
                self.slots.append(slot)
                self.note(name, self.reason(self.plan.steps[name], child.returncode))
        for name, step in self.plan.steps.items():
            if name in self.done or name in self.failed or name in self.running:
                continue
            if blocked := [need for need in step.after if need in self.failed]:
                self.failed[name] = f"needs {blocked[0]}, which failed"
                self.progress.update()
            elif self.slots and self.done.issuperset(step.after):
                try:
                    self.start(step)
                except ValueError as error:
                    self.note(name, str(error))
                except OSError as error:  # such as a full disk, in its log
                    self.note(name, f"{error.filename or self.plan.out}: {error.strerror or error}")
        self.progress.set_postfix_str(", ".join(self.running))
        return len(self.done) + len(self.failed) < len(self.plan.steps)

    def note(self, name: str, reason: str) -> None:
        """Takes note of a step that is over."""
        if reason:
            self.failed[name] = reason
            tqdm.write(f"{name}: failed: {reason}")
        else:
            self.done.add(name)
            self.say(f"{name}: done")
        self.progress.update()

    def start(self, step: Step) -> None:
        """Starts a step; a shared training that another study makes is waited for.

        Raises:
            ValueError: If another study runs the step, or another training was begun in its place.
        """
        lock = hold(beside(step, self.plan.out, "lock"))
        if isinstance(lock, str):
            if not step.shared:
                raise ValueError(f"is still run by {lock}; wait for it or end it")
            if self.told.get(step.name) != lock:
                self.told[step.name] = lock
                self.say(f"{step.name}: waits for {lock}, which makes {step.folder}")
            return
        with lock:
            if job := queued(step, self.plan.out):
                raise ValueError(f"is {job}; wait for it or cancel it")
            # Another study may have made it while this one waited for the lock.
            if step.shared and is_finished(step):
                self.note(step.name, "")
                return
            words = command(step)
            slot = self.slots.pop(0)
            with beside(step, self.plan.out, "log").open("ab") as log:
                log.write(f"\n$ calosim {shlex.join(words)}\n".encode())
                log.flush()
                # It holds the lock too: whatever becomes of the study, a step that runs is not begun again.
                child = subprocess.Popen(
                    own_command(words),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"TQDM_DISABLE": "1"} | _share(self.jobs, slot),
                    pass_fds=(lock.fileno(),),
                )
            self.running[step.name] = child, slot
            sign(lock, child.pid)

    def reason(self, step: Step, code: int) -> str:
        """Why a step that ended failed; empty if it did not."""
        if code == 0 and step.result.exists():
            return ""
        log = beside(step, self.plan.out, "log")
        return f"{f'exit {code}' if code else f'no {step.result} was made'}: {last_line(log)} (see {log})"

    def end(self) -> None:
        """Ends what still runs: in order, and by force what does not."""
        for child, _ in self.running.values():
            child.terminate()
        for child, _ in self.running.values():
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _share(jobs: int, slot: int) -> dict[str, str]:
    """The environment of one of several commands that run at once."""
    if jobs == 1:
        return {}
    import torch

    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if (devices := torch.cuda.device_count()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % devices)
    return environment
