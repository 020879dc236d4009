"""The whole chain as TorchScript, for programs with libtorch: the operations of the fast simulation itself, recorded.

PyTorch calls TorchScript deprecated, in favor of `torch.export`. Programs in C++ can load what that writes after
compiling it for one machine only; `torch::jit::load` takes this file as it is, and any number of rows.

References:
    | AliceO2Group/AliceO2, Detectors/ZDC/fastsimulation (the client) and Detectors/ZDC/simulation/src/Detector.cxx (its call)
"""

from __future__ import annotations

import copy
import hashlib
import io
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from calosim import __version__
from calosim.data.record import FEATURES
from calosim.detectors import Detector, get_detector
from calosim.export.builder import NORMALS, OPSET, SEED, require, row_numbers
from calosim.export.card import card, not_quoted
from calosim.export.check import CheckSettings, check_folder
from calosim.export.graph import CHARGE_UNIT, check_chain, classifier, generator, simulator
from calosim.io import atomic_write, read_json, take_place, temporary_folder, write_json
from calosim.models.acceptance import Acceptance
from calosim.models.checkpoints import weights_hash
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.runs import Run, git_hash
from calosim.simulation.simulator import FastSimulator

__all__ = [
    "CARD",
    "CHECK",
    "CLASSIFIER",
    "GENERATOR",
    "RECORD",
    "SIMULATOR",
    "Client",
    "export",
    "read_scales",
    "scales_name",
    "scales_text",
    "script",
]


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


def script(shape: ShowerModel, photons: PhotonSum, acceptance: Acceptance | None = None) -> bytes:
    """A file for libtorch with the whole chain.

    Args:
        shape: A teacher or a student of split coordinates.
        photons: The photon-sum model.
        acceptance: The acceptance model; without it every primary leaves a response.

    Returns:
        A TorchScript module: ``forward(noise, features)`` of normals (N, 10) and features (N, 9) in our order and units, both
        float32, returns photons (N, nx, ny), int32.

    Raises:
        ValueError: If the models are of different detectors, or of a kind that cannot be exported.
    """
    check_chain(shape, photons, acceptance)
    shape, photons, acceptance = copy.deepcopy((shape, photons, acceptance))
    for model in (shape, photons, acceptance, *photons.networks(SEED)):
        if model is not None:
            model.eval().requires_grad_(False)
    example = torch.zeros(_EXAMPLE, NORMALS), torch.ones(_EXAMPLE, len(FEATURES))
    module, buffer = _Chain(FastSimulator(shape, photons, acceptance=acceptance)).eval(), io.BytesIO()
    module(*example)  # what is made once is a constant then
    with warnings.catch_warnings():
        # Of the deprecation; and of numbers that become constants, which are sizes of tables.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, example, check_trace=False), buffer)
    return buffer.getvalue()


#: Files of an exported folder.
GENERATOR, CLASSIFIER, RECORD, CHECK, CARD = (
    "generator.onnx",
    "classifier.onnx",
    "export.json",
    "check.json",
    "MODEL_CARD.md",
)

#: The file for any program, by its form.
SIMULATOR = {"onnx": "simulator.onnx", "torchscript": "simulator.pt"}


def scales_name(model: str) -> str:
    """The name of a model's scales file: ``generator_scales.txt``."""
    return model.removesuffix(".onnx") + "_scales.txt"


def scales_text(means: np.ndarray, scales: np.ndarray) -> str:
    """A scales file as O2 reads it: a line with a number for each feature, under a heading each."""
    lines = ["#means", *(repr(float(v)) for v in means), "", "#scales", *(repr(float(v)) for v in scales)]
    return "\n".join(lines) + "\n"


