"""Pools answer with the right responses, the same ones whatever else is asked, and where told so none twice."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.data import read, write
from calosim.evaluation.references import (
    Floors,
    Nearest,
    Pool,
    floor_of_halves,
    floor_of_simulation,
    floor_of_sums,
    trivial_model,
)
from calosim.evaluation.selection import select_rows
from calosim.options import FloorOptions, Protocol

#: Standard deviations that a share may lie off its expectation.
SIGMAS = 4.0


def test_a_pool_answers_with_the_key_or_falls_back():
    keys, fallback, rows = np.array([5, 5, 9, 9]), np.array([1, 1, 1, 2]), np.arange(1000)

    def drawn(key, second, some=rows):
        return Pool(keys, fallback, np.full(1000, key), np.full(1000, second)).draw(some, 0, some)

    found = drawn(5, 2)
    assert set(found) == {0, 1}
    assert abs((found == 0).mean() - 0.5) < SIGMAS * np.sqrt(0.25 / 1000)
    assert set(drawn(7, 2)) == {3}
    assert set(drawn(7, 8)) == {0, 1, 2, 3}
    assert np.array_equal(found[500:], drawn(5, 2, rows[500:]))
    assert Pool(keys, fallback, np.array([5, 7, 9]), np.zeros(3)).known.tolist() == [True, False, True]


def test_a_pool_gives_no_response_twice():
    pool = Pool(np.array([5, 9, 5, 9, 5]), np.zeros(5), np.array([9, 5, 9, 9, 7]), np.zeros(5))
    found = [pool.distinct(seed) for seed in range(20)]
    assert all(set(f[[0, 2]]) == {1, 3} and f[1] in (0, 2, 4) for f in found)
    # The third row of a key with two responses, and one of a key with none, get nothing.
    assert all(f[3] == f[4] == -1 for f in found)
    assert len({tuple(f) for f in found}) > 3


def test_the_nearest_sums_take_turns():
    keys, pdg, sums = np.array([1, 1, 1, 1, -1]), np.array([22, 22, 22, 22, 7]), np.array([40, 10, 30, 20, 1000])
    near = Nearest(keys, pdg, sums, (np.array([1, 1, 3]), np.array([22, 22, 7]), np.array([22, 41, 900])), 2)
    every = np.repeat(np.arange(3), 2)
    for seed in range(5):
        drawn = near.draw(every, seed, np.arange(6)).reshape(3, 2)
        assert [set(d) for d in drawn] == [{3, 2}, {0, 2}, {4}]
        assert np.array_equal(near.draw(every[2:], seed, np.arange(2, 6)), drawn.ravel()[2:])
        first = near.distinct(seed)
        # A primary without responses is answered by others of its type, which is no answer of its own.
        assert first[2] == -1
        assert first[0] == 3
        assert first[1] == 0
    assert near.known.tolist() == [True, True, False]
    assert near.quantile(0) == 1 / 41


def test_nearest_gives_no_response_twice():
    near = Nearest(np.ones(2), np.ones(2), np.array([10, 12]), (np.ones(4), np.ones(4), np.array([10, 10, 10, 12])), 2)
    for seed in range(5):
        found = near.distinct(seed)
        assert sorted(found[found >= 0]) == [0, 1]


def test_another_simulation_answers_with_the_same_primary_or_else_the_same_type(showers, all_of):
    other = showers.select(slice(25, 120))
    rows = all_of(showers.select(slice(0, 50)))
    floor = floor_of_simulation(other, rows)
    every = np.arange(50)
    positions = floor.positions(every, 3, every)
    assert floor.eligible.all()
    assert np.array_equal(floor.samples(every, 3, every), other.images[positions])
    lacking = 0
    for row, position in zip(every, positions, strict=True):
        particle, pdg = rows.showers.particles[row], rows.showers.pdg[row]
        same = (other.particles == particle).all(1) & (other.pdg == pdg)
        lacking += not same.any()
        assert same[position] if same.any() else other.pdg[position] == pdg
    assert floor.lacking == lacking > 0


def test_a_floor_of_sums_answers_with_the_same_primary_and_nearly_the_same_sum(showers, all_of):
    """Of a simulation that has the very sums, those; of one that lacks a primary, the nearest sum of its type."""
    every = np.arange(len(showers))
    floor = floor_of_sums(showers, all_of(showers), 1)
    assert np.array_equal(floor.photon_sums(every, 3, every), showers.photon_sum)
    assert floor.chooser.quantile(0.95) == 0
    other, rows = showers.select(showers.primary_ids > 0), all_of(showers)
    floor = floor_of_sums(other, rows, 3)
    positions = floor.positions(every, 3, every)
    assert np.array_equal(other.pdg[positions], showers.pdg)
    same = (other.particles[positions] == showers.particles).all(1)
    assert np.array_equal(same, showers.primary_ids > 0)
    assert floor.lacking == (showers.primary_ids == 0).sum() > 0


def test_files_with_matched_sums_are_no_floor_of_all_sums(data, root_file, tmp_path):
    for name, matched in (("ordinary.root", 0), ("matched.root", 2)):
        write(tmp_path / name, read(root_file), {"settings": {"match_sums": matched}})
    ordinary, matched = str(tmp_path / "ordinary.root"), str(tmp_path / "matched.root")
    with pytest.raises(ValueError, match=r"matched\.root: its photon sums were matched"):
        Floors.read(FloorOptions(floor=matched), data, "test")
    floors = Floors.read(FloorOptions(ordinary, matched), data, "test")
    assert floors.most == 2
    rows = select_rows(data, Protocol())
    # Of the file with matched sums only responses to the split's primaries are kept.
    assert len(floors.sums) == len(rows) < len(floors.other)
    assert list(floors.references(data, "test", rows)) == ["floor", "shape_floor", "trivial"]


def test_a_floor_of_other_primaries_is_refused(data, make_showers):
    rows = select_rows(data, Protocol())
    with pytest.raises(
        ValueError, match=r"floor: .* expected those of at least half of the \d+ judged rows, 0 have theirs"
    ):
        Floors(make_showers(seed=9)).references(data, "test", rows)


def test_the_floor_of_halves_is_held_against_responses_it_does_not_give(data):
    """Each half answered from the other would be a resample of the reference: a floor that no simulation can reach."""
    rows = select_rows(data, Protocol())
    floor = floor_of_halves(data, "test", rows)
    numbers = np.repeat(np.flatnonzero(floor.eligible), 20)
    answers = floor.samples(numbers, 1, np.arange(len(numbers)))
    # Of the same primary where there is another response at all, and never a response that is asked for.
    given = {image.tobytes() for image in answers}
    assert 0.3 < floor.eligible.mean() < 0.7
    assert not given & {image.tobytes() for image in rows.showers.images[floor.eligible]}
    alone = np.bincount(rows.primary_ids)[rows.primary_ids[floor.eligible]] == 1
    assert floor.lacking == alone.sum()


def test_single_responses_have_no_other_half(data, monkeypatch):
    monkeypatch.setitem(data.arrays, "primary_ids", np.arange(len(data.arrays["primary_ids"])))
    assert floor_of_halves(data, "test", select_rows(data, Protocol())) is None
    assert set(Floors().references(data, "test", select_rows(data, Protocol()))) == {"trivial"}


def test_the_trivial_model_answers_with_training_responses_of_the_type(data):
    rows = select_rows(data, Protocol())
    trivial = trivial_model(data, rows)
    numbers = np.repeat(np.arange(len(rows)), 3)
    train = data.rows("train")[trivial.positions(numbers, 1, np.arange(len(numbers)))]
    assert np.array_equal(data.arrays["pdg"][train], rows.showers.pdg[numbers])
    assert np.array_equal(trivial.photon_sums(numbers, 1, np.arange(len(numbers))), data.arrays["photon_sum"][train])
    assert trivial.lacking == 0
