"""Ensembles: folders of models that simulate together, one for each of some particles."""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from calosim.io import atomic_write, take_place, temporary_folder, write_json
from calosim.models.checkpoints import lineages, read_checkpoint, weights_of
from calosim.models.photon_sum import PhotonSum
from calosim.models.provenance import joined
from calosim.models.shower import ShowerModel
from calosim.options import Ensemble
from calosim.particles import particle_code, particle_name
from calosim.runs import Run, origin
from calosim.simulation.simulator import FastSimulator

__all__ = ["save_ensemble"]


def save_ensemble(options: Ensemble) -> None:
    """Makes a folder of models that simulate together: one for each of some particles, the default for all others.

    Raises:
        ValueError: If the folder exists, a particle is unknown, or the models do not fit together.
    """
    folder, default, members, photons = options.folder, options.default, options.members, options.photons
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{folder}: exists already; expected a new folder for the ensemble")
    codes = {particle_code(name): Run(run) for name, run in members.items()}
    if len(codes) < len(members):
        raise ValueError(
            f"expected one member for each particle, got one particle twice among {', '.join(map(str, members))}"
        )
    for code, run in codes.items():
        line = lineages(run.checkpoint)
        if line and (trained := line[-1]["particle"]) not in (None, code):
            raise ValueError(
                f"{run.folder}: expected a member trained on {particle_name(code)} or on all particles, got one of "
                f"{particle_name(trained)}"
            )
    # Loaded once here, so that what does not fit together is refused by its own name.
    together = FastSimulator(
        ShowerModel.load(default),
        PhotonSum.load(photons) if photons else None,
        options.requantization.by_code(),
        {code: ShowerModel.load(run.checkpoint) for code, run in codes.items()},
    )
    sources = {"default.ckpt": Run(default)}
    sources |= {f"{particle_name(code)}.ckpt": run for code, run in codes.items()}
    if photons:
        sources["photons.ckpt"] = Run(photons)
    record = origin() | {
        "default": "default.ckpt",
        "members": {str(code): f"{particle_name(code)}.ckpt" for code in codes},
        "photons": "photons.ckpt" if photons else None,
        "requantization": {str(code): method for code, method in together.requantization.items()},
        "sources": {name: str(run.checkpoint.resolve()) for name, run in sources.items()},
        "weights": weights_of((run.checkpoint for run in sources.values()), target),
    }
    with temporary_folder(target.parent, folder) as temporary:
        made = temporary / target.name
        made.mkdir()
        for name, run in sources.items():
            atomic_write(made / name, _inference_only(run.checkpoint))
        write_json(made / Run.ENSEMBLE, record)
        runs = list(sources.values())
        if None not in (splits := [run.split for run in runs]) and all(s == splits[0] for s in splits):
            shutil.copyfile(runs[0] / Run.CONFIG, made / Run.CONFIG)
            write_json(made / Run.RECORD, {**runs[0].record, **_making(sources)})
        take_place(made, target)
    names = ", ".join(particle_name(code) for code in codes)
    print(
        f"{folder}: {len(codes)} members ({names}) beside the default, {'with' if photons else 'without'} a photon-sum model"
    )


def _making(sources: dict[str, Run]) -> dict[str, Any]:
    """What an ensemble's record says of how it was made, in the place of how its default model was trained."""
    return origin(torch=torch.__version__) | {
        "command": sys.argv[1:],
        "model": "Ensemble",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "members": {name: str(run.checkpoint.resolve()) for name, run in sources.items()},
        "ancestors": joined(*(lineages(run.checkpoint) for run in sources.values())),
    }


def _inference_only(path: Path) -> bytes:
    """A checkpoint's bytes without optimizers, schedulers and loops."""
    checkpoint = read_checkpoint(path)
    stream = io.BytesIO()
    torch.save({key: checkpoint[key] for key in ("calosim", "state_dict", "epoch") if key in checkpoint}, stream)
    return stream.getvalue()
