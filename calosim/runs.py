"""Where a result comes from, and files that are whole or not there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

__all__ = ["git_hash", "split_of"]


def git_hash() -> str | None:
    """The commit of the source tree, with ``+changes`` if it was edited since; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def split_of(run: Path) -> dict[str, Any] | None:
    """What determines the test rows of a run, None if the folder does not tell."""
    try:
        data = json.loads((run / "run.json").read_text())["data"]
        fractions = yaml.safe_load((run / "config.yaml").read_text())["data"].get("fractions")
    except (OSError, ValueError, KeyError, yaml.YAMLError):
        return None
    return {key: data.get(key) for key in ("data_hash", "split_by", "seed")} | {"fractions": fractions}
