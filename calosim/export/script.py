"""The whole chain as TorchScript, for programs with libtorch: the operations of the fast simulation itself, recorded.

PyTorch calls TorchScript deprecated, in favor of `torch.export`. Programs in C++ can load what that writes after
compiling it for one machine only; `torch::jit::load` takes this file as it is, and any number of rows.
"""

from __future__ import annotations

import copy
import io
import warnings

import torch
from torch import Tensor, nn

from calosim.data.record import FEATURES
from calosim.export.graph import check_chain
from calosim.export.numbers import NORMALS, SEED, row_numbers
from calosim.models.acceptance import Acceptance
from calosim.models.photon_sum import PhotonSum
from calosim.models.shower import ShowerModel
from calosim.simulation.simulator import FastSimulator

__all__ = ["script"]

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
