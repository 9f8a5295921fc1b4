from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.io.images import Picture
from efface.parts import fill
from efface.parts.fill import flat_fill, pull_push
from efface.parts.masks import Box, from_boxes
from efface.seeds import numpy_generator, torch_generator


def noise(*shape: int, name: str = "picture") -> torch.Tensor:
    return torch.rand(shape, generator=torch_generator(0, name))


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (2, 2), (31, 45), (64, 64), (100, 3)])
class TestPullPush:
    def test_keeps_what_is_known_and_ignores_what_is_not(self, size):
        x, known = noise(2, 3, *size), (noise(2, 1, *size, name="known") > 0.6).float()
        filled = pull_push(x, known)
        held = known.expand_as(x) == 1
        assert torch.equal(filled[held], x[held])
        assert torch.equal(filled, pull_push(torch.where(held, x, 1 - x), known))
        assert filled.min() >= 0
        assert filled.max() <= 1

    def test_continues_a_flat_picture(self, size):
        known = (noise(1, 1, *size, name="known") > 0.9).float()
        known[..., 0, 0] = 1
        torch.testing.assert_close(pull_push(torch.full((1, 3, *size), 0.3), known), torch.full((1, 3, *size), 0.3))

    def test_answers_grey_when_nothing_is_known(self, size):
        assert (pull_push(noise(1, 3, *size), torch.zeros(1, 1, *size)) == 0.5).all()

    def test_has_finite_gradients_for_soft_and_empty_weights(self, size):
        for known in (torch.zeros(1, 1, *size), 1e-6 * noise(1, 1, *size), noise(1, 1, *size)):
            x = noise(1, 3, *size).requires_grad_()
            pull_push(x, known.requires_grad_()).sum().backward()
            assert x.grad.isfinite().all()
            assert known.grad.isfinite().all()


def test_pull_push_interpolates_a_slope_smoothly():
    slope = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    known = torch.ones(1, 1, 64, 64)
    known[..., 20:40, 20:40] = 0
    assert (pull_push(slope, known) - slope).abs().max() < 0.04


def test_pull_push_gradients_are_right():
    x, known = noise(1, 2, 7, 5).requires_grad_(), noise(1, 1, 7, 5, name="known").requires_grad_()
    projection = noise(1, 2, 7, 5, name="projection")
    direction = noise(1, 1, 7, 5, name="direction") - 0.5
    slope = torch.autograd.grad((pull_push(x, known) * projection).sum(), known)[0]
    step = 1e-3 * direction
    change = ((pull_push(x, known + step) - pull_push(x, known - step)) * projection).sum()
    torch.testing.assert_close((slope * 2 * step).sum(), change.detach(), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pull_push_computes_in_float32_whatever_the_type(dtype):
    x, known = noise(1, 3, 64, 64).to(dtype), (noise(1, 1, 64, 64, name="known") > 0.5).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        filled = pull_push(x, known)
    assert filled.dtype == dtype
    assert torch.equal(filled, pull_push(x.float(), known.float()).to(dtype))


class Canvas:
    """A uint8 picture (h, w, 3) that is lent as floats and takes them back rounded."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels.copy()

    def read(self, box: Box) -> np.ndarray:
        return self.pixels[box.slices].transpose(2, 0, 1) / np.float32(255)

    def paste(self, box: Box, values: np.ndarray, weight: np.ndarray) -> None:
        old = self.pixels[box.slices]
        new = old + weight[..., None] * (values.transpose(1, 2, 0) * 255 - old)
        self.pixels[box.slices] = np.where(weight[..., None] > 0, np.rint(new), old)


H, W = 60, 90
ISLAND = from_boxes((H, W), [(20, 20, 40, 15)])
ROWS, COLUMNS = np.indices((H, W))


def grain(scale: float, name: str = "grain") -> np.ndarray:
    return numpy_generator(0, name).normal(0, scale, (H, W, 3))


def fill_over(ground: np.ndarray, mask: np.ndarray = ISLAND, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Blacken ``mask`` on a ground and fill it: the result, and the mask that is left."""
    canvas = Canvas(np.where(mask[..., None], 0, np.rint(ground).clip(0, 255)).astype(np.uint8))
    left = fill.flat_fill(canvas.read, canvas.paste, mask, **options)
    return canvas.pixels, left


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (13, 200, 87), (1, 254, 128)])
@pytest.mark.parametrize("feather_px", [0, 3])
@pytest.mark.parametrize("place", [(20, 20, 40, 15), (0, 0, 30, 10), (70, 50, 20, 10), (45, 30, 1, 1)])
def test_flat_grounds_come_back_exactly(colour, feather_px, place):
    ground = np.full((H, W, 3), colour, np.uint8)
    pixels, left = fill_over(ground, from_boxes((H, W), [place]), feather_px=feather_px)
    assert np.array_equal(pixels, ground)
    assert not left.any()


