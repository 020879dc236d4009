r"""Which features decide the photon sum and the shower's center: SHAP values of Bayesian networks and their uncertainty.

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
import csv
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from calosim import __version__, draws
from calosim.data import RootDataModule, describe
from calosim.evaluation import photon_report, some_rows, trained_data
from calosim.losses import center_of_gravity
from calosim.particles import STUDY_PARTICLES, particle_code, particle_name, particle_symbol
from calosim.photons import PhotonSum
from calosim.provenance import atomic_write, git_hash
from calosim.rootio import FEATURES
from calosim.simulator import FastSimulator

__all__ = [
    "CenterSurrogate",
    "PosteriorMeans",
    "coverage_curve",
    "explain",
    "fit_surrogate",
    "predictive_moment",
    "predictive_samples",
    "shap_values",
    "surrogate_fit",
]

#: The features as they are explained: the networks use the absolute value of pz alone.
NAMES = tuple("|pz|" if name == "pz" else name for name in FEATURES)

#: Explainers of the ``shap`` package.
Method = Literal["exact", "permutation", "gradient"]
METHODS: tuple[Method, ...] = ("exact", "permutation", "gradient")

#: Fewer responses with light than this do not fit a surrogate.
MIN_SURROGATE_ROWS = 100

#: Nominal contents of central predictive intervals.
LEVELS = (*(round(0.05 * k, 2) for k in range(1, 20)), 0.99)

#: Predictive samples from each network of the posterior.
DRAWS = 32


# -- what is explained -------------------------------------------------------------------------------------------------


def predictive_moment(model: PhotonSum, outputs: Tensor, power: Literal[1, 2] = 1) -> Tensor:
    r"""A moment of the photon sum that a head describes, in closed form and differentiable.

    The rounding to integers is left out; the bounds at the smallest and largest sum of the training split are not. For a
    component :math:`\log N \sim \mathcal{N}(\mu, \tau^2)` above the edge :math:`\log a`, clamped at :math:`u`,

    .. math:: E[N^p] = \frac{e^{p \mu + p^2 \tau^2 / 2} \left[\Phi(\beta - p \tau) - \Phi(\alpha - p \tau)\right]
              + u^p \, \Phi(-\beta)}{\Phi(-\alpha)}, \quad
              \alpha = \frac{\log a - \mu}{\tau}, \; \beta = \frac{\log u - \mu}{\tau}.

    Args:
        model: The photon-sum model.
        outputs: Outputs of one of its networks with shape (B, outputs).
        power: 1 for the mean, 2 for the mean square.

    Returns:
        :math:`E[N^p]` in photons or photons squared, with shape (B,).
    """
    log_weight, mean, scale = model._split(outputs)
    center, spread, upper = (b.to(outputs) for b in (model.center, model.spread, model.upper))
    mu, tau = center + spread * mean, spread * scale
    if model.head == "gaussian":
        alpha, beta = -mu / tau, (upper - mu) / tau
        inside, beyond = torch.special.ndtr(beta) - torch.special.ndtr(alpha), torch.special.ndtr(-beta)
        low, high = ((-z.square() / 2).exp() / math.sqrt(2 * math.pi) for z in (alpha, beta))
        if power == 1:
            return (mu * inside + tau * (low - high) + upper * beyond)[:, 0]
        square = (mu.square() + tau.square()) * inside + tau * (mu * low - (mu + upper) * high)
        return (square + upper.square() * beyond)[:, 0]
    alpha, beta = (center + spread * model._edge() - mu) / tau, (upper.log() - mu) / tau
    a, b = alpha - power * tau, beta - power * tau
    # In logs and in the nearer tail: far components have weights of 1e-300 and exponentials of 1e+300.
    larger = torch.special.log_ndtr(torch.where(a > 0, -a, b))
    smaller = torch.special.log_ndtr(torch.where(a > 0, -b, a))
    inside = power * mu + power**2 * tau.square() / 2 + larger + (-torch.expm1(smaller - larger)).log()
    clamped = power * upper.log() + torch.special.log_ndtr(-beta)
    return (log_weight + torch.logaddexp(inside, clamped) - torch.special.log_ndtr(-alpha)).exp().sum(1)


class CenterSurrogate(PhotonSum):
    """Bayesian network for one coordinate of the shower's center: the photon sum's, with its Gaussian head, on centimeters.

    Args:
        detector: The detector's name.
        hidden: Widths of the hidden layers.
        posterior_samples: Networks drawn from the posterior.
    """

    def __init__(self, detector: str = "zn", hidden: tuple[int, ...] = (32, 32), posterior_samples: int = 8):
        super().__init__(detector, head="gaussian", hidden=hidden, posterior_samples=posterior_samples)

    def mean(self, outputs: Tensor) -> Tensor:
        """The predictive mean in cm, shape (B,), from a network's outputs (B, 2)."""
        return self.center + self.spread * self._split(outputs)[1][:, 0]


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
        # In a tuple: not a submodule, whose gradients an explainer would reset.
        self.model = (model,)

    def forward(self, particles: Tensor) -> Tensor:
        """Features (B, 9) in the units of :data:`calosim.rootio.FEATURES` to means (B, K) in photons or cm."""
        (model,) = self.model
        columns = self.scaler(particles)
        outputs = [network(columns).double() for network in self.networks]
        if isinstance(model, CenterSurrogate):
            return torch.stack([model.mean(o) for o in outputs], dim=1)
        return torch.stack([predictive_moment(model, o) for o in outputs], dim=1)

    @torch.no_grad()
    def predict(self, particles: np.ndarray) -> np.ndarray:
        """The same for arrays, without gradients."""
        return self(torch.from_numpy(particles)).numpy()


