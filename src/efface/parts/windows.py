"""Find the few windows of a picture that a local, iterated computation has to look at."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from efface.parts.masks import Box, components


def crop(x: Tensor, box: Box, region: Box | None = None) -> Tensor:
    """Return the view of ``x`` (..., h, w) inside ``box``, where ``x`` itself covers ``region`` of a larger picture."""
    if region is not None:
        box = box._replace(x=box.x - region.x, y=box.y - region.y)
    return x[..., *box.slices]


def windows(mask: np.ndarray, *, edge: int, reach: int, iterations: int) -> list[Box]:
    """Return boxes that cover a bool ``mask`` (h, w) and ``edge`` cells around it, one for each separate part of it.

    ``reach`` is how far one of the ``iterations`` looks: where the cells needed for all the parts outnumber those for
    one box around everything, that box is returned. No marked cell, no box.
    """
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((2 * edge + 1, 2 * edge + 1), np.uint8))
    boxes = components(grown > 0)
    if not boxes:
        return []

    def cost(box: Box) -> int:
        return sum(box.around(reach * (k + 1), mask.shape).area for k in range(iterations))

    whole = Box(*cv2.boundingRect(grown))
    return boxes if sum(map(cost, boxes)) < cost(whole) else [whole]
