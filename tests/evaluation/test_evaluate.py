"""The judge: a perfect candidate scores zero, perfect samples are calibrated, pools answer with the right rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from calosim.detectors import get_detector
from calosim.evaluation.answers import ask, measure, radial_profile
from calosim.evaluation.evaluate import EXAMPLES, _examples
from calosim.evaluation.photons import INTERVALS, photon_report
from calosim.evaluation.references import Pool, _match_inputs, reference_pools
from calosim.evaluation.rounding import best_noise_removals
from calosim.evaluation.selection import mixed_rows, rank_within, some_rows

#: Standard deviations that a share may lie off its expectation.
SIGMAS = 4.0


def judge(few, candidates, natural=None, **settings):
    reference = few.geometry.channels(few.images)
    answers = ask(few, candidates, quiet=True, **settings)
    return {n: measure(a, reference, few.pdg, few.inputs, few.geometry, natural) for n, a in answers.items()}


def test_the_monte_carlo_itself_scores_zero(showers):
    few = showers.select(slice(0, 120))
    results = judge(few, {"itself": lambda run, n: few.images[n]}, runs=2, responses=1)
    mean = results["itself"]["mean"]
    assert set(mean) >= {"ws_all", "mae_cond_all", "mae_w_gamma", "delta_all", "jacc_all"}
    assert all(v == 0 or np.isnan(v) for k, v in mean.items() if not k.startswith("center"))
    assert results["itself"]["std"]["center_all"] == 0
    assert results["itself"]["std"]["ws_all"] == 0


def test_a_brighter_candidate_is_worse(showers):
    few = showers.select(slice(0, 120))
    candidates = {f"{k} times": lambda run, n, k=k: k * few.images[n // 2] for k in (2, 3)}
    results = judge(few, candidates, runs=1, responses=2)
    twice, thrice = (results[name]["mean"] for name in candidates)
    channels = few.geometry.channels(few.images)
    assert twice["center_all"] == pytest.approx(thrice["center_all"], abs=1e-5)
    # W1 between a positive variable and twice itself is its mean.
    assert twice["ws_all"] == pytest.approx(channels.mean(), rel=1e-9)
    assert thrice["ws_all"] == pytest.approx(2 * channels.mean(), rel=1e-9)


def test_predictive_samples_from_the_truth_are_calibrated():
    rng = np.random.default_rng(1)
    rows, samples = 4000, 400
    scale = rng.uniform(20, 200, rows)
    truth = np.round(rng.normal(1000, scale)).astype(np.int64)
    report = photon_report(rng.normal(1000, scale[:, None], (rows, samples)), truth, np.full(rows, 2112))
    for p in INTERVALS:
        # Quantiles of a finite number of samples and rounded sums blur the limits a little beyond the binomial error.
        error = SIGMAS * np.sqrt(p * (1 - p) / rows) + 2 / samples
        assert report["neutron"][f"coverage_{100 * p:.0f}"] == pytest.approx(p, abs=error)
    assert report["all"]["rows"] == rows
    assert report["all"]["w1"] < 5
    assert report["all"]["rmse"] == pytest.approx(np.sqrt(np.mean(scale**2)), rel=0.1)


def test_a_point_prediction_covers_nothing():
    report = photon_report(np.full((100, 10), 7.5), np.arange(100), np.full(100, 22))
    assert report["gamma"]["coverage_95"] == 0


def test_pool_answers_with_the_key_or_falls_back():
    keys, fallback = np.array([5, 5, 9, 9]), np.array([1, 1, 1, 2])
    pool = Pool(keys, fallback)
    rows = np.arange(1000)
    drawn = pool.draw(np.full(1000, 5), np.full(1000, 2), 0, rows)
    assert set(drawn) == {0, 1}
    assert abs((drawn == 0).mean() - 0.5) < SIGMAS * np.sqrt(0.25 / 1000)
    assert set(pool.draw(np.full(1000, 7), np.full(1000, 2), 0, rows)) == {3}
    assert set(pool.draw(np.full(1000, 7), np.full(1000, 8), 0, rows)) == {0, 1, 2, 3}
    assert np.array_equal(drawn[500:], pool.draw(np.full(500, 5), np.full(500, 2), 0, rows[500:]))


def test_rank_within_counts_earlier_rows():
    assert rank_within(np.array([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]


def test_inputs_of_another_file_are_matched(showers):
    test, pool = showers.select(slice(0, 50)), showers.select(slice(25, 120))
    matched = _match_inputs(pool, test, test.inputs)
    for number, particle, pdg in zip(matched[:40], pool.particles, pool.pdg, strict=False):
        same = (test.particles == particle).all(1) & (test.pdg == pdg)
        assert number == (test.inputs[same][0] if same.any() else -1)
    assert (matched == -1).any()
    assert (matched >= 0).any()


def test_some_rows_keep_the_mix_and_responses_together():
    rng = np.random.default_rng(3)
    inputs = rng.permutation(np.repeat(np.arange(60), rng.integers(1, 40, 60)))
    pdg = np.where(inputs < 40, 22, 2112)
    chosen = some_rows(inputs, pdg, 300)
    assert 200 <= len(chosen) <= 400
    assert np.array_equal(chosen, np.unique(chosen))
    assert np.median(np.unique(inputs[chosen], return_counts=True)[1]) >= 4
    assert abs((pdg[chosen] == 22).mean() - (pdg == 22).mean()) < 0.1
    assert np.array_equal(some_rows(inputs, pdg, None), np.arange(len(inputs)))
    assert len(some_rows(inputs, pdg, 1)) <= 5


def test_rare_types_get_rows_of_their_own_and_all_keeps_the_mix():
    rng = np.random.default_rng(3)
    inputs = rng.permutation(np.repeat(np.arange(100), rng.integers(5, 40, 100)))
    pdg = np.where(inputs < 90, 22, 3122)
    chosen, natural = mixed_rows(inputs, pdg, 300, 150)
    assert np.array_equal(chosen[natural], some_rows(inputs, pdg, 300))
    assert abs((pdg[chosen] == 3122).sum() - 150) < 30
    whole, mix = mixed_rows(inputs, pdg, None, 150)
    assert len(whole) == len(pdg)
    assert mix.all()


def test_all_is_of_the_natural_mix_and_types_of_all_their_rows(showers):
    reference = showers.geometry.channels(showers.images)
    natural = np.arange(len(showers)) % 2 == 0
    twice = judge(showers, {"x": lambda run, n: 2 * showers.images[n]}, natural, runs=1, responses=1)["x"]["mean"]
    assert twice["ws_all"] == pytest.approx(reference[natural].mean(), rel=1e-9)
    assert twice["ws_gamma"] == pytest.approx(reference[showers.pdg == 22].mean(), rel=1e-9)


def test_noise_removal_is_chosen_on_validation_rows_by_distance(run_folders, root_file):
    from calosim.models.shape import ShapeModule
    from calosim.showers.datamodule import RootDataModule

    data = RootDataModule(str(root_file))
    methods, distances = best_noise_removals(ShapeModule.load(run_folders["teacher"]), data, 1000, 0, quiet=True)
    assert set(distances) <= {"all", "gamma", "neutron", "lambda", "sigma_plus"}
    assert distances["all"][methods[0]] == min(distances["all"].values())
    assert len(set(distances["all"].values())) > 1


def test_the_profile_is_about_the_center_of_gravity():
    detector = get_detector("zn")
    images = np.zeros((3, 44, 44), dtype=np.int64)
    images[0, 40, 3] = 7  # one pixel is its own center
    images[1, 10, 10] = images[1, 10, 20] = 2  # two pixels, each five from the middle
    shares = radial_profile(images[:2], detector)
    assert shares[0] == 0.5
    assert shares[5] == 0.5
    assert radial_profile(images, detector).sum() == pytest.approx(2 / 3)  # a dark image has no share


def test_examples_do_not_repeat_a_response(showers):
    """Two responses to one neutron, many to the others: what the Monte Carlo has not is dark, and generated all the same."""
    neutrons = np.flatnonzero(showers.pdg == 2112)
    first = neutrons[showers.inputs[neutrons] == showers.inputs[neutrons[0]]][:2]
    few = showers.select(np.concatenate([first, np.flatnonzero(showers.pdg == 22)]))
    simulator = SimpleNamespace(photons=object(), sample=lambda particles, *_: np.ones((len(particles), 44, 44), int))
    found = _examples(few, few.inputs, simulator, seed=0)
    lit = found["examples_reference"].any((2, 3))
    gamma, neutron = range(2)
    assert lit[neutron].tolist() == [True] * 2 + [False] * (EXAMPLES[1] - 2)
    assert lit[gamma].sum() == min(EXAMPLES[1], np.bincount(few.inputs[few.pdg == 22]).max())
    assert found["examples_generated"].any((2, 3)).all()


def test_the_floor_of_halves_is_held_against_responses_it_does_not_give(root_file):
    """Each half answered from the other would be a resample of the reference: a floor that no simulation can reach."""
    from calosim.showers.datamodule import RootDataModule

    data = RootDataModule(str(root_file))
    data.setup()
    chosen = np.arange(len(data.rows("test")))
    test, inputs = data.showers("test", chosen), data.inputs("test")
    pools, asked, lacking = reference_pools(data, "test", chosen, test, inputs, None)
    images, positions = pools["floor"]
    rows = np.repeat(np.flatnonzero(asked), 20)
    answers = images(positions(rows, 1, np.arange(len(rows))))
    # Of the same primary where there is another response at all, and never a response that is asked for.
    given = {image.tobytes() for image in answers}
    assert 0.3 < asked.mean() < 0.7
    assert not given & {image.tobytes() for image in test.images[asked]}
    alone = np.bincount(inputs)[inputs[asked]] == 1
    assert lacking == alone.sum()
