"""Say what is taken out of pictures, what stays, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efface.core.catalogue import Entry, entries, entry
from efface.errors import UnknownNameError, UsageError
from efface.io.images import MAX_PIXELS
from efface.parts import masks
from efface.parts.text.detect import TextBox
from efface.parts.units import parse_bytes

REMOVABLE = ("text",)
PRESETS = {"fast": "strokefill", "default": "strokefill", "best": "strokefill"}
"""Which method each quality means; measured in benchmarks/erasing.py."""
GROW_MOST, FEATHER_MOST = 1000, 100
"""Pixels by which a mask may be widened, and over which a result may fade."""
Places = Sequence[str | int | Sequence[int]] | NDArray[np.integer]
"""Rectangles, ``(x, y, w, h)`` or ``"x,y,w,h"`` in pixels each, also as an array (n, 4); or one of them alone."""
_NUMBERS = r"[-+.,;:px()\[\]\s\d]*"
_KINDS: dict[str, tuple[type | tuple[type, ...], type, str]] = {
    "Path": ((Path, str), Path, "a path"),
    "str": (str, str, "a text"),
    "int": (Integral, int, "a whole number"),
    "float": (Real, float, "a number"),
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What to take out of a picture, what to leave, and how: the same for one picture and for a thousand."""

    remove: str = "text"
    """What is looked for where none of ``mask``, ``boxes`` and ``polygons`` are given."""
    mask: Any = None
    """Picture (path, PIL image, array, tensor) of the same size: what is at least half white is taken away. One that
    covers all of the picture is allowed, and then a method has nothing to go by but what shows between the strokes."""
    boxes: Places = ()
    """Rectangles to take away: ``(x, y, w, h)`` or ``"x,y,w,h"`` in pixels; one or several."""
    polygons: Sequence[Any] | None = None
    """Outlines of texts to take away: (n, 2) corners x and y in pixels. None: nobody chose any."""
    keep: Places = ()
    """What stays: rectangles, in which no pixel changes, or regular expressions on the words found; one or several.
    Text stays whole where its middle lies in such a rectangle, which may reach out of the picture."""
    only: str | None = None
    """Regular expression: of the text found, take only what matches."""
    min_confidence: float = 0.5
    """Text that was read with less confidence stays; it mostly is none. This and words choose among text that was
    found: none of them goes with a mask or boxes."""
    grow: int | None = None
    """Pixels by which the mask is widened. None: for outlines of text at least 2, or 0.5 % of the shorter side."""
    feather: int = 2
    """Pixels over which the result fades into the picture around the mask."""
    quality: str = "default"
    """``fast``, ``default`` or ``best``, where no method is named."""
    method: str | None = None
    iterations: int | None = None
    """Refinements of an iterative method. None: as many as its weights were trained for."""
    weights: Path | str | None = None
    memory: int | str = 2_000_000_000
    """Bytes that the whole process may use, about; or ``"2GB"``."""
    max_pixels: int = MAX_PIXELS
    """Pixels of the largest picture that is read."""
    device: str = "auto"

    def __post_init__(self) -> None:
        self._take("boxes", tuple(map(as_box, _several(self.boxes))))
        self._take("keep", tuple(map(_box_or_pattern, _several(self.keep))))
        self._take("memory", parse_bytes(self.memory))
        self._check_types()
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
            entry(self.method, _methods(), what="method for pictures")
        self._check_patterns()

    def _take(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # only while the rules are made

    def _check_types(self) -> None:
        for f in fields(self):
            kind, _, or_else = str(f.type).partition(" | ")  # an annotation, as it is written
            value = getattr(self, f.name)
            if kind in _KINDS and not (value is None and or_else.endswith("None")):
                taken, plain, what = _KINDS[kind]
                if isinstance(value, bool) or not isinstance(value, taken):
                    raise UsageError(f"{value!r} is not {what}", where=f.name)
                self._take(f.name, plain(value))

    def _check_patterns(self) -> None:
        patterns = [*self.patterns, *([] if self.only is None else [self.only])]
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                what = f"{pattern!r} is not a regular expression: {error}"
                raise UsageError(what, where="only or keep") from error
        if "" in patterns:
            what, fix = "an empty pattern matches every text", "Write some of the words, or leave it out"
            raise UsageError(what, where="only or keep", fix=fix)
        if not self.searches and (patterns or self.min_confidence != Rules.min_confidence):
            what = "words and confidence choose among text that is found, and with a mask or boxes none is looked for"
            raise UsageError(what, where="only, keep or confidence", fix="Leave out these, or the mask and the boxes")

    @property
    def regions(self) -> list[masks.Box]:
        """The rectangles among ``keep``."""
        return [item for item in self.keep if isinstance(item, masks.Box)]

    @property
    def patterns(self) -> list[str]:
        """The regular expressions among ``keep``."""
        return [item for item in self.keep if isinstance(item, str)]

    def kept(self, size: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the mask of ``size`` (h, w) of the regions to keep, as far as they lie in a picture of that size."""
        mask = np.zeros(size, bool)
        for region in self.regions:
            mask[region.slices] = True
        return mask

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
        if any(re.search(pattern, box.words) for pattern in self.patterns):
            return "words to keep"
        if self.only is not None and not re.search(self.only, box.words):
            return "other words"
        return ""


def as_box(item: Any) -> masks.Box:
    """Read a rectangle ``(x, y, w, h)`` or ``"x,y,w,h"``; any other form is a :class:`UsageError`."""
    return masks.parse_box(item if isinstance(item, str) else ",".join(map(str, np.asarray(item, object).ravel())))


def _box_or_pattern(item: Any) -> masks.Box | str:
    """Read what is to stay. A text of nothing but numbers, three or more, is meant as a box, not as words."""
    if isinstance(item, str) and not (re.fullmatch(_NUMBERS, item) and len(re.findall(r"\d+", item)) > 2):
        return item
    try:
        return as_box(item)
    except UsageError as error:
        fix = f"{error.fix}, or where words are meant begin with ^ or end with $"
        raise UsageError(error.what, where="keep", fix=fix) from None


def _several(given: Any) -> tuple[Any, ...]:
    """Return what was given as a tuple: one text or one rectangle stands for itself."""
    given = given.tolist() if hasattr(given, "tolist") else given  # arrays and tensors
    if isinstance(given, str) or not isinstance(given, Iterable):
        return (given,)
    items = tuple(given)
    return (items,) if items and all(isinstance(item, Real) for item in items) else items


def _methods() -> dict[str, Entry]:
    """Return the methods that repair pictures."""
    return {name: e for name, e in entries().items() if e.kind == "Network" and "picture" in e.card.inputs}
