"""Describe the looks that a policy may give to text as decisions with options, some of which depend on others.

Source: the 18 decisions of STE (arXiv:2204.12743).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.errors import UnknownNameError, UsageError
from efface.parts.text.style import BLACK, WHITE, Colour, Style, luma

Actions = NDArray[np.int64]

ON = 1
"""Option of a parent under which its children count."""
ART_FROM = 20
"""Letters of at most this many pixels take neither outline nor shadow, and are not copied."""
STROKES = (2, 5, 7, 9)
DISTANCES = ((1, 3), (3, 5), (5, 7), (7, 9))
BLURS = (0, 6, 9, 12, 15)
"""Widths of the blur kernels, six times their sigma."""
ALPHAS = (1.0, 0.9, 0.7, 0.5, 0.3)


@dataclass(frozen=True)
class Decision:
    """A choice among ``options``, which counts only where the switch ``parent`` counts and is on."""

    name: str
    options: int
    parent: str | None = None
    default: int = 0
    """Option taken where the decision is not left to the policy."""


DECISIONS = (
    Decision("source", 2, default=ON),  # copied from the picture, or drawn
    Decision("font", 12, "source"),
    Decision("colour", 3, "source"),  # of the palette
    Decision("size", 3, "source", default=1),  # smaller, as it is, larger
    Decision("feather", 4, "source"),
    Decision("poisson", 2, "source"),
    Decision("italic", 2, "source"),
    Decision("curve", 2, "source"),
    Decision("art", 2, "source", default=ON),
    Decision("stroke", 2, "art"),
    Decision("stroke_width", len(STROKES), "stroke"),
    Decision("stroke_colour", 3, "stroke"),  # black or white, random, mixed with the background
    Decision("shadow", 2, "art"),
    Decision("direction", 8, "shadow"),  # up, then clockwise
    Decision("distance", len(DISTANCES), "shadow"),
    Decision("shadow_colour", 3, "shadow"),  # black, random, dark background
    Decision("blur", len(BLURS), "shadow"),
    Decision("alpha", len(ALPHAS), "shadow"),
)
NAMES = tuple(d.name for d in DECISIONS)


@dataclass(frozen=True)
class Context:
    """What a style takes from the place it is for: letter size in pixels per em, colours to write in, background."""

    size: float
    palette: Sequence[Colour]
    background: Colour


@dataclass(frozen=True)
class StyleSpace:
    """The decisions called ``names``; every other one keeps its default.

    Lengths are those of 768 x 512 posters times ``scale``. Unknown names, and decisions under a switch that stays off,
    are a :class:`UsageError`.
    """

    names: tuple[str, ...] = NAMES
    scale: float = 1.0
    decisions: tuple[Decision, ...] = field(init=False)
    """The decisions in play, parents before children."""

    def __post_init__(self) -> None:
        known = {d.name: d for d in DECISIONS}
        for name in self.names:
            if name not in known:
                raise UnknownNameError("decision", name, known)
            parent = known[name].parent
            while parent is not None:
                if parent not in self.names and known[parent].default != ON:
                    raise UsageError(f"{name!r} never counts without {parent!r}", fix="Add the switch to the decisions")
                parent = known[parent].parent
        object.__setattr__(self, "decisions", tuple(d for d in DECISIONS if d.name in self.names))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each decision in play."""
        return tuple(d.options for d in self.decisions)

    def counts(self, actions: Actions) -> NDArray[np.float32]:
        """Return (n, k) with 1 where a decision of ``actions`` (n, k) counts, 0 where a switch above it is off."""
        options = {d.name: column for d, column in zip(self.decisions, actions.T, strict=True)}
        options = {d.name: options.get(d.name, np.full(len(actions), d.default)) for d in DECISIONS}
        counting: dict[str, NDArray[np.bool_]] = {}
        for d in DECISIONS:
            counting[d.name] = (
                np.ones(len(actions), bool) if d.parent is None else counting[d.parent] & (options[d.parent] == ON)
            )
        return np.stack([counting[d.name] for d in self.decisions], 1).astype(np.float32)

    def random(self, n: int, generator: Generator) -> Actions:
        """Return ``n`` actions, every option of a decision as likely."""
        return generator.integers(self.sizes, size=(n, len(self.sizes)))

    def options(self, action: Actions) -> dict[str, int]:
        """Return the option of every decision, in play or not, for one action (k,)."""
        chosen = dict(zip((d.name for d in self.decisions), map(int, action), strict=True))
        return {d.name: chosen.get(d.name, d.default) for d in DECISIONS}

    def copies(self, action: Actions, size: float) -> bool:
        """Return whether an action copies letters of ``size`` instead of drawing them."""
        return self.options(action)["source"] != ON and size > ART_FROM * self.scale

    def style(self, action: Actions, context: Context, generator: Generator) -> Style:
        """Return the look that ``action`` stands for; what it leaves open is drawn from ``generator``."""
        o, scale, background = self.options(action), self.scale, np.asarray(context.background)
        colour = context.palette[min(o["colour"], len(context.palette) - 1)]
        step = (-1, 0, 1)[o["size"]] * (3 + generator.uniform(0, 12)) * scale
        size = max(9, 9 * scale, context.size + step)
        art = o["art"] == ON and size > ART_FROM * scale
        stroke, shadow = art and o["stroke"] == ON, art and o["shadow"] == ON
        turn = np.pi / 4 * (o["direction"] + generator.uniform(-0.5, 0.5))
        reach = generator.uniform(*DISTANCES[o["distance"]]) * scale
        contrast = WHITE if luma(colour) < 128 / 255 else BLACK
        mixed = 0.3 * np.asarray(colour) + 0.7 * background
        random = _colour(generator.random(3))
        return Style(
            size=round(size),
            colour=colour,
            feather=_feather(o["feather"], generator),
            poisson=o["poisson"] == ON,
            italic=0.21 if o["italic"] == ON else 0.0,
            curve=float(generator.choice([-1, 1]) * generator.uniform(0.3, 0.7) * size) if o["curve"] == ON else 0.0,
            outline=max(1, round(STROKES[o["stroke_width"]] * scale)) if stroke else 0,
            outline_colour=(contrast, random, _colour(mixed))[o["stroke_colour"]],
            shadow=(float(np.sin(turn) * reach), float(-np.cos(turn) * reach)) if shadow else None,
            shadow_colour=(BLACK, random, _colour(0.35 * background))[o["shadow_colour"]],
            shadow_blur=BLURS[o["blur"]] / 6 * scale,
            shadow_alpha=ALPHAS[o["alpha"]],
        )


def _feather(level: int, generator: Generator) -> float:
    """Return the sigma of a level of softness."""
    noise = generator.normal()
    return (0.0, 0.25, max(0.3, 0.5 + 0.1 * noise), max(0.5, 1.5 + 0.5 * noise))[level]


def _colour(values: NDArray[np.float64]) -> Colour:
    r, g, b = values.tolist()
    return (r, g, b)
