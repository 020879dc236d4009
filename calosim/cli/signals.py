"""Ctrl-C and SIGTERM: every command ends in order, with one line and a status that `fit && next` understands."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from calosim.slurm import own_job

__all__ = ["ended_in_order"]

#: What is said of a command that was asked to end.
SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

#: Seconds after which a request that was lost is made again.
_MOMENT = 0.05


class _Request:
    """A request to end: the signal, once there is one, and what takes it."""

    signum: int | None = None
    _timer: threading.Timer | None = None

    def __init__(self) -> None:
        self.hook = sys.unraisablehook

    def __call__(self, signum: int, _: Any) -> None:
        """Ends what is being done; a second request ends the process at once."""
        self.signum = self.signum or signum
        if signum == signal.SIGTERM and signal.getsignal(signum) is not self and own_job():
            return  # a training in a batch job, whose handlers stand before this one, ends with a checkpoint
        for known in SAID:
            signal.signal(known, signal.SIG_DFL)
        raise KeyboardInterrupt

    def again(self, lost: Any) -> None:
        """Comes once more, a moment later, where the interrupt fell into a callback of C, which cannot be ended."""
        if self.signum is None or not isinstance(lost.exc_value, KeyboardInterrupt):
            self.hook(lost)
            return
        signal.signal(self.signum, self)
        self._timer = threading.Timer(_MOMENT, os.kill, (os.getpid(), self.signum))
        self._timer.daemon = True
        self._timer.start()

    def over(self) -> None:
        """Comes no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()


@contextmanager
def ended_in_order() -> Iterator[Callable[[int], int]]:
    """Makes SIGTERM and Ctrl-C a :class:`KeyboardInterrupt`, at which ``finally`` removes what is not finished.

    Yields:
        A function that makes a command's exit status 130 or 143, after one line, if it was asked to end: whatever came of
        the interrupt in other people's code, nothing shall follow such a command.
    """
    request = _Request()
    if threading.current_thread() is not threading.main_thread():
        yield lambda status: status  # signals are the main thread's
        return
    before = {known: signal.getsignal(known) for known in SAID}
    for known, handler in before.items():
        if handler != signal.SIG_IGN:  # as a shell does for Ctrl-C and what runs in the background
            signal.signal(known, request)
    sys.unraisablehook = request.again
    said: list[str] = []

    def status(code: int) -> int:
        if request.signum is None:
            return code
        print(f"calosim: {''.join([SAID[signal.Signals(request.signum)], *said])}", file=sys.stderr, flush=True)
        return 128 + request.signum

    try:
        yield status
    except BaseException as error:
        # Such as Lightning's own exit, or an import that could not be finished. Others have a status that tells more.
        told = isinstance(error, SystemExit) and error.code not in (None, 0, 1)
        if isinstance(error, KeyboardInterrupt):
            request.signum = request.signum or signal.SIGINT
        if request.signum is None or told or os.environ.get("CALOSIM_TRACEBACK"):
            raise
        said += [f"; {word}" for word in error.args if isinstance(error, KeyboardInterrupt)]
    finally:
        request.over()
        sys.unraisablehook = request.hook
        for known, handler in before.items():
            signal.signal(known, handler)
