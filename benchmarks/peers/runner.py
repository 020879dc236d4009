"""Runs tries in processes of their own, several at once: skips what is finished, ends when its time is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from .settings import Study, Try

__all__ = ["run_tries"]

#: What a training takes besides its minutes, at least: a start, answers.
OVERHEAD_MINUTES = 0.3


class _Child:
    """A try that runs."""

    def __init__(self, tried: Try, words: Sequence[str], threads: int):
        self.tried = tried
        tried.folder.mkdir(parents=True, exist_ok=True)
        self.log: TextIO = (tried.folder / Try.LOG).open("w", encoding="utf-8")
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        # Equal time is that of processors, for all.
        environment = {**os.environ, **dict.fromkeys(names, str(threads)), "CUDA_VISIBLE_DEVICES": ""}
        mine = ["--one", tried.name, f"{tried.minutes:g}", repr(tried.lr)]
        command = [sys.executable, "-m", "benchmarks.peers", *words, *mine]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    def ended(self) -> bool:
        """Whether it came to an end, of which it leaves a record."""
        code = self.process.poll()
        if code is None:
            return False
        self.log.close()
        if self.tried.result is None:
            self.tried.give_up(f"ended with code {code}, see {Try.LOG}")
        return True

    def kill(self, reason: str) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()
        if self.tried.result is None:
            self.tried.give_up(reason)


def run_tries(study: Study, words: Sequence[str]) -> dict[str, str]:
    """Trains what is not finished, what chooses learning rates first, then the longest.

    Args:
        study: The comparison.
        words: Command-line words that make the same study in a child.

    Returns:
        By name of the try's folder, why it is not finished.
    """
    end = None if study.limit_minutes is None else time.monotonic() + 60 * study.limit_minutes
    study.datamodule()  # the cache, once for all
    waiting = [(name, m) for m in sorted(study.minutes, reverse=True) for name in study.peers]
    tunings = [t for name, m in waiting for t in study.tunings(name, m)]
    pending = [t for t in dict.fromkeys(tunings) if t.result is None]
    known = set(pending)
    for tried in pending:  # what was given up is tried again
        (tried.folder / Try.UNFINISHED).unlink(missing_ok=True)
    failed: dict[str, str] = {}
    running: list[_Child] = []
    try:
        while True:
            # With one training time for the tuning, the others begin when a peer's learning rate is chosen.
            for pair in list(waiting):
                if (best := study.chosen(*pair)) is not None:
                    waiting.remove(pair)
                    if best.result is None and best not in known:
                        known.add(best)
                        pending.append(best)
                        pending.sort(key=lambda t: (t not in tunings, -t.minutes))
            _start(study, words, pending, running, failed, end)
            if not running:
                return failed | {f"{n}-{m:g}min": "its learning rate was not chosen" for n, m in waiting}
            time.sleep(0.2)
            for child in [c for c in running if c.ended()]:
                running.remove(child)
                reason = "" if child.tried.result else "failed, see its log"
                failed |= {child.tried.folder.name: reason} if reason else {}
                print(f"{child.tried.folder.name}: {reason or 'done'}", flush=True)
            if end is not None and time.monotonic() > end:
                failed |= {c.tried.folder.name: "not finished in time" for c in running}
                return failed
    finally:
        for child in running:
            child.kill("not finished in time")


def _start(
    study: Study,
    words: Sequence[str],
    pending: list[Try],
    running: list[_Child],
    failed: dict[str, str],
    end: float | None,
) -> None:
    """Starts what there is a place for, unless its time would not be enough."""
    while pending and len(running) < study.jobs:
        tried = pending.pop(0)
        left = None if end is None else (end - time.monotonic()) / 60
        if left is not None and tried.minutes + OVERHEAD_MINUTES > left:
            failed[tried.folder.name] = reason = f"not started: {left:.1f} minutes were left"
            tried.give_up(reason)
            print(f"{tried.folder.name}: {reason}", flush=True)
            continue
        running.append(_Child(tried, words, study.threads))
        print(f"{tried.folder.name}: started", flush=True)
