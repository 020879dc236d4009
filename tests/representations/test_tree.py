"""The tree of halves: whole numbers there and back, whatever the face's shape."""

from __future__ import annotations

import pytest
import torch

from calosim.representations.splits import SplitTree

SHAPES = [(44, 44), (56, 30), (30, 30), (7, 13), (1, 7), (5, 1), (3, 3), (2, 1), (1, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_images(shape, rows=5, most=10**6, dtype=torch.int64):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, most + 1, (rows, *shape), generator=generator)
    images[0] = 0
    images[1] = most
    return images.to(dtype)


@shapes
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_counts_lead_back_to_the_image(shape, dtype):
    tree, images = SplitTree(shape), random_images(shape, dtype=dtype)
    k, n = tree.counts(tree.grids(images))
    assert k.shape == n.shape == (len(images), shape[0] * shape[1] - 1)
    assert bool(((k >= 0) & (k <= n)).all())
    assert torch.equal(tree.compose(images.sum((1, 2)), k), images)


@shapes
def test_some_levels_lead_to_the_grid_of_the_next(shape):
    tree, images = SplitTree(shape), random_images(shape)
    grids = tree.grids(images)
    for levels in range(len(tree.levels) + 1):
        k, _ = tree.counts(grids, levels)
        assert k.shape[1] == tree.starts[levels]
        assert torch.equal(tree.compose(images.sum((1, 2)), k, levels), grids[levels])


@shapes
def test_a_node_has_the_photons_of_the_child_it_is(shape):
    tree, images = SplitTree(shape), random_images(shape)
    k, n = tree.counts(tree.grids(images))
    total = images.sum((1, 2))
    for node, (source, child) in enumerate(zip(tree.source.tolist(), tree.child.tolist(), strict=True)):
        assert source < node
        expected = total if source < 0 else (n[:, source] - k[:, source] if child else k[:, source])
        assert torch.equal(n[:, node], expected)


@shapes
def test_cells_tile_the_face(shape):
    for level in SplitTree(shape).levels:
        cover = torch.zeros(shape, dtype=torch.int64)
        for (x, y), (w, h) in zip(level.low.tolist(), level.size.tolist(), strict=True):
            cover[x : x + w, y : y + h] += 1
        assert bool((cover == 1).all())
        assert len(level.nodes) == int((level.size[:, level.axis] > 1).sum())


def test_the_first_half_is_the_smaller_one_and_axes_alternate():
    levels = SplitTree((7, 5)).levels
    assert [level.axis for level in levels] == [0, 1, 0, 1, 0, 1]
    assert levels[0].halves == ([0, 3, 7], [0, 5])
    assert levels[1].halves == ([0, 3, 7], [0, 2, 5])
    assert [level.axis for level in SplitTree((2, 8)).levels] == [0, 1, 1, 1]


def test_the_first_splits_of_the_zn_are_its_towers():
    tree, images = SplitTree((44, 44)), random_images((44, 44))
    quadrants = tree.grids(images)[2]
    assert torch.equal(quadrants[:, 1, 0], images[:, 22:, :22].sum((1, 2)))


@pytest.mark.parametrize("shape", [(0, 4), (4, -1), (4,)])
def test_a_face_without_pixels_is_refused(shape):
    with pytest.raises(ValueError, match="at least 1 x 1 pixels"):
        SplitTree(shape)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected images \(B, 4, 6\), got \(2, 6, 4\)"):
        SplitTree((4, 6)).grids(torch.zeros(2, 6, 4, dtype=torch.int64))
