"""Make, read, grow and soften masks: (h, w) arrays, bool or float32 in [0, 1], where true or 1 is taken away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from efface.errors import MaskError, UsageError

STRIP = 1 << 22
"""Pixels of a mask that are worked on at a time, so that large pictures need little memory."""


class Box(NamedTuple):
    """A rectangle of whole pixels, from its upper left corner."""

    x: int
    y: int
    w: int
    h: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of an (h, w) array that lie in the box."""
        return slice(self.y, self.y + self.h), slice(self.x, self.x + self.w)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.w * self.h

    def around(self, px: int, size: tuple[int, ...]) -> Box:
        """Return the box with ``px`` more pixels on each side, as far as a picture of ``size`` (h, w) goes."""
        x, y = max(0, self.x - px), max(0, self.y - px)
        return Box(x, y, min(size[1], self.x + self.w + px) - x, min(size[0], self.y + self.h + px) - y)


def parse_box(text: str) -> Box:
    """Read a box written as ``x,y,w,h`` in pixels."""
    try:
        box = Box(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise UsageError(f"{text!r} is not a box", fix="Write it as x,y,w,h in whole pixels") from None
    if min(box.w, box.h) < 1 or min(box.x, box.y) < 0:
        raise UsageError(f"{text!r} is not a box", fix="Width and height must be at least 1, x and y at least 0")
    return box


def from_boxes(size: tuple[int, int], boxes: Iterable[Sequence[int]]) -> np.ndarray:
    """Return the bool mask of ``size`` (h, w) that covers ``boxes`` (x, y, w, h); a box must lie inside."""
    mask = np.zeros(size, bool)
    for box in (Box(*box) for box in boxes):
        if min(box.x, box.y) < 0 or min(box.w, box.h) < 1 or box.x + box.w > size[1] or box.y + box.h > size[0]:
            raise MaskError(
                f"does not lie inside the picture of {size[1]} x {size[0]} pixels",
                where=f"box {box.x},{box.y},{box.w},{box.h}",
                fix="Give x,y,w,h in pixels from the upper left corner",
            )
        mask[box.slices] = True
    return mask


def from_polygons(size: tuple[int, int], polygons: Iterable[np.ndarray]) -> np.ndarray:
    """Return the bool mask of ``size`` (h, w) that covers ``polygons`` (n, 2) of x and y, borders included."""
    mask = np.zeros(size, np.uint8)
    for polygon in polygons:  # one by one: where they overlap, they add up
        cv2.fillPoly(mask, [np.round(np.asarray(polygon)).astype(np.int32)], 1)
    return mask.view(bool)


def from_picture(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Read a bool mask that was drawn as a picture: what is bright, or opaque where only alpha says anything.

    ``pixels`` is (h, w) or (h, w, 1 to 4), bool, integer or float in [0, 1]; ``size`` (h, w) is that of the picture
    that it is for. The luma is compared with half of its range: soft edges and traces of compression do not matter.
    """
    if pixels.shape[:2] != size:
        (h, w), (height, width) = pixels.shape[:2], size
        raise MaskError(f"the mask has {w} x {h} pixels, the picture {width} x {height}", fix="Make them the same size")
    if pixels.ndim == 2:
        return _bright(pixels)
    if pixels.shape[2] in (1, 3):
        return _bright(_luma(pixels))
    colour, opaque = pixels[..., :-1], _bright(pixels[..., -1])
    seen = colour[opaque]
    if not opaque.all() and (seen == seen[:1]).all():
        return opaque
    return _bright(_luma(colour)) & opaque


def _luma(colour: np.ndarray) -> np.ndarray:
    if colour.shape[2] == 1:
        return colour[..., 0]
    if colour.dtype not in (np.uint8, np.uint16, np.float32):
        colour = (colour / _full(colour)).astype(np.float32)
    return cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_RGB2GRAY)


def _bright(values: np.ndarray) -> np.ndarray:
    return values >= _full(values) / 2


def _full(values: np.ndarray) -> float:
    return 1.0 if values.dtype.kind in "bf" else float(np.iinfo(values.dtype).max)


def default_grow(h: int, w: int) -> int:
    """Return by how many pixels a mask of text is grown in a picture of this size."""
    return max(2, round(0.005 * min(h, w)))


def grow(mask: np.ndarray, px: float) -> np.ndarray:
    """Return the bool mask of the pixels at most ``px`` (Euclidean, between centres) away from a bool ``mask``."""
    grown = mask.copy()
    for rows, distance in _distances(mask, px):
        grown[rows] = distance <= px
    return grown


def feather(mask: np.ndarray, px: float) -> np.ndarray:
    """Return float32 weights: 1 in a bool ``mask``, falling linearly with distance outside, 0 beyond ``px`` pixels."""
    weight = mask.astype(np.float32)
    for rows, distance in _distances(mask, px):
        weight[rows] = np.where(distance <= px, 1 - distance / np.float32(px + 1), 0)
    return weight


def _distances(mask: np.ndarray, px: float) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield strips of rows and their exact distances to ``mask``, right up to ``px``, where any pixel is so near."""
    reach = math.ceil(px)
    height, width = mask.shape
    rows = max(STRIP // width, 4 * reach)
    for top in range(0, height if reach > 0 else 0, rows):
        first, last = max(0, top - reach), min(height, top + rows + reach)
        near = mask[first:last]
        if near.any():
            distance = cv2.distanceTransform((~near).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            yield slice(top, min(height, top + rows)), distance[top - first : top - first + rows]


def components(mask: np.ndarray) -> list[Box]:
    """Return the bounding box of each 8-connected island of a bool ``mask``, from the top and then from the left."""
    return [box for box, _ in islands(mask)]


def islands(mask: np.ndarray) -> list[tuple[Box, tuple[int, int]]]:
    """Return for each 8-connected island of a bool ``mask`` its bounding box and one of its pixels (x, y)."""
    # contours, not labels: those would take four bytes for every pixel
    contours, hierarchy = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [c for c, (*_, parent) in zip(contours, hierarchy[0] if contours else (), strict=True) if parent < 0]
    found = [(Box(*cv2.boundingRect(c)), (int(c[0, 0, 0]), int(c[0, 0, 1]))) for c in outer]
    return sorted(found, key=lambda island: (island[0].y, island[0].x, island[1]))


def rim(mask: np.ndarray, px: float = 2) -> np.ndarray:
    """Return the pixels of a bool ``mask`` at most ``px`` from its outside; the picture's border is no outside.

    An ample mask holds only background there. Much change on the rim says that the mask cuts through something.
    """
    return mask & grow(~mask, px)
