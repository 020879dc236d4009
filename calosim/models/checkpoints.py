"""Loads trained modules from checkpoints that name their class and its arguments."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path
from typing import Any

import torch

from calosim.models.base import CalosimModule
from calosim.runs import FORMAT, Run

__all__ = ["MODULES", "load_module", "read_checkpoint"]

#: Where the classes are that a checkpoint may name. Nothing else: it must not choose which function is called.
MODULES: dict[str, str] = {
    "Teacher": "calosim.models.teacher",
    "Student": "calosim.models.student",
    "FineTune": "calosim.models.finetune",
    "PhotonSum": "calosim.models.photons",
}


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, nothing of which is executed.

    Args:
        path: A checkpoint, or a run folder (its best checkpoint is taken).
        device: Where the weights go.

    Raises:
        ValueError: If the file is not a checkpoint of this version of calosim.
    """
    path = Run(path).checkpoint
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for damaged files
        raise ValueError(f"{path}: expected a checkpoint, but {_fault(path, error)}") from None
    if not isinstance(checkpoint, dict) or "calosim" not in checkpoint:
        raise ValueError(f"{path}: expected a checkpoint written by calosim, found no `calosim` entry")
    if (found := checkpoint["calosim"].get("format", 1)) != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of format {FORMAT}, got {found}; train the model anew")
    return checkpoint


def _fault(path: Path, error: Exception) -> str:
    """What is wrong with a file that torch cannot read, in words: its own say little or nothing of damaged ones."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if not start:
        return "the file is empty (0 bytes)"
    if not start.startswith(b"PK"):
        return "the file is something else (checkpoints begin with PK)"
    if not zipfile.is_zipfile(path):
        return f"the file is truncated, at {path.stat().st_size} bytes"
    return f"it cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def load_module(path: str | Path, device: str | torch.device = "cpu") -> CalosimModule:
    """Loads a trained module for inference.

    Args:
        path: A checkpoint, or a run folder (its best checkpoint is taken).
        device: Where the weights go.

    Returns:
        The module, in evaluation mode.

    Raises:
        ValueError: If the file is not a checkpoint of calosim.
    """
    checkpoint = read_checkpoint(path, device)
    name, init = checkpoint["calosim"]["class"], checkpoint["calosim"]["init"]
    if name not in MODULES:
        raise ValueError(f"{path}: expected a checkpoint of {', '.join(MODULES)}, got one of {name!r}")
    module = getattr(importlib.import_module(MODULES[name]), name)(**init)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit {name} ({' '.join(str(error).split())[:200]})") from None
    return module.to(device).eval()
