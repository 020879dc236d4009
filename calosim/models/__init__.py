"""The LightningModules: what is trained, how, and how it is loaded again."""

from calosim.models.acceptance import Acceptance
from calosim.models.base import CalosimModule
from calosim.models.checkpoints import load_module
from calosim.models.finetune import FineTune
from calosim.models.flow_matching import FlowMatching
from calosim.models.gan import GAN
from calosim.models.optim import Muon
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.models.student import Student
from calosim.models.teacher import Teacher
from calosim.models.vae import VAE

__all__ = [
    "GAN",
    "VAE",
    "Acceptance",
    "CalosimModule",
    "FineTune",
    "FlowMatching",
    "Muon",
    "PhotonSum",
    "ShowerModel",
    "Student",
    "Teacher",
    "load_module",
]
