from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from efface.errors import MaskError, UsageError
from efface.parts import masks
from efface.parts.masks import Box

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
some_masks = sizes.flatmap(lambda size: arrays(bool, size))


def distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance to ``mask`` by its definition."""
    ys, xs = np.nonzero(mask)
    grid = np.indices(mask.shape)
    squared = (grid[0][..., None] - ys) ** 2 + (grid[1][..., None] - xs) ** 2
    return np.sqrt(squared.min(-1, initial=10**9))


@given(some_masks, st.sampled_from([0, 1, 1.5, 2, 3, 5, 40]))
@settings(deadline=None)
def test_grow_is_the_disc_dilation(mask, px):
    assert np.array_equal(masks.grow(mask, px), distance(mask) <= px)


@given(some_masks, st.sampled_from([0, 1, 3, 7]))
@settings(deadline=None)
def test_feather_is_one_inside_and_zero_beyond(mask, px):
    weight, away = masks.feather(mask, px), distance(mask)
    assert weight.dtype == np.float32
    assert (weight[mask] == 1).all()
    assert (weight[away > px] == 0).all()
    between = (away > 0) & (away <= px)
    assert ((weight[between] > 0) & (weight[between] < 1)).all()
    np.testing.assert_allclose(weight[between], 1 - away[between] / (px + 1), rtol=1e-6)


@given(some_masks)
def test_strips_change_nothing(mask):
    whole = masks.feather(mask, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "STRIP", 1)
        assert np.array_equal(masks.feather(mask, 3), whole)


@given(some_masks)
def test_components_are_the_bounds_of_the_islands(mask):
    found = ndimage.find_objects(ndimage.label(mask, np.ones((3, 3)))[0])
    bounds = sorted((s[0].start, s[1].start, s[0].stop - s[0].start, s[1].stop - s[1].start) for s in found)
    assert sorted((b.y, b.x, b.h, b.w) for b in masks.components(mask)) == bounds
    assert all(mask[y, x] for _, (x, y) in masks.islands(mask))


@given(st.data(), sizes)
def test_boxes_cover_exactly_their_pixels(data, size):
    h, w = size
    x, y = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    box = Box(x, y, data.draw(st.integers(1, w - x)), data.draw(st.integers(1, h - y)))
    mask = masks.from_boxes(size, [box])
    assert mask.sum() == box.area
    assert masks.components(mask) == [box]
    assert masks.parse_box(f"{box.x}, {box.y},{box.w},{box.h}") == box


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, 0, 0, 3), (5, 5, 6, 1), (0, 9, 1, 2), (10, 0, 1, 1)])
def test_boxes_outside_the_picture_are_refused(box):
    with pytest.raises(MaskError, match="10 x 10"):
        masks.from_boxes((10, 10), [box])


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,0,4", "-1,2,3,4", "1.5,2,3,4"])
def test_texts_that_are_no_boxes_are_refused(text):
    with pytest.raises(UsageError, match="not a box"):
        masks.parse_box(text)


def test_polygons_add_up_where_they_overlap_and_may_leave_the_picture():
    square = np.array([(2, 2), (6, 2), (6, 6), (2, 6)], np.float32)
    mask = masks.from_polygons((10, 8), [square, square + 2, square + 100])
    expected = np.zeros((10, 8), bool)
    expected[2:7, 2:7] = expected[4:9, 4:8] = True
    assert np.array_equal(mask, expected)


SHAPE = np.zeros((9, 12), bool)
SHAPE[2:6, 3:9] = True


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
def test_masks_are_read_from_every_kind_of_picture(dtype, channels):
    full = 1 if np.dtype(dtype).kind in "bf" else np.iinfo(dtype).max
    pixels = (SHAPE * full).astype(dtype)
    if channels:
        pixels = np.repeat(pixels[..., None], channels, 2)
        if channels in (2, 4):
            pixels[..., -1] = full
    assert np.array_equal(masks.from_picture(pixels, SHAPE.shape), SHAPE)


@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 0, 0), (255, 255, 255)])
def test_alpha_counts_where_colour_says_nothing(ink):
    pixels = np.zeros((*SHAPE.shape, 4), np.uint8)
    pixels[SHAPE] = (*ink, 255)
    assert np.array_equal(masks.from_picture(pixels, SHAPE.shape), SHAPE)


def test_soft_and_noisy_masks_are_cut_at_half():
    noisy = np.where(SHAPE, 200, 50) + np.random.default_rng(0).integers(-40, 40, SHAPE.shape)
    assert np.array_equal(masks.from_picture(noisy.astype(np.uint8), SHAPE.shape), SHAPE)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(MaskError, match=r"12 x 9 .* 9 x 12"):
        masks.from_picture(SHAPE, (12, 9))


@pytest.mark.parametrize(("size", "px"), [((100, 100), 2), ((1000, 3000), 5), ((10000, 10000), 50)])
def test_default_grow_follows_the_picture(size, px):
    assert masks.default_grow(*size) == px


def test_the_rim_is_what_lies_near_the_outside_but_not_near_the_border():
    mask = np.zeros((40, 40), bool)
    mask[10:, 10:30] = True
    rim = masks.rim(mask)
    assert rim[10:12, 10:30].all()
    assert rim[10:, 10:12].all()
    assert not rim[12:, 12:28].any()
    assert not rim[~mask].any()
    assert not masks.rim(np.ones_like(mask)).any()