# -- SHAP values -------------------------------------------------------------------------------------------------------


class _Standardized(nn.Module):
    """A function of standardized features; shap compares features with absolute tolerances, some are of 1e-6 cm."""

    def __init__(self, function: nn.Module, background: np.ndarray):
        super().__init__()
        self.function, self.rows = function, 0
        spread = background.std(0)
        self.center, self.scale = background.mean(0), np.where(spread > 0, spread, 1.0)

    def columns(self, features: np.ndarray) -> np.ndarray:
        return (features - self.center) / self.scale

    def forward(self, columns: Tensor) -> Tensor:
        self.rows += len(columns)
        return self.function(columns.double() * torch.from_numpy(self.scale) + torch.from_numpy(self.center))

    @torch.no_grad()
    def predict(self, columns: np.ndarray) -> np.ndarray:
        return self(torch.from_numpy(np.ascontiguousarray(columns))).numpy()


@contextmanager
def _numpy_randomness() -> Iterator[None]:
    """shap draws from and seeds numpy's global generator; here it is put back as it was."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def shap_values(
    function: nn.Module,
    features: np.ndarray,
    background: np.ndarray,
    method: Method = "exact",
    permutations: int = 2,
    gradients: int = 200,
    seed: int = 0,
    quiet: bool = True,
    title: str = "SHAP",
) -> tuple[np.ndarray, dict[str, float]]:
    """SHAP values by an explainer of the ``shap`` package, of all outputs of a function at once.

    Args:
        function: Features (B, 9) to outputs (B, K), float64; differentiable for ``gradient``.
        features: The rows to explain, with shape (N, F).
        background: Rows that stand for masked features, with shape (M, F).
        method: ``exact`` (shap.ExactExplainer, all subsets of the features), ``permutation``
            (shap.PermutationExplainer) or ``gradient`` (shap.GradientExplainer, expected gradients).
        permutations: Orders in which ``permutation`` unmasks the features, each forth and back; one is exact for
            interactions of two features.
        gradients: Points at which ``gradient`` differentiates for each row.
        seed: Seed of orders and points; numpy's global generator stays untouched.
        quiet: Show no progress.
        title: What the progress bar says.

    Returns:
        Values with shape (N, F, K), and the cost: ``seconds``, and how often the function was evaluated (``rows``),
        without the explainer's start, which compiles some of its code.

    Raises:
        ValueError: If the method is unknown, or shap is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"unknown explainer {method!r}; expected one of {', '.join(METHODS)}")
    with warnings.catch_warnings():
        # shap 0.51 sets up color maps in a way that matplotlib 3.11 announces to deprecate.
        warnings.simplefilter("ignore")
        try:
            import shap
        except ImportError as error:
            raise ValueError(
                f"explanations need shap ({error}); install it with pip install 'calosim[explain]'"
            ) from None

    model = _Standardized(function, background)
    rows, masked = model.columns(features), model.columns(background)
    count = features.shape[1]
    one: Callable[[int], np.ndarray]
    with _numpy_randomness():
        if method == "gradient":
            gradient = shap.GradientExplainer(model, torch.from_numpy(masked).float(), batch_size=gradients)

            def one(row: int) -> np.ndarray:
                point = torch.from_numpy(rows[row : row + 1]).float()
                return gradient.shap_values(point, nsamples=gradients, rseed=seed + row)
        else:
            masker = shap.maskers.Independent(masked, max_samples=len(masked))
            if method == "exact":
                sampling, most = shap.ExactExplainer(model.predict, masker), 2**count
            else:
                sampling = shap.PermutationExplainer(model.predict, masker, seed=seed)
                most = permutations * (2 * count + 1)

            def one(row: int) -> np.ndarray:
                return sampling(rows[row : row + 1], max_evals=most, silent=True).values

        one(0)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        model.rows, start = 0, time.perf_counter()
        bar = tqdm(range(len(rows)), desc=title, unit="rows", disable=True if quiet else None)
        values = np.concatenate([np.asarray(one(row), dtype=np.float64).reshape(1, count, -1) for row in bar])
    return values, {"seconds": time.perf_counter() - start, "rows": float(model.rows)}


