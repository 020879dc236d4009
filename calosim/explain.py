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
import csv
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from calosim import __version__, uncertainty
from calosim.data import RootDataModule, describe
from calosim.evaluation import check_splits, some_rows, trained_data
from calosim.losses import center_of_gravity
from calosim.particles import particle_code, particle_name
from calosim.photons import PhotonSum
from calosim.provenance import atomic_write, check_writable, git_hash, to_json
from calosim.rootio import FEATURES
from calosim.simulator import FastSimulator

__all__ = ["CenterSurrogate", "PosteriorMeans", "explain", "fit_surrogate", "predict", "shap_values", "surrogate_fit"]

#: The features as they are explained: the networks use the absolute value of pz alone.
NAMES = tuple("|pz|" if name == "pz" else name for name in FEATURES)

#: What can be explained: its name and its unit.
TARGETS = {
    "photon_sum": ("photon sum", "photons"),
    "center_x": ("shower center x", "cm"),
    "center_y": ("shower center y", "cm"),
}

#: Explainers of the ``shap`` package.
Method = Literal["exact", "permutation", "gradient"]
METHODS: tuple[Method, ...] = ("exact", "permutation", "gradient")

#: Fewer responses with light than this do not fit a surrogate.
MIN_SURROGATE_ROWS = 100


# -- what is explained -------------------------------------------------------------------------------------------------


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
        """Features (B, 9) in the units of :data:`calosim.rootio.FEATURES` to means (B, K) in photons or cm."""
        columns = self.scaler(particles)
        return torch.stack([self.moment(network(columns).double()) for network in self.networks], dim=1)


@torch.no_grad()
def predict(function: nn.Module, rows: np.ndarray) -> np.ndarray:
    """A function of tensors for arrays, without gradients."""
    return function(torch.from_numpy(np.ascontiguousarray(rows))).numpy()


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


