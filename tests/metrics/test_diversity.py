"""The diversity of responses against a plain loop over inputs."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.metrics.conditional import diversity

ROUNDING = 1e-9  # relative: the same formula, summed in another order


def make_images(rows=90, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.choice([3, 5, 8, 13], rows, p=[0.6, 0.25, 0.1, 0.05])
    inputs[0] = 21  # an input with one response
    return rng.poisson(0.3 * inputs[:, None, None], (rows, 6, 4)).astype(np.int16), inputs


@pytest.mark.parametrize("chunk", [1, 7, 30, 4096])
def test_diversity_by_loop(chunk):
    images, inputs = make_images()
    result = diversity(images, inputs, chunk=chunk)
    expected = [images[inputs == key].std(axis=0).sum() for key in result.primary_id]
    np.testing.assert_array_equal(result.primary_id, np.unique(inputs))
    np.testing.assert_array_equal(result.responses, [(inputs == key).sum() for key in result.primary_id])
    np.testing.assert_allclose(result.value, expected, rtol=ROUNDING)
    assert result.value[-1] == 0


def test_diversity_reads_memory_mapped_images(tmp_path):
    images, inputs = make_images()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(diversity(mapped, inputs, chunk=16).value, diversity(images, inputs).value)


def test_normalized_diversity_and_artefacts():
    images, inputs = make_images()
    plain, scaled = diversity(images, inputs).value, diversity(images, inputs, normalized=True).value
    np.testing.assert_allclose(scaled, (plain - plain.min()) / (plain.max() - plain.min()), rtol=ROUNDING)
    images[np.flatnonzero(inputs == 3)[0]] += 10_000
    assert (diversity(images, inputs, normalized=True).value[1:] < 0.01).all()
    robust = diversity(images, inputs, normalized=True, quantile=0.7).value
    assert robust.min() == 0
    assert robust.max() == 1
    assert np.sort(robust)[-2] > 0.3
    assert (diversity(images[:1].repeat(5, axis=0), np.arange(5), normalized=True).value == 0).all()


def test_diversity_of_nothing_and_of_a_mistake():
    assert len(diversity(np.zeros((0, 6, 4), np.int16), []).value) == 0
    with pytest.raises(ValueError, match="as many identifiers of primaries as images"):
        diversity(np.zeros((3, 6, 4), np.int16), [1, 2])
