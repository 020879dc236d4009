"""calosim's own models as peers: teachers of either coordinates, and the student of a pixel teacher."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning import seed_everything

from calosim import models, representations, rng
from calosim.data.record import Showers
from calosim.detectors import Detector
from calosim.io import find_config
from calosim.models.checkpoints import load_module
from calosim.models.shower import ShowerModel
from calosim.models.student import Student
from calosim.models.teacher import Teacher

from .protocol import Batches, Peer, descend, fit_rows

__all__ = ["StudentPeer", "TeacherPeer"]


def layered(configs: Sequence[str]) -> dict[str, Any]:
    """Settings of configuration files, later ones winning as in the command; those of another class replace all."""

    def over(below: Any, above: Any) -> Any:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return above
        if above.get("class_path", below.get("class_path")) != below.get("class_path"):
            return above
        return {**below, **{key: over(below.get(key), value) for key, value in above.items()}}

    read = [yaml.safe_load(find_config(name).read_text(encoding="utf-8")) for name in configs]
    return reduce(over, read)


class ShapePeer(Peer):
    """What teacher and student have in common.

    Args:
        detector: The detector.
        lr: The learning rate.
        configs: Configuration files of ``calosim fit``, whose model, batch size and clipping are taken.
    """

    module: ShowerModel

    def __init__(self, detector: Detector, lr: float, configs: Sequence[str]):
        super().__init__(detector, lr)
        settings = layered(["conf/base.yaml", *configs])
        self.init = settings["model"]["init_args"]
        self.batch_size, self.clip = settings["data"]["batch_size"], settings["trainer"]["gradient_clip_val"]

    def optimizer(self) -> torch.optim.Optimizer:
        """As in the configuration, with this peer's learning rate."""
        settings = self.init["optimizer"]
        name = settings["class_path"].rpartition(".")[2]
        kind = getattr(models, name, None) or getattr(torch.optim, name)
        trained = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        return kind(trained, **{**settings["init_args"], "lr": self.lr})

    def generate(self, particles: np.ndarray, pdg: np.ndarray, photon_sum: np.ndarray, seed: int) -> np.ndarray:
        parts = []
        primaries, sums = torch.from_numpy(particles.astype(np.float32)), torch.from_numpy(photon_sum)
        for rows in torch.arange(len(pdg)).split(256):
            parts.append(self.module.generate(primaries[rows], sums[rows], seed, rows).numpy())
        return np.concatenate(parts)

    def save(self, path: Path) -> None:
        checkpoint = {"state_dict": self.module.state_dict()}
        self.module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)

    def load(self, path: Path) -> None:
        module = load_module(path)
        assert isinstance(module, ShowerModel)
        self.module = module


class TeacherPeer(ShapePeer):
    """A teacher trained by maximum likelihood: split coordinates (the default) or the published pixel flow."""

    def __init__(self, detector: Detector, lr: float, configs: Sequence[str]):
        super().__init__(detector, lr, configs)
        representation = self.init["representation"]
        config = getattr(representations, representation["class_path"])(**representation["init_args"])
        self.settings = {"flow": self.init.get("flow"), "representation": config, "physics": self.init["physics"]}
        self.module = Teacher(detector.name, **self.settings)
        exact = self.module.nll_unit == "nats an image"
        self.nll_unit = "nats per image" if exact else "nats per pixel (density of noisy logits)"

    def fit(self, showers: Showers, minutes: float, seed: int) -> int:
        seed_everything(seed, verbose=False)
        self.module = Teacher(self.detector.name, **self.settings)
        budget = self.begin(minutes, seed)
        rows = fit_rows(showers)
        images = torch.from_numpy(showers.images[rows])
        self.module.features.fit(torch.from_numpy(showers.particles[rows]), images.flatten(1).sum(1))
        self.module.representation.fit(images, rng.row_keys(torch.from_numpy(rows), rng.FIT_STREAM))
        module, batches = self.module, Batches(showers, self.batch_size, seed)
        return descend(
            budget, self.optimizer(), lambda b, step: -module.log_likelihood(b, step).mean(), batches, self.clip
        )

    def nll(self, showers: Showers) -> np.ndarray:
        self.module.eval()
        with torch.no_grad():
            batches = Batches(showers, len(showers), 0).in_order()
            return np.concatenate([-self.module.log_likelihood(batch).numpy() for batch in batches])


class StudentPeer(ShapePeer):
    """A student distilled from a teacher that is trained first, both within the same minutes.

    Args:
        detector: The detector.
        lr: The student's learning rate.
        configs: Configuration files of the student.
        teacher: Settings of :class:`TeacherPeer`, with its ``lr``.
        teacher_share: Share of the minutes that the teacher gets.
    """

    def __init__(
        self, detector: Detector, lr: float, configs: Sequence[str], teacher: dict, teacher_share: float = 0.5
    ):
        super().__init__(detector, lr, configs)
        self.teacher, self.share = TeacherPeer(detector, **teacher), teacher_share

    def fit(self, showers: Showers, minutes: float, seed: int) -> int:
        budget = self.begin(minutes, seed)
        self.teacher.fit(showers, minutes * self.share, seed)
        with tempfile.TemporaryDirectory() as folder:
            self.teacher.save(path := Path(folder) / "teacher.ckpt")
            student = self.module = Student(self.detector.name, init_from=str(path), start=self.init["start"])
        rest = type(budget)(minutes - budget.elapsed / 60)

        def loss(batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
            return student.objective(student.parts(batch, step), batch, step).mean()

        return descend(rest, self.optimizer(), loss, Batches(showers, self.batch_size, seed), self.clip)
