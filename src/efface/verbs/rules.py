"""Say what is taken out of pictures, what stays, and how."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.core.catalogue import entry
from efface.errors import UnknownNameError, UsageError
from efface.parts import masks
from efface.parts.text.detect import TextBox

REMOVABLE = ("text",)
PRESETS = {"fast": "strokefill", "default": "strokefill", "best": "strokefill"}
"""Which method each quality means; measured in benchmarks/erasing.py."""
GROW_MOST, FEATHER_MOST = 1000, 100
"""Pixels by which a mask may be widened, and over which a result may fade."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What to take out of a picture, what to leave, and how: the same for one picture and for a thousand."""

    remove: str = "text"
    """What is looked for where none of ``mask``, ``boxes`` and ``polygons`` are given."""
    mask: Any = None
    """Picture (path, PIL image, array, tensor) of the same size: what is at least half white is taken away. One that
    covers all of the picture is allowed, and then a method has nothing to go by but what shows between the strokes."""
    boxes: Sequence[str | Sequence[int]] = ()
    """Rectangles to take away: ``(x, y, w, h)`` or ``"x,y,w,h"`` in pixels."""
    polygons: Sequence[Any] | None = None
    """Outlines of texts to take away: (n, 2) corners x and y in pixels. None: nobody chose any."""
    keep: Sequence[str | Sequence[int]] = ()
    """What stays: rectangles, in which no pixel changes, or regular expressions on the words found. Text stays whole
    where its middle lies in such a rectangle."""
    only: str | None = None
    """Regular expression: of the text found, take only what matches."""
    min_confidence: float = 0.5
    """Text that was read with less confidence stays; it mostly is none."""
    grow: int | None = None
    """Pixels by which the mask is widened. None: for outlines of text at least 2, or 0.5 % of the shorter side."""
    feather: int = 2
    """Pixels over which the result fades into the picture around the mask."""
    quality: str = "default"
    """``fast``, ``default`` or ``best``, where no method is named."""
    method: str | None = None
    iterations: int | None = None
    """Refinements of an iterative method. None: as many as its weights were trained for."""
    weights: str | Path | None = None
    memory: int = 2_000_000_000
    """Bytes that the whole process may use, about."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.remove not in REMOVABLE:
            raise UnknownNameError("thing to remove", self.remove, REMOVABLE)
        if self.quality not in PRESETS:
            raise UnknownNameError("quality", self.quality, PRESETS)
        for name, most in (("grow", GROW_MOST), ("feather", FEATHER_MOST)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise UsageError(f"{value} px is outside 0 to {most}", where=name)
        if not 0 <= self.min_confidence <= 1:
            raise UsageError(f"{self.min_confidence} is outside 0 to 1", where="confidence")
        if self.iterations is not None and self.iterations < 1:
            raise UsageError(f"{self.iterations} iterations do nothing", where="iterations", fix="Give 1 or more")
        if self.method is not None:
            entry(self.method)
        for box in (*self.boxes, *self.regions):
            as_box(box)
        for pattern in (self.only, *self._patterns):
            try:
                re.compile(pattern or "")
            except (re.error, OverflowError, RecursionError) as error:
                what = f"{pattern!r} is not a regular expression: {error}"
                raise UsageError(what, where="only or keep") from error

    @property
    def regions(self) -> list[masks.Box]:
        """The rectangles among ``keep``."""
        return [as_box(item) for item in self.keep if is_box(item)]

    @property
    def _patterns(self) -> list[str]:
        return [str(item) for item in self.keep if not is_box(item)]

    @property
    def network(self) -> tuple[str | None, str | None, str]:
        """Method, weights and device as :func:`efface.core.trained.load` takes them."""
        weights = None if self.weights is None else str(self.weights)
        method = self.method or (PRESETS[self.quality] if weights is None else None)
        return method, weights, self.device

    @property
    def searches(self) -> bool:
        """Whether text is looked for: nobody said where it is."""
        return self.mask is None and not self.boxes and self.polygons is None

    def choose(self, box: TextBox) -> str:
        """Say why the text in ``box`` stays; an empty answer means that it goes."""
        x, y = box.polygon.mean(0)
        if box.confidence < self.min_confidence:
            return "confidence too low"
        if any(bx <= x < bx + w and by <= y < by + h for bx, by, w, h in self.regions):
            return "in a region to keep"
        if any(re.search(pattern, box.words) for pattern in self._patterns):
            return "words to keep"
        if self.only is not None and not re.search(self.only, box.words):
            return "other words"
        return ""


def is_box(item: str | Sequence[int]) -> bool:
    """Return whether ``item`` is meant as a rectangle, not as a pattern of words."""
    return not isinstance(item, str) or re.fullmatch(r"\s*\d+(\s*,\s*\d+){3}\s*", item) is not None


def as_box(item: str | Sequence[int]) -> masks.Box:
    """Read a rectangle ``(x, y, w, h)`` or ``"x,y,w,h"``; any other form is a :class:`UsageError`."""
    return masks.parse_box(item if isinstance(item, str) else ",".join(map(str, item)))
