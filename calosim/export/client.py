"""Runs exported files as ALICE O2 does: standardized features and ten normals in, photons of a pixel or a channel out.

References:
    | AliceO2Group/AliceO2, Detectors/ZDC/fastsimulation (the client) and Detectors/ZDC/simulation/src/Detector.cxx (its call)
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from calosim.data.record import FEATURES
from calosim.detectors import Detector, get_detector
from calosim.export.builder import NORMALS, require
from calosim.export.graph import CHARGE_UNIT
from calosim.io import read_json

__all__ = [
    "CARD",
    "CHECK",
    "CLASSIFIER",
    "GENERATOR",
    "RECORD",
    "SIMULATOR",
    "Client",
    "read_scales",
    "scales_name",
    "scales_text",
]

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
