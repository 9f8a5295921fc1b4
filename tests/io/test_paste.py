"""Regions go out as float RGB and come back in the stored depth; what has no weight keeps its bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import MaskError, PictureError
from efface.io.images import Picture, read_picture
from efface.io.picture import full_scale

DTYPES = st.sampled_from([np.uint8, np.uint16, np.float32])


def random(draw, shape, dtype):
    if dtype is np.float32:
        return draw.random(shape, dtype=np.float32)
    return draw.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@st.composite
def pastes(draw):
    """A picture, a box in it, values and a weight of 0, 1 and between."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    x, y = draw(st.integers(0, width)), draw(st.integers(0, height))
    w, h = draw(st.integers(0, width - x)), draw(st.integers(0, height - y))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pixels = random(rng, (height, width, draw(st.sampled_from([1, 3]))), draw(DTYPES))
    weight = rng.choice([0.0, 1.0, 0.25, rng.random()], (h, w)).astype(np.float32)
    return Picture(pixels), (x, y, w, h), rng.random((3, h, w), dtype=np.float32), weight


@given(pastes())
@settings(max_examples=60, deadline=None)
def test_a_paste_rounds_inside_and_keeps_every_bit_outside(case):
    picture, (x, y, w, h), values, weight = case
    before = picture.pixels.copy()
    picture.paste((x, y, w, h), np.where(weight > 0, values, np.nan), weight)
    touched = np.zeros(before.shape[:2], bool)
    touched[y : y + h, x : x + w] = weight > 0
    assert np.array_equal(picture.pixels[~touched], before[~touched])

    scale = full_scale(before.dtype)
    new = values.astype(np.float64).transpose(1, 2, 0)
    new = new if before.shape[2] == 3 else new.mean(2, keepdims=True)
    old = before[y : y + h, x : x + w].astype(np.float64) / scale
    exact = (old + weight[..., None] * (new - old)) * scale
    error = np.abs(picture.pixels[y : y + h, x : x + w] - exact)[weight > 0]
    assert (error <= (1e-6 if scale == 1 else 0.5 + scale * 1e-6)).all()


@given(pastes())
@settings(max_examples=60, deadline=None)
def test_what_is_lent_and_pasted_back_changes_nothing(case):
    picture, box, values, weight = case
    before = picture.pixels.copy()
    lent = picture.rgb(box)
    assert lent.dtype == np.float32
    assert lent.shape == values.shape
    picture.paste(box, lent, np.ones_like(weight))
    assert np.array_equal(picture.pixels, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_stored_value_survives_the_trip(dtype):
    pixels = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(-1, 256, 1)
    picture = read_picture(pixels)
    values = picture.rgb()
    assert values.min() == 0
    assert values.max() == 1
    picture.paste(None, values, np.ones(pixels.shape[:2], np.float32))
    assert np.array_equal(picture.pixels, pixels)


def test_a_paste_over_many_strips_is_one_paste(monkeypatch):
    whole, striped = (Picture(np.zeros((50, 40, 3), np.uint8)) for _ in range(2))
    draw = np.random.default_rng(0)
    values, weight = draw.random((3, 50, 40), dtype=np.float32), draw.random((50, 40), dtype=np.float32)
    whole.paste(None, values, weight)
    monkeypatch.setattr("efface.io.picture.STRIP", 120)
    striped.paste(None, values, weight)
    assert np.array_equal(whole.pixels, striped.pixels)


def test_alpha_is_never_touched():
    picture = read_picture(np.full((3, 3, 4), 77, np.uint8))
    picture.paste(None, np.ones((3, 3, 3), np.float32), np.ones((3, 3)))
    assert (picture.alpha == 77).all()
    assert (picture.pixels == 255).all()
    assert picture.changed


def test_a_blend_of_floats_stays_in_range():
    picture = read_picture(np.full((1, 1000), 0.9999999, np.float32))
    for share in np.linspace(0.01, 1, 50):
        picture.paste(None, np.ones((3, 1, 1000), np.float32), np.full((1, 1000), share, np.float32))
    assert picture.pixels.max() <= 1


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01, np.inf])
def test_values_out_of_range_are_refused_and_nothing_changes(bad):
    picture = read_picture(np.zeros((2, 2), np.uint8))
    values = np.zeros((3, 2, 2), np.float32)
    values[1, 1, 1] = bad
    with pytest.raises(PictureError, match=r"not in \[0, 1\]"):
        picture.paste(None, values, np.ones((2, 2)))
    with pytest.raises(PictureError, match="weight"):
        picture.paste(None, np.zeros((3, 2, 2)), values[1])
    assert not picture.pixels.any()
    assert not picture.changed


@pytest.mark.parametrize("box", [(0, 0, 5, 1), (0, 0, 1, 4), (-1, 0, 1, 1), (3, 2, 2, 1), (0, 0, -1, 1)])
def test_boxes_that_leave_the_picture_are_refused(box):
    with pytest.raises(MaskError, match="leaves the picture of 4 x 3"):
        read_picture(np.zeros((3, 4), np.uint8)).rgb(box)


@pytest.mark.parametrize(("values", "weight"), [((3, 2, 3), (2, 2)), ((3, 2, 2), (2, 3)), ((1, 2, 2), (2, 2))])
def test_shapes_that_do_not_fit_are_refused(values, weight):
    with pytest.raises(MaskError, match="do not fit"):
        read_picture(np.zeros((3, 4), np.uint8)).paste((0, 0, 2, 2), np.zeros(values), np.zeros(weight))