class Explanation(NamedTuple):
    """SHAP values of one quantity.

    Attributes:
        title: What is explained.
        unit: Its unit.
        values: SHAP values with shape (N, 9, K).
        base: Means over the background, of each of K networks.
        predictions: Predictive means with shape (N, K).
        seconds: How long it took.
    """

    title: str
    unit: str
    values: np.ndarray
    base: np.ndarray
    predictions: np.ndarray
    seconds: float

    @property
    def importance(self) -> np.ndarray:
        """Mean over rows of the absolute SHAP values of the posterior's mean, shape (9,)."""
        return np.abs(self.values.mean(2)).mean(0)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation over networks of what each alone would give as importance, shape (9,)."""
        return np.abs(self.values).mean(0).std(1)

    @property
    def order(self) -> list[int]:
        """Features, the most important first."""
        return np.argsort(-self.importance, kind="stable").tolist()

    @property
    def efficiency(self) -> float:
        """The largest difference between the sum of a row's values and its prediction minus the base."""
        return float(np.abs(self.values.sum(1) + self.base - self.predictions).max())


def _explanation(
    function: PosteriorMeans, title: str, unit: str, features: np.ndarray, background: np.ndarray, **settings: Any
) -> Explanation:
    values, cost = shap_values(function, features, background, title=f"SHAP of the {title}", **settings)
    base = function.predict(background).mean(0)
    return Explanation(title, unit, values, base, function.predict(features), cost["seconds"])


def compare_explainers(
    function: PosteriorMeans, features: np.ndarray, background: np.ndarray, quiet: bool = True, **settings: Any
) -> dict[str, dict[str, float]]:
    """Cost and agreement of all explainers on the same rows.

    Args:
        function: The explained function.
        features: Rows with shape (N, 9).
        background: Background with shape (M, 9).
        quiet: Show no progress.
        settings: ``permutations``, ``gradients`` and ``seed`` of :func:`shap_values`.

    Returns:
        By explainer: ``seconds`` per row; ``evaluations`` of the function per row; ``deviation``, the mean absolute
        difference from the exact values over the mean absolute exact value; ``efficiency``, the largest deviation of a
        row's sum from prediction minus base, in the unit of the function; ``same_order``, how many of the features
        stand at the place where the exact values have them.
    """
    found = {m: shap_values(function, features, background, m, quiet=quiet, title=m, **settings) for m in METHODS}
    exact = found["exact"][0]
    gap = function.predict(features) - function.predict(background).mean(0)
    order = np.argsort(-np.abs(exact.mean(2)).mean(0), kind="stable")
    report: dict[str, dict[str, float]] = {}
    for name, (values, cost) in found.items():
        own = np.argsort(-np.abs(values.mean(2)).mean(0), kind="stable")
        report[name] = {
            "seconds": cost["seconds"] / len(features),
            "evaluations": cost["rows"] / len(features),
            "deviation": float(np.abs((values - exact).mean(2)).mean() / np.abs(exact.mean(2)).mean()),
            "efficiency": float(np.abs(values.sum(1) - gap).max()),
            "same_order": int((own == order).sum()),
        }
    return report


# -- surrogates of the shower's center ---------------------------------------------------------------------------------


