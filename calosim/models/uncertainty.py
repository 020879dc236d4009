"""Several networks that answer for one: an ensemble trained side by side, or draws from a Bayesian posterior.

References:
    | Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (Lakshminarayanan et al., 2017),
      https://arxiv.org/abs/1612.01474
    | Weight Uncertainty in Neural Networks (Blundell et al., 2015), https://arxiv.org/abs/1505.05424
    | On Embeddings for Numerical Features in Tabular Deep Learning (Gorishniy et al., 2022),
      https://arxiv.org/abs/2203.05556
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zuko.bayesian import BayesianModel

__all__ = ["MASS", "SPOT", "BayesianNetworks", "Ensemble", "PiecewiseLinear"]

#: Columns of :class:`~calosim.representations.features.FeatureScaler` to bin: the mass tells the type; where the straight
#: flight ends, in x and y, whether it meets an edge.
MASS, SPOT = 7, (10, 11)

#: Standard deviation of the Gaussian prior of Bayesian weights.
PRIOR_SCALE = 1.0


class PiecewiseLinear(nn.Module):
    """Joins bins of some columns to all columns: bin b says how far a value has passed it, from 0 to 1.

    Edges are quantiles of the training split, or the distinct values where there are few, as of masses. So a network finds an
    edge of beam pipe or calorimeter within a bin, which it would have to sharpen out of one standardized column.

    Args:
        width: Columns that come in.
        columns: Those of them that are binned.
        bins: Bins of each.
    """

    low: Tensor
    size: Tensor

    def __init__(self, width: int, columns: tuple[int, ...], bins: int):
        super().__init__()
        self.columns, self.bins = list(columns), bins
        self.width = width + len(columns) * bins
        self.register_buffer("low", torch.zeros(len(columns), bins))
        self.register_buffer("size", torch.ones(len(columns), bins))

    def fit(self, values: Tensor) -> None:
        """Sets the edges from the training split's columns (N, width)."""
        for row, column in enumerate(self.columns):
            edges = np.unique(values[:, column].double().numpy())
            if len(edges) > self.bins + 1:
                edges = np.unique(np.quantile(values[:, column].double().numpy(), np.linspace(0, 1, self.bins + 1)))
            # Bins that are left over are passed by nothing.
            low = np.append(edges[:-1], np.full(self.bins + 1 - len(edges), edges[-1]))
            size = np.append(np.diff(edges), np.ones(self.bins + 1 - len(edges)))
            self.low[row], self.size[row] = torch.from_numpy(low), torch.from_numpy(size)

    def forward(self, values: Tensor) -> Tensor:
        """Columns (*, width) to columns and bins."""
        if not self.columns:
            return values
        passed = (values[..., self.columns].unsqueeze(-1) - self.low) / self.size
        return torch.cat([values, 2 * passed.clamp(0, 1).flatten(-2) - 1], -1)


class Ensemble(nn.Module):
    """Perceptrons of one shape side by side, in one batched product a layer.

    Args:
        widths: Numbers of inputs, hidden units and outputs.
        members: Networks.
    """

    def __init__(self, widths: tuple[int, ...], members: int):
        super().__init__()
        self.members = members
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n, m in pairwise(widths):  # as torch's Linear begins
            self.weights.append(nn.Parameter((2 * torch.rand(members, n, m) - 1) / math.sqrt(n)))
            self.biases.append(nn.Parameter((2 * torch.rand(members, 1, m) - 1) / math.sqrt(n)))

    def start_from(self, member: int, outputs: Tensor) -> None:
        """Sets the last bias of a member to outputs (outputs,)."""
        with torch.no_grad():
            self.biases[-1][member, 0].copy_(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, n) to outputs (members, B, outputs)."""
        h = x.expand(self.members, *x.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, F.silu(h) if layer else h, weight)
        return h

    def member(self, k: int, x: Tensor) -> Tensor:
        """One member alone, in the type of the inputs: (B, n) to (B, outputs)."""
        h = x
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.addmm(bias[k].to(x), F.silu(h) if layer else h, weight[k].to(x))
        return h

    def penalty(self) -> Tensor:
        """None: members are independent; see :meth:`BayesianNetworks.penalty`."""
        return self.biases[-1].new_zeros(())

    def draw(self, number: int) -> list[nn.Module]:
        """Its members, whatever number is asked for."""
        return [self._member(k) for k in range(self.members)]

    def _member(self, k: int) -> nn.Module:
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inputs, outputs = weight.shape[1:]
            linear = nn.Linear(inputs, outputs).to(weight)
            linear.weight.data.copy_(weight[k].T)
            linear.bias.data.copy_(bias[k, 0])
            layers += [linear, nn.SiLU()]
        return nn.Sequential(*layers[:-1])


class BayesianNetworks(nn.Module):
    """A perceptron with Gaussian weights, trained by its evidence lower bound with the local reparameterization trick.

    Args:
        widths: Numbers of inputs, hidden units and outputs.
    """

    members = 1

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), nn.SiLU()]
        self.model = BayesianModel(nn.Sequential(*layers[:-1]))
        # The wrapper's means replace these; left trainable, DDP would wait for gradients that never come.
        self.model.base.requires_grad_(False)

    def start_from(self, member: int, outputs: Tensor) -> None:
        """Sets the last bias's mean to outputs (outputs,)."""
        with torch.no_grad():
            self.model.means[list(self.model.means)[-1]].copy_(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, n) to outputs (1, B, outputs) of weights drawn for this call."""
        with self.model.reparameterize(local_trick=True) as network:
            return network(x)[None]

    def penalty(self) -> Tensor:
        """The divergence of posterior from prior, in nats."""
        return self.model.kl_divergence(PRIOR_SCALE**2)

    def draw(self, number: int) -> list[nn.Module]:
        """Networks drawn from the posterior, by torch's generator."""
        return [self.model.sample_model() for _ in range(number)]
