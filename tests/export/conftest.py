"""An exported folder of tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exported(run_folders, once, command) -> Path:
    """The folder of tiny models with acceptance; not to be changed."""
    models = [word for role in ("photons", "acceptance") for word in (f"--{role}", run_folders[role])]
    return (
        once(
            "export",
            lambda folder: command("export", "--shower", run_folders["splits"], *models, "--out", folder / "o2"),
        )
        / "o2"
    )
