"""What all calosim LightningModules share: optimizers, self-describing checkpoints, and shape models' generation."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path

import torch

from calosim.models.base import CalosimModule

__all__ = ["checkpoint_path", "load_module"]


def checkpoint_path(path: str | Path) -> Path:
    """The checkpoint of a run folder: the best by validation, else the last; a file is returned as it is.

    Raises:
        ValueError: If there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in ("best.ckpt", "last.ckpt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    raise ValueError(f"{path}: expected a checkpoint or a run folder with checkpoints/best.ckpt")


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
    path = checkpoint_path(path)
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected a checkpoint, but it cannot be read ({reason})") from None
    if not isinstance(checkpoint, dict) or "calosim" not in checkpoint:
        raise ValueError(f"{path}: expected a checkpoint written by calosim, found no `calosim` entry")
    name, init = checkpoint["calosim"]["class"], checkpoint["calosim"]["init"]
    package, _, attribute = name.rpartition(".")
    kind = None
    if package.startswith("calosim."):
        with suppress(ImportError):
            kind = getattr(importlib.import_module(package), attribute, None)
    # Nothing else of calosim: a checkpoint must not choose which function is called with which arguments.
    if not (isinstance(kind, type) and issubclass(kind, CalosimModule)):
        raise ValueError(f"{path}: expected a module of calosim, got {name}")
    module = kind(**init)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit {name} ({' '.join(str(error).split())[:200]})") from None
    return module.to(device).eval()
