"""Rows of one primary are told by its features and its PDG code alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from calosim.data import FEATURES, Showers
from calosim.data.record import check_primaries, check_showers, row_name


def test_inputs_are_unique_rows_in_order_of_appearance(make):
    showers = make(500, primaries=60)
    primary_ids = showers.primary_ids
    rows = np.column_stack([showers.particles, showers.pdg])
    _, expected = np.unique(rows, axis=0, return_inverse=True)
    pairs = np.unique(np.column_stack([primary_ids, expected.reshape(-1)]), axis=0)
    assert len(pairs) == expected.max() + 1 == primary_ids.max() + 1  # one to one
    _, first = np.unique(primary_ids, return_index=True)
    assert (np.diff(first) > 0).all()
    assert primary_ids.dtype == np.int64


def test_inputs_tell_particles_apart_but_not_zeros():
    particles = np.zeros((3, len(FEATURES)))
    particles[1, 4] = -0.0
    images = np.zeros((3, 44, 44), np.int16)
    assert Showers(particles, np.array([310, 310, 130]), images, "zn").primary_ids.tolist() == [0, 0, 1]


def test_a_bad_row_is_named(make):
    showers, where = make(5), partial(row_name, 10)
    check_showers(showers, "memory", where)
    showers.particles[3, 0] = -1
    with pytest.raises(ValueError, match="memory: row 13: energy is -1 GeV"):
        check_showers(showers, "memory", where)


def test_energies_in_mev_are_no_energies_in_gev(make):
    showers = make(5)
    showers.particles[2, [0, 4, 5, 6]] *= 1e6 / showers.particles[2, 0]
    with pytest.raises(
        ValueError, match=r"m: row 2: energy is 1e\+06 GeV; expected at most 100000 GeV for each nucleon"
    ):
        check_showers(showers, "m", partial(row_name, 0))
    ion = np.array([1000822080])  # a fragment of a beam of lead
    features = np.array([[5.7e5, 0, 0, 0, 0, 0, 5.7e5, 193687.0, 82]])
    check_primaries(features, ion, "m", partial(row_name, 0))


def test_a_light_particle_has_its_mass_nearly(make):
    """A tolerance for nuclei would take a neutron's 0.9396, in GeV, for a photon's 0 MeV."""
    for code, mass, charge in ((22, 0.9396, 0), (11, 0.938, -1), (22, 0.1396, 0)):
        features = np.array([[100.0, 0, 0, 0, 0, 0, 100.0, mass, charge]])
        with pytest.raises(ValueError, match="m: row 0: mass is"):
            check_primaries(features, np.array([code]), "m", partial(row_name, 0))
    check_primaries(np.array([[100.0, 0, 0, 0, 0, 0, 100.0, 0.511, -1]]), np.array([11]), "m", partial(row_name, 0))


def test_shapes_and_types_are_checked(make):
    showers, where = make(5), partial(row_name, 0)
    with pytest.raises(ValueError, match="memory: response: expected ZP images"):
        check_showers(Showers(showers.particles, showers.pdg, showers.images, "zp"), "memory", where)
    with pytest.raises(ValueError, match="expected integer photon counts, got float64"):
        check_showers(Showers(showers.particles, showers.pdg, showers.images.astype(float), "zn"), "memory", where)
    with pytest.raises(ValueError, match=r"expected particles with shape \(5, 9\), got \(5, 8\)"):
        check_showers(Showers(showers.particles[:, :8], showers.pdg, showers.images, "zn"), "memory", where)
