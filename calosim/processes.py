"""Processes and threads: how commands of calosim are started and asked to end, and one thread where products are small."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

__all__ = ["ended_in_order", "look_here_last", "one_thread", "own_command"]

#: What is said of a command that was asked to end.
SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def own_command(words: Sequence[str]) -> list[str]:
    """A command of calosim as another process starts it, which imports what this one did, whatever lies in its working folder."""
    return [sys.executable, *([] if _here_is_first() else ["-P"]), "-m", "calosim", *words]


def look_here_last() -> None:
    """Lets modules of the working folder be imported, ``--model mine.MyTeacher``, which shadow none that is found otherwise.

    Whatever Python processes this one starts import as it does. At the end of ``sys.path`` the folder would still come before
    a package that is installed to be edited.
    """
    if not _here_is_first():
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    if _HereLast not in sys.meta_path:
        sys.meta_path.append(_HereLast)


def _here_is_first() -> bool:
    """Whether modules in the working folder come before all others, as ``python -m`` has it."""
    return sys.path[0] in ("", os.getcwd())


class _HereLast:
    """Finds modules in the working folder."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The module of a name that lies there; parts of packages lie in their packages."""
        return PathFinder.find_spec(name, [""]) if path is None else None


@contextmanager
def ended_in_order() -> Iterator[Callable[[int], int]]:
    """Makes SIGTERM and Ctrl-C a :class:`KeyboardInterrupt`, at which ``finally`` removes what is not finished.

    Yields:
        A function that makes a command's exit status 130 or 143, after one line, if it was asked to end: whatever came of
        the interrupt in other people's code, nothing shall follow such a command.
    """
    came: list[int] = []
    said: list[str] = []
    timers: list[threading.Timer] = []
    hook = sys.unraisablehook

    def end(signum: int, _: Any) -> None:
        came.append(signum)
        if signum == signal.SIGTERM and signal.getsignal(signum) is not end and "SLURM_JOB_ID" in os.environ:
            return  # a training in a batch job, whose handlers stand before this one, ends with a checkpoint
        for known in SAID:
            signal.signal(known, signal.SIG_DFL)  # a second request ends the process at once
        raise KeyboardInterrupt

    def again(lost: Any) -> None:
        """Asks once more, a moment later, where the interrupt fell into a callback of C, in which Python ignores it."""
        if not came or not isinstance(lost.exc_value, KeyboardInterrupt):
            return hook(lost)
        signal.signal(came[0], end)
        timers.append(threading.Timer(0.05, os.kill, (os.getpid(), came[0])))
        timers[-1].start()

    def status(code: int) -> int:
        if not came:
            return code
        print(f"calosim: {''.join([SAID[signal.Signals(came[0])], *said])}", file=sys.stderr, flush=True)
        return 128 + came[0]

    if threading.current_thread() is not threading.main_thread():
        yield status  # signals are the main thread's
        return
    # What is ignored stays so, as a shell has it for Ctrl-C and what runs in the background.
    before = {known: signal.signal(known, end) for known in SAID if signal.getsignal(known) != signal.SIG_IGN}
    sys.unraisablehook = again
    try:
        yield status
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            came = came or [signal.SIGINT]
            said = [f"; {word}" for word in error.args]
        # Such as Lightning's own exit, or an import that could not be finished. Others have a status that tells more.
        told = isinstance(error, SystemExit) and error.code not in (None, 0, 1)
        if not came or told or os.environ.get("CALOSIM_TRACEBACK"):
            raise
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
        sys.unraisablehook = hook
        for known, handler in before.items():
            signal.signal(known, handler)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, inside a ``with`` or in a function that this decorates.

    Threads that share a small product wait for each other at its end, and where a neighbor keeps the machine busy they wait
    long. This tells MKL too, which keeps a number of its own once torch has set one.
    """
    import torch  # which most commands that are started do without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
