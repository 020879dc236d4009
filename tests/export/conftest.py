"""An exported folder of tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exported(run_folders, once, command) -> Path:
    """The folder of tiny models with acceptance; not to be changed."""
    models = [word for role in ("photons", "acceptance") for word in (f"--{role}", run_folders[role])]
    return (
        once(
            "export",
            lambda folder: command("export", "--shape", run_folders["splits"], *models, "--out", folder / "o2"),
        )
        / "o2"
    )


@pytest.fixture
def error_of(command, capfd) -> Callable[..., str]:
    """The one line that a failing command prints."""

    def run(*words: object) -> str:
        capfd.readouterr()
        assert command(*words) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("calosim: error:")]
        assert len(lines) == 1
        return lines[0]

    return run
