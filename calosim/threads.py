"""One thread where products are small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, inside a ``with`` or in a function that this decorates.

    Threads that share a small product wait for each other at its end, and where a neighbor keeps the machine busy they wait
    long. This tells MKL too, which keeps a number of its own once torch has set one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
