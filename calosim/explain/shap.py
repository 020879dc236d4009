r"""SHAP values of a function of the primary's features, by the explainers of the ``shap`` package.

Networks drawn from a posterior are explained together,

.. math:: \phi_j = \frac{1}{K} \sum_{k=1}^{K} \phi_j^{(k)},

which are the SHAP values of the mean over the posterior, SHAP values being linear in the function; their spread over
:math:`k` says how sure the network is of an explanation. Features are masked by background rows, one feature
independently of another.

References:
    | A Unified Approach to Interpreting Model Predictions (Lundberg and Lee, 2017), https://arxiv.org/abs/1705.07874
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from calosim.data.record import FEATURES
from calosim.options import METHODS, ShapSettings
from calosim.processes import one_thread

__all__ = [
    "NAMES",
    "compare_explainers",
    "explained",
    "import_shap",
    "predict",
    "shap_values",
]

#: The features as they are explained: the networks use the absolute value of pz alone.
NAMES = tuple("|pz|" if name == "pz" else name for name in FEATURES)


@torch.no_grad()
def predict(function: nn.Module, rows: np.ndarray) -> np.ndarray:
    """A function of tensors for arrays, without gradients."""
    return function(torch.from_numpy(np.ascontiguousarray(rows))).numpy()


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


def import_shap() -> Any:
    """The ``shap`` package.

    Raises:
        ValueError: If it is not installed.
    """
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


def _explainer(
    model: nn.Module, rows: np.ndarray, masked: np.ndarray, settings: ShapSettings
) -> Callable[[int], np.ndarray]:
    """A function of a row's number that explains it, for standardized rows (N, F) and background (M, F)."""
    shap, count = import_shap(), rows.shape[1]
    if settings.method == "gradient":
        points = settings.gradients
        gradient = shap.GradientExplainer(model, torch.from_numpy(masked).float(), batch_size=points)

        def differentiate(row: int) -> np.ndarray:
            point = torch.from_numpy(rows[row : row + 1]).float()
            return gradient.shap_values(point, nsamples=points, rseed=settings.seed + row)

        return differentiate
    masker = shap.maskers.Independent(masked, max_samples=len(masked))
    if settings.method == "exact":
        sampling, most = shap.ExactExplainer(partial(predict, model), masker), 2**count
    else:
        sampling = shap.PermutationExplainer(partial(predict, model), masker, seed=settings.seed)
        most = settings.permutations * (2 * count + 1)

    def sample(row: int) -> np.ndarray:
        point = rows[row : row + 1]
        if (masked == point).all():  # no feature tells it from the background, which these explainers do not expect
            return np.zeros((1, count, predict(model, point).reshape(1, -1).shape[1]))
        return sampling(point, max_evals=most, silent=True).values

    return sample


def shap_values(
    function: nn.Module,
    features: np.ndarray,
    background: np.ndarray,
    settings: ShapSettings = ShapSettings(),
    quiet: bool = True,
    title: str = "SHAP",
) -> tuple[np.ndarray, dict[str, float]]:
    """SHAP values of all outputs of a function at once.

    Args:
        function: Features (B, F) to outputs (B, K), float64; differentiable for ``gradient``.
        features: The rows to explain, with shape (N, F).
        background: Rows that stand for masked features, with shape (M, F).
        settings: The explainer, its effort and its seed; numpy's global generator stays untouched.
        quiet: Show no progress.
        title: What the progress bar says.

    Returns:
        Values with shape (N, F, K), and the cost: ``seconds``, and ``evaluations`` of the function,
        without the explainer's start.

    Raises:
        ValueError: If shap is not installed.
    """
    model = _Standardized(function, background)
    rows, masked = model.columns(features), model.columns(background)
    with _numpy_randomness():
        one = _explainer(model, rows, masked, settings)
        one(0)
        np.random.seed(settings.seed % 2**32)  # noqa: NPY002
        model.rows, start = 0, time.perf_counter()
        bar = tqdm(range(len(rows)), desc=title, unit="rows", disable=True if quiet else None)
        values = np.concatenate(
            [np.asarray(one(row), dtype=np.float64).reshape(1, features.shape[1], -1) for row in bar]
        )
    return values, {"seconds": time.perf_counter() - start, "evaluations": model.rows}


@one_thread()
def explained(
    function: nn.Module,
    features: np.ndarray,
    background: np.ndarray,
    settings: ShapSettings = ShapSettings(),
    quiet: bool = True,
    title: str = "SHAP",
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """SHAP values of a quantity, and what they say in short.

    Args:
        function: Features to the quantity by each of K networks.
        features: Rows with shape (N, 9).
        background: Background with shape (M, 9).
        settings: See :func:`shap_values`.
        quiet: Show no progress.
        title: What the progress bar says.

    Returns:
        ``values`` (N, 9, K), ``base`` (K,), the means over the background, and ``predictions`` (N, K). And the mean
        ``base`` and the ``prediction_std`` over rows; ``efficiency``, the largest difference between the sum of a row's
        values and its prediction minus the base; ``seconds`` and ``evaluations``; and the ``features``, the most important
        first: the mean over rows of the absolute value of the posterior's mean, and the standard deviation over networks
        of what each alone would give.
    """
    values, cost = shap_values(function, features, background, settings, quiet, title)
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


@one_thread()
def compare_explainers(
    function: nn.Module,
    features: np.ndarray,
    background: np.ndarray,
    settings: ShapSettings = ShapSettings(),
    quiet: bool = True,
) -> dict[str, dict[str, float]]:
    """Cost and agreement of all explainers on the same rows.

    Args:
        function: The explained function.
        features: Rows with shape (N, 9); ``compare_rows`` of them, evenly spread, are explained.
        background: Background with shape (M, 9).
        settings: See :func:`shap_values`; all its methods are tried.
        quiet: Show no progress.

    Returns:
        By explainer: ``seconds`` and ``evaluations`` of the function per row; ``deviation``, the mean absolute difference
        from the exact values over the mean absolute exact value; ``efficiency``, see :func:`explained`; ``same_order``,
        how many of the features stand at the place where the exact values have them.
    """
    some = features[:: max(1, len(features) // settings.compare_rows)][: settings.compare_rows]
    found = {m: explained(function, some, background, replace(settings, method=m), quiet, m) for m in METHODS}
    exact, exactly = found["exact"][0]["values"].mean(2), found["exact"][1]["features"]
    return {
        method: {
            "seconds": short["seconds"] / len(some),
            "evaluations": short["evaluations"] / len(some),
            "deviation": float(np.abs(arrays["values"].mean(2) - exact).mean() / np.abs(exact).mean()),
            "efficiency": short["efficiency"],
            "same_order": sum(f["feature"] == e["feature"] for f, e in zip(short["features"], exactly, strict=True)),
        }
        for method, (arrays, short) in found.items()
    }
