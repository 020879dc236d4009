"""Runs the steps of a plan: skips what is finished, resumes what was killed, several at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from calosim.runs import Run
from calosim.studies.finished import check_training, is_finished, unknown_origin
from calosim.studies.plan import Plan, Step

__all__ = ["run_steps"]

#: Seconds that commands have to end when they are asked to.
PATIENCE = 20


def run_steps(
    plan: Plan, jobs: int = 1, quiet: bool = False, only: Callable[[Step], bool] = lambda step: True
) -> dict[str, str]:
    """Runs what is not finished.

    Args:
        plan: The plan.
        jobs: How many commands run at once; they share the processor cores, and take turns at the CUDA devices.
        quiet: Print nothing and show no progress.
        only: Which steps are wanted.

    Returns:
        Why steps failed, by name; a step whose need failed is among them.

    Raises:
        ValueError: If a finished step was made with other settings than the plan's, or from other data.
    """
    if jobs < 1:
        raise ValueError(f"expected at least one job, got {jobs}")
    wanted = {name: step for name, step in plan.steps.items() if only(step)}
    done = {name for name, step in wanted.items() if is_finished(step)} | (set(plan.steps) - set(wanted))
    failed: dict[str, str] = {}
    running: dict[Future[str], str] = {}
    workers = _Workers(plan.out, jobs, quiet)
    progress = tqdm(total=len(wanted), initial=len(done & set(wanted)), unit="step", disable=True if quiet else None)
    with progress, ThreadPoolExecutor(jobs) as pool:
        for line in filter(None, map(unknown_origin, wanted.values())):
            workers.say(line)
        try:
            while True:
                for name, step in wanted.items():
                    if name in done or name in failed or name in running.values():
                        continue
                    if blocked := [need for need in step.after if need in failed]:
                        failed[name] = f"needs {blocked[0]}, which failed"
                        progress.update()
                    elif workers.slots and done.issuperset(step.after):
                        running[pool.submit(workers.run, step, workers.slots.pop(0))] = name
                progress.set_postfix_str(", ".join(running.values()))
                if not running:
                    return failed
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    if reason := future.result():
                        failed[name] = reason
                        progress.write(f"{name}: failed: {reason}")
                    else:
                        done.add(name)
                        workers.say(f"{name}: done")
                    progress.update()
        finally:
            workers.end()  # an interrupted study leaves nothing running; it resumes later


@dataclass
class _Workers:
    """What the threads that run steps share.

    Attributes:
        out: The study's folder, for logs.
        jobs: How many there are.
        quiet: Whether they print nothing.
        slots: Numbers of the free ones.
        children: The commands that run.
        stop: Set when the study ends.
    """

    out: Path
    jobs: int
    quiet: bool
    slots: list[int] = field(init=False)
    children: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.slots = list(range(self.jobs))

    def say(self, line: str) -> None:
        if not self.quiet:
            tqdm.write(line)

    def end(self) -> None:
        """Ends what runs: in order, and by force what does not."""
        self.stop.set()
        with self._guard:
            for child in self.children:
                child.terminate()
            for child in self.children:
                try:
                    child.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    child.kill()

    def run(self, step: Step, slot: int) -> str:
        """Runs one step to its end; an empty text, or why it failed."""
        try:
            with self._alone(step) as lock:
                # Another study may have made it while this one waited for the lock.
                return "" if step.shared and is_finished(step) else self._execute(step, slot, lock)
        except ValueError as error:
            return str(error)
        except OSError as error:  # such as a full disk, in its log
            return f"{error.filename or self.out}: {error.strerror or error}"
        finally:
            with self._guard:
                self.slots.append(slot)

    def _execute(self, step: Step, slot: int, lock: TextIO) -> str:
        words = [*step.words, *_resumption(step)]
        environment = os.environ | {"TQDM_DISABLE": "1"}
        if self.jobs > 1:
            environment |= _share(self.jobs, slot)
        log = self._log(step, "log")
        with log.open("ab") as stream:
            command = [sys.executable, "-m", "calosim", step.verb, *words]
            stream.write(f"\n$ calosim {' '.join([step.verb, *words])}\n".encode())
            stream.flush()
            with self._started(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, lock=lock) as child:
                code = child.wait()
                with self._guard:
                    self.children.discard(child)
        if code == 0 and step.result.exists():
            return ""
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = f"exit {code}" if code else f"no {step.result} was made"
        return f"{reason}: {lines[-1][:300]} (see {log})"

    def _started(self, command: Sequence[str], lock: TextIO, **how: Any) -> subprocess.Popen[bytes]:
        """Starts a command that holds the lock too: whatever becomes of the study, a step that runs is not begun again."""
        with self._guard:
            if self.stop.is_set():
                raise ValueError("interrupted")
            child = subprocess.Popen(command, pass_fds=(lock.fileno(),), **how)
            self.children.add(child)
        _sign(lock, child.pid)
        return child

    def _log(self, step: Step, suffix: str) -> Path:
        path = self.out / "logs" / f"{step.name.replace('/', '_')}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def _alone(self, step: Step) -> Iterator[TextIO]:
        """Holds the step's lock, which names the process that does; a shared training is waited for.

        Raises:
            ValueError: If another study runs the step.
        """
        path = step.folder.with_name(f".{step.folder.name}.lock") if step.shared else self._log(step, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as stream:
            told = False
            while not _lock(stream):
                stream.seek(0)
                holder = stream.read().strip()
                if not step.shared:
                    raise ValueError(f"is still running as process {holder}; wait for it or end it")
                if not told:
                    self.say(f"{step.name}: waits for process {holder}, which makes {step.folder}")
                    told = True
                if self.stop.wait(1):
                    raise ValueError("interrupted")
            _sign(stream, os.getpid())
            yield stream


def _lock(stream: TextIO) -> bool:
    """Takes a lock that the system releases when the last process that has the file open ends; False if it is taken."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(lock: TextIO, pid: int) -> None:
    lock.truncate(0)
    lock.write(str(pid))
    lock.flush()


def _resumption(step: Step) -> list[str]:
    """Further words that resume a begun training; a folder with nothing to resume is removed.

    Raises:
        ValueError: If another training than the step's was begun there.
    """
    if step.verb != "fit" or not step.folder.exists() or not any(step.folder.iterdir()):
        return []
    check_training(step, "begun")
    if Run(step.folder).last.exists():
        return ["--ckpt_path", "last"]
    shutil.rmtree(step.folder)  # killed before its first checkpoint
    return []


def _share(jobs: int, slot: int) -> dict[str, str]:
    """The environment of one of several commands that run at once."""
    import torch

    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    if (devices := torch.cuda.device_count()) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % devices)
    return environment
