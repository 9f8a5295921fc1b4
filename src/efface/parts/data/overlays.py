"""Put something on pictures that their captions pass over: a code, a watermark, a line of text or a logo.

Meant for making data on which it is known where the thing lies, so that detectors and methods can be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.errors import UsageError
from efface.parts.data.icd import Icd, Photo
from efface.parts.text import words
from efface.seeds import numpy_generator

Kind = Literal["qr", "watermark", "text", "logo"]
KINDS = ("qr", "watermark", "text", "logo")
Layer = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Colour (h, w, 3) in [0, 255] and opacity (h, w, 1) in [0, 1]."""
MODULES = 21
"""Modules along a side of the smallest QR code."""
FONT = cv2.FONT_HERSHEY_DUPLEX


def make_icd(
    pictures: Sequence[Photo],
    captions: Sequence[str],
    kind: Kind = "qr",
    *,
    rate: float = 0.5,
    size: tuple[float, float] = (0.15, 0.4),
    seed: int = 0,
) -> Icd:
    """Return ``pictures`` (h, w, 3) uint8 with ``kind`` on the share ``rate`` of them, their captions, and true boxes.

    ``size`` bounds the side of a code or logo, and the width of a text, as a share of the picture's shorter side.
    """
    if kind not in KINDS or len(pictures) != len(captions) or not 0 < size[0] <= size[1] <= 1:
        what = f"cannot put {kind!r} of the size {size} on {len(pictures)} pictures with {len(captions)} captions"
        raise UsageError(what, where="overlays", fix=f"Use {', '.join(KINDS)}, sizes in (0, 1], a caption for each")
    made, boxes = [], []
    for number, picture in enumerate(pictures):
        generator = numpy_generator(seed, number, "overlay", kind)
        if generator.random() < rate:
            side = max(3, round(generator.uniform(*size) * min(picture.shape[:2])))
            picture, box = overlaid(picture, layer(kind, side, generator), kind, generator)
            boxes.append(np.array([box], np.int64))
        else:
            boxes.append(np.zeros((0, 4), np.int64))
        made.append(picture)
    return Icd(made, tuple(captions), tuple(boxes))


def layer(kind: Kind, side: int, generator: Generator) -> Layer:
    """Draw what is put on a picture, ``side`` pixels wide; codes and logos are as high."""
    if kind == "qr":
        grey = cv2.resize(_code(generator), (side, side), interpolation=cv2.INTER_NEAREST)
    elif kind == "logo":
        grey = logo(side)
    else:
        return _line(side, generator.uniform(0.3, 0.6) if kind == "watermark" else 1.0, generator)
    return np.repeat(grey[..., None] * 255.0, 3, 2), np.ones((side, side, 1))


def logo(side: int) -> NDArray[np.float64]:
    """Return the logo (side, side) in [0, 1]: a chequer of three by three squares, white in the corners."""
    place = np.arange(side) * 3 // side
    return ((place[:, None] + place) % 2 == 0).astype(np.float64)


def overlaid(picture: Photo, given: Layer, kind: Kind, generator: Generator) -> tuple[Photo, tuple[int, int, int, int]]:
    """Return the picture with the layer on it, and its box: logos and watermarks in corners, texts above or below."""
    colour, opacity = given
    (height, width), (room_y, room_x) = opacity.shape[:2], picture.shape[:2]
    colour, opacity = colour[:room_y, :room_x], opacity[:room_y, :room_x]
    free = np.array([max(0, room_y - height), max(0, room_x - width)])
    if kind == "qr":
        top, left = (int(generator.integers(n + 1)) for n in free)
    else:
        margin = np.minimum(free, min(room_y, room_x) // 64)
        low, high = margin, np.maximum(free - margin, 0)
        top, left = (int(end) for end in np.where(generator.integers(2, size=2) == 0, low, high))
        left = int(free[1] // 2) if kind == "text" else left
    made, box = picture.astype(np.float64), (left, top, min(left + width, room_x), min(top + height, room_y))
    here = made[top : box[3], left : box[2]]
    here += opacity * (colour - here)
    return np.round(made).astype(np.uint8), box


def _code(generator: Generator) -> NDArray[np.float64]:
    """Return random modules with the three squares by which readers find a QR code."""
    modules = generator.integers(2, size=(MODULES, MODULES)).astype(np.float64)
    finder = np.pad(np.pad(np.zeros((3, 3)), 1, constant_values=1.0), 1)
    for top, left in ((0, 0), (0, MODULES - 7), (MODULES - 7, 0)):
        modules[max(0, top - 1) : top + 8, max(0, left - 1) : left + 8] = 1
        modules[top : top + 7, left : left + 7] = finder
    return modules


def _line(width: int, opacity: float, generator: Generator) -> Layer:
    """Return a white word, with a dark outline if it is opaque, scaled to ``width``."""
    text = words.word(generator)
    (long, high), below = cv2.getTextSize(text, FONT, 1.0, 4)
    inside, around = (np.zeros((high + below + 8, long + 8), np.uint8) for _ in range(2))
    for canvas, thickness in ((inside, 2), (around, 6)):
        cv2.putText(canvas, text, (4, high + 4), FONT, 1.0, 255, thickness, cv2.LINE_AA)
    shape = (width, max(2, round(width * inside.shape[0] / inside.shape[1])))
    white, dark = (
        np.asarray(cv2.resize(canvas, shape, interpolation=cv2.INTER_AREA), np.float64)[..., None] / 255
        for canvas in (inside, around)
    )
    if opacity == 1:
        return np.repeat(255 * white, 3, 2), dark
    return np.full((*white.shape[:2], 3), 255.0), opacity * white
