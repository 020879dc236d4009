"""SHAP values: planted functions get the attributions they must."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from calosim.explain.shap import compare_explainers, shap_values
from calosim.options import METHODS, ShapSettings

#: Rounding of what masks features one after another, relative to values of about 1.
EXACT = 1e-9
#: Standard deviations that a mean of draws may lie off its expectation.
SIGMAS = 5.0
#: Points of expected gradients, whose values are means over random background rows.
POINTS = 800
#: And where only their kind is looked at.
FEW = 20


class Planted(nn.Module):
    """Two outputs: one linear, one with an interaction of the first two features; the last feature is not used."""

    weights = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x @ self.weights, 3 * x[:, 0] * x[:, 1] + x[:, 2]], dim=1)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows to explain (5, 4) and a background (20, 4) of scales as far apart as those of the primaries."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 4)), rng.normal(0.3, 1.0, size=(20, 4))


def explained(rows, method, seed=0, scale=1.0, points=POINTS):
    class Scaled(Planted):
        def forward(self, x):
            return super().forward(x / torch.as_tensor(scale))

    settings = ShapSettings(method=method, gradients=points, seed=seed)
    return shap_values(Scaled(), rows[0] * scale, rows[1] * scale, settings)[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_function_is_coefficient_times_distance(rows, method):
    values = explained(rows, method)[:, :, 0]
    truth = Planted.weights.numpy() * (rows[0] - rows[1].mean(0))
    # Expected gradients draw background rows instead of going through all.
    noise = SIGMAS * np.abs(Planted.weights.numpy()) * rows[1].std(0) / np.sqrt(POINTS) if method == "gradient" else 0
    assert np.all(np.abs(values - truth) <= noise + EXACT + (method == "gradient") * 1e-6)


@pytest.mark.parametrize("method", ["permutation", "exact"])
def test_values_sum_to_prediction_minus_expectation(rows, method):
    values = explained(rows, method)
    with torch.no_grad():
        at, base = (Planted()(torch.from_numpy(r)).numpy() for r in rows)
    assert values.sum(1) == pytest.approx(at - base.mean(0), abs=EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_an_unused_feature_gets_nothing(rows, method):
    values = explained(rows, method, points=FEW)
    assert np.abs(values[:, 3]).max() < EXACT
    assert np.abs(values[:, :2]).min() > EXACT


@pytest.mark.parametrize("method", METHODS)
def test_nothing_tells_a_row_from_a_background_that_is_itself(rows, method):
    some = rows[0], np.repeat(rows[0][1:2], 4, axis=0)
    values = explained(some, method, points=FEW)
    assert values.shape == (5, 4, 2)
    assert np.abs(values[1]).max() == 0 < np.abs(values[0]).max()


def test_an_interaction_is_shared_as_shapley_says(rows):
    values = explained(rows, "exact")[:, :, 1]
    x, b = rows[0][:, None], rows[1]
    # Mean over both orders and the background of how much unmasking the first feature changes 3 x0 x1.
    first = 1.5 * ((x[..., 0] - b[:, 0]) * (x[..., 1] + b[:, 1])).mean(1)
    assert values[:, 0] == pytest.approx(first, abs=EXACT)
    # Pairs are exact in one order forth and back.
    assert explained(rows, "permutation")[:, :, 1] == pytest.approx(values, abs=EXACT)


def test_units_do_not_matter(rows):
    assert explained(rows, "exact", scale=np.array([1e-7, 1.0, 1e6, 1.0])) == pytest.approx(
        explained(rows, "exact"), abs=1e-6
    )


def test_one_seed_gives_the_same_bits_and_leaves_numpy_alone(rows):
    class Cube(nn.Module):
        def forward(self, x):
            return (x[:, 0] * x[:, 1] * x[:, 2])[:, None]

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    settings = [ShapSettings(method="permutation", permutations=1, seed=seed) for seed in (1, 1, 2)]
    one, two, other = (shap_values(Cube(), *rows, how)[0] for how in settings)
    gradients = [explained(rows, "gradient", seed, points=FEW) for seed in (1, 1)]
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert np.array_equal(one, two)
    assert np.array_equal(*gradients)
    assert not np.array_equal(one, other)


def test_explainers_are_compared_on_the_rows_that_are_asked_for(rows):
    found = compare_explainers(Planted(), *rows, ShapSettings(permutations=1, gradients=FEW, compare_rows=2))
    assert set(found) == set(METHODS)
    assert found["exact"]["evaluations"] == 2 ** rows[0].shape[1] * len(rows[1])
    assert found["exact"]["deviation"] == 0
    # Pairs are exact in one order forth and back.
    assert found["permutation"]["deviation"] < EXACT < found["gradient"]["deviation"]
    assert found["exact"]["same_order"] == rows[0].shape[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "tree"}, "unknown explainer 'tree'"),
        ({"rows": 0}, "rows of at least 1, got 0"),
        ({"background": 1}, "background of at least 2"),
        ({"compare_rows": -1}, "compare_rows of at least 0"),
        ({"seed": -1}, "seed of at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ShapSettings(**settings)
