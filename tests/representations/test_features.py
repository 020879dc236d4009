"""The features that networks see: standard, finite, by hand, and independent of their batch."""

from __future__ import annotations

import math

import pytest
import torch

from calosim.detectors import DETECTORS
from calosim.representations import FeatureScaler

ZN = DETECTORS["zn"]


def features(showers) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(showers.particles), torch.from_numpy(showers.photon_sum)


@pytest.mark.parametrize("photon_sum", [False, True])
@pytest.mark.parametrize("physics", [False, True])
def test_fitted_features_are_standard(showers, photon_sum, physics):
    particles, total = features(showers)
    scaler = FeatureScaler(ZN, photon_sum, physics)
    assert not scaler.fitted
    scaler.fit(particles, total)
    assert scaler.fitted
    columns = scaler(particles, total)
    assert columns.shape == (len(particles), scaler.width)
    assert scaler.width == 9 + 4 * physics + photon_sum
    assert columns.dtype == torch.float32
    torch.testing.assert_close(columns.mean(0), torch.zeros(scaler.width), rtol=0, atol=1e-3)
    torch.testing.assert_close(columns.std(0, correction=0), torch.ones(scaler.width), rtol=1e-3, atol=0)


def test_a_constant_feature_stays_zero_and_finite(showers):
    particles, _ = features(showers)
    one_type = particles[particles[:, 7] > 1000].clone()
    one_type[:, 7:] = torch.tensor([1115.683, 0.0], dtype=torch.float64)
    scaler = FeatureScaler(ZN)
    scaler.fit(one_type)
    columns = scaler(one_type)
    assert torch.isfinite(columns).all()
    torch.testing.assert_close(columns[:, 7:9], torch.zeros(len(one_type), 2), rtol=0, atol=1e-3)
    # Another particle's mass is not blown up to a million standard deviations.
    one_type[:, 7] = 0.0
    assert scaler(one_type)[:, 7].abs().max() <= 1115.684


def test_small_features_keep_their_digits(showers):
    # Vertices spread over 4e-6 cm: a variance below float32's epsilon must not count as constant.
    particles, _ = features(showers)
    scaler = FeatureScaler(ZN)
    scaler.fit(particles)
    torch.testing.assert_close(scaler.scale[1].double(), particles[:, 1].std(correction=0), rtol=1e-3, atol=0)


def test_the_sign_of_pz_does_not_matter(showers):
    particles, total = features(showers)
    scaler = FeatureScaler(ZN, photon_sum=True)
    scaler.fit(particles, total)
    mirrored = particles.clone()
    mirrored[:, 6] *= -1
    assert torch.equal(scaler(particles, total), scaler(mirrored, total))
    other = FeatureScaler(ZN, photon_sum=True)
    other.fit(mirrored, total)
    assert torch.equal(other.mean, scaler.mean)
    assert torch.equal(other.scale, scaler.scale)


@pytest.mark.parametrize("name", ["zn", "zp"])
def test_physics_columns_by_hand(name):
    detector = DETECTORS[name]
    # 1 TeV, vertex (1, -2) cm, px/pz = 1e-4, py/pz = -2e-4.
    row = torch.tensor([[1000.0, 1.0, -2.0, 0.0, 0.1, -0.2, -1000.0, 939.6, 0.0]])
    columns = FeatureScaler(detector, photon_sum=True)(row, torch.tensor([99]))[0]  # not fitted: unscaled
    x = 1.0 + 1e-4 * detector.front_z[0] - detector.center_x
    y = -2.0 - 2e-4 * detector.front_z[0]
    half = [n * detector.pitch / 2 for n in detector.shape]
    inside = min(half[0] - abs(x), half[1] - abs(y)) / 0.31  # the hadronic profile's half width, cm
    expected = [math.log(1000.0), math.asinh(x), math.asinh(y), math.asinh(inside), math.log(100.0)]
    torch.testing.assert_close(columns[9:], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(columns[:9], torch.where(torch.arange(9) == 6, row.abs(), row)[0])


@pytest.mark.parametrize("pz", [0.0, 1e-30, 7000.0])
@pytest.mark.parametrize("energy", [0.0, 1e-6, 7000.0])
def test_degenerate_primaries_stay_finite(pz, energy):
    row = torch.tensor([[energy, 0.0, 0.0, 0.0, 0.3, -0.3, pz, 0.0, 0.0]])
    assert torch.isfinite(FeatureScaler(ZN, photon_sum=True)(row, torch.tensor([0]))).all()


def test_one_artefact_does_not_decide_the_scale_of_the_photon_sum(showers):
    particles, total = features(showers)
    clean, dirty = FeatureScaler(ZN, photon_sum=True), FeatureScaler(ZN, photon_sum=True)
    clean.fit(particles, total)
    dirty.fit(particles, torch.where(torch.arange(len(total)) == 7, 177_940, total))
    torch.testing.assert_close(dirty.scale[-1], clean.scale[-1], rtol=0.2, atol=0)
    torch.testing.assert_close(dirty.mean[-1], clean.mean[-1], rtol=0.02, atol=0)


def test_a_missing_photon_sum_is_named(showers):
    particles, _ = features(showers)
    with pytest.raises(ValueError, match="needs the photon sum"):
        FeatureScaler(ZN, photon_sum=True)(particles)


def test_features_of_a_row_do_not_depend_on_the_batch(showers):
    particles, total = features(showers)
    scaler = FeatureScaler(ZN, photon_sum=True)
    scaler.fit(particles, total)
    whole = scaler(particles, total)
    for size in (1, 7, 64):
        parts = [scaler(p, n) for p, n in zip(particles.split(size), total.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_state_dict_restores_everything(showers):
    particles, total = features(showers)
    fitted, fresh = FeatureScaler(ZN, photon_sum=True), FeatureScaler(ZN, photon_sum=True)
    fitted.fit(particles, total)
    assert not torch.equal(fresh(particles, total), fitted(particles, total))
    fresh.load_state_dict(fitted.state_dict())
    assert fresh.fitted
    assert torch.equal(fresh(particles, total), fitted(particles, total))
