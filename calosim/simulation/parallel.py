"""A simulation on several threads, or by a process on each of several devices, with the bits of one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING

import numpy as np
import torch

from calosim.processes import look_here_last, one_thread

if TYPE_CHECKING:
    from calosim.simulation.simulator import FastSimulator

__all__ = ["Processes", "devices_of", "run_side_by_side", "workers_on"]


def workers_on(device: torch.device) -> int:
    """How many batches are computed at once: torch's threads on a CPU, one on another device."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def run_side_by_side(jobs: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Runs jobs that do not depend on each other.

    Threads with batches of their own do not wait for each other, see :func:`calosim.processes.one_thread`.

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


#: In a process of :class:`Processes`, its simulation.
_OWN: list[FastSimulator] = []


def devices_of(device: torch.device, count: int) -> list[str]:
    """The names of several devices of one kind; a CPU is as many as one likes.

    Raises:
        ValueError: If this machine has fewer.
    """
    if count < 1:
        raise ValueError(f"expected at least one device, got {count}")
    if device.type == "cpu":
        return ["cpu"] * count
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > there:
        raise ValueError(f"expected at most {there} devices of type {device.type}, which are here, got {count}")
    return [f"{device.type}:{number}" for number in range(count)]


class Processes:
    """Processes that simulate, each with models of its own.

    Args:
        load: Makes a process's simulation: called with the device. It is pickled.
        devices: Names of the devices, see :func:`devices_of`. On a CPU the processes share torch's threads.
    """

    def __init__(self, load: Callable[..., FastSimulator], devices: list[str]):
        threads = max(1, workers_on(torch.device(devices[0])) // len(devices))
        #: Batches that are computed at once.
        self.workers = threads * len(devices)
        self._threads = threads
        context = get_context("spawn")  # a forked process cannot use CUDA, nor threads that its parent has
        queue = context.Queue()
        for name in devices:
            queue.put(name)
        self._pool = ProcessPoolExecutor(len(devices), context, _begin, (load, queue, threads))

    def sample(
        self,
        particles: np.ndarray,
        pdg: np.ndarray,
        seed: int,
        rows: np.ndarray,
        photon_sum: np.ndarray | None,
        batch_size: int,
    ) -> np.ndarray:
        """As :meth:`calosim.simulation.simulator.FastSimulator.sample`, whose arguments are checked already."""
        size = max(1, min(batch_size * self._threads, -(-len(pdg) // self.workers)))
        cuts = range(size, len(pdg), size)
        sums = repeat(None) if photon_sum is None else np.split(photon_sum, cuts)
        shares = (np.split(array, cuts) for array in (particles, pdg, rows))
        return np.concatenate(list(self._pool.map(partial(_answer, seed, batch_size), *shares, sums)))


def _begin(load: Callable[..., FastSimulator], devices: Queue[str], threads: int) -> None:
    """Makes a process's simulation, on the next device."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who gave the command interrupts, and is told
    torch.set_num_threads(threads)
    look_here_last()
    _OWN.append(load(device=devices.get()))


def _answer(
    seed: int, batch_size: int, particles: np.ndarray, pdg: np.ndarray, rows: np.ndarray, sums: np.ndarray | None
) -> np.ndarray:
    """A process's share of a sample."""
    return _OWN[0].sample(particles, pdg, seed, rows, sums, batch_size)
