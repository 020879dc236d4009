"""What is held against models looks the same wherever it is drawn, and no two models look alike."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from calosim.evaluation.stored import TITLES
from calosim.plots import image_rows, importances
from calosim.plots.style import COLORS, looks, typeset


def test_floors_and_trivial_models_look_the_same_beside_any_models():
    alone = looks(TITLES.values())
    crowd = looks([*(f"model {i}" for i in range(9)), *TITLES.values()])
    for name in ("floor", "shape_floor", "trivial"):
        assert crowd[TITLES[name]] == alone[TITLES[name]]
        assert crowd[TITLES[name]].color not in COLORS
    assert crowd[TITLES["floor"]].color == crowd[TITLES["shape_floor"]].color != crowd[TITLES["trivial"]].color
    assert crowd[TITLES["floor"]].line != crowd[TITLES["shape_floor"]].line


def test_models_differ():
    found = looks([f"model {i}" for i in range(42)])
    assert len({(look.color, look.marker) for look in found.values()}) == 42


def test_symbols_are_set_as_such():
    assert [typeset(symbol) for symbol in ("Λ̄, 3 GeV", "K⁰S")] == ["Λ̄, 3 GeV", r"K$_\mathrm{S}^{0}$"]


@pytest.mark.parametrize(
    "settings", [{"text.usetex": True}, {"font.size": 30.0, "axes.facecolor": "red", "savefig.dpi": 20}]
)
def test_the_settings_of_the_user_change_no_picture_and_stay_as_they_were(settings, tmp_path):
    values = np.array([3.0, 1.0]), np.array([0.1, 0.2]), ["energy", "|pz|"], "photons"
    own = importances(*values, tmp_path / "own.png")
    with matplotlib.rc_context(settings):
        theirs = importances(*values, tmp_path / "theirs.png")
        assert {key: matplotlib.rcParams[key] for key in settings} == settings
    assert own.read_bytes() == theirs.read_bytes()


def test_what_cannot_be_drawn_costs_a_line_and_leaves_no_older_picture(tmp_path, capsys):
    image, path = np.ones((1, 3, 4)), tmp_path / "x.png"
    for label in ("γ", r"$\frac$", "γ"):  # the second is no mathematics
        found = image_rows(image, image, [label], path)
        assert (found is None) == (not path.exists()) == label.startswith("$")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"calosim: {path}: was not drawn (ValueError: ")
