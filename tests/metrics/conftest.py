"""Rows of channel values for the metrics, and a metric's result in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def _make_rows(rows=400, generations=3, seed=0, integers=True):
    """Channel values with ties and zeros, unequal numbers of responses per input, some inputs with a single one."""
    rng = np.random.default_rng(seed)
    input = np.sort(rng.choice(60, rows, p=rng.dirichlet(np.full(60, 0.5))))
    particle = np.array([22, 2112, 310])[(input % 7).clip(0, 2)]
    scale = (1 + input % 5)[:, None] * np.array([3, 1, 1, 0.3, 9])
    reference = rng.poisson(scale).astype(float)
    generated = rng.poisson(1.3 * scale[:, None], (rows, generations, 5)).astype(float)
    if not integers:
        reference, generated = reference + rng.random(reference.shape), generated + rng.random(generated.shape)
    return tuple(torch.as_tensor(x) for x in (generated, reference, particle, input))


def _compute(metric, rows):
    metric.update(*rows)
    return {key: float(value) for key, value in metric.compute().items()}


@pytest.fixture(scope="session")
def make_rows():
    """Makes generated, reference, PDG codes and inputs: ``make_rows(rows=400, generations=3, seed=0, integers=True)``."""
    return _make_rows


@pytest.fixture(scope="session")
def compute():
    """The values of a metric after one update: ``compute(metric, rows)``."""
    return _compute
