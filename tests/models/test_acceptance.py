"""Acceptance: probabilities that are learned where they are known, draws keyed by row, refusal of data that cannot teach it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calosim import rng
from calosim.data.record import Showers
from calosim.data.root import write
from calosim.models.acceptance import Acceptance

#: Standard deviations that a share may lie off its expectation.
SIGMAS = 5.0
#: How far a probability learned from 2,000 rows may be off.
LEARNED = 0.08


@pytest.fixture(scope="module")
def trained(run_folders) -> Acceptance:
    return Acceptance.load(run_folders["acceptance"])


@pytest.fixture(scope="module")
def particles(showers) -> torch.Tensor:
    return torch.from_numpy(showers.particles[:200]).float()


def test_a_known_probability_is_learned(tmp_path, fit):
    """Light with probability 0.9 where the flight ends inside of 2 cm, else 0.2."""
    rng, rows = np.random.default_rng(0), 2000
    features = np.zeros((rows, 9))
    features[:, 0] = features[:, 6] = 1000.0
    end = rng.uniform(-4, 4, rows)
    features[:, 4] = end / 11260 * 1000
    images = np.zeros((rows, 44, 44), dtype=np.int16)
    images[:, 20, 20] = np.where(rng.random(rows) < np.where(np.abs(end) < 2, 0.9, 0.2), 50, rng.integers(0, 10, rows))
    write(tmp_path / "dark.root", Showers(features, np.full(rows, 22, np.int32), images, "zn"))
    torch.manual_seed(0)
    model = Acceptance(hidden=(16,), bins=8, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    fit(model, tmp_path / "dark.root", tmp_path, epochs=15, batch_size=64, min_photons=0)
    probability = model.probability(torch.from_numpy(features).float())
    for inside, truth in ((np.abs(end) < 1.7, 0.9), (np.abs(end) > 2.3, 0.2)):
        assert float(probability[inside].mean()) == pytest.approx(truth, abs=LEARNED)


def test_draws_have_the_probability_and_are_keyed_by_row(trained, particles):
    rows = torch.arange(200)
    probability = trained.probability(particles)
    assert probability.dtype == torch.float64
    assert ((probability > 0) & (probability < 1)).all()
    drawn = torch.stack([trained.sample(particles, seed, rows) for seed in range(100)]).double()
    error = SIGMAS * (probability * (1 - probability)).sum().sqrt() / 10
    assert abs(float(drawn.mean(0).sum() - probability.sum())) < error
    assert torch.equal(trained.sample(particles[5:9], 3, rows[5:9]), trained.sample(particles, 3, rows)[5:9])
    # Not the numbers of the photon sum.
    keys = [rng.row_keys(rows, stream, 1) for stream in (rng.ACCEPTANCE_STREAM, rng.PHOTON_STREAM)]
    assert not torch.equal(*(rng.uniform(key, 1) for key in keys))


def test_data_without_dark_rows_is_refused(root_file, dark_file, tmp_path, fit):
    for file, least in ((root_file, 0), (dark_file, 10)):
        with pytest.raises(ValueError, match=r"expected rows with 10 photons and rows without.*got 100 % with; use"):
            fit(Acceptance(hidden=(8,)), file, tmp_path, min_photons=least)


@pytest.mark.parametrize("options", [{"min_photons": 0}, {"members": 0}, {"bins": -1}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"expected (min_photons|members|bins) of at least"):
        Acceptance(**options)
