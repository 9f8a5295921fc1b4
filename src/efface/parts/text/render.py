"""Draw text of any style into a picture, and say exactly which share of each pixel it covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from efface.parts.text.fonts import load_font
from efface.parts.text.style import Colour, Style

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

VISIBLE = 2 / 255
"""Change of a pixel from which on it counts as drawn upon."""
_LEAST = 8  # fewer changed pixels are no text


@dataclass(frozen=True, eq=False)
class Layer:
    """Text alone, before it meets a picture."""

    ink: Array
    """Colour (h, w, 3) of what is drawn, where ``alpha`` is above 0."""
    alpha: Array
    """Coverage (h, w) in [0, 1] by letters, outline and shadow together."""
    style: Style

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.alpha.shape[1], self.alpha.shape[0]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Picture with a text in it. Without Poisson blending ``picture = (1 - alpha) * original + alpha * ink``."""

    picture: Array
    """(h, w, 3) in [0, 1]."""
    alpha: Array
    """(h, w): coverage by everything drawn."""
    ink: Array
    """(h, w, 3): its colour, 0 where nothing is drawn."""
    box: Array
    """(4, 2): corners (x, y) in turn of the least rectangle around the changed pixels; upright if the text is."""
    strokes: Mask
    """(h, w): pixels changed by more than :data:`VISIBLE`."""


def draw(
    picture: NDArray[np.uint8] | Array,
    lines: Sequence[str],
    style: Style,
    *,
    font: Path | None,
    at: tuple[float, float],
) -> Drawn | None:
    """Draw ``lines`` centred on pixel ``at`` (x, y) of ``picture`` (h, w, 3), uint8 or float in [0, 1].

    What stands out of the picture is cut off. Returns None where nothing can be seen: no ink, all of it outside, or its
    colour that of the picture.
    """
    layer = make_layer(lines, style, font=font)
    return None if layer is None else paste(layer, picture, at)


def make_layer(lines: Sequence[str], style: Style, *, font: Path | None) -> Layer | None:
    """Draw ``lines`` on a transparent ground; None where the font leaves no ink."""
    letters = _letters(lines, style, font)
    if letters is None:
        return None
    reach = 0 if style.shadow is None else max(map(abs, style.shadow)) + 3 * style.shadow_blur
    margin = style.outline + int(np.ceil(3 * style.feather + reach)) + 1
    letters = np.pad(_warp(letters, style), margin)
    fill = body = _blur(letters, style.feather)
    if style.outline:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [2 * style.outline + 1] * 2)
        body = _blur(np.asarray(cv2.dilate(letters, disc), np.uint8), style.feather)

    painted: list[tuple[Colour, Array]] = []  # from the ground up
    if style.shadow is not None:
        shift = np.asarray([[1, 0, style.shadow[0]], [0, 1, style.shadow[1]]], np.float32)
        shadow = cv2.warpAffine(_blur(body, style.shadow_blur) * style.shadow_alpha, shift, body.shape[::-1])
        painted.append((style.shadow_colour, np.asarray(shadow, np.float32)))
    if style.outline:
        painted.append((style.outline_colour, body))
    painted.append((style.colour, fill))
    down = np.clip((np.arange(len(fill)) - margin) / max(len(fill) - 2 * margin - 1, 1), 0, 1)
    ink, alpha = _flatten(painted, style.gradient, down.astype(np.float32)[:, None])
    return Layer(ink, alpha * np.float32(style.opacity), style)


