"""Compare two sets of pictures by features: an unbiased maximum mean discrepancy with a polynomial kernel.

The statistic is that of the kernel inception distance (Bińkowski et al., arXiv:1801.01401), on whatever features are
plugged in. By default these come from convolutions with fixed random weights, which see colour and texture but know no
objects: values compare with each other, never with a published FID or KID.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from efface.errors import DataError
from efface.parts.metrics.pixels import Pixels, Unit, unit_rgb
from efface.seeds import numpy_generator

Features = Callable[[Pixels], NDArray[np.floating]]
"""Maps a picture to its feature vector (d,)."""

SIDE = 299
_CHANNELS = (3, 32, 64, 128)


def random_features(pixels: Pixels, *, seed: int = 0) -> Unit:
    """Return the means and deviations over all places of three layers of random convolutions, (448,).

    The picture is resized to 299 x 299 with antialiased bicubic interpolation, each channel in floating point.
    """
    x = 2 * _resize(unit_rgb(pixels)) - 1
    features = []
    for layer, (inputs, outputs) in enumerate(pairwise(_CHANNELS)):
        weights = numpy_generator(seed, "random_features", layer).normal(size=(inputs, 3, 3, outputs))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))[::2, ::2]  # (h, w, inputs, 3, 3)
        x = np.maximum(np.tensordot(windows, weights, axes=3) * math.sqrt(2 / (9 * inputs)), 0)
        features += [x.mean(axis=(0, 1)), x.std(axis=(0, 1))]
    return np.concatenate(features)


def feat_kid(outputs: Iterable[Pixels], truths: Iterable[Pixels], *, features: Features = random_features) -> float:
    """Return the squared discrepancy of the features of two sets of pictures; 0 is expected for like sets.

    Unbiased, and so below 0 at times. Raises :class:`DataError` for fewer than two pictures on either side.
    """
    return mmd(np.stack([features(p) for p in outputs]), np.stack([features(p) for p in truths]))


def mmd(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Return the unbiased squared MMD of features (n, d) and (m, d) under the kernel (x . y / d + 1)^3."""
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise DataError(f"sets of {n} and {m} pictures are too small to compare", fix="Give at least two on each side")
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (_kernel(x, x), _kernel(y, y))]
    return float(sum(within) - 2 * _kernel(x, y).mean())


def _kernel(x: NDArray[np.floating], y: NDArray[np.floating]) -> Unit:
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def _resize(rgb: Unit) -> Unit:
    planes = [Image.fromarray(rgb[:, :, c].astype(np.float32)) for c in range(3)]
    return np.dstack([np.asarray(p.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64) for p in planes])
