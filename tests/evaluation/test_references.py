"""References: pools answer with the right rows, and no floor is judged on responses that it answers with."""

from __future__ import annotations

import numpy as np

from calosim.evaluation.protocol import Protocol
from calosim.evaluation.references import Pool, find_references, floor_of_halves, floor_of_simulation, trivial_model
from calosim.evaluation.selection import select_rows

#: Standard deviations that a share may lie off its expectation.
SIGMAS = 4.0


def test_pool_answers_with_the_key_or_falls_back():
    keys, fallback = np.array([5, 5, 9, 9]), np.array([1, 1, 1, 2])
    pool = Pool(keys, fallback)
    rows = np.arange(1000)
    drawn = pool.draw(np.full(1000, 5), np.full(1000, 2), 0, rows)
    assert set(drawn) == {0, 1}
    assert abs((drawn == 0).mean() - 0.5) < SIGMAS * np.sqrt(0.25 / 1000)
    assert set(pool.draw(np.full(1000, 7), np.full(1000, 2), 0, rows)) == {3}
    assert set(pool.draw(np.full(1000, 7), np.full(1000, 8), 0, rows)) == {0, 1, 2, 3}
    assert pool.has(np.array([5, 7, 9])).tolist() == [True, False, True]
    assert np.array_equal(drawn[500:], pool.draw(np.full(500, 5), np.full(500, 2), 0, rows[500:]))


def test_another_simulation_answers_with_the_same_primary_or_else_the_same_type(showers, all_of):
    pool = showers.select(slice(25, 120))
    rows = all_of(showers.select(slice(0, 50)))
    floor = floor_of_simulation(pool, rows)
    every = np.arange(50)
    positions = floor.positions(every, 3, every)
    assert floor.fair.all()
    assert np.array_equal(floor.answers(every, 3, every), pool.images[positions])
    lacking = 0
    for row, position in zip(every, positions, strict=True):
        particle, pdg = rows.showers.particles[row], rows.showers.pdg[row]
        same = (pool.particles == particle).all(1) & (pool.pdg == pdg)
        lacking += not same.any()
        assert same[position] if same.any() else pool.pdg[position] == pdg
    assert floor.lacking == lacking > 0


def test_the_floor_of_halves_is_held_against_responses_it_does_not_give(data):
    """Each half answered from the other would be a resample of the reference: a floor that no simulation can reach."""
    rows = select_rows(data, Protocol())
    floor = floor_of_halves(data, "test", rows)
    numbers = np.repeat(np.flatnonzero(floor.fair), 20)
    answers = floor.answers(numbers, 1, np.arange(len(numbers)))
    # Of the same primary where there is another response at all, and never a response that is asked for.
    given = {image.tobytes() for image in answers}
    assert 0.3 < floor.fair.mean() < 0.7
    assert not given & {image.tobytes() for image in rows.showers.images[floor.fair]}
    alone = np.bincount(rows.inputs)[rows.inputs[floor.fair]] == 1
    assert floor.lacking == alone.sum()


def test_single_responses_have_no_other_half(data, monkeypatch):
    monkeypatch.setitem(data.arrays, "inputs", np.arange(len(data.arrays["inputs"])))
    assert floor_of_halves(data, "test", select_rows(data, Protocol())) is None
    assert set(find_references(data, "test", select_rows(data, Protocol()), None)) == {"trivial"}


def test_the_trivial_model_answers_with_training_responses_of_the_type(data):
    rows = select_rows(data, Protocol())
    trivial = trivial_model(data, rows)
    numbers = np.repeat(np.arange(len(rows)), 3)
    train = data.rows("train")[trivial.positions(numbers, 1, np.arange(len(numbers)))]
    assert np.array_equal(data.arrays["pdg"][train], rows.showers.pdg[numbers])
    assert np.array_equal(trivial.photon_sums(numbers, 1, np.arange(len(numbers))), data.arrays["photon_sum"][train])
    assert trivial.lacking == 0
