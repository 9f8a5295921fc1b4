"""Draw scenes of a small procedural world, with everything that is known about them.

A scene is one shape, or two alike, in a colour, on a background, in a style, at a position. The factors are
independent, so that each can be taken out of a generator while the others are watched. ``half moon`` is a concept of
two words; ``square`` and ``diamond``, ``circle`` and ``ring`` are near neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.errors import UsageError
from efface.seeds import numpy_generator

SIDE = 32
"""Height and width of the pictures in pixels."""
SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "half moon")
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.12, 0.25, 0.90),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.15, 0.70),
    "orange": (1.00, 0.50, 0.05),
}
BACKGROUNDS = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.50, 0.50, 0.50),
    "pink": (1.00, 0.72, 0.80),
}
STYLES = ("plain", "outlined", "striped", "blurry", "noisy")
COUNTS = ("one", "two")
POSITIONS = {"centre": (0.0, 0.0), "left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}
"""Where the scene lies; two shapes are always side by side in the centre."""
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "style": STYLES,
    "count": COUNTS,
    "position": tuple(POSITIONS),
}
"""The values that each factor of a scene can take."""
LARGEST = 11.0  # radius in pixels of the nearest shape

Field = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scene:
    """What a picture shows. ``seed`` draws what has no name: size, turn, shade, grain and small shifts."""

    shape: str = "circle"
    colour: str = "red"
    background: str = "white"
    style: str = "plain"
    count: str = "one"
    position: str = "centre"
    seed: int = 0

    def __post_init__(self) -> None:
        for factor, values in FACTORS.items():
            if getattr(self, factor) not in values:
                what = f"{getattr(self, factor)!r} is no {factor} of this world"
                raise UsageError(what, where=f"scene.{factor}", fix=f"Use {', '.join(values)}")
        if self.count == "two" and self.position != "centre":
            raise UsageError("two shapes are always in the centre", where="scene.position", fix='Use "centre"')

    def labels(self) -> dict[str, int]:
        """Return the number of each factor's value in :data:`FACTORS`."""
        return {factor: values.index(getattr(self, factor)) for factor, values in FACTORS.items()}


@dataclass(frozen=True)
class View:
    """Scenes as drawn; every array is float32."""

    picture: Field
    """(b, 3, h, w) in [0, 1]."""
    mask: Field
    """(b, 1, h, w): share of each pixel that shapes cover."""
    depth: Field
    """(b, 1, h, w): nearness, 0 for the background and 1 for the largest shape, for size is all that tells it."""
    edges: Field
    """(b, 1, h, w): how near the rim of a shape passes, 1 on it and 0 from a pixel away."""
    boxes: Field
    """(b, 2, 4): left, top, right, bottom of each shape in [0, 1]; zeros where there is no second one."""


def scenes(count: int, generator: Generator) -> list[Scene]:
    """Draw ``count`` scenes: every factor uniform, but for the position of two shapes."""
    drawn = []
    for _ in range(count):
        values = {factor: values[generator.integers(len(values))] for factor, values in FACTORS.items()}
        if values["count"] == "two":
            values["position"] = "centre"
        drawn.append(Scene(**values, seed=int(generator.integers(2**31))))
    return drawn


def render(scenes: Sequence[Scene]) -> View:
    """Draw ``scenes``; each picture depends on its scene alone."""
    views = [_draw(scene) for scene in scenes]
    return View(*(np.stack([view[i] for view in views]) for i in range(5)))


def _draw(scene: Scene) -> tuple[Field, ...]:
    generator = numpy_generator(scene.seed, "scene")
    near, size, turn, *shades = generator.uniform(-1, 1, 5)
    shifts = generator.uniform(-0.7, 0.7, (2, 2))
    away, boxes, radius = _distance(scene, near, size, turn * 0.12, shifts)
    cover = np.clip(0.5 - away, 0, 1)
    colour = np.clip(np.array(COLOURS[scene.colour]) * (1 + 0.06 * shades[0]), 0, 1)
    ground = np.clip(np.array(BACKGROUNDS[scene.background]) * (1 + 0.06 * shades[1]), 0, 1)
    picture = _paint(scene.style, away, cover, colour, ground, generator)
    edges = np.clip(1 - np.abs(away), 0, 1)
    depth = cover * (radius / LARGEST)
    single = [np.asarray(field, dtype=np.float32)[None] for field in (cover, depth, edges)]
    return picture.astype(np.float32), *single, boxes


