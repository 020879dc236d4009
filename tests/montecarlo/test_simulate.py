"""Laws of simulated data sets: what is kept, how much of it, and one seed for one data set."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from calosim.data.cache import read_recipe
from calosim.data.reading import read
from calosim.data.splits import split_rows
from calosim.detectors import get_detector
from calosim.montecarlo import (
    SETUPS,
    distinct_primaries,
    draw_primaries,
    simulate,
    simulate_matched,
    simulate_with_truth,
)
from calosim.montecarlo.simulate import MIN_PHOTONS, nearest_free, primaries_of_file
from calosim.particles import particle_code


@pytest.mark.parametrize("name", list(SETUPS))
def test_kept_responses_have_at_least_ten_photons(name, attempts):
    every, _ = attempts(name)
    showers = simulate(100 if name == "zp" else 1000, 2, name, seed=12)
    detector = get_detector(name)
    assert len(showers) > 50
    assert showers.images.shape == (len(showers), *detector.shape)
    assert showers.images.dtype == np.int16
    assert showers.pdg.dtype == np.int32
    assert showers.detector == name
    kept = every.photon_sum >= MIN_PHOTONS
    np.testing.assert_array_equal(showers.images, every.images[kept])
    np.testing.assert_array_equal(showers.particles, every.particles[kept])


@pytest.mark.parametrize("name", ["zn", "focal_h"])
def test_mean_number_of_kept_responses(name, attempts):
    kept = attempts(name)[0].photon_sum >= MIN_PHOTONS
    assert abs(kept.sum() / 1000 / 2 - 1) < 0.15


def test_other_shapes_and_pitches():
    detector = get_detector("focal_h").replace(shape=(20, 24), pitch=4.0)
    showers = simulate(50, 2, detector, seed=13)
    assert showers.images.shape[1:] == (20, 24)


def test_artifacts_are_rare_huge_and_fit_their_integers(monkeypatch):
    ordinary, truth = simulate_with_truth(15, 2, "zn", seed=11)
    assert truth.artifact.mean() < 0.01
    monkeypatch.setitem(SETUPS, "zn", replace(SETUPS["zn"], artifacts=1.0))
    artifacts, truth = simulate_with_truth(15, 2, "zn", seed=11)
    assert truth.artifact.all()
    assert (artifacts.images >= 0).all()
    assert np.median(artifacts.photon_sum) > 20 * np.median(ordinary.photon_sum)


def test_one_seed_is_one_dataset_whatever_the_workers():
    one = simulate(300, 3, "zn", seed=18)
    for workers in (2, 3):
        many = simulate(300, 3, "zn", seed=18, workers=workers)
        np.testing.assert_array_equal(one.images, many.images)
        np.testing.assert_array_equal(one.particles, many.particles)
        np.testing.assert_array_equal(one.pdg, many.pdg)


def test_other_seed_other_data():
    first, second = (simulate(100, 3, "zn", seed=s) for s in (1, 2))
    assert not np.isin(first.particles[:, 0], second.particles[:, 0]).any()


def test_same_primaries_other_seed_gives_other_images_of_the_same_particles():
    given = draw_primaries(100, "zn", seed=19)
    first, second = (simulate(given, 5, "zn", seed=s) for s in (19, 2))
    both = np.intersect1d(first.particles[:, 0], second.particles[:, 0])
    assert len(both) > 25
    shared = min(len(first), len(second))
    assert (first.images[:shared] != second.images[:shared]).any((1, 2)).mean() > 0.9
    np.testing.assert_array_equal(simulate(100, 5, "zn", seed=19).images, first.images)


def test_showers_as_primaries_are_taken_once_each():
    showers = simulate(50, 5, "zn", seed=20)
    again = simulate(showers, 5, "zn", seed=21)
    assert set(again.particles[:, 0]) <= set(showers.particles[:, 0])
    particles, pdg = distinct_primaries(showers.particles, showers.pdg)
    _, first = np.unique(showers.primary_ids, return_index=True)
    np.testing.assert_array_equal(particles, showers.particles[first])
    np.testing.assert_array_equal(pdg, showers.pdg[first])
    np.testing.assert_array_equal(again.images, simulate((particles, pdg), 5, "zn", seed=21).images)


def test_chunks_in_which_nothing_arrives_change_nothing(monkeypatch):
    """A primary that flies sideways, many times over, before those that arrive."""
    particles, pdg = draw_primaries(40, "zn", 3)
    aside = np.zeros((800, 9))
    aside[:, [0, 4]] = 100.0
    monkeypatch.setattr(sys.modules["calosim.montecarlo.simulate"], "_CHUNK", 64)
    both = simulate((np.concatenate([aside, particles]), np.concatenate([np.full(800, 22), pdg])), 1, "zn", seed=3)
    assert len(both)
    assert set(map(bytes, both.particles)) <= set(map(bytes, particles))


GOOD = (np.zeros((2, 9)), np.full(2, 22))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 1, "zq", 0), "unknown detector 'zq'"),
        ((10, 1, get_detector("zn").replace(name="new"), 0), "cannot simulate detector 'new'"),
        ((0, 1, "zn", 0), "positive number of primaries, got 0"),
        ((10, 0, "zn", 0), "positive number of responses"),
        (((GOOD[0][:, :8], GOOD[1]), 1, "zn", 0), r"features \(n, 9\)"),
        (((GOOD[0], GOOD[1][:1]), 1, "zn", 0), r"features \(n, 9\)"),
        (((GOOD[0], np.full(2, 99_999_999)), 1, "zn", 0), "PDG code 99999999"),
        ((GOOD, 1, "zn", 0), "none of 2 primaries, tried 6 times each, left 10 photons in ZN"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate(*arguments)


def test_empty_attempts_are_kept_beside_the_same_responses():
    kept, every = simulate(40, 2, "zn", 5), simulate(40, 2, "zn", 5, min_photons=0)
    nonempty = every.photon_sum >= MIN_PHOTONS
    assert 0 < nonempty.mean() < 0.5
    assert len(every) % 40 == 0
    again = every.select(nonempty)
    assert np.array_equal(again.images, kept.images)
    assert np.array_equal(again.particles, kept.particles)


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


def test_sums_are_those_of_the_test_rows(command, tmp_path, capfd):
    first, same = tmp_path / "first.root", tmp_path / "same.root"
    words = ["--quiet", "--workers", 1]
    assert command("simulate", "--primaries", 60, "--responses_per_primary", 6, "--out", first, *words) == 0
    words = ["--primaries", first, *words]
    given = ["--split", "test", "--match_sums", 2, "--responses_per_primary", 60, "--out", same]
    assert command("simulate", *given, "--seed", 2, *words) == 0
    assert "up to 2 each; their photon sums differ by" in capfd.readouterr().out
    showers, found = read(first), read(same)
    rows = showers.select(split_rows(showers.primary_ids, showers.pdg)["test"])
    assert {p.tobytes() for p in found.particles} <= {p.tobytes() for p in rows.particles}
    assert len(rows) < len(found) <= 2 * len(rows)
    settings = read_recipe(same)["settings"]
    assert (settings["match_sums"], settings["split"], settings["seed"]) == (2, "test", 2)
    assert len(primaries_of_file(str(first), "test")[1]) == len(np.unique(rows.primary_ids))
    # The very responses would be found again.
    (tmp_path / "x").mkdir()
    assert command("simulate", *given[:-1], tmp_path / "x" / "x.root", "--seed", 1, *words) == 2
    assert "was simulated with seed 1" in capfd.readouterr().err
    assert command("simulate", "--primaries", 5, "--match_sums", 1, "--out", tmp_path / "x" / "x.root") == 2
    assert "of the rows of a file" in capfd.readouterr().err
    assert not list((tmp_path / "x").iterdir())
