"""Predictive means are those of the drawn networks, and surrogates learn what can be learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calosim.explain.shap import NAMES, predict, shap_values
from calosim.explain.surrogates import (
    PosteriorMeans,
    fit_surrogate,
    surrogate_fit,
)
from calosim.models.photon_sum import MIN_SCALE, PhotonSum
from calosim.options import MIN_SURROGATE_ROWS, SurrogateSettings

#: Rounding of networks in single precision, relative.
SINGLE = 1e-4


@pytest.fixture(params=["mixture", "gaussian"])
def model(request, showers) -> PhotonSum:
    """An untrained model with standardizations, of a posterior wide enough to matter."""
    torch.manual_seed(1)
    model = PhotonSum("zn", head=request.param, hidden=(8,), components=3, posterior="bayesian", members=4)
    particles = torch.from_numpy(showers.particles)
    model.features.fit(particles)
    model.encoding.fit(model.features(particles))
    model.head.fit(torch.from_numpy(showers.photon_sum), particles[:, 0])
    for logvar in model.posterior.model.logvars.values():
        torch.nn.init.constant_(logvar, -3.0)
    return model.eval()


def test_explained_means_are_those_moments(model, showers):
    particles = showers.particles[:3]
    means = predict(PosteriorMeans(model, seed=2), particles)
    columns, energy = model.features(torch.from_numpy(particles)).double(), torch.from_numpy(particles[:, 0])
    for k, network in enumerate(model.networks(2)):
        with torch.no_grad():
            assert means[:, k] == pytest.approx(model.head.moment(network(columns), energy).numpy(), rel=SINGLE)
    # The sign of pz tells only the side; the explained function does not see it.
    flipped = particles * np.where(np.arange(9) == 6, -1.0, 1.0)
    assert np.array_equal(predict(PosteriorMeans(model, seed=2), flipped), means)


def test_a_surrogate_learns_a_planted_center():
    rng = np.random.default_rng(5)
    particles = np.zeros((900, 9))
    particles[:, 0] = particles[:, 6] = rng.uniform(500, 3000, 900)
    particles[:, 4:6] = rng.normal(0, 0.1, (900, 2))
    spot = 2 * np.tanh(11000 * particles[:, 4] / particles[:, 6])
    values = spot + rng.normal(0, 0.3, 900)
    values[::50] = np.nan
    torch_state, train, test = torch.random.get_rng_state(), slice(0, 600), np.repeat(np.arange(600, 900), 3)
    learn = "zn", particles[train], values[train], 3
    one, again = (fit_surrogate(*learn, epochs=1, seed=4) for _ in range(2))
    surrogate = fit_surrogate(*learn, epochs=30, seed=0)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    function = PosteriorMeans(surrogate)
    outputs = torch.tensor([[0.0, 0.0], [-3.0, 1.0]], dtype=torch.float64)
    mean, width = (
        outputs[:, 0] * surrogate.head.spread + surrogate.head.center,
        surrogate.head.spread * (MIN_SCALE + outputs[:, 1].exp()),
    )
    energy = torch.ones(2)
    torch.testing.assert_close(surrogate.head.moment(outputs, energy), mean)
    torch.testing.assert_close(surrogate.head.moment(outputs, energy, 2) - mean.square(), width.square())
    fit = surrogate_fit(function, particles[test], spot[test] + rng.normal(0, 0.3, len(test)), test)
    truth = 1 - 0.3**2 / (np.var(spot[600:]) + 0.3**2)
    assert fit["ceiling"] == pytest.approx(truth, abs=0.02)
    assert truth - 0.1 < fit["r2"] < truth + 0.02
    assert abs(fit["residual_mean"]) < 0.1
    assert (fit["rows"], fit["primaries"], fit["dark"]) == (900, 300, 0)
    importance = np.abs(shap_values(function, particles[600:610], particles[:10])[0].mean(2)).mean(0)
    assert NAMES[importance.argmax()] == "px"
    assert importance[5] < 0.2 * importance[4]
    # Constant features.
    assert importance[[1, 2, 3, 7, 8]].max() == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.append(np.arange(MIN_SURROGATE_ROWS - 1.0), np.nan), f"at least {MIN_SURROGATE_ROWS} generated responses"),
        (np.zeros(MIN_SURROGATE_ROWS), "centers that differ"),
    ],
)
def test_a_surrogate_refuses_what_cannot_be_fitted(values, said):
    with pytest.raises(ValueError, match=said):
        fit_surrogate("zn", np.ones((len(values), 9)), values)


@pytest.mark.parametrize("settings", [{"surrogate_rows": MIN_SURROGATE_ROWS - 1}, {"surrogate_epochs": 0}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=f"expected {next(iter(settings))} of at least"):
        SurrogateSettings(**settings)
