"""Text that O2's Extract.C prints is read, with images of either detector; bad text is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from calosim.data import convert, read
from calosim.data.extract import read_table
from calosim.options import Convert

#: The largest photon sum seen in real output, from one pion of 12 GeV.
ARTEFACT = 177_940
#: A number printed with six digits, as Extract.C does.
SIX_DIGITS = 1e-5
#: Double precision through a square and a root.
ROUNDING = 1e-12
NEWER = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"
OLDER = "Detector,Event,Counter,StatusCode,Pdg,Energy,Vx,Vy,Vz,PhotonSum"


@pytest.mark.usefixtures("small_baskets")
@pytest.mark.parametrize("detector", ["zn", "zp"])
def test_text(detector, tmp_path, make, check_equal, save_text):
    both = {"N": make(20, "zn"), "P": make(20, "zp")}
    path = save_text(tmp_path, both)
    expected = both["N" if detector == "zn" else "P"]
    images = [tmp_path / "neutron_image.txt", tmp_path / "proton_image.txt"]
    for given in (path, [path, *images], [images[detector == "zp"], path]):
        check_equal(read(given, detector), expected, SIX_DIGITS)
    with pytest.raises(ValueError, match="expected a choice of detector, zn or zp"):
        read(path)
    images[0].unlink()
    assert read(path).detector == "zp"


def test_text_without_momenta(tmp_path, make, save_text):
    showers = make(20)
    path = save_text(tmp_path, {"N": showers, "P": make(20, "zp")}, momenta=False)
    got = read(path, "zn", assume_beam_direction=True)
    energy, px, py, pz, mass = got.particles[:, [0, 4, 5, 6, 7]].T
    on_shell = energy > mass / 1000
    assert on_shell.sum() > 10
    np.testing.assert_allclose(np.hypot(pz, mass / 1000)[on_shell], energy[on_shell], rtol=ROUNDING)
    assert not px.any()
    assert not py.any()
    np.testing.assert_array_equal(np.sign(pz[on_shell]), np.sign(got.particles[on_shell, 3]))
    np.testing.assert_array_equal(got.images, showers.images)


def test_real_output_of_o2(tmp_path, real_data):
    examples = real_data("o2_zdc_examples.csv")
    table = read_table(examples)
    assert table.dtype.names == ("Detector", "Pdg", "Energy", "Vx", "Vy", "Vz", "PhotonSum")
    neutron, proton = table[0::2], table[1::2]
    assert set(neutron["Detector"]) == {"N"}
    assert set(proton["Detector"]) == {"P"}
    for name in ("Pdg", "Energy", "Vx", "Vy", "Vz"):
        np.testing.assert_array_equal(neutron[name], proton[name])
    assert proton["PhotonSum"].max() == ARTEFACT

    # The images are not public: put all photons of a track into one pixel.
    images = np.zeros((len(proton), 56, 30), np.int64)
    images[:, 28, 15] = proton["PhotonSum"]
    lines = (" ".join(map(str, line)) + " \n" for line in images.reshape(-1, 30).tolist())
    (tmp_path / "proton_image.txt").write_text("".join(lines))
    source, out = [str(examples), str(tmp_path / "proton_image.txt")], str(tmp_path / "zp.root")
    convert(Convert(source, out, detector="zp", assume_beam_direction=True))
    got = read(out)
    np.testing.assert_array_equal(got.photon_sum, proton["PhotonSum"])
    np.testing.assert_array_equal(got.pdg, proton["Pdg"])
    energy, pz, mass = got.particles[:, [0, 6, 7]].T
    assert (energy >= 0.99 * mass / 1000).all()  # masses of the PDG codes fit the energies
    assert (np.abs(pz) <= energy).all()
    charge = got.particles[:, 8]
    for code, sign in ((211, 1), (-211, -1), (11, -1), (2212, 1), (22, 0), (2112, 0), (1000010030, 1)):
        assert set(charge[got.pdg == code]) == {sign}


#: By name: what makes the file, what the message must say, and options of the conversion.
BAD: dict[str, tuple[Callable[[Any], list[str]], list[str], dict[str, Any]]] = {
    "CSV without column": (
        lambda f: f.text(NEWER.replace(",Vz", "")),
        ["bad.csv", "no column 'Vz'", "expected Detector"],
        {},
    ),
    "CSV without momenta": (lambda f: f.text(OLDER), ["bad.csv", "no momenta", "assume_beam_direction"], {}),
    "CSV word for a number": (
        lambda f: f.text(edit=lambda table, _: table.__setitem__(3, table[3].replace("2.2", "high"))),
        ["bad.csv", "line 4", "Energy is 'high'", "a number"],
        {},
    ),
    "CSV unknown PDG code": (
        lambda f: f.text(edit=lambda table, _: table.__setitem__(3, table[3].replace("2112", "999999"))),
        ["bad.csv", "line 4", "PDG code 999999"],
        {},
    ),
    "CSV NaN": (
        lambda f: f.text(edit=lambda table, _: table.__setitem__(5, table[5].replace("2.2", "nan"))),
        ["bad.csv", "line 6", "energy is nan"],
        {},
    ),
    "CSV unknown detector": (
        lambda f: f.text(edit=lambda table, _: table.__setitem__(1, table[1].replace("N", "Z"))),
        ["bad.csv", "line 2", "Detector is 'Z'", "N or P"],
        {},
    ),
    "CSV short line": (
        lambda f: f.text(edit=lambda table, _: table.__setitem__(2, table[2].rpartition(",")[0])),
        ["bad.csv", "line 3", "expected 10 fields, got 9"],
        {},
    ),
    "CSV photon sum": (
        lambda f: f.text(edit=lambda table, _: table.__setitem__(1, table[1].replace(",17", ",18"))),
        ["bad.csv", "line 2", "PhotonSum is 18", "sums to 17"],
        {},
    ),
    "CSV without images": (lambda f: f.first(f.text()), ["bad.csv", "0 ZN image texts", "neutron_image.txt"], {}),
    "images without CSV": (lambda f: f.text()[1:], ["neutron_image.txt", "images without particles"], {}),
    "image lines missing": (
        lambda f: f.text(edit=lambda _, lines: lines.__delitem__(slice(2))),
        ["neutron_image.txt", "has 174 lines", "4 images x 44 lines = 176"],
        {},
    ),
    "image lines too many": (
        lambda f: f.text(edit=lambda _, lines: lines.append(lines[0])),
        ["neutron_image.txt", "has 177 lines", "= 176"],
        {},
    ),
    "image line too short": (
        lambda f: f.text(edit=lambda _, lines: lines.__setitem__(49, "0 " * 43)),
        ["neutron_image.txt", "line 50", "expected 44 numbers, got 43"],
        {},
    ),
    "image line empty": (
        lambda f: f.text(edit=lambda _, lines: lines.__setitem__(49, "")),
        ["neutron_image.txt", "line 50", "got 0"],
        {},
    ),
    "image of no detector": (
        lambda f: f.text(edit=lambda _, lines: lines.__setitem__(0, "0 " * 12)),
        ["neutron_image.txt", "line 1", "44 (ZN) or 30 (ZP)", "got 12"],
        {},
    ),
    "image word for a number": (
        lambda f: f.text(edit=lambda _, lines: lines.__setitem__(49, "x " + "0 " * 43)),
        ["neutron_image.txt", "line 50", "'x'", "a whole number"],
        {},
    ),
    "image negative photons": (
        lambda f: f.text(edit=lambda _, lines: lines.__setitem__(49, "-1 " + "0 " * 43)),
        ["neutron_image.txt", "row 1", "-1 photons", "(5, 0)"],
        {},
    ),
    "text without rows": (
        lambda f: f.text(edit=lambda table, _: table.__delitem__(slice(1, None))),
        ["bad.csv", "no rows"],
        {"detector": "zn"},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_clear_line(name, refused):
    make, says, options = BAD[name]
    refused(make, *says, **options)
