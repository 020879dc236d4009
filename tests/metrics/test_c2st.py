"""The C2ST finds nothing where there is nothing, finds what there is, and cannot learn primaries by heart."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from calosim.detectors import get_detector
from calosim.metrics.c2st import C2STSettings, Stack, auc, c2st, c2st_controls, damaged, divide
from calosim.metrics.features import GROUPS, shower_features

QUICK = C2STSettings(seeds=2, rows=450, epochs=2, resamples=200)
#: Standard errors within which classifiers of identical distributions must stay.
SIGMAS = 4.5

#: Any face: the real ones' sort, odd sides, sides of one pixel, and less than a cell.
SHAPES = ((12, 12), (7, 5), (1, 9), (6, 1), (1, 1), (3, 2))


def sample(n=600, responses=6, width=1.0, seed=0, shape=(12, 12)):
    """Photons around the straight flight's end, with a center and a photon sum that differ between responses."""
    detector = get_detector("zn").replace(shape=shape)
    own, rng = np.random.default_rng(99), np.random.default_rng(seed)
    inputs = np.arange(n) // responses
    particles = np.zeros((n, 9))
    energy = own.uniform(50, 3000, n)[inputs]
    particles[:, 0] = particles[:, 6] = energy
    particles[:, 4:6] = own.normal(0, 2e-5, (n, 2))[inputs] * energy[:, None]
    particles[:, 7] = 939.6
    photons = rng.poisson(20 + 0.05 * energy)
    middle = (np.array(shape) - 1) / 2 + rng.normal(0, 0.7, (n, 2))
    images = np.zeros((n, *shape), dtype=np.int16)
    for i, count in enumerate(photons):
        place = np.rint(rng.normal(middle[i], width, (count, 2))).astype(int).clip(0, np.array(shape) - 1)
        np.add.at(images[i], tuple(place.T), 1)
    return images, particles, inputs, detector


@pytest.fixture(scope="module")
def data():
    return sample()


def test_identical_distributions_cannot_be_told(data):
    reference, particles, inputs, detector = data
    second = sample(seed=1)[0]
    result = c2st(reference, second, particles, inputs, detector, QUICK, quiet=True)
    assert set(result.verdicts) == {"images", "features"}
    for verdict in result.verdicts.values():
        assert abs(verdict.sigmas) < SIGMAS
        assert verdict.low < verdict.auc < verdict.high
        assert len(verdict.by_seed) == 2
    assert result.rows == 450
    assert 90 < result.primaries <= 100


def test_gross_differences_are_told_and_explained(data):
    reference, particles, inputs, detector = data
    wide = sample(seed=1, width=2.0)[0]
    result = c2st(reference, wide, particles, inputs, detector, QUICK, quiet=True)
    for verdict in result.verdicts.values():
        assert verdict.auc > 0.93
        assert verdict.sigmas > 5
    groups = {row.group: row for row in result.features}
    assert set(groups) == set(GROUPS)
    assert groups["width"].single > 0.8  # larger in generated responses
    assert abs(groups["photons"].single - 0.5) < 0.06
    assert result.features[0].importance > groups["photons"].importance
    saved = result.to_dict()
    assert saved["verdicts"]["images"]["sigmas"] == result.verdicts["images"].sigmas


def test_no_primary_is_in_two_parts(data):
    inputs = data[2]
    tested = []
    for k in range(5):
        part = divide(inputs, seed=3, index=k)
        assert np.array_equal(np.sort(np.concatenate(part)), np.arange(len(inputs)))
        sets = [set(inputs[rows]) for rows in part]
        assert len(set.union(*sets)) == sum(map(len, sets))
        assert [len(s) for s in sets] == [60, 20, 20]
        tested.append(part.test)
    assert np.array_equal(np.sort(np.concatenate(tested)), np.arange(len(inputs)))


def test_knowing_primaries_by_heart_is_of_no_use():
    """Responses of one primary are copies, of the Monte Carlo's and of the generated kind: by row, classifiers would see them."""
    n, copies = 80, 8
    reference, particles, _, detector = sample(n, responses=1)
    second = sample(n, responses=1, seed=1)[0]
    many = [np.repeat(a, copies, axis=0) for a in (reference, second, particles, np.arange(n))]
    result = c2st(*many, detector, QUICK, quiet=True)
    assert all(abs(v.sigmas) < SIGMAS for v in result.verdicts.values())
    # The copies count as one: the error is that of 80 primaries, not of 450 rows.
    assert all(v.error > 0.03 for v in result.verdicts.values())


