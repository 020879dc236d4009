"""Responses are drawn on one scale that a color bar tells."""

from __future__ import annotations

import numpy as np

from calosim.plots import draws, image_rows

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
