"""Score one erased picture: measures inside and outside the mask, and the whole row of the erasing table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from efface.parts import masks
from efface.parts.metrics.pixels import (
    LEGACY_SIDE,
    Mask,
    Pixels,
    age,
    assert_same_size,
    decibels,
    legacy_resize,
    mse,
    pceps,
    peps,
    psnr,
    squared_error,
    unit_rgb,
)
from efface.parts.metrics.residue import Polygon, polygon_mask
from efface.parts.metrics.structure import ms_ssim, mssim_legacy, ssim, ssim_m, ssim_maps

GROW = 5
"""Pixels by which masks are grown for the regions of the table, so that feathered rims count as inside."""


def grow_mask(mask: Mask, pixels: float) -> Mask:
    """Return the mask with everything added that lies within ``pixels`` of it."""
    return ~_deep(~mask, pixels)


def psnr_m(output: Pixels, truth: Pixels, mask: Mask) -> float:
    """Return the PSNR in dB over the pixels in the mask; nan for an empty mask."""
    assert_same_size(output, mask, names="picture and mask")
    errors = squared_error(output, truth)[mask]
    return decibels(float(errors.mean())) if errors.size else math.nan


def psnr_bg(output: Pixels, truth: Pixels, mask: Mask) -> float:
    """Return the PSNR in dB over the pixels outside the mask, which shows damage; nan for a full mask."""
    return psnr_m(output, truth, ~mask)


def keep_err(output: Pixels, source: Pixels, kept: Mask) -> float:
    """Return the mean absolute change, of values in [0, 1], where text was to be kept; nan where there is none."""
    assert_same_size(output, source, names="output and input")
    assert_same_size(output, kept, names="picture and mask")
    changes = np.abs(unit_rgb(output)[kept] - unit_rgb(source)[kept])
    return float(changes.mean()) if changes.size else math.nan


def rim(output: Pixels, source: Pixels, mask: Mask) -> float:
    """Return the mean absolute change on the rim: the pixels of the mask at most 2 px from its outside.

    There an ample mask holds background only, which erasing leaves nearly as it was. A high value says that the mask
    cut through text, whose colour then remains beside it. The picture's border is no rim; nan where there is none.
    """
    return keep_err(output, source, masks.rim(mask))


def is_composited(output: Pixels, source: Pixels, mask: Mask) -> bool:
    """Say whether the output equals the input outside the mask, bit for bit."""
    assert_same_size(output, source, names="output and input")
    return bool(np.array_equal(unit_rgb(output)[~mask], unit_rgb(source)[~mask]))


def share_selected(text: Polygon, mask: Mask) -> float:
    """Return the share of a text that is in the mask, 0 for a text outside the picture.

    A mask of strokes counts like one of boxes: gaps of up to the text's height are closed, and a quarter of the height
    at the polygon's border, where hardly any stroke comes, is left aside.
    """
    height = min(cv2.minAreaRect(np.asarray(text, np.float32))[1])
    low = np.maximum(np.floor(text.min(axis=0) - height).astype(int), 0)
    high = np.maximum(np.ceil(text.max(axis=0) + height).astype(int), 0)
    part = mask[low[1] : high[1] + 1, low[0] : high[0] + 1]
    core = _deep(polygon_mask([text - low], part.shape), height / 4)
    closed = _deep(grow_mask(part, height / 2), height / 2)
    return float(closed[core].mean()) if core.any() else 0.0


def split_texts(texts: Sequence[Polygon], mask: Mask) -> tuple[list[Polygon], list[Polygon]]:
    """Return the selected texts, of which half or more is in the mask, and those to be kept."""
    selected = [share_selected(text, mask) >= 0.5 for text in texts]
    kept = [text for text, chosen in zip(texts, selected, strict=True) if not chosen]
    return [text for text, chosen in zip(texts, selected, strict=True) if chosen], kept


def kept_region(kept: Sequence[Polygon], mask: Mask) -> Mask:
    """Return the pixels of the texts to be kept, less those that a grown mask may touch."""
    return polygon_mask(kept, mask.shape) & ~grow_mask(mask, GROW)


def whole_row(output: Pixels, truth: Pixels) -> dict[str, float]:
    """Return the measures of the whole picture in their correct forms."""
    output, truth = unit_rgb(output), unit_rgb(truth)
    maps = ssim_maps(output, truth)
    return {
        "psnr": psnr(output, truth),
        "mse": mse(output, truth),
        "ssim": ssim(output, truth, maps=maps),
        "mssim_legacy": mssim_legacy(output, truth, maps=maps),
        "ms_ssim": ms_ssim(output, truth),
        "age": age(output, truth),
        "peps": peps(output, truth),
        "pceps": pceps(output, truth),
    }


def legacy_row(output: Pixels, truth: Pixels) -> dict[str, float]:
    """Return the measures as the evaluator of published tables takes them: on 8-bit pictures made 512 x 512.

    It also leaves pictures with an MSE of 0 out of every mean, which is for the caller to do.
    """
    output, truth = legacy_resize(output), legacy_resize(truth)
    area = LEGACY_SIDE * LEGACY_SIDE
    return {
        "psnr": psnr(output, truth),
        "mse": mse(output, truth),
        "mssim_legacy": mssim_legacy(output, truth),
        "age": age(output, truth),
        "peps": peps(output, truth, area=area),
        "pceps": pceps(output, truth, area=area),
    }


def region_row(output: Pixels, truth: Pixels, mask: Mask) -> dict[str, float]:
    """Return PSNR inside and outside the mask grown by :data:`GROW`, and SSIM over the mask itself.

    A window of SSIM reaches 5 px beyond its centre, as far as the grown mask does.
    """
    grown = grow_mask(mask, GROW)
    return {
        "psnr_m": psnr_m(output, truth, grown),
        "psnr_bg": psnr_bg(output, truth, grown),
        "ssim_m": ssim_m(output, truth, mask),
    }


def _deep(mask: Mask, pixels: float) -> Mask:
    """Return the pixels of the mask farther than ``pixels`` from its outside; beyond the border all is inside."""
    if mask.all():
        return mask
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance > pixels
