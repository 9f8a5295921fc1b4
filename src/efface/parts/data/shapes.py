"""Make small labelled pictures of shapes, hard enough to tell networks apart."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.parts.data.labelled import Labelled
from efface.seeds import numpy_generator

Field = NDArray[np.floating]

CLASSES = ("disc", "ring", "square", "frame", "triangle", "cross", "star", "bars", "half", "crescent")
_CHUNK = 500  # pictures that are drawn at once, for their fields to stay in the cache


def shapes(train: int, test: int, *, side: int, grey: bool, seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Return ``train`` examples, a tenth as many to choose on, and ``test`` ones; classes are equally frequent.

    Each picture (c, side, side) is a shape of random place, size, turn and colour, on an uneven ground, half hidden by
    bars at times, under noise.
    """
    counts = {"train": train, "val": max(1, train // 10), "test": test}
    made = [_labelled(count, side, grey, numpy_generator(seed, "shapes", part)) for part, count in counts.items()]
    return made[0], made[1], made[2]


def _labelled(count: int, side: int, grey: bool, generator: Generator) -> Labelled:
    labels = generator.permutation(np.arange(count) % len(CLASSES))
    parts = [_draw(labels[i : i + _CHUNK], side, grey, generator) for i in range(0, count, _CHUNK)]
    return Labelled(np.concatenate(parts), labels)


def _draw(labels: NDArray[np.int64], side: int, grey: bool, generator: Generator) -> NDArray[np.uint8]:
    def drawn(low: float, high: float, *axes: int) -> Field:
        return generator.uniform(low, high, (len(labels), *axes)).astype(np.float32)

    channels = 1 if grey else 3
    line = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    size, turn = drawn(0.5, 0.85, 1, 1), drawn(-0.4, 0.4, 1, 1)
    x, y = line[None, None] - drawn(-0.15, 0.15, 1, 1), line[None, :, None] - drawn(-0.15, 0.15, 1, 1)
    u = (x * np.cos(turn) + y * np.sin(turn)) / size  # (b, side, side), the shape reaches from -1 to 1
    v = (y * np.cos(turn) - x * np.sin(turn)) / size
    away = np.empty_like(u)
    for label in np.unique(labels):
        here = labels == label
        away[here] = _distance(CLASSES[label], u[here], v[here])
    cover = np.clip(0.5 - away * size * (side / 2), 0, 1)  # soft over one pixel

    slope = drawn(-0.25, 0.25, 2, channels, 1, 1)
    ground = drawn(0.1, 0.5, channels, 1, 1) + slope[:, 0] * line[:, None] + slope[:, 1] * line
    colour = ground + drawn(0.15, 0.5, 1, 1, 1) * drawn(0.4, 1.0, channels, 1, 1)
    angle, place, width = drawn(0, np.pi, 1, 1), drawn(-0.8, 0.8, 1, 1), drawn(0.03, 0.15, 1, 1)
    bar = np.abs(line * np.cos(angle) + line[:, None] * np.sin(angle) - place) < width
    picture = np.where(bar[:, None], drawn(0, 1, channels, 1, 1), ground + cover[:, None] * (colour - ground))
    picture = picture + drawn(0.03, 0.15, 1, 1, 1) * generator.standard_normal(picture.shape, np.float32)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _distance(name: str, u: Field, v: Field) -> Field:
    """Return about how far points (u, v) lie outside of a shape of radius 1; inside it is negative."""
    radius, square = np.hypot(u, v), np.maximum(np.abs(u), np.abs(v))
    match name:
        case "disc":
            return radius - 0.8
        case "ring":
            return np.abs(radius - 0.68) - 0.2
        case "square":
            return square - 0.72
        case "frame":
            return np.abs(square - 0.62) - 0.18
        case "triangle":
            return np.maximum(v, np.abs(u) * 0.87 - v * 0.5) - 0.5
        case "cross":
            return np.maximum(square - 0.85, np.minimum(np.abs(u), np.abs(v)) - 0.25)
        case "star":
            return (radius - 0.62 - 0.3 * np.cos(5 * np.arctan2(u, v))) * 0.6
        case "bars":
            return np.maximum(np.abs(u) - 0.85, np.abs(np.abs(v) - 0.5) - 0.22)
        case "half":
            return np.maximum(radius - 0.85, v)
        case _:
            return np.maximum(radius - 0.85, 0.7 - np.hypot(u - 0.35, v))
