"""Fill holes without a learned network."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from efface.parts.masks import Box, feather, grow, islands

RING = 1.5, 6
"""The surroundings that are judged are farther from the mask than the first and as near as the second, in pixels."""
FLAT = 3 / 255
"""Standard deviation around a plane, in each channel, below which surroundings count as flat."""
OUTLIERS = 0.05
"""Greatest share of the surroundings that is overlooked for being more than three standard deviations off."""
ROUNDING = 0.6 / 255
"""What storing in 8 bits alone takes a pixel off its plane; no less is called an outlier."""
LEAST, LARGEST = 16, 1 << 22
"""Pixels of surroundings from which a plane is trusted, and of the largest crop that is tried, to bound the memory."""


def pull_push(x: Tensor, known: Tensor) -> Tensor:
    """Fill what is not known by a smooth interpolation of what is, through a pyramid of normalised averages.

    ``x`` is (b, c, h, w) of any range and any size; ``known`` is (b, 1, h, w) in [0, 1]. Where ``known`` is 1 the
    result is exactly ``x``, where it is 0 ``x`` has no influence. A picture of which nothing is known becomes 0.5.
    Differentiable in both; computed in float32 and returned in the type of ``x``.

    Gortler et al., The Lumigraph, SIGGRAPH 1996, section 3.4, with 2x2 averages down and bilinear interpolation up.
    """
    values, weights = [x.float()], [known.float()]
    while max(values[-1].shape[-2:]) > 1:
        summed = avg_pool2d(values[-1] * weights[-1], 2, ceil_mode=True)
        weight = avg_pool2d(weights[-1], 2, ceil_mode=True)
        values.append(summed / weight.clamp_min(1e-20))
        weights.append((4 * weight).clamp_max(1))  # one known pixel among the four makes the average fully known
    filled = torch.lerp(torch.full_like(values[-1], 0.5), values[-1], weights[-1])
    for value, weight in zip(values[-2::-1], weights[-2::-1], strict=True):
        up = interpolate(filled, scale_factor=2, mode="bilinear", align_corners=False)
        filled = torch.lerp(up[..., : value.shape[-2], : value.shape[-1]], value, weight)
    return filled.to(x.dtype)


def flat_fill(
    read: Callable[[Box], np.ndarray],
    paste: Callable[[Box, np.ndarray, np.ndarray], None],
    mask: np.ndarray,
    *,
    feather_px: float = 0,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Fill each island of a bool ``mask`` (h, w) that lies on a plane, and return the mask of what is left.

    A plane is fitted to the colours of a ring around the island. Where it fits them and continues between them, the
    island takes its values; where all of the ring has one value, exactly that. ``read(box)`` returns (3, h, w) float32
    in [0, 1], ``paste(box, values, weight)`` blends them in with a weight (h, w) that falls to 0 over ``feather_px``
    outside of the island and is 0 in the bool mask ``keep``.
    """
    left = mask.copy()
    for island, (x, y) in islands(mask):
        box = island.around(math.ceil(max(RING[1], feather_px)) + 1, mask.shape)
        if box.area > LARGEST:
            continue
        near = mask[box.slices]
        labels = cv2.connectedComponents(near.view(np.uint8))[1]
        inside = labels == labels[y - box.y, x - box.x]
        values = _plane(read(box), inside, grow(inside, RING[1]) & ~grow(near, RING[0]))
        if values is None:
            continue
        weight = feather(inside, feather_px)
        weight[near & ~inside] = 0
        if keep is not None:
            weight[keep[box.slices]] = 0
        paste(box, values, weight)
        left[box.slices][inside] = False
    return left


def _plane(picture: np.ndarray, inside: np.ndarray, ring: np.ndarray) -> np.ndarray | None:
    """Return the plane (3, h, w) through the colours of ``picture`` in the ``ring``, or None where they lie on none."""
    colours = picture[:, ring].T.astype(np.float64)  # (n, 3)
    if len(colours) < LEAST:
        return None
    ys, xs = np.indices(ring.shape) / max(ring.shape)
    grid = np.stack([np.ones(ring.shape), ys, xs], -1)  # (h, w, 3)
    kept, stray = np.ones(len(colours), bool), np.zeros(len(colours), bool)
    while True:
        kept &= ~stray
        if kept.mean() < 1 - OUTLIERS:
            return None
        first = colours[kept][0]
        if (colours[kept] == first).all():
            return np.broadcast_to(first.astype(np.float32)[:, None, None], picture.shape)
        slopes = np.linalg.lstsq(grid[ring][kept], colours[kept], rcond=None)[0]
        off = colours - grid[ring] @ slopes
        sigma = off[kept].std(0)
        stray = kept & (np.abs(off) > np.maximum(3 * sigma, ROUNDING)).any(1)
        if not stray.any():
            break
    values = grid @ slopes  # (h, w, 3)
    low, high = colours[kept].min(0) - FLAT, colours[kept].max(0) + FLAT
    continues = ((values[inside] >= low) & (values[inside] <= high)).all()
    if sigma.max() >= FLAT or not continues:
        return None
    return values.clip(0, 1).transpose(2, 0, 1).astype(np.float32)  # a plane leaves white by what its noise leaves it


def telea(pixels: np.ndarray, mask: np.ndarray, *, radius: float = 3) -> np.ndarray:
    """Inpaint uint8 ``pixels`` (h, w, 3) under a bool ``mask`` by fast marching (Telea, J. Graphics Tools, 2004)."""
    return cv2.inpaint(pixels, mask.view(np.uint8), radius, cv2.INPAINT_TELEA)


def navier_stokes(pixels: np.ndarray, mask: np.ndarray, *, radius: float = 3) -> np.ndarray:
    """Inpaint uint8 ``pixels`` (h, w, 3) under a bool ``mask`` by fluid dynamics (Bertalmio et al., CVPR 2001)."""
    return cv2.inpaint(pixels, mask.view(np.uint8), radius, cv2.INPAINT_NS)
