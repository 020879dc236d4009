"""Loads trained modules from checkpoints that name their class and its arguments."""

from __future__ import annotations

import importlib
import os
import zipfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from calosim.models.base import CalosimModule
from calosim.models.provenance import Lineage, first_not_finite, joined
from calosim.runs import FORMAT, Run

__all__ = ["MODULES", "TRUST", "lineages", "load_module", "read_checkpoint"]

#: Environment variable with the names of modules, separated by commas, whose classes a checkpoint may name too: `--trust`.
TRUST = "CALOSIM_TRUST"
#: Entry points by which an installed package announces models of its own, as ``name = "package.module:Class"``.
ENTRY_POINTS = "calosim.models"
#: Where the classes are that a checkpoint may name. Nothing else: it must not choose which function is called.
MODULES: dict[str, str] = {
    "Teacher": "calosim.models.teacher",
    "Student": "calosim.models.student",
    "FineTune": "calosim.models.finetune",
    "PhotonSum": "calosim.models.photons",
    "Acceptance": "calosim.models.acceptance",
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


def _model_class(name: str, source: str) -> Any:
    """The class that a checkpoint names: one of calosim's, or of a module that is trusted, see :data:`TRUST`.

    Raises:
        ValueError: If it is of another module, or is not there.
    """
    home, _, own = f"{MODULES.get(name, '')}.{name}".lstrip(".").rpartition(".")
    trusted = {text.strip() for text in os.environ.get(TRUST, "").split(",")}
    announced = {entry.value.replace(":", ".") for entry in entry_points(group=ENTRY_POINTS)}
    if name not in MODULES and name not in announced and home.partition(".")[0] not in trusted - {""}:
        advice = f"; to run the code of {home}, say --trust {home.partition('.')[0]}" if home else ""
        raise ValueError(f"{source}: expected a checkpoint of {', '.join(MODULES)}, got one of {name!r}{advice}")
    try:
        return getattr(importlib.import_module(home), own)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{source}: is of {name}, which cannot be imported ({error})") from None


def lineages(path: str | Path) -> Lineage:
    """The data sets and splits that a model has learned from, with those of all that it began from.

    Args:
        path: A checkpoint, a run folder, or the folder of an ensemble, all of whose members count.

    Returns:
        What checkpoint and record tell; nothing if neither does.

    Raises:
        ValueError: If a checkpoint is damaged.
    """
    run = Run(path)
    alone = (run / Run.ENSEMBLE).exists()  # a member's record is not that of the folder it lies in
    if run.is_ensemble:
        return joined(*(lineages(member) for member in sorted(run.folder.glob("*.ckpt"))))
    own = [{**run.split, "particle": run.record["data"].get("particle")}] if run.split and not alone else []
    try:
        stored = run.checkpoint
    except ValueError:  # a folder that tells of its data alone
        return own
    return joined(read_checkpoint(stored)["calosim"].get("lineage", []), own)


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
    module = _model_class(name, str(path))(**init)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit {name} ({' '.join(str(error).split())[:200]})") from None
    if bad := first_not_finite(module.state_dict()):
        raise ValueError(f"{path}: its weights {bad} are not finite; train the model anew")
    module.lineage, module.seen = (
        checkpoint["calosim"].get(key, default) for key, default in (("lineage", []), ("seen", None))
    )
    return module.to(device).eval()
