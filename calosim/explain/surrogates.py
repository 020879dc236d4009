r"""Which features decide the photon sum and the shower's center: SHAP values of Bayesian networks.

The photon-sum network is explained directly. A flow is too slow for the thousands of evaluations that an explanation
takes, so small Bayesian networks learn the center of gravity of the responses that the whole simulation generates, and
those surrogates are explained, after it was said how well they fit.

The explained function is the predictive mean, in photons or cm, of the nine physical features, even where a network
derives further columns from them. Networks drawn from the posterior are explained together,

.. math:: \phi_j = \frac{1}{K} \sum_{k=1}^{K} \phi_j^{(k)},

which are the SHAP values of the mean over the posterior, SHAP values being linear in the function; their spread over
:math:`k` says how sure the network is of an explanation. Features are masked by background rows, one feature
independently of another. A masked primary need not be on its mass shell, and what the networks make of such a primary
decides how energy and :math:`|p_z|`, which are nearly the same number, share what they say together.

References:
    | A Unified Approach to Interpreting Model Predictions (Lundberg and Lee, 2017), https://arxiv.org/abs/1705.07874
    | ZDC Fast Simulation with Normalizing Flows (Majerz and Dzwinel, poster)
    | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), https://arxiv.org/abs/2608.12795
"""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from calosim.explain.shap import predict
from calosim.models.losses import center_of_gravity
from calosim.models.photons import PhotonSum
from calosim.showers.datamodule import RootDataModule
from calosim.simulation.simulator import FastSimulator

__all__ = [
    "MIN_SURROGATE_ROWS",
    "CenterSurrogate",
    "PosteriorMeans",
    "fit_surrogate",
    "generated_centers",
    "surrogate_fit",
]

#: Fewer responses with light than this do not fit a surrogate.
MIN_SURROGATE_ROWS = 100


class CenterSurrogate(PhotonSum):
    """Bayesian network for a coordinate of the shower's center in cm: the photon sum's Gaussian head without its bounds."""

    def moment(self, outputs: Tensor, power: Literal[1, 2] = 1) -> Tensor:
        """A moment of the coordinate in cm or cm squared, shape (B,), from a network's outputs (B, 2)."""
        _, mean, scale = self._split(outputs)
        mu, tau = self.center + self.spread * mean[:, 0], self.spread * scale[:, 0]
        return mu if power == 1 else mu.square() + tau.square()


class PosteriorMeans(nn.Module):
    """The explained function: features to the predictive means of networks drawn from a posterior.

    Args:
        model: A photon-sum model, or a surrogate of the shower's center; its ``posterior_samples`` are drawn.
        seed: Seed of their weights.
    """

    def __init__(self, model: PhotonSum, seed: int = 0):
        super().__init__()
        # In single precision, which halves the cost; what their outputs mean is computed in double precision.
        self.scaler, self.networks = model.features, nn.ModuleList(copy.deepcopy(model.networks(seed))).float()
        # A method, not a submodule, whose gradients an explainer would reset.
        self.moment = model.moment

    def forward(self, particles: Tensor) -> Tensor:
        """Features (B, 9) in the units of :data:`calosim.showers.record.FEATURES` to means (B, K) in photons or cm."""
        columns = self.scaler(particles)
        return torch.stack([self.moment(network(columns).double()) for network in self.networks], dim=1)


