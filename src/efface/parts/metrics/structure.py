"""Measure how alike the structure of two pictures is: SSIM, its multi-scale form, and the published "MSSIM".

On brightness, with a Gaussian window of 11 x 11 and sigma 1.5, K1 = .01, K2 = .03, only where the window lies wholly
inside the picture (Wang et al., "Image quality assessment", 2004; "Multiscale structural similarity", 2003).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from efface.parts.metrics.pixels import Mask, Pixels, Unit, assert_same_size, luma

WINDOW = 11
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of MS-SSIM, from fine to coarse."""
_BORDER = WINDOW // 2
_KERNEL = cv2.getGaussianKernel(WINDOW, 1.5, cv2.CV_64F)
_C1, _C2 = 0.01**2, 0.03**2  # values in [0, 1]: L = 1

Maps = tuple[Unit, Unit]


def ssim_maps(output: Pixels, truth: Pixels) -> Maps:
    """Return SSIM and its contrast-structure factor at every place of the window, (h - 10, w - 10) each."""
    assert_same_size(output, truth)
    return _maps(luma(output), luma(truth))


def ssim(output: Pixels, truth: Pixels, *, maps: Maps | None = None) -> float:
    """Return the mean structural similarity; ``maps`` spares computing :func:`ssim_maps` of the pair again."""
    return _mean((maps or ssim_maps(output, truth))[0])


def ssim_m(output: Pixels, truth: Pixels, mask: Mask, *, maps: Maps | None = None) -> float:
    """Return the structural similarity, mean over the windows whose centre is in the mask."""
    assert_same_size(output, mask, names="picture and mask")
    similarity = (maps or ssim_maps(output, truth))[0]
    return _mean(similarity[_inner(mask)]) if similarity.size else math.nan


def mssim_legacy(output: Pixels, truth: Pixels, *, maps: Maps | None = None) -> float:
    """Return what published tables of text erasing call MSSIM: one scale, contrast^.8668 x SSIM^.1333.

    Their evaluator loops over five scales but never reads the smaller pictures, so that every scale is the first.
    """
    similarity, contrast = maps or ssim_maps(output, truth)
    return _power(_mean(contrast), sum(SCALES[:-1])) * _power(_mean(similarity), SCALES[-1])


def ms_ssim(output: Pixels, truth: Pixels) -> float:
    """Return the multi-scale structural similarity; nan where the shorter side is below 161 pixels."""
    assert_same_size(output, truth)
    x, y = luma(output), luma(truth)
    product = 1.0
    for scale, exponent in enumerate(SCALES):
        similarity, contrast = _maps(x, y)
        last = scale == len(SCALES) - 1
        product *= _power(_mean(similarity if last else contrast), exponent)
        x, y = _half(x), _half(y)
    return product


def _maps(x: Unit, y: Unit) -> Maps:
    if min(x.shape) < WINDOW:
        return np.empty((0, 0)), np.empty((0, 0))
    mean_x, mean_y = _blur(x), _blur(y)
    squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
    contrast = (2 * (_blur(x * y) - product) + _C2) / (_blur(x * x + y * y) - squares + _C2)
    return (2 * product + _C1) / (squares + _C1) * contrast, contrast


def _blur(x: Unit) -> Unit:
    return _inner(cv2.sepFilter2D(x, -1, _KERNEL, _KERNEL))


def _inner(x: np.ndarray) -> np.ndarray:
    return x[_BORDER:-_BORDER, _BORDER:-_BORDER]


def _half(x: Unit) -> Unit:
    """Return means of 2 x 2 pixels; an odd last row or column is met by its mirror image."""
    x = np.pad(x, [(0, side % 2) for side in x.shape], mode="symmetric")
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _power(base: float, exponent: float) -> float:
    """Raise to a power, a negative similarity counting as none: its root would not be real."""
    return base if math.isnan(base) else max(base, 0.0) ** exponent
