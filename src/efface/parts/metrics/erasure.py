"""Measure how well a concept is taken out of a generator: figures with their intervals, joint scores, drift.

Rates are shares of pictures and carry Wilson's interval (1927), other means the normal one, both of 95 %. Joint scores
are harmonic means: 0 as soon as one of their terms is. Pictures are arrays (b, 3, h, w) with values in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from efface.errors import DataError
from efface.parts.metrics.paired import Interval, bootstrap
from efface.parts.metrics.structure import ssim

Z = 1.959963984540054
"""Quantile of the normal distribution that leaves 2.5 % above it."""

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class Figure:
    """A mean over ``n`` pictures with the bounds of its 95 % interval; nan where something is not defined."""

    value: float
    n: int
    low: float
    high: float
    each: tuple[float, ...] = field(default=(), repr=False)
    """The value of each picture, so that two models can be compared picture by picture."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def rate(hits: Sequence[bool]) -> Figure:
    """Return the share of ``hits`` with Wilson's interval; nan of no picture at all."""
    share = sum(hits) / len(hits) if len(hits) else math.nan
    return Figure(share, len(hits), *wilson(sum(hits), len(hits)), tuple(map(float, hits)))


def mean(values: Sequence[float]) -> Figure:
    """Return the mean of ``values`` with its normal interval; one value has no interval."""
    n = len(values)
    centre = math.fsum(values) / n if n else math.nan
    reach = Z * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Figure(centre, n, centre - reach, centre + reach, tuple(map(float, values)))


def complement(figure: Figure) -> Figure:
    """Return 1 less ``figure``: how often something is not the case."""
    each = tuple(1 - value for value in figure.each)
    return Figure(1 - figure.value, figure.n, 1 - figure.high, 1 - figure.low, each)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the bounds of Wilson's 95 % interval for ``hits`` of ``n``; (0, 1), for nothing is known, of none."""
    if not n:
        return 0.0, 1.0
    share, square = hits / n, Z * Z / n
    centre = (share + square / 2) / (1 + square)
    reach = Z * math.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return (0.0 if hits == 0 else centre - reach), (1.0 if hits == n else centre + reach)


def difference(first: Figure, second: Figure) -> Interval:
    """Return what the ``first`` model has over the ``second`` with its 95 % interval, picture by picture.

    Of rates by the score method for paired shares (Newcombe 1998, method 8), of other means by resampling pairs.

    Raises
    ------
    DataError
        If the figures were not taken on the same number of pictures, or keep none of them.
    """
    a, b = np.array(first.each), np.array(second.each)
    if len(a) != len(b) or not len(a):
        what = f"figures of {len(a)} and {len(b)} pictures are no pairs"
        raise DataError(what, fix="Compare rates and means of two models on the same prompts and seeds")
    if not np.isin(np.concatenate([a, b]), (0, 1)).all():
        return bootstrap((a - b).tolist())
    alike = float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0
    (low_a, high_a), (low_b, high_b) = (wilson(round(x.sum()), len(x)) for x in (a, b))
    p, q = float(a.mean()), float(b.mean())
    below, above = (p - low_a, high_b - q), (high_a - p, q - low_b)
    reach = [math.sqrt(max(0.0, x * x - 2 * alike * x * y + y * y)) for x, y in (below, above)]
    return Interval(p - q, p - q - reach[0], p - q + reach[1])


def harmonic(*terms: float) -> float:
    """Return the harmonic mean of ``terms``; 0 if one of them is 0 or less, nan if one is nan."""
    if any(map(math.isnan, terms)):
        return math.nan
    return len(terms) / sum(1 / term for term in terms) if min(terms) > 0 else 0.0


def joint(*terms: Figure) -> Figure:
    """Return the harmonic mean of ``terms`` between those of all their lower and all their upper bounds.

    It rises with each of them, so that interval is at least as wide as one of 95 %.
    """
    value, low, high = (harmonic(*(getattr(term, key) for term in terms)) for key in ("value", "low", "high"))
    return Figure(value, min(term.n for term in terms), low, high)


def h_o(acc_e: Figure, acc_s: Figure, acc_g: Figure) -> Figure:
    """Return H_o = 3 / (1 / (1 - Acc_e) + 1 / Acc_s + 1 / (1 - Acc_g)) of erased, kept and other wordings (MACE)."""
    return joint(complement(acc_e), acc_s, complement(acc_g))


def h_c(acc_e: Figure, acc_s: Figure) -> Figure:
    """Return H_c = 2 / (1 / (1 - Acc_e) + 1 / Acc_s) of erased and kept concepts (MACE)."""
    return joint(complement(acc_e), acc_s)


def h_mean(before: float, after: float, kept: float) -> float:
    """Return 2 D K / (D + K) of the drop D = ``before`` - ``after`` of what goes and the accuracy K of what stays.

    The score of unlearning in classifiers (GS-LoRA, arXiv:2403.11530).
    """
    return harmonic(before - after, kept)


def drift(before: Vectors, after: Vectors) -> dict[str, Figure]:
    """Return how far pictures went from those of the same seeds ``before``: ``mse`` and ``dssim``, 1 - SSIM.

    SSIM needs 11 pixels a side and is nan below that.
    """
    _check_pairs(before, after)
    squares = np.square(np.subtract(before, after, dtype=np.float64)).mean((1, 2, 3))
    pairs = zip(np.moveaxis(before, 1, -1), np.moveaxis(after, 1, -1), strict=True)
    return {"mse": mean(squares.tolist()), "dssim": mean([1 - ssim(x, y) for x, y in pairs])}


def feature_drift(before: Vectors, after: Vectors) -> Figure:
    """Return the mean distance of features (b, d), each of unit length: 0 of equal ones, 2 of opposite ones."""
    _check_pairs(before, after)
    x, y = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (before, after))
    return mean(np.linalg.norm(x - y, axis=1).tolist())


def frechet_own(first: ArrayLike, second: ArrayLike) -> float:
    """Return the Frechet distance |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of features (n, d) and (m, d).

    On one's own features it compares with itself alone, and with the floor that two sets of one model have; no FID. It
    is biased upwards for few pictures: take 500 a side or more.
    """
    x, y = (np.asarray(v, np.float64) for v in (first, second))
    if min(len(x), len(y)) < 2:
        raise DataError(f"sets of {len(x)} and {len(y)} pictures are too small to compare", fix="Give 500 on each side")
    a, b = (np.cov(v, rowvar=False).reshape(v.shape[1], -1) for v in (x, y))
    root = _root(a)
    crossed = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * crossed)


def icr(pictures: Vectors, detector: Callable[[Vectors], Sequence[bool]]) -> Figure:
    """Return the share of ``pictures`` in which ``detector`` fires (Geom-Erasing's ICR)."""
    return rate([bool(found) for found in detector(pictures)])


def _root(matrix: Vectors) -> Vectors:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _check_pairs(before: Vectors, after: Vectors) -> None:
    if before.shape != after.shape:
        raise DataError(f"arrays {before.shape} and {after.shape} are no pairs", fix="Draw the same prompts and seeds")