def paste(layer: Layer, picture: NDArray[np.uint8] | Array, at: tuple[float, float]) -> Drawn | None:
    """Put ``layer`` on ``picture`` with its centre on ``at`` (x, y); None where nothing can be seen."""
    original = as_float(picture)
    height, width = original.shape[:2]
    left, top = floor(at[0] - layer.size[0] / 2), floor(at[1] - layer.size[1] / 2)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + layer.size[0], width), min(top + layer.size[1], height)
    if x0 >= x1 or y0 >= y1:
        return None
    here, there = np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha, ink = layer.alpha[there], layer.ink[there]
    before = original[here]
    blend = _poisson if layer.style.poisson else _cover
    after = blend(before, ink, alpha)
    strokes = cv2.inRange(cv2.absdiff(after, before), (0, 0, 0), (VISIBLE, VISIBLE, VISIBLE)) == 0
    if np.count_nonzero(strokes) < _LEAST:
        return None
    upright = not (layer.style.rotation or layer.style.perspective)
    box = _box(strokes, upright=upright) + np.asarray((x0, y0), np.float32)

    out = Drawn(
        picture=original.copy(),
        alpha=np.zeros((height, width), np.float32),
        ink=np.zeros((height, width, 3), np.float32),
        box=box,
        strokes=np.zeros((height, width), bool),
    )
    out.picture[here], out.alpha[here], out.strokes[here] = after, alpha, strokes
    out.ink[here] = ink * (alpha > 0)[..., None]
    return out


def as_float(picture: NDArray[np.uint8] | Array) -> Array:
    """Return the picture as float32 in [0, 1]."""
    levels = np.asarray(picture, np.float32)
    return levels / np.float32(255) if picture.dtype == np.uint8 else levels


def _letters(lines: Sequence[str], style: Style, font: Path | None) -> NDArray[np.uint8] | None:
    """Return the coverage of the letters alone, cut to their ink."""
    face = load_font(font, style.size)
    widths = [face.getlength(line) + style.spacing * len(line) for line in lines]
    if not widths or max(widths) < 1:
        return None
    step, border = style.leading * style.size, int(style.size) + 1  # ink may leave its advance box by up to an em
    page = Image.new("L", (int(max(widths)) + 2 * border, int(step * (len(lines) - 1)) + 3 * border))
    pen = ImageDraw.Draw(page)
    for row, (line, width) in enumerate(zip(lines, widths, strict=True)):
        x = border + (max(widths) - width) / 2 * style.centred
        y = 2 * border + row * step
        for run in line if style.spacing else [line]:
            pen.text((x, y), run, fill=255, font=face, anchor="ls")
            x += face.getlength(run) + style.spacing
    ink = page.getbbox()
    return None if ink is None else np.asarray(page.crop(ink))


