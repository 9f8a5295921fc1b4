"""Find the few windows of a picture that a local, iterated computation has to look at."""

from __future__ import annotations

import cv2
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]
"""Rows from, to and columns from, to (exclusive)."""


def grow(box: Box, by: int, size: tuple[int, int]) -> Box:
    """Return ``box`` with ``by`` more cells on each side, as far as the ``size`` (h, w) allows."""
    top, bottom, left, right = box
    return max(top - by, 0), min(bottom + by, size[0]), max(left - by, 0), min(right + by, size[1])


def crop(x: Tensor, box: Box, region: Box = (0, 0, 0, 0)) -> Tensor:
    """Return the view of ``x`` (..., h, w) inside ``box``, where ``x`` itself covers ``region`` of a larger picture."""
    return x[..., box[0] - region[0] : box[1] - region[0], box[2] - region[2] : box[3] - region[2]]


def windows(mask: Tensor, *, edge: int, reach: int, iterations: int) -> list[Box]:
    """Return boxes that cover ``mask`` (h, w) and ``edge`` cells around it, one for each separate part of it.

    ``reach`` is how far one of the ``iterations`` looks: where the cells needed for all the parts outnumber those for
    one box around everything, that box is returned. No marked cell, no box.
    """
    size = mask.shape[0], mask.shape[1]
    grown = F.max_pool2d((mask > 0).float()[None], 2 * edge + 1, stride=1, padding=edge)[0]
    stats = cv2.connectedComponentsWithStats(grown.byte().cpu().numpy(), connectivity=8)[2][1:].tolist()
    boxes = [(top, top + height, left, left + width) for left, top, width, height, _ in stats]
    if not boxes:
        return []
    tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    around = (min(tops), max(bottoms), min(lefts), max(rights))

    def cost(box: Box) -> int:
        regions = (grow(box, reach * (k + 1), size) for k in range(iterations))
        return sum((bottom - top) * (right - left) for top, bottom, left, right in regions)

    return boxes if sum(map(cost, boxes)) < cost(around) else [around]
