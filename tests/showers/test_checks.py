"""Records are checked row by row, and the row is named."""

from __future__ import annotations

from functools import partial

import pytest

from calosim.showers import Showers
from calosim.showers.checks import check_showers, row_name


def test_a_bad_row_is_named(make):
    showers, where = make(5), partial(row_name, 10)
    check_showers(showers, "memory", where)
    showers.particles[3, 0] = -1
    with pytest.raises(ValueError, match="memory: row 13: energy is -1 GeV"):
        check_showers(showers, "memory", where)


def test_shapes_and_types_are_checked(make):
    showers, where = make(5), partial(row_name, 0)
    with pytest.raises(ValueError, match="memory: response: expected ZP images"):
        check_showers(Showers(showers.particles, showers.pdg, showers.images, "zp"), "memory", where)
    with pytest.raises(ValueError, match="expected integer photon counts, got float64"):
        check_showers(Showers(showers.particles, showers.pdg, showers.images.astype(float), "zn"), "memory", where)
    with pytest.raises(ValueError, match=r"expected particles with shape \(5, 9\), got \(5, 8\)"):
        check_showers(Showers(showers.particles[:, :8], showers.pdg, showers.images, "zn"), "memory", where)
