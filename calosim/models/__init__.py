"""The LightningModules: what is trained, how, and how it is loaded again."""

from calosim.models.acceptance import Acceptance
from calosim.models.base import CalosimModule
from calosim.models.checkpoints import load_module
from calosim.models.finetune import FineTune
from calosim.models.muon import Muon
from calosim.models.photons import PhotonSum
from calosim.models.shape import ShapeModule
from calosim.models.student import Student
from calosim.models.teacher import Teacher

__all__ = [
    "Acceptance",
    "CalosimModule",
    "FineTune",
    "Muon",
    "PhotonSum",
    "ShapeModule",
    "Student",
    "Teacher",
    "load_module",
]