@contextmanager
def _numpy_randomness() -> Iterator[None]:
    """shap draws from and seeds numpy's global generator; here it is put back as it was."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _shap() -> Any:
    """The ``shap`` package, if it is installed."""
    with warnings.catch_warnings():
        # shap 0.51 sets up color maps in a way that matplotlib 3.11 announces to deprecate.
        warnings.simplefilter("ignore")
        try:
            import numba

            # Compiling shap's loops takes ten seconds and saves none: the time goes into the networks.
            config: Any = numba.config
            compiled, config.DISABLE_JIT = config.DISABLE_JIT, True
            import shap

            config.DISABLE_JIT = compiled
        except ImportError as error:
            raise ValueError(f"explanations need shap ({error}): pip install 'calosim[explain]'") from None
    return shap


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
        function: Features (B, F) to outputs (B, K), float64; differentiable for ``gradient``.
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
        Values with shape (N, F, K), and the cost: ``seconds``, and ``evaluations`` of the function,
        without the explainer's start.

    Raises:
        ValueError: If the method is unknown, or shap is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"unknown explainer {method!r}; expected one of {', '.join(METHODS)}")
    shap = _shap()
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
                sampling, most = shap.ExactExplainer(partial(predict, model), masker), 2**count
            else:
                sampling = shap.PermutationExplainer(partial(predict, model), masker, seed=seed)
                most = permutations * (2 * count + 1)

            def one(row: int) -> np.ndarray:
                return sampling(rows[row : row + 1], max_evals=most, silent=True).values

        one(0)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        model.rows, start = 0, time.perf_counter()
        bar = tqdm(range(len(rows)), desc=title, unit="rows", disable=True if quiet else None)
        values = np.concatenate([np.asarray(one(row), dtype=np.float64).reshape(1, count, -1) for row in bar])
    return values, {"seconds": time.perf_counter() - start, "evaluations": model.rows}


def explained(
    function: nn.Module, features: np.ndarray, background: np.ndarray, **settings: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """SHAP values of a quantity, and what they say in short.

    Args:
        function: Features to the quantity by each of K networks.
        features: Rows with shape (N, 9).
        background: Background with shape (M, 9).
        settings: Further arguments of :func:`shap_values`.

    Returns:
        ``values`` (N, 9, K), ``base`` (K,), the means over the background, and ``predictions`` (N, K). And the mean
        ``base`` and the ``prediction_std`` over rows; ``efficiency``, the largest difference between the sum of a row's
        values and its prediction minus the base; ``seconds`` and ``evaluations``; and the ``features``, the most important
        first: the mean over rows of the absolute value of the posterior's mean, and the standard deviation over networks
        of what each alone would give.
    """
    values, cost = shap_values(function, features, background, **settings)
    base, predictions = predict(function, background).mean(0), predict(function, features)
    importance, spread = np.abs(values.mean(2)).mean(0), np.abs(values).mean(0).std(1)
    ranked = [
        {
            "feature": NAMES[j],
            "rank": rank,
            "mean_abs_shap": float(importance[j]),
            "posterior_std": float(spread[j]),
            "share": float(importance[j] / max(importance.sum(), 1e-300)),
        }
        for rank, j in enumerate(np.argsort(-importance, kind="stable"), 1)
    ]
    return {"values": values, "base": base, "predictions": predictions}, {
        "base": float(base.mean()),
        "prediction_std": float(predictions.mean(1).std()),
        "efficiency": float(np.abs(values.sum(1) + base - predictions).max()),
        **cost,
        "features": ranked,
    }


def compare_explainers(
    function: nn.Module, features: np.ndarray, background: np.ndarray, **settings: Any
) -> dict[str, dict[str, float]]:
    """Cost and agreement of all explainers on the same rows.

    Args:
        function: The explained function.
        features: Rows with shape (N, 9).
        background: Background with shape (M, 9).
        settings: ``permutations``, ``gradients``, ``seed`` and ``quiet`` of :func:`shap_values`.

    Returns:
        By explainer: ``seconds`` and ``evaluations`` of the function per row; ``deviation``, the mean absolute difference
        from the exact values over the mean absolute exact value; ``efficiency``, see :func:`explained`; ``same_order``,
        how many of the features stand at the place where the exact values have them.
    """
    found = {m: explained(function, features, background, method=m, title=m, **settings) for m in METHODS}
    exact, exactly = found["exact"][0]["values"].mean(2), found["exact"][1]["features"]
    return {
        method: {
            "seconds": short["seconds"] / len(features),
            "evaluations": short["evaluations"] / len(features),
            "deviation": float(np.abs(arrays["values"].mean(2) - exact).mean() / np.abs(exact).mean()),
            "efficiency": short["efficiency"],
            "same_order": sum(f["feature"] == e["feature"] for f, e in zip(short["features"], exactly, strict=True)),
        }
        for method, (arrays, short) in found.items()
    }


# -- surrogates of the shower's center ---------------------------------------------------------------------------------


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
    them well. On one core (3 x 128 hidden, 8 networks, 40 background rows) exact took 0.27 s a row; permutation 0.05 s with
    2 orders, 16 to 20 % off, and 0.14 s with 8, 8 % off; gradient 0.36 s with 200 points, 46 % off: sharp edges, a beam slit
    or the calorimeter's rim, make interactions of many features, which the others miss. compare_rows measures it anew.

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
    least = {"seed": 0, "compare_rows": 0, "background": 2, "uncertainty_rows": 2, "surrogate_rows": MIN_SURROGATE_ROWS}
    for name, value in arguments.items():
        lowest = least.get(name, 1)
        if isinstance(value, int) and name != "particle" and value < lowest:
            raise ValueError(f"expected {name} of at least {lowest}, got {value}")
    # What takes minutes comes after all that can be refused at once.
    folder = Path(out)
    check_writable(folder)
    code = None if particle is None else particle_code(particle)
    simulator: FastSimulator | None = None
    if shape:
        simulator = FastSimulator.load(shape, photons)
        if simulator.photons is None:
            raise ValueError(f"{shape}: holds no photon-sum model; name one with --photons")
        # Of a copy: the simulation keeps its own number of networks.
        model = copy.deepcopy(simulator.photons)
    elif photons:
        model = PhotonSum.load(photons)
    else:
        raise ValueError("nothing to explain: name a photon-sum model with --photons or a shape model with --shape")
    model.posterior_samples = posterior
    source, own = trained_data(data or photons or str(shape), files, shape or photons)
    check_splits(data or photons or str(shape), [m for m in (shape, photons) if m], data is not None)
    if own is not None and code not in (None, own):
        raise ValueError(f"{shape or photons}: trained with {particle_name(own)} alone; expected that, got {particle}")
    code = own if code is None else code
    train, test = (partial(_rows, source, split, code) for split in ("train", "test"))
    chosen = test(rows)
    features, masked = _features(source, chosen), _features(source, train(background))
    _shap()
    settings: dict[str, Any] = {"permutations": permutations, "gradients": gradients, "seed": seed, "quiet": quiet}
    results: dict[str, Any] = {
        **{"calosim": __version__, "git": git_hash(), "arguments": arguments, "data": describe(source)},
        **{"particle": "all" if code is None else particle_name(code), "rows": len(features)},
        **{"background": len(masked), "posterior": posterior, "method": method},
    }
    functions = {"photon_sum": PosteriorMeans(model, seed)}
    if simulator is not None:
        results["surrogates"] = {}
        arrays, learned, held = source.arrays, train(surrogate_rows), test(-(-surrogate_rows // 4), 5)
        # A split by response leaves primaries in both splits.
        held = held[~np.isin(arrays["inputs"][held], arrays["inputs"][learned])]
        if len(held) < 2:
            raise ValueError(
                "expected test responses to primaries that the surrogates have not seen, got none; lower surrogate_rows"
            )
        centers = generated_centers(simulator, source, learned, seed, quiet)
        truth = generated_centers(simulator, source, held, seed, quiet)
        for i, axis in enumerate("xy"):
            learn = source.detector.name, arrays["particles"][learned], centers[:, i]
            surrogate = fit_surrogate(*learn, posterior, surrogate_epochs, seed + i, quiet)
            function = functions[f"center_{axis}"] = PosteriorMeans(surrogate, seed)
            judge = arrays["particles"][held], truth[:, i], arrays["inputs"][held]
            results["surrogates"][axis] = surrogate_fit(function, *judge)
    stored = {"features": features, "background": masked, "rows": chosen, "names": np.array(NAMES)}
    results["targets"] = {}
    for key, function in functions.items():
        name, unit = TARGETS[key]
        found, short = explained(function, features, masked, method=method, title=f"SHAP of the {name}", **settings)
        stored |= {f"{key}_{what}": array for what, array in found.items()}
        results["targets"][key] = {"unit": unit, **short}
    if compare_rows:
        some = features[:: max(1, len(features) // compare_rows)][:compare_rows]
        results["explainers"] = compare_explainers(functions["photon_sum"], some, masked, **settings)
    report, by_row = uncertainty.photon_uncertainty(model, source, test(uncertainty_rows, 5), seed)
    _write(folder, results, stored, report, by_row)


def _rows(data: RootDataModule, split: Any, code: int | None, count: int, together: int = 1) -> np.ndarray:
    """Row numbers of some rows of a split, of one particle type or of all, see :func:`calosim.evaluation.some_rows`."""
    rows, pdg = data.rows(split), data.arrays["pdg"]
    rows = rows if code is None else rows[pdg[rows] == code]
    if not len(rows):
        what = "row" if code is None else f"{particle_name(code)} row"
        raise ValueError(f"{', '.join(data.files)}: the {split} split has no {what} to explain")
    return rows[some_rows(data.arrays["inputs"][rows], pdg[rows], count, together)]


def _features(data: RootDataModule, rows: np.ndarray) -> np.ndarray:
    """Features with the absolute value of pz, which is all that the networks see of it, float64.

    With its sign, the straight path of ``gradient`` from one side's primaries to the other's would pass through zero.
    """
    features = data.arrays["particles"][rows].astype(np.float64)
    features[:, FEATURES.index("pz")] = np.abs(features[:, FEATURES.index("pz")])
    return features


def _write(
    folder: Path, results: dict[str, Any], stored: dict[str, Any], report: dict[str, Any], by_row: dict[str, np.ndarray]
) -> None:
    """All files, each whole or not there; ``explain.json`` is the last."""
    from calosim.plotting import beeswarm, importances

    ranks = [
        {"target": key, "particle": results["particle"], "unit": target["unit"], **feature}
        for key, target in results["targets"].items()
        for feature in target["features"]
    ]
    quantities = [
        {"particle": name, "quantity": quantity, "nominal": nominal, "value": value}
        for name, values in report.items()
        for quantity, of in values.items()
        for nominal, value in (of.items() if isinstance(of, dict) else [("", of)])
    ]
    for name, arrays, lines in (("shap", stored, ranks), ("photon_uncertainty", by_row, quantities)):
        packed, lined = io.BytesIO(), io.StringIO()
        np.savez_compressed(packed, **arrays)
        atomic_write(folder / f"{name}.npz", packed.getvalue())
        table = csv.DictWriter(lined, list(lines[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
        atomic_write(folder / f"{name}.csv", lined.getvalue())
    atomic_write(folder / "photon_uncertainty.json", to_json(report))
    for key, target in results["targets"].items():
        label = "SHAP value of the {}, {}".format(*TARGETS[key])
        names = [feature["feature"] for feature in target["features"]]
        lengths, errors = (np.array([f[k] for f in target["features"]]) for k in ("mean_abs_shap", "posterior_std"))
        order = [NAMES.index(name) for name in names]
        values = stored[f"{key}_values"].mean(2)[:, order]
        beeswarm(values, stored["features"][:, order], names, label, folder / f"{key}_beeswarm.png")
        importances(lengths, errors, names, f"mean absolute {label}", folder / f"{key}_bar.png")
    uncertainty.picture(report, by_row, folder / "photon_uncertainty.png")
    text = "\n\n".join(_tables(results, report)) + "\n"
    atomic_write(folder / "explain.md", text)
    atomic_write(folder / "explain.json", to_json(results))
    print(text)
    print(f"Results: {folder}/explain.md, .json, shap.csv, .npz, photon_uncertainty.json, .csv, .npz and pictures")


def _table(words: str, *rows: list[str]) -> str:
    """A paragraph and a Markdown table, the first row being its heading."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([words, "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _with_error(value: float, error: float) -> str:
    """Both with the decimals that leave the error two digits."""
    decimals = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _tables(results: dict[str, Any], report: dict[str, Any]) -> Iterator[str]:
    """The surrogates' fit, the ranks, the explainers and the uncertainty."""
    if "surrogates" in results:
        keys = {
            "r2": "R²",
            "ceiling": "largest possible R²",
            "residual_mean": "residual mean, cm",
            "residual_std": "residual std, cm",
            "std": "values' std, cm",
        }
        yield _table(
            "Surrogates of the shower center on primaries they have not seen; an explanation is worth their fit. "
            "No function of the primary can explain more than the share of the variance that lies between primaries.",
            ["center", *keys.values(), "rows", "primaries"],
            *(
                [axis, *("–" if f[k] is None else f"{f[k]:.3f}" for k in keys), str(f["rows"]), str(f["primaries"])]
                for axis, f in results["surrogates"].items()
            ),
        )
    targets = results["targets"]
    columns = [
        [f"{f['feature']} {_with_error(f['mean_abs_shap'], f['posterior_std'])}" for f in target["features"]]
        for target in targets.values()
    ]
    yield _table(
        f"Mean absolute SHAP value over {results['rows']} test rows ({results['particle']}), {results['background']} "
        f"background rows; ± standard deviation over {results['posterior']} networks of the posterior; explainer: "
        f"{results['method']}.",
        ["rank", *(f"{key.replace('_', ' ')}, {target['unit']}" for key, target in targets.items())],
        *([str(rank), *cells] for rank, cells in enumerate(zip(*columns, strict=True), 1)),
    )
    if "explainers" in results:
        forms = {"seconds": ".3f", "evaluations": ".0f", "deviation": ".1%", "efficiency": ".3g"}
        heading = ["explainer", "seconds a row", "evaluations a row", "deviation", "sum of a row off by, photons"]
        yield _table(
            "Explainers of the photon sum on the same rows; deviation is relative to the exact values.",
            [*heading, "features in place"],
            *(
                [name, *(f"{e[k]:{form}}" for k, form in forms.items()), f"{e['same_order']} of {len(NAMES)}"]
                for name, e in results["explainers"].items()
            ),
        )
    yield _table(
        "Uncertainty of the photon sum: observed shares inside central predictive intervals, and the parts of its standard "
        "deviation: aleatoric (responses differ) and epistemic (networks of the posterior differ).",
        *uncertainty.table(report),
    )