def fit_surrogate(
    detector: str,
    particles: np.ndarray,
    values: np.ndarray,
    posterior: int = 8,
    epochs: int = 60,
    seed: int = 0,
    quiet: bool = True,
) -> CenterSurrogate:
    """Trains a surrogate by its evidence lower bound.

    Args:
        detector: The detector's name.
        particles: Features with shape (N, 9).
        values: The coordinate in cm with shape (N,); NaN (a dark image) is left out.
        posterior: Networks drawn from the posterior.
        epochs: Passes over the rows.
        seed: Seed of weights, order and weight noise; torch's global generator stays untouched.
        quiet: Show no progress.

    Raises:
        ValueError: If too few rows have light, or the values are all the same.
    """
    lit = ~np.isnan(values)
    if lit.sum() < MIN_SURROGATE_ROWS:
        raise ValueError(
            f"expected at least {MIN_SURROGATE_ROWS} generated responses with light to fit a surrogate of the shower "
            f"center, got {lit.sum()}; raise surrogate_rows"
        )
    x, y = torch.from_numpy(particles[lit]), torch.from_numpy(values[lit]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CenterSurrogate(detector, "gaussian", hidden=(32, 32), posterior_samples=posterior)
        model.features.fit(x)
        model.center.fill_(y.mean())
        model.spread.fill_(y.std())
        if not model.spread > 0:
            raise ValueError(
                f"expected shower centers that differ, got {float(model.center):.4g} cm in all {len(y)} rows"
            )
        columns, exactly = model.features(x), torch.full((len(y),), 0.5)  # log_density's jitter; a half moves nothing
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        size = 128
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(y) // size))
        for _ in tqdm(range(epochs), desc="surrogate", unit="epochs", disable=True if quiet else None):
            for batch in torch.randperm(len(y)).split(size):
                with model.bayes.reparameterize(local_trick=True) as network:
                    log_density = model.log_density(network(columns[batch]), y[batch], exactly[batch])
                loss = model.bayes.kl_divergence(model.prior_scale**2) / len(y) - log_density.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
    return model.eval()


def surrogate_fit(
    function: PosteriorMeans, particles: np.ndarray, values: np.ndarray, inputs: np.ndarray
) -> dict[str, float | None]:
    r"""How well a surrogate predicts responses to primaries that it has not seen.

    Args:
        function: The surrogate's means.
        particles: Features with shape (N, 9).
        values: Generated coordinates in cm with shape (N,); NaN is left out.
        inputs: Unique-input numbers with shape (N,).

    Returns:
        ``r2`` of single responses; ``ceiling``, the share of the variance that lies between primaries and so the largest
        R² that any function of the primary can reach (None if no primary has two responses); ``residual_mean``,
        ``residual_std`` and ``std`` (of the values) in cm; ``rows``, ``primaries`` and ``dark`` images left out.

    Raises:
        ValueError: If fewer than two rows have light.
    """
    lit = ~np.isnan(values)
    if lit.sum() < 2:
        raise ValueError(f"expected at least 2 generated test responses with light, got {lit.sum()}")
    y, groups = values[lit], np.unique(inputs[lit], return_inverse=True)[1].ravel()
    residual = y - predict(function, particles[lit]).mean(1)
    total = float(np.square(y - y.mean()).sum())
    sizes = np.bincount(groups)
    within = float(np.square(y - (np.bincount(groups, y) / sizes)[groups]).sum())
    repeated = int((sizes - 1).sum())
    return {
        "r2": 1 - float(np.square(residual).sum()) / total if total > 0 else None,
        "ceiling": 1 - (within / repeated) / (total / (len(y) - 1)) if repeated and total > 0 else None,
        "residual_mean": float(residual.mean()),
        "residual_std": float(residual.std()),
        "std": float(y.std()),
        "rows": int(lit.sum()),
        "primaries": len(sizes),
        "dark": int((~lit).sum()),
    }


def generated_centers(
    simulator: FastSimulator, data: RootDataModule, rows: np.ndarray, seed: int, quiet: bool
) -> np.ndarray:
    """Centers of gravity of one generated response to each of some rows.

    Args:
        simulator: Photon sum and shape.
        data: The data set.
        rows: Row numbers in its files with shape (N,); they key the draws.
        seed: Seed of the draws.
        quiet: Show no progress.

    Returns:
        x and y in cm with shape (N, 2); NaN where there is no light.
    """
    centers, parts = [], np.split(rows, range(256, len(rows), 256))
    for part in tqdm(parts, desc="responses", unit="batches", disable=True if quiet else None):
        images = simulator.sample(data.arrays["particles"][part], data.arrays["pdg"][part], seed, part)
        centers.append(center_of_gravity(torch.from_numpy(images), simulator.detector))
    return torch.cat(centers).numpy()
