"""Measure how far two pictures are apart, pixel by pixel: MSE, PSNR, and the error counts AGE, pEPs and pCEPs."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from efface.errors import MaskError, PictureError

Pixels = NDArray[Any]
Unit = NDArray[np.float64]
Mask = NDArray[np.bool_]

CAP = 100.0
"""PSNR in dB of equal pictures, and the most that any PSNR is reported as."""
LEGACY_SIDE = 512
"""Height and width to which the evaluator behind most published tables resizes everything."""
_LUMA = np.array([0.299, 0.587, 0.114])
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def unit_rgb(pixels: Pixels) -> Unit:
    """Return a picture as RGB (h, w, 3) in [0, 1], float64.

    Raises :class:`PictureError` for another shape or number format, and for floats that are NaN or outside [0, 1].
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or not pixels.size:
        raise PictureError(f"an array of shape {pixels.shape} is not a picture", fix="Give (h, w) or (h, w, channels)")
    colour = pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]
    if pixels.dtype in (np.uint8, np.uint16):
        colour = colour / np.float64(np.iinfo(pixels.dtype).max)
    elif not np.issubdtype(pixels.dtype, np.floating):
        raise PictureError(f"{pixels.dtype} pixels cannot be scored", fix="Give uint8, uint16, or floats in [0, 1]")
    elif not (colour.min() >= 0 and colour.max() <= 1):  # NaN fails as well
        raise PictureError("float pixels are NaN or outside [0, 1]", fix="Scale them to [0, 1] first")
    return np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)), np.float64)


def eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """Return a picture as RGB uint8, rounded to the nearest of 256 levels."""
    return np.rint(unit_rgb(pixels) * 255).astype(np.uint8)


def binary_mask(pixels: Pixels) -> Mask:
    """Return a mask picture as booleans (h, w), True where it reaches half of its range.

    Raises :class:`MaskError` where it has values but none reaches half: a mask stored as 0 and 1 of 255 would do so.
    """
    if pixels.dtype == bool and pixels.ndim == 2:
        return pixels.astype(bool)
    values = unit_rgb(pixels).mean(axis=2)
    mask = values >= 0.5
    if values.any() and not mask.any():
        raise MaskError("the mask has values, but none reaches half of its range", fix="Store it as black and white")
    return mask


def luma(pixels: Pixels) -> Unit:
    """Return the brightness .299 R + .587 G + .114 B, (h, w) in [0, 1]."""
    return unit_rgb(pixels) @ _LUMA


def assert_same_size(first: Pixels, second: Pixels, *, names: str = "output and truth") -> None:
    """Raise :class:`PictureError` unless two pictures or masks have the same height and width."""
    if first.shape[:2] != second.shape[:2]:
        sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (first, second))
        raise PictureError(f"{names} differ in size: {sizes}", fix="Pictures are never resized to be scored")


def squared_error(output: Pixels, truth: Pixels) -> Unit:
    """Return the squared difference, mean over R, G and B, (h, w)."""
    assert_same_size(output, truth)
    return np.square(unit_rgb(output) - unit_rgb(truth)).mean(axis=2)


def mse(output: Pixels, truth: Pixels) -> float:
    """Return the mean squared error over pixels and channels, of values in [0, 1] (papers print it times 100)."""
    return float(squared_error(output, truth).mean())


def decibels(mse: float) -> float:
    """Return the PSNR 10 log10(1 / MSE) in dB, at most :data:`CAP`; nan stays nan."""
    return CAP if mse <= 10 ** (-CAP / 10) else -10 * math.log10(mse)


def psnr(output: Pixels, truth: Pixels) -> float:
    """Return the peak signal-to-noise ratio of one picture in dB, capped at :data:`CAP`."""
    return decibels(mse(output, truth))


def grey_error(output: Pixels, truth: Pixels) -> NDArray[np.uint8]:
    """Return the difference of brightness in whole levels of 255, (h, w) uint8."""
    assert_same_size(output, truth)
    return np.rint(np.abs(luma(output) - luma(truth)) * 255).astype(np.uint8)


def age(output: Pixels, truth: Pixels) -> float:
    """Return the average grey error in levels of 255."""
    return float(grey_error(output, truth).mean())


def error_map(output: Pixels, truth: Pixels) -> Mask:
    """Return where the brightness is off by more than 20 levels of 255 (the error pixels, EP), (h, w)."""
    return grey_error(output, truth) > 20


def clustered(errors: Mask) -> Mask:
    """Return the error pixels whose four neighbours are error pixels too; beyond the border there are none."""
    eroded = cv2.erode(errors.astype(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    return eroded.astype(bool)


def peps(output: Pixels, truth: Pixels, *, area: int | None = None) -> float:
    """Return the share of error pixels: their number over ``area``, which is height times width unless given."""
    errors = error_map(output, truth)
    return int(errors.sum()) / (area or errors.size)


def pceps(output: Pixels, truth: Pixels, *, area: int | None = None) -> float:
    """Return the share of clustered error pixels: their number over ``area`` as in :func:`peps`."""
    errors = error_map(output, truth)
    return int(clustered(errors).sum()) / (area or errors.size)


def legacy_resize(pixels: Pixels) -> NDArray[np.uint8]:
    """Return a picture as 8-bit RGB of 512 x 512, by bicubic interpolation, as published tables were measured."""
    picture = Image.fromarray(eight_bits(pixels)).resize((LEGACY_SIDE, LEGACY_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture)
