"""What tests of several models share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from calosim.models.base import CalosimModule
from calosim.models.photon_sum import PhotonSum


@pytest.fixture(scope="session")
def output(showers) -> Callable[..., torch.Tensor]:
    """What a model makes of three rows: ``output(module, seed=5)``."""

    def make(module: CalosimModule, seed: int = 5) -> torch.Tensor:
        particles = torch.from_numpy(showers.particles[:3]).float()
        if isinstance(module, PhotonSum):
            return module.sample(particles, seed, torch.arange(3))
        return module.generate(particles, torch.from_numpy(showers.photon_sum[:3]), seed, torch.arange(3), 1)

    return make
