"""What is explained: predictive means of Bayesian networks, of the photon sum itself or of surrogates of the shower's center.

A flow is too slow for the thousands of evaluations that an explanation takes, so small Bayesian networks learn the center
of gravity of the responses that the whole simulation generates, and those surrogates are explained, after it was said how
well they fit.

References:
    | ZDC Fast Simulation with Normalizing Flows (Majerz and Dzwinel, poster)
"""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from calosim.data.splits import ShowerData
from calosim.explain.shap import predict
from calosim.models.losses import center_of_gravity
from calosim.models.photon_sum import GaussianHead, PhotonSum
from calosim.options import MIN_SURROGATE_ROWS
from calosim.processes import one_thread
from calosim.simulation.simulator import FastSimulator

__all__ = [
    "CenterHead",
    "CenterSurrogate",
    "PosteriorMeans",
    "center_surrogates",
    "fit_surrogate",
    "generated_centers",
    "surrogate_fit",
]


class CenterHead(GaussianHead):
    """The Gaussian head of the photon sum, for a coordinate of the shower's center in cm: without bounds."""

    def fit(self, photon_sum: Tensor, energy: Tensor) -> None:
        """Takes mean and standard deviation of the coordinate, in the photon sum's place."""
        self.center.fill_(photon_sum.mean())
        self.spread.fill_(photon_sum.std())

    def moment(self, outputs: Tensor, energy: Tensor, power: Literal[1, 2] = 1) -> Tensor:
        """A moment of the coordinate in cm or cm squared, shape (B,), from a network's outputs (B, 2)."""
        mu, tau = self.parameters_of(outputs)
        return mu if power == 1 else mu.square() + tau.square()


class CenterSurrogate(PhotonSum):
    """Bayesian network for a coordinate of the shower's center in cm.

    Args:
        detector: The detector's name.
        members: Networks drawn from the posterior.
    """

    def __init__(self, detector: str, members: int):
        super().__init__(detector, "gaussian", hidden=(32, 32), bins=0, posterior="bayesian", members=members)
        self.head = CenterHead()


class PosteriorMeans(nn.Module):
    """The explained function: features to the predictive means of networks drawn from a posterior.

    Args:
        model: A photon-sum model, or a surrogate of the shower's center, with its networks.
        seed: Seed of weights drawn from a posterior.
    """

    def __init__(self, model: PhotonSum, seed: int = 0):
        super().__init__()
        # In single precision, which halves the cost; what their outputs mean is computed in double precision.
        self.scaler, self.networks = model.features, nn.ModuleList(copy.deepcopy(model.networks(seed))).float()
        # A method, not a submodule, whose gradients an explainer would reset.
        self.moment = model.head.moment

    def forward(self, particles: Tensor) -> Tensor:
        """Features (B, 9) in the units of :data:`calosim.data.record.FEATURES` to means (B, K) in photons or cm."""
        columns = self.scaler(particles)
        energy = particles[:, 0]
        return torch.stack([self.moment(network(columns).double(), energy) for network in self.networks], dim=1)


@one_thread()
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
    nonempty = ~np.isnan(values)
    if nonempty.sum() < MIN_SURROGATE_ROWS:
        raise ValueError(
            f"expected at least {MIN_SURROGATE_ROWS} generated responses with light to fit a surrogate of the shower "
            f"center, got {nonempty.sum()}; raise surrogate_rows"
        )
    x, y = torch.from_numpy(particles[nonempty]), torch.from_numpy(values[nonempty]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CenterSurrogate(detector, posterior)
        model.features.fit(x)
        model.head.fit(y, x[:, 0])
        if not y.std() > 0:
            raise ValueError(f"expected shower centers that differ, got {y.mean():.4g} cm in all {len(y)} rows")
        columns = model.features(x)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        size = 128
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(y) // size))
        for _ in tqdm(range(epochs), desc="surrogate", unit="epochs", disable=True if quiet else None):
            for batch in torch.randperm(len(y)).split(size):
                log_density = model.head.log_prob(model.posterior(columns[batch]), x[batch, 0], y[batch])
                loss = model.posterior.penalty() / len(y) - log_density.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
    return model.eval()


@one_thread()
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
        ``residual_std`` and ``std`` (of the values) in cm; ``rows``, ``primaries`` and ``empty`` images left out.

    Raises:
        ValueError: If fewer than two rows have light.
    """
    nonempty = ~np.isnan(values)
    if nonempty.sum() < 2:
        raise ValueError(f"expected at least 2 generated test responses with light, got {nonempty.sum()}")
    y, groups = values[nonempty], np.unique(inputs[nonempty], return_inverse=True)[1].ravel()
    residual = y - predict(function, particles[nonempty]).mean(1)
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
        "rows": int(nonempty.sum()),
        "primaries": len(sizes),
        "dark": int((~nonempty).sum()),
    }


def generated_centers(
    simulator: FastSimulator, data: ShowerData, rows: np.ndarray, seed: int, quiet: bool
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


def center_surrogates(
    simulator: FastSimulator,
    data: ShowerData,
    rows: tuple[np.ndarray, np.ndarray],
    epochs: int,
    posterior: int,
    seed: int,
    quiet: bool,
) -> dict[str, tuple[PosteriorMeans, dict[str, float | None]]]:
    """Surrogates of both coordinates of the shower's center, and how well they fit.

    Args:
        simulator: Photon sum and shape.
        data: The data set.
        rows: Row numbers in its files to learn from, with shape (N,), and to be judged on, with shape (M,).
        epochs: Passes over the rows.
        posterior: Networks drawn from each posterior.
        seed: Seed of all draws.
        quiet: Show no progress.

    Returns:
        For ``x`` and ``y`` the surrogate's means and what :func:`surrogate_fit` says of them.

    Raises:
        ValueError: If no primary is left to judge them, or they cannot be fitted.
    """
    inputs, particles = data.arrays["primary_ids"], data.arrays["particles"]
    learned, held = rows
    # A split by response leaves primaries in both splits.
    held = held[~np.isin(inputs[held], inputs[learned])]
    if len(held) < 2:
        raise ValueError(
            "expected test responses to primaries that the surrogates have not seen, got none; lower surrogate_rows"
        )
    centers, truth = (generated_centers(simulator, data, some, seed, quiet) for some in (learned, held))
    found = {}
    for i, axis in enumerate("xy"):
        learn = data.detector, particles[learned], centers[:, i]
        function = PosteriorMeans(fit_surrogate(*learn, posterior, epochs, seed + i, quiet), seed)
        found[axis] = function, surrogate_fit(function, particles[held], truth[:, i], inputs[held])
    return found