def test_controls(data):
    reference, particles, inputs, detector = data
    second = sample(seed=1)[0]
    settings = replace(QUICK, classifiers=("features",))
    found = c2st_controls(reference, second, particles, inputs, detector, settings, (0.5,), quiet=True)
    assert list(found) == ["mc", "damaged_50"]
    primary = found["mc"].verdicts["primary"]
    assert (primary.auc, primary.error, primary.sigmas) == (0.5, 0.0, 0.0)
    assert abs(found["mc"].verdicts["features"].sigmas) < SIGMAS
    assert set(found["damaged_50"].verdicts) == {"features"}


def test_photon_sums_have_a_classifier_of_their_own(data):
    reference, particles, inputs, detector = data
    settings = replace(QUICK, classifiers=("photons",))
    same = c2st(reference, reference[:, ::-1], particles, inputs, detector, settings, quiet=True)
    more = c2st(reference, 2 * reference, particles, inputs, detector, settings, quiet=True)
    assert same.verdicts["photons"].auc == 0.5
    assert more.verdicts["photons"].auc > 0.95


def test_the_classifier_of_the_calochallenge(data):
    reference, particles, inputs, detector = data
    settings = replace(C2STSettings.calochallenge(), seeds=1, epochs=12)
    result = c2st(reference, 3 * reference, particles, inputs, detector, settings, quiet=True)
    verdict = result.verdicts["calochallenge"]
    assert verdict.auc > 0.9
    assert np.isnan(verdict.spread)  # of one seed there is none


@pytest.mark.parametrize("shape", SHAPES)
def test_damage_moves_photons_by_one_pixel(shape):
    images = np.random.default_rng(0).poisson(3.0, (50, *shape)).astype(np.int16)
    before = images.copy()
    worse = damaged(images, 0.3, seed=1)
    assert np.array_equal(images, before)
    assert worse.shape == images.shape
    assert worse.min() >= 0
    assert np.array_equal(worse.sum((1, 2)), images.sum((1, 2)))
    assert np.array_equal(worse, images) == (shape == (1, 1))
    assert np.array_equal(damaged(images, 0.0, seed=1), images)


def test_damage_of_one_pixel_is_right():
    images = np.zeros((1, 5, 5), dtype=np.int64)
    images[0, 2, 2] = 100_000
    (worse,) = damaged(images, 0.2, seed=0)
    neighbours = worse[[1, 3, 2, 2], [2, 2, 1, 3]]
    assert worse[2, 2] + neighbours.sum() == 100_000
    assert abs(worse[2, 2] - 80_000) < 5 * np.sqrt(16_000)
    assert np.all(abs(neighbours - 5_000) < 5 * np.sqrt(5_000))


def test_a_seed_gives_the_same_bits_and_leaves_global_random_states(data):
    reference, particles, inputs, detector = data
    second = sample(seed=1)[0]
    settings = replace(QUICK, seeds=1, rows=240, epochs=1)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (c2st(reference, second, particles, inputs, detector, settings, quiet=True) for _ in range(2))
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    for name, verdict in first.verdicts.items():
        assert verdict.by_seed == again.verdicts[name].by_seed
        assert (verdict.error, verdict.low, verdict.high) == tuple(
            getattr(again.verdicts[name], a) for a in ("error", "low", "high")
        )
    assert first.features[0].importance == again.features[0].importance
    other = c2st(reference, second, particles, inputs, detector, replace(settings, seed=1), quiet=True)
    assert other.verdicts["images"].by_seed != first.verdicts["images"].by_seed


