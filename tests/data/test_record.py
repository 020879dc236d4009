"""Rows of one input are told by their primary alone."""

from __future__ import annotations

import numpy as np

from calosim.data import FEATURES, Showers


def test_inputs_are_unique_rows_in_order_of_appearance(make):
    showers = make(500, inputs=60)
    inputs = showers.inputs
    rows = np.column_stack([showers.particles, showers.pdg])
    _, expected = np.unique(rows, axis=0, return_inverse=True)
    pairs = np.unique(np.column_stack([inputs, expected.reshape(-1)]), axis=0)
    assert len(pairs) == expected.max() + 1 == inputs.max() + 1  # one to one
    _, first = np.unique(inputs, return_index=True)
    assert (np.diff(first) > 0).all()
    assert inputs.dtype == np.int64


def test_inputs_tell_particles_apart_but_not_zeros():
    particles = np.zeros((3, len(FEATURES)))
    particles[1, 4] = -0.0
    images = np.zeros((3, 44, 44), np.int16)
    assert Showers(particles, np.array([310, 310, 130]), images, "zn").inputs.tolist() == [0, 0, 1]
