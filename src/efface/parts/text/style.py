"""Say how a text looks: size, colours, outline, shadow, opacity, softness, bend; and draw such looks at random."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Colour = tuple[float, float, float]

BLACK: Colour = (0.0, 0.0, 0.0)
WHITE: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Style:
    """Look of one text. Lengths are in pixels, angles in degrees, colours and shares in [0, 1]."""

    size: float = 24.0
    """Pixels per em."""
    colour: Colour = WHITE
    gradient: Colour | None = None
    """Colour at the foot of the text, towards which ``colour`` runs."""
    opacity: float = 1.0
    """Share of the whole text, outline and shadow with it, that covers the picture."""
    feather: float = 0.0
    """Sigma of the blur of letters and outline."""
    poisson: bool = False
    """Blend gradients instead of colours (Pérez et al. 2003, mixed gradients)."""
    italic: float = 0.0
    """Shear: pixels to the right for each pixel up."""
    curve: float = 0.0
    """Rise of the middle of the baseline over its ends."""
    rotation: float = 0.0
    """Anticlockwise."""
    perspective: float = 0.0
    """Relative difference of scale between the right end and the left end, in (-1, 1)."""
    spacing: float = 0.0
    """Space added after each letter."""
    leading: float = 1.2
    """Distance of baselines, in ems."""
    centred: bool = True
    """Lines are centred on each other; flush left otherwise."""
    outline: int = 0
    """Width of the outline."""
    outline_colour: Colour = BLACK
    shadow: tuple[float, float] | None = None
    """Offset (right, down) of the shadow."""
    shadow_colour: Colour = BLACK
    shadow_blur: float = 0.0
    """Sigma of the shadow's own blur."""
    shadow_alpha: float = 0.7


def random_style(
    generator: Generator, background: NDArray[np.float32], *, sizes: tuple[float, float] = (8, 64)
) -> Style:
    """Return a look as posters, captions, watermarks, memes and signs have it.

    Parameters
    ----------
    generator
        Source of every draw.
    background
        Patch (h, w, 3) in [0, 1] where the text will stand: most texts stand out from it, some hardly do.
    sizes
        Least and greatest size in pixels per em, drawn log-uniformly.
    """
    chance = generator.random
    size = float(np.exp(generator.uniform(*np.log(sizes))))
    back: Colour = tuple(float(c) for c in np.mean(background, axis=(0, 1)))  # type: ignore[assignment]
    outlined, shadowed = chance() < 0.35, chance() < 0.3
    plain = outlined or (shadowed and chance() < 0.5)  # an outline carries letters of any colour
    colour = _colour(generator, back) if plain or chance() < 0.08 else _contrasting(generator, back)
    angle, reach = generator.uniform(0, 2 * np.pi), generator.uniform(1, max(1.5, size / 8))
    warped = chance() < 0.35
    return Style(
        size=size,
        colour=colour,
        gradient=_colour(generator, back) if size > 16 and chance() < 0.1 else None,
        opacity=float(generator.uniform(0.3, 0.9)) if chance() < 0.2 else 1.0,
        feather=float(generator.uniform(0.3, 0.4 + size / 40)) if chance() < 0.25 else 0.0,
        poisson=not outlined and not shadowed and chance() < 0.03,
        italic=float(generator.uniform(0.1, 0.35)) if chance() < 0.12 else 0.0,
        curve=float(generator.uniform(-0.7, 0.7) * size) if warped and chance() < 0.3 else 0.0,
        rotation=_angle(generator) if warped else 0.0,
        perspective=float(generator.uniform(-0.4, 0.4)) if warped and chance() < 0.4 else 0.0,
        spacing=float(generator.uniform(0, 0.3) * size) if chance() < 0.12 else 0.0,
        leading=float(generator.uniform(1.0, 1.5)),
        centred=chance() < 0.7,
        outline=int(generator.integers(1, 2 + int(size / 12))) if outlined else 0,
        outline_colour=_opposite(colour) if chance() < 0.7 else _colour(generator, back),
        shadow=(float(reach * np.cos(angle)), float(reach * np.sin(angle))) if shadowed else None,
        shadow_colour=BLACK if chance() < 0.7 else _colour(generator, back),
        shadow_blur=float(generator.uniform(0.5, 1 + size / 12)) if chance() < 0.6 else 0.0,
        shadow_alpha=float(generator.uniform(0.3, 1)),
    )


def rarer(generator: Generator, style: Style) -> Style:
    """Return ``style`` as few texts have it: it glows, or is faint, or as soft as what is out of focus."""
    kind = generator.integers(3)
    if kind == 0:
        colour = style.colour if generator.random() < 0.5 else _colour(generator, style.colour)
        blur, alpha = generator.uniform((1.5, 0.5), (2 + style.size / 6, 1.0))
        return replace(
            style, shadow=(0.0, 0.0), shadow_colour=colour, shadow_blur=float(blur), shadow_alpha=float(alpha)
        )
    if kind == 1:
        return replace(style, opacity=float(generator.uniform(0.08, 0.35)))
    return replace(style, feather=float(generator.uniform(0.5, 1 + style.size / 14)))


def luma(colour: Colour) -> float:
    """Return the brightness of a colour (Rec. 601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _opposite(colour: Colour) -> Colour:
    return BLACK if luma(colour) > 0.5 else WHITE


def _colour(generator: Generator, back: Colour) -> Colour:
    kind = generator.random()
    if kind < 0.3:
        return WHITE
    if kind < 0.45:
        return BLACK
    if kind < 0.8:
        hue, saturation, value = generator.uniform((0, 0.4, 0.3), (1, 1, 1))
        return colorsys.hsv_to_rgb(hue, saturation, value)
    if kind < 0.9:
        grey = float(generator.random())
        return (grey, grey, grey)
    r, g, b = np.clip(np.asarray(back) + generator.normal(0, 0.2, 3), 0, 1).tolist()
    return (r, g, b)


def _contrasting(generator: Generator, back: Colour) -> Colour:
    for _ in range(6):
        colour = _colour(generator, back)
        if abs(luma(colour) - luma(back)) > 0.25:
            return colour
    return _opposite(back)


def _angle(generator: Generator) -> float:
    if generator.random() < 0.08:
        return 90.0 if generator.random() < 0.5 else -90.0
    return float(generator.normal(0, 14))