def _warp(letters: NDArray[np.uint8], style: Style) -> NDArray[np.uint8]:
    """Bend, shear, tilt and turn a coverage map, into the smallest rectangle that holds the result."""
    if not (style.curve or style.italic or style.rotation or style.perspective):
        return letters
    height, width = letters.shape
    turn = np.deg2rad(style.rotation)
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = (
        np.asarray([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        @ np.asarray([[1, 0, 0], [0, 1, 0], [-style.perspective / width, 0, 1]])
        @ np.asarray([[1, -style.italic, 0], [0, 1, 0], [0, 0, 1]])
    )
    half_width, half_height = width / 2 + 1, height / 2 + 1
    high = half_height + max(style.curve, 0)
    low = half_height + max(-style.curve, 0)
    corners = [[[-half_width, -high], [half_width, -high], [half_width, low], [-half_width, low]]]
    places = cv2.perspectiveTransform(np.asarray(corners, np.float64), matrix)[0]
    (x0, y0), (x1, y1) = np.floor(places.min(0)), np.ceil(places.max(0))
    x, y = np.meshgrid(np.arange(x0, x1 + 1), np.arange(y0, y1 + 1))
    back = np.linalg.inv(matrix)
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in back)
    u, v = u / w, v / w
    v = v + style.curve * np.maximum(1 - (2 * u / width) ** 2, 0)
    maps = (u + width / 2 - 0.5).astype(np.float32), (v + height / 2 - 0.5).astype(np.float32)
    return np.asarray(cv2.remap(letters, *maps, cv2.INTER_LINEAR), np.uint8)


def _blur(coverage: NDArray[np.uint8] | Array, sigma: float) -> Array:
    soft = as_float(coverage)
    return np.asarray(cv2.GaussianBlur(soft, (0, 0), sigma) if sigma > 0 else soft, np.float32)


def _flatten(painted: Sequence[tuple[Colour, Array]], gradient: Colour | None, down: Array) -> tuple[Array, Array]:
    """Lay colours over each other by their coverage ("over", Porter and Duff 1984); return colour and coverage.

    The topmost turns into ``gradient`` as ``down`` (h, 1) goes from 0 to 1. Its share is worked out first and what it
    leaves is for those below it, so that all but the last step has one channel, not three.
    """
    colour, cover = painted[-1]
    shares, colours = [cover], [colour]
    if gradient is not None:
        shares, colours = [cover * (1 - down), cover * down], [colour, gradient]
    left = 1 - cover
    for colour, cover in painted[-2::-1]:
        shares.append(left * cover)
        colours.append(colour)
        left = left * (1 - cover)
    alpha = 1 - left
    ink = np.stack(shares, axis=2) @ np.asarray(colours, np.float32)
    ink /= np.maximum(alpha, 1e-6)[..., None]
    return ink, alpha


def _cover(before: Array, ink: Array, alpha: Array) -> Array:
    return before + alpha[..., None] * (ink - before)


def _poisson(before: Array, ink: Array, alpha: Array) -> Array:
    """Return the picture whose gradient is at each pixel the stronger of the picture's and the text's.

    Solved with the picture's own values around the patch (Pérez, Gangnet and Blake 2003, eq. 12) by the sine transform,
    in which the Laplacian is diagonal.
    """
    ground = before.mean(axis=(0, 1))
    framed = np.pad(before, ((1, 1), (1, 1), (0, 0)), mode="edge")
    written = np.pad(_cover(np.broadcast_to(ground, before.shape), ink, alpha), ((1, 1), (1, 1), (0, 0)), mode="edge")
    flow = [
        np.where(np.abs(b) > np.abs(a), b, a)
        for a, b in ((np.diff(framed, axis=i), np.diff(written, axis=i)) for i in (0, 1))
    ]
    wanted = np.diff(flow[0], axis=0)[:, 1:-1] + np.diff(flow[1], axis=1)[1:-1]
    own = np.diff(framed, 2, axis=0)[:, 1:-1] + np.diff(framed, 2, axis=1)[1:-1]
    height, width = alpha.shape
    down = 2 * np.cos(np.pi * np.arange(1, height + 1) / (height + 1)) - 2
    across = 2 * np.cos(np.pi * np.arange(1, width + 1) / (width + 1)) - 2
    spectrum = _sine_transform(wanted - own) / (down[:, None] + across)[..., None]
    change = _sine_transform(spectrum) * (4 / ((height + 1) * (width + 1)))
    return np.clip(before + change, 0, 1).astype(np.float32)


def _sine_transform(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the discrete sine transform (type I) of ``x`` (h, w, c) over height and width."""
    for axis, length in enumerate(x.shape[:2]):
        order = np.arange(1, length + 1)
        x = np.moveaxis(np.tensordot(np.sin(np.pi * np.outer(order, order) / (length + 1)), x, (1, axis)), 0, axis)
    return x


def _box(strokes: Mask, *, upright: bool) -> Array:
    points = cv2.findNonZero(strokes.astype(np.uint8))
    if upright:
        left, top, across, down = cv2.boundingRect(points)
        right, foot = left + across, top + down
        return np.asarray([[left, top], [right, top], [right, foot], [left, foot]], np.float32)
    (x, y), (width, height), angle = cv2.minAreaRect(cv2.convexHull(points))  # around the centres of pixels
    return np.asarray(cv2.boxPoints(((x + 0.5, y + 0.5), (width + 1, height + 1), angle)), np.float32)
