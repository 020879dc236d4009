"""Loads trained modules from checkpoints that name their class and its arguments."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from calosim.io import read_json
from calosim.models.base import CalosimModule, Lineage, first_not_finite, joined
from calosim.runs import FORMAT, Run, renamed

__all__ = [
    "MODULES",
    "TRUST",
    "digest",
    "lineages",
    "load_module",
    "older",
    "read_checkpoint",
    "weights_hash",
    "weights_of",
]

#: Environment variable with the names of modules, separated by commas, whose classes a checkpoint may name too: `--trust`.
TRUST = "CALOSIM_TRUST"
#: Entry points by which an installed package announces models of its own, as ``name = "package.module:Class"``.
ENTRY_POINTS = "calosim.models"
#: Where the classes are that a checkpoint may name. Nothing else: it must not choose which function is called.
MODULES: dict[str, str] = {
    "Teacher": "calosim.models.teacher",
    "Student": "calosim.models.student",
    "FlowMatching": "calosim.models.flow_matching",
    "GAN": "calosim.models.gan",
    "VAE": "calosim.models.vae",
    "FineTune": "calosim.models.finetune",
    "PhotonSum": "calosim.models.photon_sum",
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


def digest(weights: Mapping[str, torch.Tensor], what: str) -> str:
    """A hash of some weights and of what they are of."""
    found = hashlib.blake2b(what.encode(), digest_size=16)
    for key, value in weights.items():
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def weights_hash(path: str | Path) -> str:
    """A hash of what a model answers with: weights and settings, wherever they are stored.

    Args:
        path: A checkpoint, a run folder (its best checkpoint is taken), or the folder of an ensemble, all of whose models count.

    Raises:
        ValueError: If there is none, or one is damaged.
    """
    run = Run(path)
    if run.is_ensemble:
        members = [(file.name, weights_hash(file)) for file in sorted(run.folder.glob("*.ckpt"))]
        return hashlib.blake2b(json.dumps(members).encode(), digest_size=16).hexdigest()
    file = run.checkpoint
    stat = file.stat()
    return _hash_of(file.resolve(), stat.st_mtime_ns, stat.st_size)


@cache
def _hash_of(file: Path, *_: int) -> str:
    """The hash of a checkpoint's model, read once while the file is the same."""
    checkpoint = read_checkpoint(file)
    own = checkpoint["calosim"]
    return digest(checkpoint["state_dict"], f"{own['class']} {json.dumps(own['init'], sort_keys=True, default=str)}")


def weights_of(models: Iterable[str | Path | None], folder: str | Path) -> list[dict[str, str]]:
    """What a result says of the weights that it is of, for :func:`older` to read.

    Args:
        models: Run folders, checkpoints and ensembles.
        folder: The result's own folder: beside it a model is found again where both were copied or moved together.
    """
    here = os.path.realpath(folder)
    return [
        {"model": os.path.abspath(m), "beside": os.path.relpath(os.path.realpath(m), here), "hash": weights_hash(m)}
        for m in models
        if m
    ]


def older(weights: Iterable[Mapping[str, str]] | None, folder: str | Path) -> str:
    """Which models have other weights by now than a result says, in words; empty if none, or if it does not say.

    Args:
        weights: Of :func:`weights_of`.
        folder: The result's own folder.
    """
    found = []
    for told in weights or ():
        beside = os.path.normpath(os.path.join(os.path.realpath(folder), told["beside"]))
        run, now = _found(Path(beside), Path(told["model"]))
        if run is None:
            continue  # nothing that is gone is younger
        name = run.folder.resolve().name
        if now != told["hash"]:
            found.append(name)
        elif run.is_ensemble and older(read_json(run / Run.ENSEMBLE).get("weights"), run.folder):
            found.append(f"what {name} was made of")
    return f"older than the weights of {', '.join(found)}" if found else ""


def _found(*places: Path) -> tuple[Run | None, str]:
    """The first of some places that holds a model, with the hash of its weights."""
    for place in places:
        with suppress(ValueError):
            return Run(place), weights_hash(place)
    return None, ""


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
    own, weights = renamed(checkpoint["calosim"]), renamed(checkpoint["state_dict"])
    name = own["class"]
    kind = _model_class(name, str(path))
    known = inspect.signature(kind).parameters.values()
    unknown = set(own["init"]) - {parameter.name for parameter in known}
    if unknown and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in known):
        raise ValueError(
            f"{path}: of a {name} with {', '.join(sorted(unknown))}; expected no such settings: a newer calosim wrote it"
        )
    module = kind(**own["init"])
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit {name} ({' '.join(str(error).split())[:200]})") from None
    if bad := first_not_finite(module.state_dict()):
        raise ValueError(f"{path}: its weights {bad} are not finite; train the model anew")
    module.lineage, module.seen = own.get("lineage", []), own.get("seen")
    return module.to(device).eval()
