"""What is held against models looks the same wherever it is drawn, and no two models look alike."""

from __future__ import annotations

from calosim.evaluation.definitions import TITLES
from calosim.pictures.style import COLORS, looks, typeset


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
