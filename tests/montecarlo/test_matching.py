"""Responses with given photon sums: to the right primaries, the nearest of many, each once, one seed one result."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.montecarlo import simulate, simulate_matched
from calosim.montecarlo.simulate import nearest_free
from calosim.particles import particle_code


def test_the_nearest_free_is_taken_once():
    places = nearest_free(np.array([10, 11, 500]), np.array([7, 400, 11, 12]), 2, np.random.default_rng(0))
    assert sorted(places[places >= 0]) == [0, 1, 2, 3]
    assert (places[:, 0] >= 0).all()
    assert places[2, 0] == 1
    assert set(places[:2, 0]) <= {0, 2, 3}
    # Four go to three that want two each.
    assert (places < 0).sum() == 2


def test_exact_sums_are_found_where_they_are():
    found = np.random.default_rng(1).permutation(1000)
    wanted = np.random.default_rng(2).permutation(1000)[:300]
    places = nearest_free(wanted, found, 1, np.random.default_rng(3))[:, 0]
    np.testing.assert_array_equal(found[places], wanted)


@pytest.fixture(scope="module")
def rows():
    """Some hundred responses to a few photons and neutrons."""
    showers = simulate(40, 8, "zn", seed=4)
    return showers.select(np.isin(showers.pdg, [particle_code("gamma"), particle_code("neutron")]))


def matched(rows, responses=60, keep=2, workers=1):
    pieces = list(simulate_matched(rows, rows.photon_sum, responses, keep, 5, workers=workers))
    return [
        np.concatenate([getattr(p, name) for p, _ in pieces]) for name in ("particles", "pdg", "images")
    ], np.concatenate([wanted for _, wanted in pieces])


def test_responses_have_the_rows_primaries_and_nearly_their_sums(rows):
    (particles, pdg, images), wanted = matched(rows)
    known = {(*p, c) for p, c in zip(rows.particles.tolist(), rows.pdg.tolist(), strict=True)}
    assert {(*p, c) for p, c in zip(particles.tolist(), pdg.tolist(), strict=True)} <= known
    assert len(pdg) > 1.9 * len(rows)
    sums = images.sum((1, 2))
    assert np.median(np.abs(sums - wanted) / wanted) < 0.03
    # Other sums than those of as many responses at random.
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    # Of more, the nearest are nearer.
    (_, _, more), wanted_of_more = matched(rows, responses=200)
    assert np.abs(more.sum((1, 2)) - wanted_of_more).mean() < np.abs(sums - wanted).mean()


def test_one_seed_is_one_result_whatever_the_workers(rows):
    (particles, pdg, images), wanted = matched(rows, keep=1)
    (others, codes, again), also = matched(rows, keep=1, workers=3)
    for one, other in ((particles, others), (pdg, codes), (images, again), (wanted, also)):
        np.testing.assert_array_equal(one, other)


def test_numbers_must_be_positive(rows):
    with pytest.raises(ValueError, match="expected a positive number of responses per primary, of responses to keep"):
        next(simulate_matched(rows, rows.photon_sum, 10, 0, 1))
