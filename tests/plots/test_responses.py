"""Histograms show what is in them: no bin holds most responses, no ratio is cut off, nothing is left out."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.plots import channel_histograms, draws, image_rows, spectra
from calosim.plots.responses import RATIOS, channel_edges


@pytest.fixture(scope="module")
def channels():
    """Channel values as a calorimeter has them, most of them small: (1000, 2)."""
    return np.random.default_rng(1).gamma(0.3, 150, (1000, 2)).astype(np.int64)


@pytest.mark.parametrize("largest", [0, 1, 7, 300, 2000.0])
def test_edges_hold_all_whole_numbers(largest):
    edges = channel_edges(largest)
    assert (np.diff(edges) > 0).all()
    assert (edges == edges.astype(int)).all()
    assert edges[0] == 0
    assert edges[-1] > largest


def test_the_first_bin_does_not_hold_most_responses(channels):
    shares = np.histogram(channels[:, 0], channel_edges(channels.max()))[0] / len(channels)
    linear = np.histogram(channels[:, 0], 30)[0] / len(channels)
    assert linear[0] > 0.5 > shares[0]


def test_channels_are_drawn_on_a_square_root_axis(figure, channels):
    tops = figure(channel_histograms, channels, channels[::-1][:700], ["left", "right"]).axes[:2]
    for axis in tops:
        assert axis.get_xscale() == "function"
        assert axis.get_xlim()[0] == 0
        (monte_carlo, generated) = (patch.get_data() for patch in axis.patches)
        assert np.isclose(monte_carlo.values.sum(), 1)
        assert np.isclose(generated.values.sum(), 1)
        places = np.sqrt(axis.get_xticks())
        assert np.diff(np.sort(places)).min() > 0.1 * np.sqrt(axis.get_xlim()[1])


def test_ratios_beyond_the_panel_are_arrows_at_its_edge(figure):
    known = np.repeat([2, 50, 200, 900], [100, 100, 100, 1])[:, None]
    other = np.repeat([2, 50, 400, 900], [90, 1, 100, 9])[
        :, None
    ]  # far less at 50, none at 200, more at 900, and 400 new
    axis = figure(channel_histograms, known, other, ["all"]).axes[1]
    found = {line.get_marker(): line.get_xydata() for line in axis.lines if line.get_marker() in ("^", "v")}
    assert len(found["^"]) == 2
    assert len(found["v"]) == 2
    assert set(found["^"][:, 1]) == {RATIOS[1]}
    assert axis.get_yscale() == "log"
    assert axis.get_ylim() == RATIOS


@pytest.mark.parametrize("rows", [1, 500])
def test_spectra_hold_all_candidates(figure, channels, rows):
    sums = {"Monte Carlo": channels.sum(1)[:rows] + 10, "full chain": channels.sum(1)[:rows] + 20}
    profile = np.full(4, 0.25)
    axes = figure(spectra, sums, {"Monte Carlo": profile, "full chain": profile}, np.arange(5.0)).axes
    assert [patch.get_label() for patch in axes[0].patches] == list(sums)
    assert all(np.isclose(patch.get_data().values.sum(), 1) for patch in axes[0].patches)


IMAGES = np.random.default_rng(1).poisson(2, (4, 5, 6))
IMAGES[2] = 0


def test_a_bar_tells_the_scale_of_all_images(figure):
    labels = ["γ, 9 GeV", "γ, 9 GeV", "Λ̄, 8 GeV", "n, 7 GeV"]
    for found in (
        figure(image_rows, IMAGES, 3 * IMAGES, labels),
        figure(draws, IMAGES.reshape(2, 2, 5, 6), 3 * IMAGES.reshape(2, 2, 5, 6), labels[1:3]),
    ):
        bars = [axis for axis in found.axes if axis.get_ylabel() == "photons in a pixel"]
        shown = [axis.images[0] for axis in found.axes if axis.images]
        assert len(bars) == 1
        assert len(shown) == 8
        assert {image.norm.vmax for image in shown} == {3 * IMAGES.max()}
        assert {axis.get_xlabel() for axis in found.axes if axis.images} >= {
            "no other response",
            "0 photons",
            f"{3 * IMAGES[0].sum()} photons",
        }
        assert bars[0].get_ylim() == (1, 3 * IMAGES.max())


def test_neighbors_share_a_title(figure):
    found = figure(image_rows, IMAGES, IMAGES, ["γ", "γ", "Λ̄", "n"])
    assert [axis.get_title(loc="left") for axis in found.axes[:4]] == ["γ", "", "Λ̄", "n"]


def test_labels_are_as_many_as_images(tmp_path, capsys):
    assert image_rows(IMAGES, IMAGES, ["γ"], tmp_path / "x.png") is None
    assert "expected one label for each pair" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