def test_flat_grounds_come_back_exactly_past_a_few_specks():
    ground = np.full((H, W, 3), 240, np.uint8)
    ground[16, 22:40:2] = 30
    pixels, left = fill_over(ground)
    assert np.array_equal(pixels, ground)
    assert not left.any()


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (1.3, -0.7), (-0.4, 0.9)])
@pytest.mark.parametrize("noise", [0, 1.5])
def test_slopes_continue(right, down, noise):
    ground = (100 + right * (COLUMNS - 45) + down * (ROWS - 30))[..., None] * np.ones(3) + grain(noise)
    pixels, left = fill_over(ground)
    assert not left.any()
    clean = (100 + right * (COLUMNS - 45) + down * (ROWS - 30))[ISLAND][:, None]
    assert np.abs(pixels[ISLAND] - clean.clip(0, 255)).max() <= (1 if noise == 0 else 2)


@pytest.mark.parametrize(
    "ground",
    [
        128 + grain(8),
        np.where(COLUMNS < 40, 60, 180)[..., None] * np.ones(3),
        (128 + 20 * np.sin(COLUMNS / 4))[..., None] * np.ones(3),
        np.full((H, W, 3), 100) + np.stack([0 * ROWS, 0 * ROWS, 30 * (ROWS % 2)], -1),
    ],
    ids=["grain", "edge", "waves", "one channel"],
)
def test_textured_surroundings_are_left_to_the_network(ground):
    pixels, left = fill_over(ground)
    assert np.array_equal(left, ISLAND)
    assert (pixels[ISLAND] == 0).all()


def test_islands_are_judged_one_by_one():
    ground = np.where(COLUMNS[..., None] < 45, 200, 128 + grain(10))
    mask = from_boxes((H, W), [(8, 10, 20, 10), (60, 10, 20, 10), (8, 40, 4, 4), (14, 40, 4, 4)])
    pixels, left = fill_over(ground, mask)
    assert np.array_equal(left, from_boxes((H, W), [(60, 10, 20, 10)]))
    assert (pixels[:, :45] == 200).all()


def test_nothing_else_is_touched_and_kept_pixels_stay():
    keep = from_boxes((H, W), [(20, 35, 40, 25)])
    ground = 200 + grain(1)
    before = np.where(ISLAND[..., None], 0, np.rint(ground)).astype(np.uint8)
    pixels, _ = fill_over(ground, feather_px=4, keep=keep)
    changed = (pixels != before).any(2)
    assert not changed[keep].any()
    assert not changed[: 20 - 4].any()
    assert changed[ISLAND].all()


def test_a_slope_is_not_continued_far_beyond_what_is_seen_of_it():
    ground = (120 + 3.0 * (ROWS - 30))[..., None] * np.ones(3)
    _, left = fill_over(ground, from_boxes((H, W), [(0, 0, W, 40)]))
    assert left.any()


def test_without_surroundings_nothing_is_filled():
    mask = np.ones((H, W), bool)
    assert np.array_equal(fill_over(np.full((H, W, 3), 7), mask)[1], mask)


@pytest.mark.parametrize("inpaint", [fill.telea, fill.navier_stokes])
def test_baselines_change_the_mask_alone(inpaint):
    pixels = np.rint(128 + grain(20)).astype(np.uint8)
    filled = inpaint(pixels, ISLAND)
    assert np.array_equal(filled[~ISLAND], pixels[~ISLAND])
    assert (filled[ISLAND] != pixels[ISLAND]).any()


def test_a_slope_with_a_constant_channel_is_filled():
    rows, columns = np.mgrid[0:80, 0:120]
    slope = np.stack([200 - rows * 0.3, 190 + columns * 0.1, np.full(rows.shape, 214.0)])
    picture = Picture(np.rint(slope).astype(np.uint8).transpose(1, 2, 0).copy())
    mask = np.zeros(rows.shape, bool)
    mask[30:50, 40:90] = True
    clean = picture.pixels.copy()
    picture.pixels[mask] = 0
    assert not flat_fill(picture.rgb, picture.paste, mask).any()
    assert np.abs(picture.pixels.astype(int) - clean).max() <= 1
