"""Pools answer with the right responses, the same ones whatever else is asked, and where told so none twice."""

from __future__ import annotations

import numpy as np

from calosim.evaluation.references import Nearest, Pool

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
