"""Measure how much text a detector still finds: the recall of the original texts on an erased picture.

Lower is better, down to what the detector finds in the clean pictures themselves. Numbers compare only under the same
detector, thresholds and protocol. Polygons are (n, 2) corners x, y in pixels, taken as convex.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from efface.parts.metrics.pixels import Mask, Pixels, eight_bits
from efface.parts.text.detect import find_text

Polygon = NDArray[np.floating]
Match = Callable[[Sequence[Polygon], Sequence[Polygon]], float]
"""Returns how many of the texts (first) are met by what was found (second), possibly with fractions."""


class HasPolygon(Protocol):
    """A found text, as :func:`efface.parts.text.detect.find_text` returns it."""

    @property
    def polygon(self) -> Polygon:
        """Corners (n, 2) as x, y in pixels."""


Detector = Callable[[NDArray[np.uint8]], Sequence[HasPolygon]]


@dataclass(frozen=True)
class Residue:
    """How many of ``texts`` a detector finds on output, input and clean truth; adds up over pictures."""

    texts: int
    output: float
    source: float
    truth: float = math.nan

    def __add__(self, other: Residue) -> Residue:
        return Residue(
            self.texts + other.texts, self.output + other.output, self.source + other.source, self.truth + other.truth
        )

    @property
    def r_out(self) -> float:
        """Recall on the outputs (R_O): the residue."""
        return _ratio(self.output, self.texts)

    @property
    def r_in(self) -> float:
        """Recall on the inputs (R_in): the ceiling."""
        return _ratio(self.source, self.texts)

    @property
    def r_truth(self) -> float:
        """Recall on the clean truth (R_G): the floor, which is seldom 0; nan where there is no truth."""
        return _ratio(self.truth, self.texts)

    @property
    def erased(self) -> float:
        """Share of what could be erased that is gone: 1 - (R_O - R_G) / (R_in - R_G); nan where that is 0 / 0."""
        return 1 - _ratio(self.output - self.truth, self.source - self.truth)


def residue(
    texts: Sequence[Polygon],
    *,
    output: Sequence[Polygon],
    source: Sequence[Polygon],
    truth: Sequence[Polygon] | None = None,
    match: Match,
) -> Residue:
    """Match the original ``texts`` of one picture with what was found on output, source and truth."""
    floor = math.nan if truth is None else match(texts, truth)
    return Residue(len(texts), match(texts, output), match(texts, source), floor)


def house_detector(pixels: NDArray[np.uint8]) -> Sequence[HasPolygon]:
    """Find the texts of an RGB picture (h, w, 3) uint8 without reading them."""
    return find_text(pixels, words=False)


def found_polygons(pixels: Pixels, detector: Detector = house_detector) -> list[Polygon]:
    """Return the outlines of the texts that a detector finds on a picture, which it is shown in 8 bits."""
    return [box.polygon for box in detector(eight_bits(pixels))]


def one_to_one(texts: Sequence[Polygon], found: Sequence[Polygon], *, iou: float = 0.5) -> float:
    """Return the size of the largest matching of texts with found polygons that overlap by ``iou`` (ICDAR15)."""
    common, text_areas, found_areas = _overlaps(texts, found)
    union = text_areas[:, None] + found_areas - common
    allowed = common >= iou * np.maximum(union, np.finfo(float).tiny)
    partner: dict[int, int] = {}

    def place(text: int, tried: set[int]) -> bool:  # augmenting paths: the count depends on no order
        for other in np.flatnonzero(allowed[text]).tolist():
            if other in tried:
                continue
            tried.add(other)
            if other not in partner or place(partner[other], tried):
                partner[other] = text
                return True
        return False

    return float(sum(place(text, set()) for text in range(len(texts))))


def deteval(texts: Sequence[Polygon], found: Sequence[Polygon], *, tr: float = 0.8, tp: float = 0.4) -> float:
    """Return how many texts are met, splits and merges included, in the manner of DetEval (Wolf and Jolion, 2006).

    A text counts 1 where one found polygon covers ``tr`` of it and lies in it by ``tp``, .8 where several together do,
    and 1 for each text of a group that one found polygon merges.
    """
    common, text_areas, found_areas = _overlaps(texts, found)
    recall = common / np.maximum(text_areas[:, None], np.finfo(float).tiny)
    precision = common / np.maximum(found_areas, np.finfo(float).tiny)
    hits = (recall >= tr) & (precision >= tp)
    alone = hits & (hits.sum(axis=1, keepdims=True) == 1) & (hits.sum(axis=0) == 1)
    free = ~alone.any(axis=0)
    parts, merged = (precision >= tp) & free, (recall >= tr) & free
    split = (recall * parts).sum(axis=1) >= tr
    merges = (precision * merged).sum(axis=0) >= tp
    whole = alone.any(axis=1) | (merged & merges).any(axis=1)
    return float(np.where(whole, 1.0, np.where(split, 0.8, 0.0)).sum())


PROTOCOLS: dict[str, Match] = {"icdar15": one_to_one, "deteval": deteval}


def polygon_mask(polygons: Sequence[Polygon], size: tuple[int, int]) -> Mask:
    """Return the pixels (h, w) that ``polygons`` cover."""
    canvas = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [np.rint(polygon).astype(np.int32)], (1,))
    return canvas.astype(bool)


def _overlaps(texts: Sequence[Polygon], found: Sequence[Polygon]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hulls = [[cv2.convexHull(np.asarray(p, np.float32)) for p in side] for side in (texts, found)]
    areas = [np.array([cv2.contourArea(h) for h in side], np.float64) for side in hulls]
    common = np.zeros((len(texts), len(found)))
    for i, text in enumerate(hulls[0]):
        for j, other in enumerate(hulls[1]):
            if areas[0][i] and areas[1][j]:
                common[i, j] = cv2.intersectConvexConvex(text, other)[0]
    return common, areas[0], areas[1]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
