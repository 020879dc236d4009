"""Other processes and threads: how commands of calosim are started, what they import, and one thread where products are small."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

__all__ = ["look_here_last", "one_thread", "own_command"]


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
