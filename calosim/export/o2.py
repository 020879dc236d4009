"""From run folders to a folder of files that ALICE O2 loads as they are."""

from __future__ import annotations

import copy
import hashlib
import io
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calosim.data.record import FEATURES
from calosim.detectors import Detector
from calosim.export.builder import NORMALS, OPSET, SEED, require, row_numbers
from calosim.export.card import card, not_quoted
from calosim.export.check import check_folder
from calosim.export.client import CARD, CLASSIFIER, GENERATOR, RECORD, SIMULATOR, scales_name, scales_text
from calosim.export.graph import check_chain, classifier, generator, simulator
from calosim.io import atomic_write, take_place, temporary_folder, write_json
from calosim.models.acceptance import Acceptance
from calosim.models.checkpoints import weights_hash
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.options import Export
from calosim.runs import Run, origin
from calosim.simulation.simulator import FastSimulator

__all__ = ["export", "script"]


#: Rows of the example that is recorded. Of fewer than four, some would be repeated.
_EXAMPLE = 8


class _Chain(nn.Module):
    """The operations to record; a simulator is no submodule, so that the file holds only what it uses."""

    def __init__(self, simulator: FastSimulator):
        super().__init__()
        self.simulator = simulator

    def forward(self, noise: Tensor, features: Tensor) -> Tensor:
        rows = row_numbers(noise)
        total = self.simulator.sums(features, SEED, rows)
        return self.simulator.shower.generate(features, total, SEED, rows).int()


def script(shower: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None = None) -> bytes:
    """A file for libtorch with the whole chain.

    Args:
        shower: The shower model.
        photons: The photon-sum model.
        acceptance: The acceptance model; without it every primary leaves a response.

    Returns:
        A TorchScript module: ``forward(noise, features)`` of normals (N, 10) and features (N, 9) in our order and units, both
        float32, returns photons (N, nx, ny), int32.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    check_chain(shower, photons, acceptance)
    shower, photons, acceptance = copy.deepcopy((shower, photons, acceptance))
    for model in (shower, photons, acceptance, *photons.networks(SEED)):
        if model is not None:
            model.eval().requires_grad_(False)
    example = torch.zeros(_EXAMPLE, NORMALS), torch.ones(_EXAMPLE, len(FEATURES))
    module, buffer = _Chain(FastSimulator(shower, photons, acceptance=acceptance)).eval(), io.BytesIO()
    module(*example)  # what is made once is a constant then
    with warnings.catch_warnings():
        # Of the deprecation; and of numbers that become constants, which are sizes of tables.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, example, check_trace=False), buffer)
    return buffer.getvalue()


def export(options: Export) -> None:
    """Writes trained models as files for other programs, or checks such files.

    Raises:
        ValueError: If models are missing, do not fit together or cannot be exported, or if a check fails.
    """
    shower, photons, acceptance, to, out = options.shower, options.photons, options.acceptance, options.to, options.out
    if options.check is not None:
        check_folder(options.check, options.settings)
        return
    if shower is None or photons is None:
        raise ValueError(
            "expected a shower model and a photon-sum model to export; name them with --shower and --photons"
        )
    target = Path(out)
    if target.exists():
        raise ValueError(f"{out}: exists already; expected a new folder for the export")
    if to != "torchscript":
        require("onnx")
    models = {"shape": shower, "photons": photons} | ({"acceptance": acceptance} if acceptance else {})
    model = ShowerModel.load(shower)
    files = _files(model, models, to)
    with temporary_folder(target.parent, out) as temporary:
        made = temporary / target.name
        made.mkdir()
        for name, content in files.items():
            atomic_write(made / name, content)
            if to == "o2":
                atomic_write(made / scales_name(name), scales_text(np.zeros(len(FEATURES)), np.ones(len(FEATURES))))
        record = _record(model.detector, models, files, to)
        write_json(made / RECORD, record)
        atomic_write(made / CARD, card(record))
        take_place(made, target)
    size = sum(map(len, files.values())) / 1e6
    print(f"{out}: {', '.join(files)} for {record['title']} ({size:.1f} MB), {CARD}")
    if said := not_quoted(record):
        print(f"calosim: {out}: {said}", file=sys.stderr)


def _files(model: ShowerModel, models: dict[str, str], to: str) -> dict[str, bytes]:
    """The graphs by file name."""
    photons = PhotonSum.load(models["photons"])
    acceptance = Acceptance.load(models["acceptance"]) if "acceptance" in models else None
    if to != "o2":
        return {SIMULATOR[to]: (simulator if to == "onnx" else script)(model, photons, acceptance)}
    return {GENERATOR: generator(model, photons, acceptance), CLASSIFIER: classifier(model.detector, acceptance)}


def _record(detector: Detector, models: dict[str, str], files: dict[str, bytes], to: str) -> dict[str, Any]:
    """What a folder says of itself."""
    sources = {}
    for role, path in models.items():
        run = Run(path)
        told = run.record if (run / Run.RECORD).is_file() else {}
        sources[role] = {
            "run": str(Path(path).resolve()),
            "weights": weights_hash(path),
            **{key: told.get(key) for key in ("model", "git", "seed", "parameters")},
            "data": {key: told.get("data", {}).get(key) for key in ("files", "data_hash", "split_by", "seed", "rows")},
        }
    return origin() | {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "to": to,
        **({"torch": torch.__version__} if to == "torchscript" else {"opset": OPSET}),
        "detector": detector.name,
        "title": detector.title,
        "pixels": list(detector.shape),
        "models": sources,
        "files": {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()},
    }
