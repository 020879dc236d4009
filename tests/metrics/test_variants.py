"""Variants of metrics: what each does differently shows in a case by hand."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.metrics.wasserstein import VARIANTS, variant_metrics


def test_generations_are_pooled_or_one_counts():
    reference = np.zeros((2, 5))
    generated = np.zeros((2, 2, 5))
    generated[:, 1] = 4.0
    assert variant_metrics(VARIANTS["zdc"], reference, generated) == {"ws": 2.0, "mae": 2.0}
    assert variant_metrics(VARIANTS["zdc-fast-simulations"], reference, generated) == {"ws": 0.0, "mae": 0.0}


def test_rows_are_paired():
    """The same responses in another order: no distance between distributions, and an error all the same."""
    reference = np.repeat([[1.0], [3.0]], 5, axis=1)
    found = variant_metrics(VARIANTS["zdc"], reference, reference[::-1, None])
    assert found == {"ws": 0.0, "mae": 2.0}


@pytest.mark.parametrize(("name", "words"), [("zdc", "not rounded, all"), ("zdc-fast-simulations", "photons, one")])
def test_words_say_what_is_done(name, words):
    assert words in VARIANTS[name].words
