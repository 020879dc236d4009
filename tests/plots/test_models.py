"""Curves show best epochs and stay in sight; comparisons keep the order of models."""

from __future__ import annotations

import numpy as np

from calosim.plots import Curve, Panel, comparison, training_curves

TRAIN = [(float(step), 500.0 / (step + 1) + 5) for step in range(0, 400, 10)]
VAL = [(100.0, 9.0), (200.0, 7.0), (300.0, 8.0)]


def test_the_best_epoch_is_ringed_and_the_steep_beginning_leaves_the_picture(figure):
    axis = figure(training_curves, {"all particles": Panel("loss", {"a": Curve(TRAIN, VAL, 200.0)})}).axes[0]
    (ring,) = (line for line in axis.lines if line.get_markerfacecolor() == "none")
    assert ring.get_xydata().tolist() == [[200.0, 7.0]]
    low, high = axis.get_ylim()
    assert low < TRAIN[-1][1]
    assert 9 < high < 100
    assert axis.get_xlim()[0] == 0
    assert axis.get_ylabel() == "loss"


def test_a_single_value_keeps_its_place(figure):
    axis = figure(training_curves, {"Λ": Panel("loss", {"a": Curve([], [(8.0, 12.5)], 8.0)})}).axes[0]
    low, high = axis.get_ylim()
    assert high - low > 1
    assert axis.get_xlim()[0] == 0 < 8 < axis.get_xlim()[1]


def test_many_panels_are_folded(figure):
    panels = {f"type {i}": Panel("loss", {"a": Curve(TRAIN, VAL)}) for i in range(5)}
    found = figure(training_curves, panels)
    assert [axis.get_title() for axis in found.axes] == list(panels)
    assert found.axes[0].get_gridspec().get_geometry() == (2, 3)


def test_a_comparison_has_a_place_for_each_model(figure):
    points = [(2.0, 1.5, 2.5), None]
    panels = {"WS, photons": {"GD": points, "DG": points, "floor (Monte Carlo, other seed)": points}}
    found = figure(comparison, panels, ["all", "K⁰S"])
    (axis,) = found.axes
    assert [text.get_text() for text in found.legends[0].get_texts()] == list(panels["WS, photons"])
    places = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert np.all(np.diff(places) > 0)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["all", r"K$_\mathrm{S}^{0}$"]
