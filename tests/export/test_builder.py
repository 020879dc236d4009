"""Ten normals become as many uniform numbers as wanted: those of Python, uniform and independent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from calosim import rng
from calosim.export.builder import NORMALS, Builder, Numbers, Wanted, rows_of
from calosim.export.graph import quantile

#: Probabilities below this are no chance.
CHANCE = 1e-4


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, NORMALS)).astype(np.float32)


@pytest.fixture(scope="module")
def expanded():
    """Expands noise (N, 10) in a graph to (N, 40) numbers, as float32: 8 of the photon sum, 32 of the shape."""
    import onnxruntime

    g = Builder()
    wanted = [Wanted(rng.PHOTON_STREAM, np.arange(8), 23), Wanted(rng.BASE_STREAM, np.arange(32), 52)]
    parts = [g("Cast", name, to=1) for name in Numbers(g, "noise").draw(wanted)]
    model = g.model({"noise": NORMALS}, (g("Concat", *parts, axis=0), "numbers", (40,)), "")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda z: np.stack([session.run(None, {"noise": row[None]})[0] for row in z])


def test_a_graph_has_the_numbers_of_python(expanded):
    z = noise(50)
    z[0], z[1], z[2, :5] = 0.0, 1e30, -np.inf
    rows = torch.from_numpy(rows_of(z))
    few = rng.uniform(rng.row_keys(rows, rng.PHOTON_STREAM, 0), 8)
    many = rng.uniform_at(rng.row_keys(rows, rng.BASE_STREAM, 0)[:, None], torch.arange(32))
    assert np.array_equal(expanded(z), torch.cat((few, many.float()), 1).numpy())


def test_numbers_are_uniform_and_independent(expanded):
    u = expanded(noise(4000)).astype(np.float64)
    assert u.min() > 0
    assert u.max() <= 1
    # Every number over events, and all of an event's numbers together.
    assert min(stats.kstest(column, "uniform").pvalue for column in u.T) > CHANCE
    assert stats.kstest(u.ravel(), "uniform").pvalue > CHANCE
    # No pair of numbers, nor of the normals and a number, goes together.
    both = np.concatenate((noise(4000), stats.norm.ppf(u.clip(1e-9, 1 - 1e-7))), 1)
    off = np.corrcoef(both.T)[np.triu_indices(both.shape[1], 1)]
    pairs = np.delete(off, np.flatnonzero(np.isnan(off)))
    assert np.abs(pairs).max() < 6 / np.sqrt(len(u))
    # Pairs fill the square evenly.
    cells = np.histogram2d(u[:, ::2].ravel(), u[:, 1::2].ravel(), 16)[0]
    assert stats.chisquare(cells.ravel()).pvalue > CHANCE


def test_a_normal_that_moves_a_little_changes_half_of_the_bits():
    z = noise(500)
    for column in range(NORMALS):
        moved = z.copy()
        moved[:, column] = np.nextafter(moved[:, column], np.float32(9))
        flipped = np.unpackbits((rows_of(z) ^ rows_of(moved)).view(np.uint8)).mean()
        assert abs(flipped - 0.5) < 0.02
    assert len(np.unique(rows_of(noise(100_000)))) == 100_000
    # Which of the ten a number is matters.
    assert not (rows_of(z) == rows_of(z[:, ::-1])).any()


def test_normal_quantiles():
    import onnxruntime

    g, u = (
        Builder(),
        np.array([9 * 2.0**-53, 2.0**-53, 1e-9, 0.0749999, 0.0750001, 0.3, 0.5, 0.9250001, 0.999, 1 - 2.0**-53]),
    )
    value = g("Cast", quantile(g, g("Add", u, g("Cast", g("ReduceSum", "nothing", keepdims=0), to=11))), to=1)
    model = onnxruntime.InferenceSession(g.model({"nothing": 1}, (value, "z", u.shape), ""))
    found = model.run(None, {"nothing": np.zeros((1, 1), np.float32)})[0]
    assert np.allclose(found, stats.norm.ppf(u), rtol=2e-7, atol=1e-12)
