"""Files of primaries: ROOT and tables as programs write them, read in pieces from any row on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calosim.data import FEATURES, Showers, primaries, read_primaries, write
from calosim.data.reading import PrimariesFile

#: Masses of the PDG's editions differ by less, relatively.
EDITIONS = 1e-5


def test_primaries_from_root_and_csv(tmp_path, make):
    showers = make(30)
    momentum, mass = showers.particles[:, 4:7], showers.particles[:, 7] / 1000
    energy = np.sqrt((momentum**2).sum(1) + mass**2)
    showers = replace(showers, particles=np.column_stack([energy, showers.particles[:, 1:]]))
    write(tmp_path / "a.root", showers)
    names = [*FEATURES, "pdg"]
    table = np.column_stack([showers.particles, showers.pdg])
    order = np.random.default_rng(3).permutation(len(names))
    short = [k for k in order if names[k] not in ("mass", "charge")]
    for file, chosen in (("all.csv", order), ("short.csv", short)):
        rows = [",".join(repr(float(r[k])) if k < 9 else str(int(r[k])) for k in chosen) for r in table]
        (tmp_path / file).write_text("\n".join([",".join(names[k] for k in chosen), *rows]) + "\n")
    for file, rtol in (("a.root", 0), ("all.csv", 0), ("short.csv", EDITIONS)):
        particles, pdg = read_primaries(tmp_path / file)
        np.testing.assert_allclose(particles, showers.particles, rtol=rtol, atol=0)
        np.testing.assert_array_equal(pdg, showers.pdg)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("energy,vx,vy,vz,px,py,pdg\n", "no column 'pz'"),
        ("energy,vx,vy,vz,px,py,pz,mass,pdg\n", "no column 'charge'"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n", "holds no rows"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22\n1,0,0,0,0,0,1\n", "line 3: expected 8 fields, got 7"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22.5\n", "line 2: pdg is '22.5'; expected a whole number"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,2" + 30 * "0" + "\n", "expected a whole number"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n-1,0,0,0,0,0,1,22\n", "row 0: energy is -1 GeV"),
        ("energy,vx,vx,vz,px,py,pz,pdg\n", "has 2 columns 'vx'"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n1,0,0,0,0,0,1,22\n\n1,0,0,0,0,0,1,22\n", "line 3: is empty, but line 4 is not"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n9,0,0,0,0,0,8,1010010030\n", "no mass for code 1010010030; .* mass and charge"),
        (
            "energy,vx,vy,vz,px,py,pz,pdg,mass,charge\n9,0,0,0,0,0,8,1010010030,2.99,1\n",
            "about 2850 MeV for the 3 nucl",
        ),
        ("energy,vx,vy,vz,px,py,pz,pdg,mass,charge\n9,0,0,0,0,0,8,1010010030,2991,2\n", "charge is 2; expected 1 e"),
        ("energy,vx,vy,vz,px,py,pz,pdg\n" + "1" * 200_000 + "\n", "a.csv: expected a table of numbers"),
    ],
)
def test_bad_primaries(content, says, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_primaries(tmp_path / "a.csv")


TABLE = "pdg,energy,vx,vy,vz,px,py,pz\n22,100,0,0,0.5,0,0,100\n2112,1000,0,0,0,0.1,0,-999.99955\n"
#: What programs for tables make of that table.
SPREADSHEETS = {
    "byte-order mark": "\ufeff" + TABLE,
    "line ends": TABLE.replace("\n", "\r\n"),
    "old line ends": TABLE.replace("\n", "\r"),
    "UTF-16, tabs": "UTF-16" + TABLE.replace(",", "\t"),
    "semicolons": TABLE.replace(",", ";"),
    "decimal commas": TABLE.replace(",", ";").replace(".", ","),
    "quotes": '"' + TABLE.replace(",", '","').replace("\n", '"\n"').removesuffix('"'),
    "empty columns": TABLE.replace("\n", ",,\n"),
    "empty lines": TABLE + ",,,,,,,\n\n",
    "whole numbers": TABLE.replace("22,", "2.2E+01,").replace("2112,", "2112.0,"),
    "spaces": TABLE.replace(",", " , "),
}


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_tables_as_spreadsheets_write_them(name, tmp_path):
    text, path = SPREADSHEETS[name], tmp_path / "primaries.csv"
    path.write_bytes(text.removeprefix("UTF-16").encode("utf-16" if text.startswith("UTF-16") else "utf-8"))
    particles, pdg = read_primaries(path)
    assert pdg.tolist() == [22, 2112]
    assert particles[:, [0, 3, 4, 6]].tolist() == [[100, 0.5, 0, 100], [1000, 0, 0.1, -999.99955]]


def test_nuclei_that_the_tables_lack_bring_their_mass(tmp_path):
    """The hypertriton: one proton, one neutron, one Lambda."""
    path, momentum, mass = tmp_path / "primaries.csv", 5000.0, 2991.134
    energy = np.hypot(momentum, mass / 1000)
    path.write_text(f"pdg,energy,vx,vy,vz,px,py,pz,mass,charge\n1010010030,{energy},0,0,0,0,0,{momentum},{mass},1\n")
    particles, pdg = read_primaries(path)
    assert pdg.tolist() == [1010010030]
    assert particles[0, 7:].tolist() == [mass, 1.0]


def _table(rows: int, form: str) -> str:
    """A CSV of photons, the energy of each that of its row and one more GeV."""
    lines = [f"22,{row + 1},0,0,0,0,0,{row + 1}" for row in range(rows)]
    return (
        "\n".join(["pdg,energy,vx,vy,vz,px,py,pz", *lines])
        + {"ended": "\n", "open": "", "empty lines": "\n,,\n\n"}[form]
    )


@pytest.mark.parametrize("form", ["ended", "open", "empty lines", "root"])
def test_pieces_from_any_row_on_are_the_file(form, tmp_path, monkeypatch):
    monkeypatch.setattr(primaries, "PIECE", 4)
    file = tmp_path / "a.csv"
    file.write_text(_table(12, "ended" if form == "root" else form))
    if form == "root":
        particles, pdg = read_primaries(file)
        file = tmp_path / "a.root"
        write(file, Showers(particles, pdg, np.ones((12, 44, 44), np.int16), "zn"))
    source = PrimariesFile.open(file)
    assert source.rows == 12
    for first, stop in ((0, None), (0, 4), (3, 9), (11, 12), (5, 5)):
        pieces = [particles[:, 0].tolist() for particles, _ in source.pieces(first, stop)]
        assert [row for piece in pieces for row in piece] == list(range(first + 1, (12 if stop is None else stop) + 1))
        assert all(len(piece) <= 4 for piece in pieces)


def test_messages_of_later_pieces_name_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(primaries, "PIECE", 4)
    file, text = tmp_path / "a.csv", _table(12, "ended")
    for wrong, says in (("22,9,0,0,0,0,0,8", "row 8: energy is 9"), ("22,x,0,0,0,0,0,9", "line 10: energy is 'x'")):
        file.write_text(text.replace("22,9,0,0,0,0,0,9", wrong))
        for first in (0, 6):
            with pytest.raises(ValueError, match=says):
                list(PrimariesFile.open(file).pieces(first))
        assert sum(len(pdg) for _, pdg in PrimariesFile.open(file).pieces(9)) == 3
    source = PrimariesFile.open(file)
    file.write_text(_table(6, "ended"))
    with pytest.raises(ValueError, match="it ends with row 5 of 12"):
        list(source.pieces())