def read_scales(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Means and scales, each (9,).

    Raises:
        ValueError: If the file is not of O2's form.
    """
    text = path.read_text() if path.is_file() else ""
    lines, n = text.split("\n"), len(FEATURES)
    try:
        if len(lines) != 2 * n + 4 or (lines[0], lines[n + 1], lines[n + 2], lines[-1]) != (
            "#means",
            "",
            "#scales",
            "",
        ):
            raise ValueError
        return np.array(lines[1 : n + 1], np.float64), np.array(lines[n + 3 : -1], np.float64)
    except ValueError:
        raise ValueError(
            f"{path}: expected #means, {n} numbers, an empty line, #scales, {n} numbers, a line each"
        ) from None


class Client:
    """The client of an exported folder, with one thread and batches of one.

    Args:
        folder: The folder.

    Attributes:
        record: What the folder says of itself.
        detector: The detector.
        runtime: The version of ONNX Runtime.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / RECORD).is_file():
            raise ValueError(f"{folder}: expected a folder made by calosim export, with {RECORD}")
        require("onnxruntime")
        self.runtime = version("onnxruntime")
        self.record: dict[str, Any] = read_json(self.folder / RECORD)
        self.detector: Detector = get_detector(self.record["detector"])
        for name in (GENERATOR, CLASSIFIER):
            if not (self.folder / name).is_file():
                raise ValueError(f"{folder}: expected {name}, as an export to O2 has it")
        self._open = {
            name: (_session(self.folder / name), read_scales(self.folder / scales_name(name)))
            for name in (GENERATOR, CLASSIFIER)
        }

    @property
    def wrong(self) -> list[str]:
        """What O2 would stumble over: inputs and outputs that are not as it expects them, a line each."""
        lines = []
        for name, (session, _) in self._open.items():
            found = [(i.type, [d if isinstance(d, int) else 1 for d in i.shape]) for i in session.get_inputs()]
            features = [("tensor(float)", [1, len(FEATURES)])]
            expected = [("tensor(float)", [1, NORMALS]), *features] if name == GENERATOR else features
            if found != expected:
                lines.append(f"{name}: expected inputs {expected}, got {found}")
            output = session.get_outputs()[0]
            if output.type != "tensor(float)":
                lines.append(f"{name}: expected a first output of float, got {output.type}")
            if name == GENERATOR and int(np.prod(output.shape)) != self.detector.pixels:
                lines.append(f"{name}: expected {self.detector.pixels} pixels, got an output of {output.shape}")
        return lines

    def standardized(self, particles: np.ndarray, model: str = GENERATOR) -> np.ndarray:
        """Features as O2 hands them over, (N, 9) float32, from ours: its charge is in units of |e| / 3."""
        means, scales = self._open[model][1]
        given = particles.astype(np.float64)
        given[:, FEATURES.index("charge")] *= CHARGE_UNIT
        return ((given - means) / scales).astype(np.float32)

    def simulates(self, particles: np.ndarray) -> np.ndarray:
        """What the classifier says of primaries (N, 9); booleans (N,)."""
        session, features = self._open[CLASSIFIER][0], self.standardized(particles, CLASSIFIER)
        name = session.get_inputs()[0].name
        return np.array([round(float(session.run(None, {name: row[None]})[0].flat[0])) != 0 for row in features])

    def output(self, features: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Output 0 of the generator, flat, of one primary's standardized features (9,) and noise (10,)."""
        session = self._open[GENERATOR][0]
        names = [i.name for i in session.get_inputs()]
        return session.run(None, dict(zip(names, (noise[None], features[None]), strict=True)))[0].ravel()

    def images(self, particles: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Photons of the pixels: the decimals of expm1 cut, pixel (x, y) read at nx y + x.

        Args:
            particles: Features with shape (N, 9), in our units.
            noise: Normals with shape (N, 10), float32.

        Returns:
            Counts with shape (N, nx, ny), int64; dark where the classifier spares the simulation.
        """
        nx, ny = self.detector.shape
        images = np.zeros((len(particles), nx, ny), np.int64)
        features = self.standardized(particles)
        for row in np.flatnonzero(self.simulates(particles)):
            photons = np.expm1(self.output(features[row], noise[row])).astype(np.int64)
            images[row] = photons.reshape(ny, nx).T
        return images


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a dozen types of its own
        raise ValueError(f"{path}: cannot be loaded by ONNX Runtime ({' '.join(str(error).split())[:200]})") from None


def export(
    shower: str | None = None,
    photons: str | None = None,
    acceptance: str | None = None,
    to: Literal["o2", "onnx", "torchscript"] = "o2",
    out: str = "runs/export",
    check: str | None = None,
    settings: CheckSettings = CheckSettings(),
) -> None:
    """Writes trained models as files for other programs, or checks such files.

    Args:
        shower: Run folder or checkpoint of the shower model, of split coordinates.
        photons: Run folder or checkpoint of the photon-sum model.
        acceptance: Run folder or checkpoint of the acceptance model; without it every primary leaves a response, and the
            classifier, which O2 wants, says yes to all.
        to: o2, for the fast simulation of ALICE O2 (Detectors/ZDC/fastsimulation); or one file for any program with ONNX
            Runtime (onnx) or libtorch (torchscript).
        out: The folder to make.
        check: A folder made before, to run as O2 does and compare with Python, instead of making one.
        settings: What the check does.

    Raises:
        ValueError: If models are missing, do not fit together or cannot be exported, or if a check fails.
    """
    if check is not None:
        check_folder(check, settings)
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
    files = _files(models, to)
    with temporary_folder(target.parent, out) as temporary:
        made = temporary / target.name
        made.mkdir()
        for name, content in files.items():
            atomic_write(made / name, content)
            if to == "o2":
                atomic_write(made / scales_name(name), scales_text(np.zeros(len(FEATURES)), np.ones(len(FEATURES))))
        record = _record(models, files, to)
        write_json(made / RECORD, record)
        atomic_write(made / CARD, card(record))
        take_place(made, target)
    size = sum(map(len, files.values())) / 1e6
    print(f"{out}: {', '.join(files)} for {record['title']} ({size:.1f} MB), {CARD}")
    if said := not_quoted(record):
        print(f"calosim: {out}: {said}", file=sys.stderr)


def _files(models: dict[str, str], to: str) -> dict[str, bytes]:
    """The graphs by file name."""
    shape, photons = ShowerModel.load(models["shape"]), PhotonSum.load(models["photons"])
    acceptance = Acceptance.load(models["acceptance"]) if "acceptance" in models else None
    if to != "o2":
        return {SIMULATOR[to]: (simulator if to == "onnx" else script)(shape, photons, acceptance)}
    return {GENERATOR: generator(shape, photons, acceptance), CLASSIFIER: classifier(shape.detector, acceptance)}


def _record(models: dict[str, str], files: dict[str, bytes], to: str) -> dict[str, Any]:
    """What a folder says of itself."""
    module = ShowerModel.load(models["shape"])
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
    return {
        "calosim": __version__,
        "git": git_hash(),
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "to": to,
        **({"torch": torch.__version__} if to == "torchscript" else {"opset": OPSET}),
        "detector": module.detector.name,
        "title": module.detector.title,
        "pixels": list(module.detector.shape),
        "models": sources,
        "files": {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()},
    }
