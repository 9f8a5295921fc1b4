from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from efface.errors import UsageError
from efface.parts import crops
from efface.parts.masks import Box, components, from_boxes
from efface.seeds import numpy_generator, torch_generator

RADIUS = 3


class Canvas:
    """A picture of float64 pixels that is lent and taken back as the picture of a file is."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.writes = pixels.copy(), np.zeros(pixels.shape[1:], int)

    def read(self, box: Box) -> np.ndarray:
        return self.pixels[:, *box.slices].astype(np.float32)

    def paste(self, box: Box, values: np.ndarray, weight: np.ndarray) -> None:
        region = self.pixels[:, *box.slices]
        region[:] = np.where(weight > 0, region + weight * (values - region), region)
        self.writes[box.slices] += weight > 0


def noise(h: int, w: int) -> np.ndarray:
    return numpy_generator(0, "picture").random((3, h, w))


def local_net(stride: int = 1) -> crops.Network:
    """Return a small convolutional network; with a stride it sees its input in blocks."""
    steps = [nn.Conv2d(4, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid()]
    if stride > 1:
        middle = nn.Conv2d(4 * stride**2, 3 * stride**2, 3, padding=1)
        steps = [nn.PixelUnshuffle(stride), middle, nn.PixelShuffle(stride), nn.Sigmoid()]
    net = nn.Sequential(*steps).double()  # so that rounding does not depend on the size of the crop
    generator = torch_generator(0, "weights")
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return lambda x, mask: net(torch.cat([x, mask], 1).double())


def blots(h: int, w: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    return from_boxes((h, w), boxes)


some_boxes = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 79), st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=6
)


@given(some_boxes, st.integers(0, 12), st.sampled_from([1, 4, 8]), st.sampled_from([1, 32, 200]))
@settings(deadline=None, max_examples=60)
def test_crops_hold_their_islands_with_context(corners, context, multiple, smallest):
    h, w = 80, 100
    mask = blots(h, w, *((x, y, min(bw, w - x), min(bh, h - y)) for x, y, bw, bh in corners))
    boxes = crops.crops_around(mask, context=context, multiple=multiple, smallest=smallest)
    for island in components(mask):
        margin = max(context, -(-island.h // 2))
        left, top = max(0, island.x - margin), max(0, island.y - margin)
        right, bottom = min(w, island.x + island.w + margin), min(h, island.y + island.h + margin)
        assert any(b.x <= left and b.y <= top and b.x + b.w >= right and b.y + b.h >= bottom for b in boxes)
    for box in boxes:
        assert box.x % multiple == box.y % multiple == 0
        assert box.w % multiple == 0 or box.x + box.w == w
        assert box.h % multiple == 0 or box.y + box.h == h
        assert box.w >= min(smallest, w)
        assert box.h >= min(smallest, h)
    for a, b in itertools.combinations(boxes, 2):
        union_w = max(a.x + a.w, b.x + b.w) - min(a.x, b.x)
        union_h = max(a.y + a.h, b.y + b.h) - min(a.y, b.y)
        assert union_w * union_h > a.area + b.area


@given(some_boxes, st.sampled_from([0, 5]), st.sampled_from([1, 8]), st.sampled_from([1024, 2000, 10**6]))
@settings(deadline=None, max_examples=60)
def test_every_masked_pixel_is_written_once_and_no_other(corners, context, multiple, largest):
    h, w = 80, 100
    mask = blots(h, w, *((x, y, min(bw, w - x), min(bh, h - y)) for x, y, bw, bh in corners))
    boxes = crops.crops_around(mask, context=context, multiple=multiple, largest_pixels=largest)
    assert all(box.area <= largest for box in boxes)
    canvas = Canvas(noise(h, w))
    crops.apply(lambda x, m: 1 - x, canvas.read, canvas.paste, mask, boxes, multiple=multiple)
    assert np.array_equal(canvas.writes, mask.astype(int))
    np.testing.assert_allclose(canvas.pixels, np.where(mask, 1 - noise(h, w), noise(h, w)), atol=1e-6)
    assert np.array_equal(canvas.pixels[:, ~mask], noise(h, w)[:, ~mask])


@pytest.mark.parametrize(("stride", "multiple"), [(1, 1), (1, 8), (4, 4), (4, 8)])
@pytest.mark.parametrize("feather", [0, 3])
@pytest.mark.parametrize(
    "mask",
    [
        blots(118, 150, (0, 0, 150, 118)),
        blots(118, 150, (10, 10, 90, 20), (60, 60, 90, 58)),
        blots(118, 150, (3, 3, 10, 4), (100, 5, 20, 8), (70, 100, 30, 6)),
    ],
    ids=["full", "large", "islands"],
)
def test_crops_and_tiles_of_a_local_network_equal_the_whole_picture(mask, feather, stride, multiple):
    net = local_net(stride)
    context = (RADIUS if stride == 1 else 2 * stride) + feather
    boxes = crops.crops_around(mask, context=context, multiple=multiple, largest_pixels=56 * 56)
    whole, parts = Canvas(noise(*mask.shape)), Canvas(noise(*mask.shape))
    settings = {"multiple": multiple, "feather_px": feather}
    crops.apply(net, whole.read, whole.paste, mask, [Box(0, 0, 150, 118)], **settings)
    crops.apply(net, parts.read, parts.paste, mask, boxes, **settings, batch_pixels=2 * 56 * 56)
    assert len(boxes) > 1
    assert np.array_equal(whole.writes, parts.writes)
    np.testing.assert_allclose(parts.pixels, whole.pixels, rtol=0, atol=1e-7)
    untouched = whole.writes == 0
    assert np.array_equal(parts.pixels[:, untouched], noise(*mask.shape)[:, untouched])


def test_the_order_of_the_crops_means_nothing():
    mask, net = blots(90, 90, (0, 0, 90, 90)), local_net()
    boxes = crops.crops_around(mask, context=6, largest_pixels=40 * 40)
    results = []
    for seed in range(3):
        canvas = Canvas(noise(90, 90))
        crops.apply(net, canvas.read, canvas.paste, mask, random.Random(seed).sample(boxes, len(boxes)), batch_pixels=1)
        results.append(canvas.pixels.tobytes())
    assert len(set(results)) == 1


def test_no_crop_is_written_before_its_neighbours_are_read():
    canvas, mask = Canvas(noise(90, 90)), blots(90, 90, (0, 0, 90, 90))

    def read(box: Box) -> np.ndarray:
        assert not canvas.writes[box.slices].any()
        return canvas.read(box)

    boxes = crops.crops_around(mask, context=6, largest_pixels=40 * 40)
    crops.apply(lambda x, m: x, read, canvas.paste, mask, boxes, batch_pixels=1)
    assert (canvas.writes == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 3), (17, 33)])
def test_small_pictures_are_mirrored_to_what_the_network_takes(size):
    seen = []

    def net(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(x.shape), tuple(mask.shape)))
        return 1 - x

    canvas, mask = Canvas(noise(*size)), np.ones(size, bool)
    boxes = crops.crops_around(mask, context=8, multiple=8, smallest=16)
    crops.apply(net, canvas.read, canvas.paste, mask, boxes, multiple=8, smallest=16)
    h, w = (max(16, -(-n // 8) * 8) for n in size)
    assert seen == [((1, 3, h, w), (1, 1, h, w))]
    np.testing.assert_allclose(canvas.pixels, 1 - noise(*size), atol=1e-6)


def test_kept_pixels_stay_under_the_feather():
    mask, keep = blots(40, 40, (10, 10, 20, 10)), blots(40, 40, (10, 20, 20, 10))
    canvas = Canvas(noise(40, 40))
    boxes = crops.crops_around(mask, context=8)
    crops.apply(lambda x, m: 1 - x, canvas.read, canvas.paste, mask, boxes, feather_px=4, keep=keep)
    assert np.array_equal(canvas.pixels[:, keep], noise(40, 40)[:, keep])
    assert canvas.writes[6:20, 10:30].all()


def test_progress_counts_and_cancels():
    mask = blots(100, 100, (0, 0, 4, 4), (90, 0, 4, 4), (0, 90, 4, 4), (50, 50, 30, 4))
    canvas, boxes, told = Canvas(noise(100, 100)), crops.crops_around(mask, context=4), []
    settings = {"batch_pixels": 1}
    crops.apply(lambda x, m: x, canvas.read, canvas.paste, mask, boxes, progress=lambda *n: told.append(n), **settings)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crops.apply(lambda x, m: x, canvas.read, canvas.paste, mask, boxes, progress=stop, **settings)


def test_crops_of_one_size_run_together():
    mask, batches = blots(200, 200, *((x, y, 6, 6) for x in (10, 90, 170) for y in (10, 90, 170))), []
    canvas = Canvas(noise(200, 200))
    boxes = crops.crops_around(mask, context=8, multiple=8, smallest=32)

    def net(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batches.append(len(x))
        return x

    crops.apply(net, canvas.read, canvas.paste, mask, boxes, multiple=8, smallest=32)
    assert batches == [9]


def test_nothing_to_do_is_nothing_done():
    assert crops.crops_around(np.zeros((10, 10), bool), context=4) == []
    crops.apply(None, None, None, np.zeros((10, 10), bool), [])


def test_memory_becomes_pixels():
    assert crops.pixels_for(2_000_000_000, bytes_per_pixel=1000, fixed=500_000_000) == 1_500_000
    with pytest.raises(UsageError, match="Allow at least 505 MB"):
        crops.pixels_for(400_000_000, bytes_per_pixel=1000, fixed=500_000_000)
    with pytest.raises(UsageError, match="Allow more memory"):
        crops.crops_around(np.ones((400, 400), bool), context=40, largest_pixels=64 * 64)
