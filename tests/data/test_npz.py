"""Pairs of npz files are read by either of their names, in pieces; bad pairs are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from calosim.data import Showers, read
from calosim.data.reading import checked_pieces, sources


@pytest.mark.parametrize("detector", ["zn", "zp"])
@pytest.mark.parametrize("columns", [9, 10])
@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int32])
def test_npz_pair(detector, columns, dtype, tmp_path, make, join, check_equal, save_npz):
    showers = make(30, detector)
    first, second = save_npz(tmp_path, showers, columns, dtype)
    for given in (first, second, [second, first]):
        check_equal(read(given), showers)
    (source,) = sources(first)
    pieces = list(checked_pieces(source, 7))
    assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 2]
    check_equal(join(pieces), showers)


def test_npz_choice_between_particles(tmp_path, make, save_npz):
    showers = make(3)
    showers.particles[:, 7:] = (497.614, 0)
    first, _ = save_npz(tmp_path, showers, 9, np.int16)
    for code in (310, 130):
        assert read(first, prefer=[code]).pdg.tolist() == [code] * 3


#: By name: what makes the file, what the message must say, and options of the conversion.
BAD: dict[str, tuple[Callable[[Any], list[str]], list[str], dict[str, Any]]] = {
    "npz that is no zip": (lambda f: f.named("bad_particles.npz", b"numbers"), ["bad_particles.npz", "damaged"], {}),
    "npz cut short": (lambda f: f.cut(f.npz()[1], 150), ["bad_responses.npz", "damaged"], {}),
    "npz damaged inside": (
        lambda f: [f.npz()[0], f.damage(str(f.folder / "bad_responses.npz"), 120, 140)],
        ["bad_responses.npz", "damaged"],
        {},
    ),
    "npz without key": (lambda f: f.npz(key="data"), ["bad_particles.npz", "'arr_0'", "found data"], {}),
    "npz with pickles": (lambda f: f.npz(table=f.table.astype(object)), ["bad_particles.npz", "pickled"], {}),
    "npz with eight columns": (
        lambda f: f.npz(table=f.table[:, :8]),
        ["bad_particles.npz", "8 columns", "expected 9"],
        {},
    ),
    "npz of a single column": (lambda f: f.npz(table=f.full(1.0)), ["bad_particles.npz", "1 dimensions"], {}),
    "npz lengths differ": (lambda f: f.npz(table=f.table[:3]), ["bad_responses.npz", "4 rows", "has 3"], {}),
    "npz without partner": (lambda f: f.first(f.npz()), ["bad_particles.npz", "responses is missing"], {}),
    "npz image shape": (lambda f: f.npz(images=np.ones((f.rows, 44, 43))), ["bad_responses.npz", "(44, 43)"], {}),
    "npz broken photon": (lambda f: f.npz(images=f.pixel(1.5)), ["bad_responses.npz", "row 2", "1.5 photons"], {}),
    "npz images in Fortran order": (
        lambda f: f.npz(images=np.asfortranarray(f.columns["response"])),
        ["bad_responses.npz", "Fortran order"],
        {},
    ),
    "npz PDG code not whole": (
        lambda f: f.npz(table=f.table + 0.5 * np.eye(10)[9]),
        ["bad_particles.npz", "row 0", "pdg is 2112.5"],
        {},
    ),
    "mass of no particle": (
        lambda f: f.npz(table=np.where(np.arange(9) == 7, 777.0, f.table[:, :9])),
        ["bad_particles.npz", "row 0", "mass 777 MeV", "no particle"],
        {},
    ),
    "mass in GeV": (
        lambda f: f.npz(table=np.where(np.arange(9) == 7, 0.93957, f.table[:, :9])),
        ["bad_particles.npz", "row 0", "mass 0.93957 MeV", "no particle", "masses in MeV"],
        {},
    ),
    "mass of two particles": (
        lambda f: f.npz(table=np.where(np.arange(9) == 7, 497.611, f.table[:, :9])),
        ["bad_particles.npz", "row 0", "130, 310", "tenth column"],
        {},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_line(name, refused):
    make, says, options = BAD[name]
    refused(make, *says, **options)


def test_several_pairs_are_found_by_their_names(tmp_path, make, save_npz):
    pairs = [save_npz(tmp_path, make(4, seed=k), stem=stem) for k, stem in enumerate("ab")]
    (a, a_images), (b, b_images) = pairs
    crossed = read([a, b, b_images, a_images])
    assert np.array_equal(crossed.images, read([a, a_images, b, b_images]).images)
    renamed = tmp_path / "z.npz"
    (tmp_path / b_images).rename(renamed)
    with pytest.raises(ValueError, match=r"b_particles\.npz: which of 2 files holds its responses"):
        read([a, b, a_images, renamed])
    assert len(read([b, renamed])) == 4  # a single pair may be called anything


def test_swapped_columns_are_refused(tmp_path, make, save_npz):
    """Vertex for momentum: every number is good by itself, but energy and momentum are none of a particle's."""
    showers = make(20)
    swapped = np.ascontiguousarray(showers.particles[:, [0, 4, 5, 6, 1, 2, 3, 7, 8]])
    paths = save_npz(tmp_path, Showers(swapped, showers.pdg, showers.images, "zn"))
    order = "energy, vx, vy, vz, px, py, pz, mass, charge, pdg"
    with pytest.raises(
        ValueError, match=rf"row \d+: energy is .* GeV; expected .* by its momentum and mass \(columns {order}\)"
    ):
        read(paths)
