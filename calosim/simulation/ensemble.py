"""The fast simulation: photon sum, shape and noise removal from trained models, for a primary or for ten million."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from calosim import __version__
from calosim.models.checkpoints import checkpoint_path
from calosim.models.photons import PhotonSum
from calosim.models.shape import ShapeModule
from calosim.particles import particle_code, particle_name
from calosim.runs import split_of
from calosim.simulation.simulator import RECORD, FastSimulator, noise_removals

__all__ = ["save_ensemble"]


def save_ensemble(
    folder: str,
    default: str,
    members: dict[str, str],
    photons: str | None = None,
    noise_removal: int = 3,
    noise_removal_of: Sequence[str] = (),
) -> None:
    """Makes a folder of models that simulate together: one for each of some particles, the default for all others.

    The folder holds copies, without what only training needs, so it can be moved and the runs deleted. If all its models
    were trained on one data set with one split, the record of the default's run comes along, so that ``calosim
    evaluate`` finds the test rows that none of them has seen.

    Args:
        folder: The folder to make.
        default: Run folder or checkpoint of the default model, the baseline.
        members: Run folders or checkpoints by particle name or PDG code, for instance "{lambda: runs/finetune/lambda}".
        photons: Run folder or checkpoint of the photon-sum model.
        noise_removal: 1 floor, 2 subtract and round, 3 floor and renormalize, 4 subtract, round and renormalize.
        noise_removal_of: Exceptions by particle, for instance "[neutron=1,k0s=2]".

    Raises:
        ValueError: If the folder exists, a particle is unknown, or the models do not fit together.
    """
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{folder}: exists already; expected a new folder for the ensemble")
    methods = noise_removals(noise_removal, noise_removal_of)
    codes = {particle_code(name): checkpoint_path(run) for name, run in members.items()}
    if len(codes) < len(members):
        raise ValueError(
            f"expected one member for each particle, got one particle twice among {', '.join(map(str, members))}"
        )
    # Loaded once here, so that what does not fit together is refused by its own name.
    FastSimulator(
        ShapeModule.load(default),
        PhotonSum.load(photons) if photons else None,
        methods,
        {code: ShapeModule.load(path) for code, path in codes.items()},
    )
    sources = {"default.ckpt": checkpoint_path(default)}
    sources |= {f"{particle_name(code)}.ckpt": path for code, path in codes.items()}
    if photons:
        sources["photons.ckpt"] = checkpoint_path(photons)
    record = {
        "calosim": __version__,
        "default": "default.ckpt",
        "members": {str(code): f"{particle_name(code)}.ckpt" for code in codes},
        "photons": "photons.ckpt" if photons else None,
        "noise_removal": {str(code): method for code, method in methods.items()},
        "sources": {name: str(path.resolve()) for name, path in sources.items()},
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not there.
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ValueError(f"{folder}: cannot write there ({error.strerror})") from None
    try:
        for name, path in sources.items():
            (temporary / name).write_bytes(_inference_only(path))
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        runs = [path.parent.parent for path in sources.values()]
        if None not in (splits := [split_of(run) for run in runs]) and all(s == splits[0] for s in splits):
            for name in ("config.yaml", "run.json"):
                shutil.copyfile(runs[0] / name, temporary / name)
        os.chmod(temporary, 0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _inference_only(path: Path) -> bytes:
    """A checkpoint's bytes without optimizers, schedulers and loops."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    stream = io.BytesIO()
    torch.save({key: checkpoint[key] for key in ("calosim", "state_dict", "epoch") if key in checkpoint}, stream)
    return stream.getvalue()
