"""Copy real letters of a picture to another place in it.

Source: the copy mechanism of STE (arXiv:2204.12743), with maximally stable extremal regions (Matas et al. 2002).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

LARGEST = 0.5
"""Share of the box from which on a region is no letter."""
RIM = 2
"""Pixels around a box that are looked at too: a region that reaches their edge is background."""


def letters(picture: Array, box: NDArray[np.int64]) -> Mask:
    """Return the pixels (h, w) of the letters in ``box`` (x0, y0, x1, y1) of ``picture`` (h, w, 3); maybe none.

    Letters are stable regions no longer than two heights of the line; one inside another's rectangle is its hole.
    """
    x0, y0, x1, y1 = box
    grey = cv2.cvtColor(np.round(picture * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    grey = cv2.copyMakeBorder(grey, RIM, RIM, RIM, RIM, cv2.BORDER_REPLICATE)[y0 : y1 + 2 * RIM, x0 : x1 + 2 * RIM]
    found = np.zeros(grey.shape, bool)
    regions, boxes = cv2.MSER_create(7, 5, 14400, 0.5).detectRegions(grey)  # type: ignore[attr-defined]
    kept: list[NDArray[np.int32]] = []
    for i in sorted(range(len(regions)), key=lambda i: -int(boxes[i][2]) * int(boxes[i][3])):
        x, y, w, h = boxes[i]
        long = w if grey.shape[1] >= grey.shape[0] else h
        whole = x > 0 and y > 0 and x + w < grey.shape[1] and y + h < grey.shape[0]
        hole = any(x > a - 2 and y > b - 2 and x + w < a + c + 2 and y + h < b + d + 2 for a, b, c, d in kept)
        if whole and not hole and w * h <= LARGEST * grey.size and long <= 2 * min(grey.shape):
            kept.append(boxes[i])
            found[regions[i][:, 1], regions[i][:, 0]] = True
    return found[RIM:-RIM, RIM:-RIM]


def copy_text(picture: Array, box: NDArray[np.int64], shape: Mask, at: tuple[int, int]) -> Array:
    """Return ``picture`` with the pixels ``shape`` of ``box`` copied so that its corner lies at ``at`` (left, top)."""
    out = picture.copy()
    x0, y0, x1, y1 = box
    place = out[at[1] : at[1] + y1 - y0, at[0] : at[0] + x1 - x0]
    place[shape] = picture[y0:y1, x0:x1][shape]
    return out
