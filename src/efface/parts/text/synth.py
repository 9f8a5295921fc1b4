"""Write new text where a picture has none, and say which pixels it changed.

Source: the style-aware synthesis of STE (arXiv:2204.12743). The picture itself is the truth under the new text, so an
eraser learns from pictures of which no clean version exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.parts.text import words
from efface.parts.text.copy import copy_text, letters
from efface.parts.text.render import make_layer, paste
from efface.parts.text.space import Actions, Context, StyleSpace
from efface.parts.text.style import Colour, luma

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

TRIES = 6
"""Attempts at a text that can be seen before a picture is given up."""
SHRINK = 0.85
"""What the letters are scaled by after each attempt, for want of room."""
DIFFERENCE = 20 / 255
"""Change of grey from which a pixel counts as written on."""
SPECK = 20
"""Changed places whose box is smaller, in square pixels, do not count."""
PRESENT = 0.005
"""Share of the pixels from which on a colour belongs to a picture's palette."""


@dataclass(frozen=True)
class TextSynth:
    """Writer of text in the styles of ``space``, with ``fonts`` (none: the built-in face)."""

    space: StyleSpace
    fonts: Sequence[Path] = ()

    def draw(
        self, picture: Array, taken: Mask, boxes: NDArray[np.int64], action: Actions, generator: Generator
    ) -> tuple[Array, Mask] | None:
        """Write one text on ``picture`` (h, w, 3) in [0, 1], away from ``taken`` (h, w).

        ``boxes`` (n, 4) as x0, y0, x1, y1 are those of the real text: what is copied, and how large text is here.
        Returns the picture, unchanged outside the mask, and the mask (h, w); None where no attempt left a visible text.
        """
        for attempt in range(TRIES):
            written = self._attempt(picture, taken, boxes, action, SHRINK**attempt, generator)
            if written is not None:
                mask = difference_mask(picture, written) & ~taken
                if mask.any():
                    return np.where(mask[..., None], written, picture), mask
        return None

    def _attempt(
        self,
        picture: Array,
        taken: Mask,
        boxes: NDArray[np.int64],
        action: Actions,
        shrink: float,
        generator: Generator,
    ) -> Array | None:
        height, width = taken.shape
        near = int(generator.integers(width)), int(generator.integers(height))
        box = boxes[int(generator.integers(len(boxes)))] if len(boxes) else None
        size = 0.8 * float(min(box[2:] - box[:2])) if box is not None else min(height, width) / 8
        size = shrink * min(size, min(height, width) / 3)
        if box is not None and self.space.copies(action, size):
            spot = free_spot(taken, (int(box[2] - box[0]), int(box[3] - box[1])), near)
            return None if spot is None else copy_text(picture, box, letters(picture, box), spot)
        around = picture[max(near[1] - 16, 0) : near[1] + 16, max(near[0] - 16, 0) : near[0] + 16]
        background = _colour(around.mean((0, 1)))
        context = Context(size, palette(picture, background), background)
        style = self.space.style(action, context, generator)
        line = words.phrase(generator, most=2)
        for text in (line, line.split()[0]):
            layer = make_layer([text], style, font=self._font(action))
            spot = None if layer is None else free_spot(taken, layer.size, near)
            if layer is not None and spot is not None:
                drawn = paste(layer, picture, (spot[0] + layer.size[0] / 2, spot[1] + layer.size[1] / 2))
                return None if drawn is None else drawn.picture
        return None

    def _font(self, action: Actions) -> Path | None:
        option = self.space.options(action)["font"]
        return self.fonts[option * len(self.fonts) // 12] if self.fonts else None


def difference_mask(before: Array, after: Array, *, grow: int = 3) -> Mask:
    """Return the boxes (h, w) around what differs between two pictures (h, w, 3), ``grow`` pixels wider in all."""
    grey = np.abs(cv2.cvtColor(before, cv2.COLOR_RGB2GRAY) - cv2.cvtColor(after, cv2.COLOR_RGB2GRAY))
    changed = (grey >= DIFFERENCE).astype(np.uint8)
    mask = np.zeros_like(changed)
    for contour in cv2.findContours(changed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        if w * h >= SPECK:
            mask[y : y + h, x : x + w] = 1
    return cv2.dilate(mask, np.ones((grow, grow), np.uint8)) > 0


def free_spot(taken: Mask, size: tuple[int, int], near: tuple[int, int]) -> tuple[int, int] | None:
    """Return the corner (left, top) of the free rectangle of ``size`` (w, h) whose centre is nearest, or None."""
    (height, width), (w, h) = taken.shape, size
    if w > width or h > height:
        return None
    sums = cv2.integral(taken.astype(np.uint8))
    inside = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    tops, lefts = np.nonzero(inside == 0)
    if not len(tops):
        return None
    nearest = np.argmin((tops + h / 2 - near[1]) ** 2 + (lefts + w / 2 - near[0]) ** 2)
    return int(lefts[nearest]), int(tops[nearest])


def palette(picture: Array, background: Colour, count: int = 3) -> list[Colour]:
    """Return up to ``count`` colours of ``picture`` to write with on ``background``, the most contrasting first.

    They are means of those of 64 coarse colours that cover at least :data:`PRESENT` of the picture.
    """
    flat = picture.reshape(-1, 3)
    coarse = np.minimum((flat * 4).astype(np.int64), 3) @ np.asarray([16, 4, 1])
    pixels = np.bincount(coarse, minlength=64)
    sums = np.stack([np.bincount(coarse, channel, minlength=64) for channel in flat.T], 1)
    present = np.nonzero(pixels >= PRESENT * len(flat))[0]
    colours = [_colour(sums[code] / pixels[code]) for code in present]
    return sorted(colours, key=lambda c: -abs(luma(c) - luma(background)))[:count]


def _colour(values: Array) -> Colour:
    r, g, b = values.tolist()
    return (r, g, b)
