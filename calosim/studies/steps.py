"""A step of a plan as a command of its own: its words, its log, and the lock that keeps others from it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from calosim.io import temporary_folder
from calosim.runs import Run
from calosim.studies.finished import check_training
from calosim.studies.plan import Step

__all__ = ["beside", "command", "hold", "last_line", "sign"]


def command(step: Step) -> list[str]:
    """The words of ``calosim`` that make a step, or go on with it; a training's folder with nothing to go on with is removed.

    Raises:
        ValueError: If another training than the step's was begun there, or a process trains there.
    """
    words = [step.verb, *step.words]
    run = Run(step.folder)
    if step.verb != "fit" or run.is_bare:
        return words
    check_training(step, "begun")
    there = {
        name: path.stat().st_mtime
        for name, path in {"last": run.last, "hpc": run.hpc}.items()
        if path and path.exists()
    }
    if there:
        return [*words, "--ckpt_path", max(there, key=lambda name: there[name])]
    held = run.claim()  # refused while it is trained, on whichever host
    # Killed before its first checkpoint; aside first, so that nobody finds half of it.
    with temporary_folder(step.folder.parent) as aside:
        step.folder.rename(aside / step.folder.name)
    run.release(held)
    return words


def beside(step: Step, out: Path, suffix: str) -> Path:
    """A file about a step: beside the folder of a shared training, which other studies have too, else among the study's logs."""
    if step.shared and suffix != "log":
        path = step.folder.with_name(f".{step.folder.name}.{suffix}")
    else:
        path = out / "logs" / f"{step.name.replace('/', '_')}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def hold(path: Path) -> TextIO | str:
    """Takes a lock, which the system releases when the last process that has the file open ends, on whichever host that is.

    Returns:
        The open file; or who has the lock, in words.
    """
    stream = path.open("a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with stream:
            stream.seek(0)
            return stream.read().strip()
    except OSError:
        pass  # a file system without locks
    sign(stream, os.getpid())
    return stream


def sign(lock: TextIO, pid: int) -> None:
    """Writes down who has a lock: a process of a host, and since when."""
    lock.truncate(0)
    lock.write(f"process {pid} of {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    lock.flush()


def last_line(log: Path) -> str:
    """The last line of a log that is not about the log's own job; empty without one."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("srun: ")]
    return lines[-1][:300] if lines else ""
