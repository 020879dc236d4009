"""Batches side by side on a CPU: each on one thread, since most products are too small to be shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch

from calosim.threads import one_thread

__all__ = ["run_side_by_side", "workers_on"]


def workers_on(device: torch.device) -> int:
    """How many batches are computed at once: torch's threads on a CPU, one on another device."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def run_side_by_side(jobs: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Runs jobs that do not depend on each other.

    Threads with batches of their own do not wait for each other, see :func:`calosim.threads.one_thread`.

    Args:
        jobs: What is to be run, in any order.
        device: Where; elsewhere than on a CPU one follows the other.
    """
    workers = min(workers_on(device), len(jobs))
    with one_thread() if device.type == "cpu" else nullcontext():
        if workers < 2:
            for job in jobs:
                job()
            return
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda job: job(), jobs):
                pass