def _distance(scene: Scene, near: float, size: float, turn: float, shifts: Field) -> tuple[Field, Field, float]:
    """Return how many pixels each pixel lies outside of the nearest shape, the shapes' boxes, and their radius."""
    line = np.arange(SIDE) + 0.5 - SIDE / 2
    if scene.count == "two":
        radius = 6.9 + 0.6 * size
        centres = [(-7.9, 0.0), (7.9, 0.0)]
        centres = [(x, 4.0 * near * (1 if x < 0 else -1)) for x, _ in centres]
    else:
        x, y = POSITIONS[scene.position]
        radius = 9.8 + 1.2 * size if scene.position == "centre" else 7.8 + 0.7 * size
        centres = [(7.3 * x, 7.3 * y)]
    away, boxes = np.full((SIDE, SIDE), np.inf), np.zeros((2, 4), np.float32)
    for i, ((cx, cy), shift) in enumerate(zip(centres, shifts, strict=False)):
        x, y = line - cx - shift[0], line[:, None] - cy - shift[1]
        mine = signed_distance(
            scene.shape, x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn), radius
        )
        ys, xs = np.nonzero(mine < 0.5)
        boxes[i] = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / SIDE
        away = np.minimum(away, mine)
    return away, boxes, radius


def _paint(style: str, away: Field, cover: Field, colour: Field, ground: Field, generator: Generator) -> Field:
    colours, grounds = colour[:, None, None], ground[:, None, None]
    if style == "outlined":
        cover = np.minimum(cover, np.clip(away + 2.1, 0, 1))  # a line of 1.6 pixels
    if style == "striped":
        stripes = (np.arange(SIDE) // 2 % 2)[:, None]
        colours = np.where(stripes, colours, 0.25 * colours + 0.75 * grounds)
    if style == "blurry":
        ramp = np.clip(0.5 - away / 8, 0, 1)
        cover = ramp * ramp * (3 - 2 * ramp)
    picture = grounds + cover * (colours - grounds)
    if style == "noisy":
        grain = generator.normal(0, 0.14, (SIDE // 2, SIDE // 2)).repeat(2, 0).repeat(2, 1)
        picture = picture + grain
    return np.clip(picture, 0, 1)


def signed_distance(shape: str, u: Field, v: Field, radius: float) -> Field:
    """Return about how far the points (u, v) lie outside of a shape about the origin; inside it is negative."""
    reach, a, b = np.hypot(u, v), np.abs(u), np.abs(v)
    match shape:
        case "circle":
            return reach - 0.95 * radius
        case "square":
            return np.maximum(a, b) - 0.82 * radius
        case "triangle":
            v = v - 0.2 * radius  # its middle is above its centroid
            return np.maximum(v - 0.55 * radius, 0.866 * a - 0.5 * v - 0.55 * radius)
        case "diamond":
            return (a + b) * 0.7071 - 0.74 * radius
        case "star":
            turned = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
            along, across = reach * np.cos(turned), reach * np.sin(turned)
            tip, waist = 1.08 * radius, 0.46 * radius
            dx, dy = waist * np.cos(np.pi / 5) - tip, waist * np.sin(np.pi / 5)
            return ((along - tip) * dy - across * dx) / np.hypot(dx, dy)
        case "ring":
            return np.abs(reach - 0.70 * radius) - 0.25 * radius
        case "cross":
            return np.maximum(np.maximum(a, b) - radius, np.minimum(a, b) - 0.30 * radius)
        case _:
            u = u + 0.4 * radius
            return np.maximum(np.hypot(u, v) - radius, -u)