def fit_surrogate(
    detector: str,
    particles: np.ndarray,
    values: np.ndarray,
    posterior: int = 8,
    epochs: int = 60,
    seed: int = 0,
    quiet: bool = True,
    title: str = "surrogate",
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
        title: What the progress bar says.

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
        model = CenterSurrogate(detector, posterior_samples=posterior)
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
        for _ in tqdm(range(epochs), desc=title, unit="epochs", disable=True if quiet else None):
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
    residual = y - function.predict(particles[lit]).mean(1)
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
    simulator: FastSimulator, data: RootDataModule, split: Any, chosen: np.ndarray, seed: int, quiet: bool = True
) -> np.ndarray:
    """Centers of gravity of one generated response to each of some rows.

    Args:
        simulator: Photon sum and shape.
        data: The data set.
        split: The split of the rows.
        chosen: Positions in the split with shape (N,).
        seed: Seed of the draws.
        quiet: Show no progress.

    Returns:
        x and y in cm with shape (N, 2); NaN where there is no light.
    """
    rows = data.rows(split)[chosen]
    particles, pdg = data.arrays["particles"][rows], data.arrays["pdg"][rows]
    centers = np.empty((len(rows), 2))
    with tqdm(total=len(rows), desc=f"{split} responses", disable=True if quiet else None) as progress:
        for start in range(0, len(rows), 256):
            part = slice(start, start + 256)
            images = simulator.sample(particles[part], pdg[part], seed, rows[part])
            centers[part] = center_of_gravity(torch.from_numpy(images), simulator.detector).numpy()
            progress.update(len(images))
    return centers


# -- the uncertainty of the photon sum ---------------------------------------------------------------------------------


