"""Draw text of any style into a picture, and say exactly which share of each pixel it covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from efface.parts.text.fonts import load_font
from efface.parts.text.style import Style

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
    """(4, 2): corners (x, y), clockwise, of the smallest rectangle around the visible text; upright if the text is."""
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
    letters = cv2.copyMakeBorder(_warp(letters, style), *[margin] * 4, cv2.BORDER_CONSTANT, value=0)
    body = letters
    if style.outline:
        body = cv2.dilate(letters, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, [2 * style.outline + 1] * 2))
    fill = _blur(letters, style.feather)
    body = _blur(body, style.feather) if style.outline else fill

    ink, alpha = np.zeros((*fill.shape, 3), np.float32), np.zeros_like(fill)
    if style.shadow is not None:
        shift = np.asarray([[1, 0, style.shadow[0]], [0, 1, style.shadow[1]]], np.float32)
        shadow = cv2.warpAffine(_blur(body, style.shadow_blur), shift, body.shape[::-1]) * style.shadow_alpha
        ink, alpha = _over(ink, alpha, style.shadow_colour, shadow)
    if style.outline:
        ink, alpha = _over(ink, alpha, style.outline_colour, body)
    ink, alpha = _over(ink, alpha, _fill_colour(style, fill), fill)
    return Layer(ink / np.maximum(alpha, 1e-6)[..., None], alpha * np.float32(style.opacity), style)


def paste(layer: Layer, picture: NDArray[np.uint8] | Array, at: tuple[float, float]) -> Drawn | None:
    """Put ``layer`` on ``picture`` with its centre on ``at`` (x, y); None where nothing can be seen."""
    original = as_float(picture)
    height, width = original.shape[:2]
    left, top = round(at[0] - layer.size[0] / 2), round(at[1] - layer.size[1] / 2)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + layer.size[0], width), min(top + layer.size[1], height)
    if x0 >= x1 or y0 >= y1:
        return None
    here, there = np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha, ink = layer.alpha[there], layer.ink[there]
    before = original[here]
    blend = _poisson if layer.style.poisson else _cover
    after = blend(before, ink, alpha)
    strokes = np.abs(after - before).max(axis=2) > VISIBLE
    if np.count_nonzero(strokes) < _LEAST:
        return None
    box = _box(strokes, upright=not (layer.style.rotation or layer.style.perspective)) + np.float32((x0, y0))

    out = Drawn(original.copy(), *_blank(height, width), box, np.zeros((height, width), bool))
    out.picture[here], out.alpha[here], out.strokes[here] = after, alpha, strokes
    out.ink[here] = ink * (alpha > 0)[..., None]
    return out


def as_float(picture: NDArray[np.uint8] | Array) -> Array:
    """Return the picture as float32 in [0, 1]."""
    return picture.astype(np.float32) / np.float32(255) if picture.dtype == np.uint8 else np.asarray(picture, np.float32)


def _blank(height: int, width: int) -> tuple[Array, Array]:
    return np.zeros((height, width), np.float32), np.zeros((height, width, 3), np.float32)


def _letters(lines: Sequence[str], style: Style, font: Path | None) -> NDArray[np.uint8] | None:
    """Return the coverage of the letters alone, cut to their ink."""
    face = load_font(font, style.size)
    widths = [face.getlength(line) + style.spacing * len(line) for line in lines]
    if not widths or max(widths) < 1:
        return None
    step, border = style.leading * style.size, style.size  # ink may leave its advance box by up to an em
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
    return cv2.remap(letters, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _blur(coverage: NDArray[np.uint8] | Array, sigma: float) -> Array:
    soft = coverage.astype(np.float32) / 255 if coverage.dtype == np.uint8 else coverage
    return cv2.GaussianBlur(soft, (0, 0), sigma) if sigma > 0 else soft


def _fill_colour(style: Style, fill: Array) -> Array:
    """Return the colour of the letters: (3,), or (h, 1, 3) for a gradient."""
    if style.gradient is None:
        return np.asarray(style.colour, np.float32)
    run = np.linspace(0, 1, fill.shape[0], dtype=np.float32)[:, None, None]
    return (1 - run) * np.asarray(style.colour, np.float32) + run * np.asarray(style.gradient, np.float32)


def _over(ink: Array, alpha: Array, colour: Sequence[float] | Array, cover: Array) -> tuple[Array, Array]:
    """Lay a ``colour`` of coverage ``cover`` over premultiplied ``ink`` (Porter and Duff 1984, "over")."""
    left = 1 - cover
    return ink * left[..., None] + np.asarray(colour, np.float32) * cover[..., None], alpha * left + cover


def _cover(before: Array, ink: Array, alpha: Array) -> Array:
    return before + alpha[..., None] * (ink - before)


def _poisson(before: Array, ink: Array, alpha: Array) -> Array:
    return _cover(before, ink, alpha)


def _box(strokes: Mask, *, upright: bool) -> Array:
    points = cv2.findNonZero(strokes.astype(np.uint8))
    if upright:
        x, y, width, height = cv2.boundingRect(points)
        return np.asarray([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32)
    return cv2.boxPoints(cv2.minAreaRect(cv2.convexHull(points))).astype(np.float32)