def test_bad_input_is_refused(data):
    reference, particles, inputs, detector = data
    bad = particles.copy()
    bad[3, 4] = np.nan
    refused = {
        "alike": (reference, reference[:-1], particles, inputs),
        "images": (reference[:, :-1], reference[:, :-1], particles, inputs),
        r"\(600, 9\)": (reference, reference, particles[:, :8], inputs),
        "numbers": (reference, reference, particles, inputs[:-1]),
        "finite": (reference, reference, bad, inputs),
        "float": (reference, reference.astype(float), particles, inputs),
        "photon counts": (reference, reference - 1, particles, inputs),
        "at least 20 primaries": (reference, reference, particles, inputs % 19),
    }
    for message, arguments in refused.items():
        with pytest.raises(ValueError, match=message) as error:
            c2st(*arguments, detector, QUICK, quiet=True)
        assert "\n" not in str(error.value)
    for settings in ({"classifiers": ("tea_leaves",)}, {"seeds": 0}, {"resamples": 1}):
        with pytest.raises(ValueError, match="expected"):
            C2STSettings(**settings)
    with pytest.raises(ValueError, match="between 0 and 1"):
        damaged(reference, 1.5, seed=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_inputs_of_any_face_are_finite(shape):
    images, particles, _, detector = sample(20, shape=shape)
    images[0] = 0  # an image without photons, too
    features = shower_features(images, detector)
    assert features.values.shape == (20, len(features.names))
    assert len(set(features.names)) == len(features.names) == len(features.groups)
    assert set(features.groups) == set(GROUPS)
    assert np.isfinite(features.values).all()
    stack = Stack(images, particles, detector)
    assert all(np.isfinite(a).all() for a in (stack.primary, stack.context, stack.window, stack.cells))


def test_features_are_what_they_say():
    detector = get_detector("zn").replace(shape=(6, 6))
    images = np.zeros((1, 6, 6), dtype=np.int64)
    images[0, 2, 3], images[0, 3, 3], images[0, 2, 5] = 4, 2, 1
    features = shower_features(images, detector)
    f = dict(zip(features.names, features.values[0], strict=True))
    expected = {
        "log_photons": np.log(8),
        "center_x": (4 * 2 + 2 * 3 + 1 * 2) / 7,
        "center_y": (4 * 3 + 2 * 3 + 1 * 5) / 7,
        "hottest_1": 4 / 7,
        "peak_of_3x3": 4 / 6,
        "neighbour_1": 2 / 4,
        "pairs_0_0": (4 * 3 + 2 * 1) / 42,
        "pairs_1_0": 4 * 2 / 42,
        "pairs_0_2": 4 * 1 / 42,
        "pairs_1_-1": 0,
        "isolated": 1 / 7,
        "lit_cells_2": 2,
        "share_common": (4 + 1) / 7,
    }
    for name, value in expected.items():
        assert f[name] == pytest.approx(value, abs=1e-6), name


def test_windows_do_not_tell_how_a_shower_lies(data):
    images, particles, _, detector = data
    turned = images.swapaxes(1, 2)[:, ::-1]
    first, second = (Stack(i, particles, detector).window[:, 0] for i in (images, turned))
    flat = images.reshape(len(images), -1)
    alone = np.partition(flat, -2, axis=1)
    clear = alone[:, -1] > alone[:, -2]  # of equally hot pixels the first is taken, which turns with the image
    r = 4
    around = first[:, [r - 1, r + 1, r, r], [r, r, r - 1, r + 1]]
    clear &= np.array([len(set(a)) == 4 for a in around])
    assert clear.sum() > 50
    assert np.array_equal(first[clear], second[clear])


def test_area_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    score, generated = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    weights = rng.integers(0, 3, (4, 60))
    weights[3, generated] = 0
    fake, real = score[generated][:, None], score[~generated]
    won = (fake > real) + 0.5 * (fake == real)
    assert auc(score, generated)[0] == pytest.approx(won.mean())
    for row, value in zip(weights[:3], auc(score, generated, weights), strict=False):
        w = row[generated][:, None] * row[~generated]
        assert value == pytest.approx((w * won).sum() / w.sum())
    assert np.isnan(auc(score, generated, weights)[3])


def test_classifiers_take_one_thread_and_give_back_what_there_was(monkeypatch):
    import torch

    from calosim.metrics import c2st as module

    monkeypatch.setattr(module, "_tested", lambda *_: torch.__config__.parallel_info())
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # as what came before may have: MKL then keeps a number of its own
    try:
        said = module.tested(None, None, None, None)
        numbers = dict(re.findall(r"(\w+_get_(?:max|num)_threads)\(\) : (\d+)", said))
        assert set(numbers.values()) == {"1"}, numbers
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