@torch.no_grad()
def predictive_samples(
    model: PhotonSum, particles: np.ndarray, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Samples of the posterior predictive and its variance in two parts.

    By the law of total variance over networks :math:`k` of the posterior,

    .. math:: \operatorname{Var} N = \underbrace{E_k \operatorname{Var}(N \mid k)}_{\text{aleatoric}}
              + \underbrace{\operatorname{Var}_k E(N \mid k)}_{\text{epistemic}}.

    Args:
        model: The photon-sum model.
        particles: Features with shape (N, 9).
        rows: Row numbers with shape (N,) that key the draws.
        seed: Seed of networks and draws.

    Returns:
        Photon sums with shape (N, K * 32), int64; aleatoric and epistemic variances in photons squared, each (N,).
    """
    networks = model.networks(seed)
    columns = model.features(torch.from_numpy(particles)).double()
    keys = draws.row_keys(torch.from_numpy(rows), draws.PHOTON_STREAM, seed)
    numbers = draws.uniform(keys, 2 * len(networks) * DRAWS).double().view(len(rows), -1, DRAWS, 2)
    samples, firsts, seconds = [], [], []
    for k, network in enumerate(networks):
        outputs = network(columns)
        drawn = model.draw(outputs.repeat_interleave(DRAWS, 0), numbers[:, k].reshape(-1, 2))
        samples.append(drawn.view(len(rows), DRAWS))
        firsts.append(predictive_moment(model, outputs, 1))
        seconds.append(predictive_moment(model, outputs, 2))
    first, second = torch.stack(firsts, 1), torch.stack(seconds, 1)
    aleatoric = (second - first.square()).clamp(min=0).mean(1)
    return torch.cat(samples, 1).numpy(), aleatoric.numpy(), first.var(1, correction=0).numpy()


def coverage_curve(samples: np.ndarray, photon_sum: np.ndarray, seed: int = 0) -> np.ndarray:
    """The nominal content of the smallest central predictive interval that holds each observation.

    Uniform in (0, 1) for a calibrated prediction; the share of rows below p is the observed coverage of the interval of
    nominal content p. Ranks between equal integers are drawn.

    Args:
        samples: Predictive samples with shape (N, S).
        photon_sum: Observed sums with shape (N,).
        seed: Seed of the draws.

    Returns:
        Contents with shape (N,).
    """
    below = (samples < photon_sum[:, None]).sum(1)
    equal = (samples == photon_sum[:, None]).sum(1)
    u = draws.uniform(draws.row_keys(torch.arange(len(samples)), draws.EVALUATION_STREAM, seed), 1)[:, 0].numpy()
    rank = (below + u * (equal + 1)) / (samples.shape[1] + 1)
    return np.abs(2 * rank - 1)


def photon_uncertainty(
    model: PhotonSum,
    particles: np.ndarray,
    pdg: np.ndarray,
    photon_sum: np.ndarray,
    rows: np.ndarray,
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Predictive intervals of the photon sum against what was observed.

    Args:
        model: The photon-sum model.
        particles: Features with shape (N, 9).
        pdg: PDG codes with shape (N,).
        photon_sum: Observed sums with shape (N,).
        rows: Row numbers with shape (N,) that key the draws.
        seed: Seed of networks and draws.

    Returns:
        By ``all`` and particle type: ``coverage`` (observed, by nominal content), ``aleatoric`` and ``epistemic`` (root
        mean squares in photons), ``epistemic_share`` of the variance, ``width_68`` (median width of the interval over the
        median prediction), and what :func:`calosim.evaluation.photon_report` says. And by row: ``median``, ``low_68``,
        ``high_68``, ``low_95``, ``high_95``, ``aleatoric_variance``, ``epistemic_variance``, ``rows``, ``pdg`` and
        ``observed``.
    """
    samples, aleatoric, epistemic = predictive_samples(model, particles, rows, seed)
    contents = coverage_curve(samples, photon_sum, seed)
    quantiles = np.quantile(samples, [0.5, 0.16, 0.84, 0.025, 0.975], axis=1)
    by_row = dict(zip(("median", "low_68", "high_68", "low_95", "high_95"), quantiles, strict=True))
    by_row |= {"aleatoric_variance": aleatoric, "epistemic_variance": epistemic}
    by_row |= {"rows": rows, "pdg": pdg, "observed": photon_sum}
    report: dict[str, Any] = photon_report(samples, photon_sum, pdg)
    codes = {"all": np.ones(len(pdg), dtype=bool), **{particle_name(int(c)): pdg == c for c in np.unique(pdg)}}
    for name, some in codes.items():
        parts = aleatoric[some].mean(), epistemic[some].mean()
        width = (by_row["high_68"] - by_row["low_68"])[some] / np.maximum(by_row["median"][some], 1)
        report[name] |= {
            "coverage": {str(p): float((contents[some] <= p).mean()) for p in LEVELS},
            "aleatoric": float(np.sqrt(parts[0])),
            "epistemic": float(np.sqrt(parts[1])),
            "epistemic_share": float(parts[1] / max(sum(parts), 1e-12)),
            "width_68": float(np.median(width)),
        }
    return report, by_row


# -- the command -------------------------------------------------------------------------------------------------------


def explain(
    out: str,
    photons: str | None = None,
    shape: str | None = None,
    particle: str | int | None = None,
    files: list[str] | None = None,
    data: str | None = None,
    method: Method = "exact",
    rows: int = 100,
    background: int = 40,
    posterior: int = 8,
    permutations: int = 2,
    gradients: int = 200,
    compare_rows: int = 4,
    surrogate_rows: int = 2000,
    surrogate_epochs: int = 60,
    uncertainty_rows: int = 2000,
    seed: int = 1,
    quiet: bool = False,
) -> None:
    """Explains the photon sum and the shower's center by the primary's features (SHAP), and how sure the photon sum is.

    Writes explain.md and explain.json, shap.csv and shap.npz, photon_uncertainty.json, .csv and .npz (by row), and
    pictures. Rows are of the test split of the data the models were trained with, background rows of its training split.

    The explainer is exact by default: nine features have 512 subsets, and enumerating them costs little more than sampling
    them well. Measured on one core of a shared machine, photon-sum network of 3 x 128, 8 networks, 40 background rows, 6
    test rows: exact 0.27 s a row; permutation 0.05 s with 2 orders, 16 to 20 % off, and 0.14 s with 8, 8 % off; gradient
    0.36 s with 200 points, 46 % off, with sums up to 190 photons away from prediction minus expectation (mean absolute
    deviation from the exact values over their mean absolute value). Sharp edges, a beam slit or the calorimeter's rim,
    make interactions of many features, which few orders and expected gradients miss. compare_rows measures it anew.

    Args:
        out: Folder for the results.
        photons: Run folder or checkpoint of the photon-sum model; the ensemble's, if ``shape`` is one that holds it.
        shape: Run folder, checkpoint or ensemble of the shape model. Surrogates of the x and y of the shower's center are
            trained on what it generates; without it only the photon sum is explained.
        particle: Explain this particle type alone; all types in their natural mix if not given.
        files: Data files, if they are no longer where the models were trained.
        data: Run folder whose data set and split are used; that of the photon-sum model if not given.
        method: exact, permutation or gradient, see above.
        rows: Test rows to explain.
        background: Training rows that stand for masked features.
        posterior: Networks drawn from each posterior.
        permutations: Orders in which "permutation" unmasks the features, each forth and back.
        gradients: Points at which "gradient" differentiates for each row.
        compare_rows: Rows on which all explainers are run and compared; 0 skips that.
        surrogate_rows: Responses generated for the surrogates; a quarter as many, of test primaries, judge them.
        surrogate_epochs: Passes over those responses.
        uncertainty_rows: Test rows whose predictive intervals are held against the observed photon sums.
        seed: Seed of all draws.
        quiet: Show no progress.
    """
    arguments = {key: value for key, value in locals().items() if key != "quiet"}
    least = {"compare_rows": 0, "background": 2, "uncertainty_rows": 2}
    for name, value in arguments.items():
        lowest = least.get(name, 1)
        if isinstance(value, int) and name not in ("seed", "particle") and value < lowest:
            raise ValueError(f"expected {name} of at least {lowest}, got {value}")
    if photons is None and shape is None:
        raise ValueError("nothing to explain: name a photon-sum model with --photons or a shape model with --shape")
    code = None if particle is None else particle_code(particle)
    model = PhotonSum.load(photons) if photons else None
    simulator = FastSimulator.load(shape, photons) if shape else None
    if simulator is not None:
        if simulator.photons is None:
            raise ValueError(f"{shape}: holds no photon-sum model; name one with --photons")
        model = copy.deepcopy(simulator.photons)
    assert model is not None
    # Of a copy: the simulation keeps its own number of networks.
    model.posterior_samples = posterior
    source, own = trained_data(data or photons or str(shape), files, shape or photons)
    if own is not None and code not in (None, own):
        raise ValueError(
            f"{shape or photons}: trained with {particle_name(own)} alone; expected no other particle, got "
            f"{particle_name(code or 0)}"
        )
    code = own if code is None else code
    parts = {split: _Part(source, split, code) for split in ("train", "test")}
    masked = _explained_features(parts["train"].particles(parts["train"].some(background, 1)))
    chosen = parts["test"].some(rows, 1)
    features = _explained_features(parts["test"].particles(chosen))
    settings: dict[str, Any] = {"permutations": permutations, "gradients": gradients, "seed": seed, "quiet": quiet}
    results: dict[str, Any] = {
        "calosim": __version__,
        "git": git_hash(),
        "arguments": arguments,
        "data": describe(source),
        "particle": "all" if code is None else particle_name(code),
        "rows": len(features),
        "background": len(masked),
        "posterior": posterior,
        "method": method,
    }
    functions: dict[str, tuple[PosteriorMeans, str, str]] = {}
    if simulator is not None:
        results["surrogates"] = {}
        learned, held = parts["train"].some(surrogate_rows, 1), parts["test"].some(-(-surrogate_rows // 4), 5)
        centers = generated_centers(simulator, source, "train", learned, seed, quiet)
        truth = generated_centers(simulator, source, "test", held, seed, quiet)
        for i, axis in enumerate(("x", "y")):
            surrogate = fit_surrogate(
                source.detector.name,
                parts["train"].particles(learned),
                centers[:, i],
                posterior,
                surrogate_epochs,
                seed + i,
                quiet,
                f"surrogate of {axis}",
            )
            function = PosteriorMeans(surrogate, seed)
            functions[f"center_{axis}"] = function, f"shower center {axis}", "cm"
            held_particles, inputs = parts["test"].particles(held), source.inputs("test")[held]
            results["surrogates"][axis] = surrogate_fit(function, held_particles, truth[:, i], inputs)
    functions = {"photon_sum": (PosteriorMeans(model, seed), "photon sum", "photons"), **functions}
    found = {
        key: _explanation(function, title, unit, features, masked, method=method, **settings)
        for key, (function, title, unit) in functions.items()
    }
    results["targets"] = {key: _ranks(explanation) for key, explanation in found.items()}
    if compare_rows:
        results["explainers"] = compare_explainers(
            functions["photon_sum"][0],
            features[:: max(1, len(features) // compare_rows)][:compare_rows],
            masked,
            **settings,
        )
    test = parts["test"].some(uncertainty_rows, 5)
    numbers = source.rows("test")[test]
    observed = source.arrays["photon_sum"][numbers].astype(np.int64)
    pdg, particles = source.arrays["pdg"][numbers], source.arrays["particles"][numbers]
    uncertainty, by_row = photon_uncertainty(model, particles, pdg, observed, numbers, seed)
    _write(Path(out), results, found, features, masked, source.rows("test")[chosen], uncertainty, by_row)


class _Part:
    """A split's rows of one particle type, or of all."""

    def __init__(self, data: RootDataModule, split: Any, code: int | None):
        self.data, self.split = data, split
        pdg = data.arrays["pdg"][data.rows(split)]
        self.positions = np.arange(len(pdg)) if code is None else np.flatnonzero(pdg == code)
        if not len(self.positions):
            what = "row" if code is None else f"{particle_name(code)} row"
            raise ValueError(f"{', '.join(data.files)}: the {split} split has no {what} to explain")
        self.inputs, self.pdg = data.inputs(split)[self.positions], pdg[self.positions]

    def some(self, rows: int, together: int) -> np.ndarray:
        """Positions of some rows within the split, see :func:`calosim.evaluation.some_rows`."""
        return self.positions[some_rows(self.inputs, self.pdg, rows, together)]

    def particles(self, positions: np.ndarray) -> np.ndarray:
        """Features with shape (N, 9), float64."""
        return self.data.arrays["particles"][self.data.rows(self.split)[positions]]


def _explained_features(particles: np.ndarray) -> np.ndarray:
    """Features with the absolute value of pz, which is all that the networks see of it.

    With its sign, the straight path of ``gradient`` from one side's primaries to the other's would pass through zero.
    """
    features = particles.astype(np.float64)
    features[:, FEATURES.index("pz")] = np.abs(features[:, FEATURES.index("pz")])
    return features


def _ranks(explanation: Explanation) -> dict[str, Any]:
    """The features of one quantity, the most important first, as they are written to JSON."""
    importance, spread = explanation.importance, explanation.spread
    return {
        "unit": explanation.unit,
        "base": float(explanation.base.mean()),
        "prediction_std": float(explanation.predictions.mean(1).std()),
        "efficiency": explanation.efficiency,
        "seconds": explanation.seconds,
        "features": [
            {
                "feature": NAMES[j],
                "rank": rank,
                "mean_abs_shap": float(importance[j]),
                "posterior_std": float(spread[j]),
                "share": float(importance[j] / max(importance.sum(), 1e-300)),
            }
            for rank, j in enumerate(explanation.order, 1)
        ],
    }


def _write(
    folder: Path,
    results: dict[str, Any],
    found: dict[str, Explanation],
    features: np.ndarray,
    background: np.ndarray,
    rows: np.ndarray,
    uncertainty: dict[str, Any],
    by_row: dict[str, np.ndarray],
) -> None:
    """All files, each whole or not there; ``explain.json`` is the last."""
    from calosim.plotting import beeswarm, importances, predictive_intervals

    arrays: dict[str, Any] = {"features": features, "background": background, "rows": rows, "names": np.array(NAMES)}
    for key, e in found.items():
        arrays |= {f"{key}_values": e.values, f"{key}_base": e.base, f"{key}_predictions": e.predictions}
    atomic_write(folder / "shap.npz", _packed(arrays))
    atomic_write(folder / "photon_uncertainty.npz", _packed(by_row))
    columns = ("target", "particle", "unit", "feature", "rank", "mean_abs_shap", "posterior_std", "share")
    lines = [
        {"target": key, "particle": results["particle"], "unit": target["unit"], **feature}
        for key, target in results["targets"].items()
        for feature in target["features"]
    ]
    atomic_write(folder / "shap.csv", _csv(columns, lines))
    atomic_write(folder / "photon_uncertainty.json", json.dumps(uncertainty, indent=2) + "\n")
    quantities = [
        {"particle": name, "quantity": quantity, "nominal": nominal, "value": value}
        for name, report in uncertainty.items()
        for quantity, values in report.items()
        for nominal, value in (values.items() if isinstance(values, dict) else [("", values)])
    ]
    atomic_write(folder / "photon_uncertainty.csv", _csv(("particle", "quantity", "nominal", "value"), quantities))
    for key, e in found.items():
        label, names = f"SHAP value of the {e.title}, {e.unit}", [NAMES[j] for j in e.order]
        beeswarm(e.values.mean(2)[:, e.order], features[:, e.order], names, label, folder / f"{key}_beeswarm.png")
        importances(
            e.importance[e.order], e.spread[e.order], names, f"mean absolute {label}", folder / f"{key}_bar.png"
        )
    named = {particle_name(c): particle_symbol(c) for c in STUDY_PARTICLES}
    curves = {
        named.get(name, name): list(zip(map(float, report["coverage"]), report["coverage"].values(), strict=True))
        for name, report in uncertainty.items()
        if name == "all" or name in named
    }
    parts = {
        named.get(name, name): (report["aleatoric"], report["epistemic"])
        for name, report in uncertainty.items()
        if name == "all" or name in named
    }
    shown = np.unique(np.linspace(0, len(by_row["rows"]) - 1, 120).astype(np.int64))
    predictive_intervals(
        {key: by_row[key][shown] for key in ("median", "low_68", "high_68", "low_95", "high_95")},
        by_row["observed"][shown],
        curves,
        parts,
        folder / "photon_uncertainty.png",
    )
    report = _markdown(results, uncertainty)
    atomic_write(folder / "explain.md", report)
    atomic_write(folder / "explain.json", json.dumps(results, indent=2) + "\n")
    print(report)
    print(
        f"Results: {folder}/explain.md, explain.json, shap.csv, shap.npz, photon_uncertainty.json, .csv, .npz and pictures"
    )


def _packed(arrays: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _csv(columns: tuple[str, ...], lines: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    table = csv.DictWriter(stream, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return stream.getvalue()


def _markdown(results: dict[str, Any], uncertainty: dict[str, Any]) -> str:
    """The report: the surrogates' fit, the ranks, the explainers, the uncertainty."""

    def table(head: list[str], rows: list[list[str]]) -> list[str]:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return ["", lines[0], "|---" * len(head) + "|", *lines[1:], ""]

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    lines = []
    if "surrogates" in results:
        lines.append(
            "Surrogates of the shower center on primaries they have not seen; an explanation is worth their fit."
        )
        keys = ("r2", "ceiling", "residual_mean", "residual_std", "std")
        fits = [
            [axis, *(number(f[k]) for k in keys), str(f["rows"]), str(f["primaries"])]
            for axis, f in results["surrogates"].items()
        ]
        heading = ["center", "R²", "largest R² of any function of the primary", "residual mean, cm", "residual std, cm"]
        lines += table([*heading, "values' std, cm", "rows", "primaries"], fits)
    lines.append(
        f"Mean absolute SHAP value over {results['rows']} test rows ({results['particle']}), {results['background']} "
        f"background rows; ± standard deviation over {results['posterior']} networks of the posterior; explainer: "
        f"{results['method']}."
    )
    columns = [
        [f"{f['feature']} {f['mean_abs_shap']:.3g} ± {f['posterior_std']:.1g}" for f in target["features"]]
        for target in results["targets"].values()
    ]
    heading = [f"{key.replace('_', ' ')}, {target['unit']}" for key, target in results["targets"].items()]
    lines += table(["rank", *heading], [[str(i), *cells] for i, cells in enumerate(zip(*columns, strict=True), 1)])
    if "explainers" in results:
        lines.append("Explainers of the photon sum on the same rows; deviation is relative to the exact values.")
        forms = {"seconds": ".3f", "evaluations": ".0f", "deviation": ".1%", "efficiency": ".2g"}
        costs = [
            [name, *(f"{e[k]:{form}}" for k, form in forms.items()), f"{e['same_order']} of {len(NAMES)}"]
            for name, e in results["explainers"].items()
        ]
        heading = ["explainer", "seconds a row", "evaluations a row", "deviation", "sum of a row off by, photons"]
        lines += table([*heading, "features in place"], costs)
    lines.append(
        "Uncertainty of the photon sum: observed shares inside central predictive intervals, and the parts of its standard "
        "deviation: aleatoric (responses differ) and epistemic (networks of the posterior differ)."
    )
    known = []
    for name in ("all", *map(particle_name, STUDY_PARTICLES)):
        if name in uncertainty:
            u = uncertainty[name]
            shares = [f"{100 * u['coverage'][p]:.1f} %" for p in ("0.5", "0.9", "0.95")]
            parts = [f"{u['aleatoric']:.1f}", f"{u['epistemic']:.1f}", f"{100 * u['epistemic_share']:.1f} %"]
            known.append([name, str(int(u["rows"])), *shares, *parts])
    heading = ["particle", "rows", "inside 50 %", "90 %", "95 %", "aleatoric, photons", "epistemic, photons"]
    lines += table([*heading, "epistemic share of variance"], known)
    return "\n".join(lines)
