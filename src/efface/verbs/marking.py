"""Mark what goes from a picture: the text that is found, or what a mask and boxes say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efface.errors import MaskError, PictureError
from efface.io.images import MAX_PIXELS, Picture, read_picture
from efface.io.picture import full_scale
from efface.parts import masks
from efface.parts.text.detect import TextBox, find_text
from efface.verbs.rules import Rules, as_box

if TYPE_CHECKING:
    from PIL import Image

Mask = NDArray[np.bool_]
Progress = Callable[[float, str], None]
"""Told how much is done, in [0, 1], and what goes on; an exception that it raises ends the job."""


@dataclass(frozen=True)
class Found:
    """A text that was found, and why it stays; an empty reason means that it is taken away."""

    box: TextBox
    stays: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        corners = [[round(float(v), 1) for v in corner] for corner in self.box.polygon]
        return {
            "words": self.box.words,
            "confidence": round(self.box.confidence, 3),
            "polygon": corners,
            "taken": not self.stays,
            "stays": self.stays,
        }


def find(picture: Picture, rules: Rules, tell: Progress = lambda fraction, what: None) -> tuple[list[Found], Mask]:
    """Find what ``rules`` take out of ``picture``: the texts, and the mask (h, w) without the regions to keep."""
    size = picture.height, picture.width

    def outlined(polygons: Sequence[Any]) -> Mask:
        mask = masks.from_polygons(size, polygons)
        return masks.grow(mask, masks.default_grow(*size) if rules.grow is None else rules.grow)

    found: list[Found] = []
    if rules.searches:
        tell(0.05, "looking for text")
        found = [Found(text, rules.choose(text)) for text in find_text(picture.levels)]
        unmet = [p for p in rules.patterns if not any(re.search(p, f.box.words) for f in found)]
        picture.notes += [f"no text that was found matches {pattern!r}, which is to stay" for pattern in unmet]
        mask = outlined([f.box.polygon for f in found if not f.stays])
    else:
        mask = masks.from_boxes(size, map(as_box, rules.boxes))
        if rules.mask is not None:
            mask |= read_mask(rules.mask, size)
        mask = masks.grow(mask, rules.grow or 0)
        if rules.polygons:
            mask |= outlined(rules.polygons)
    mask[rules.kept(size)] = False
    return found, mask


def read_mask(mask: Any, size: tuple[int, int]) -> Mask:
    """Read a mask for a picture of ``size`` (h, w), in any of the forms of a picture, or as bool values."""
    where = str(mask) if isinstance(mask, str | Path) else None
    if "bool" in str(getattr(mask, "dtype", "")):  # an array or a tensor
        mask = (mask.astype(np.uint8) if isinstance(mask, np.ndarray) else mask.byte()) * 255
    try:
        drawn = read_picture(mask, max_pixels=max(MAX_PIXELS, size[0] * size[1]))
    except PictureError as error:
        error.where = where or "mask"
        raise
    pixels = drawn.pixels if drawn.alpha is None else np.concatenate([drawn.pixels, drawn.alpha[..., None]], 2)
    if pixels.dtype != np.float32 and pixels.max() == 1:
        fix = f"Write {full_scale(pixels.dtype)} where something is to go"
        raise MaskError("the mask holds only 0 and 1, which is all black", where=where, fix=fix)
    try:
        return masks.from_picture(pixels, size)
    except MaskError as error:
        error.where = error.where or where
        raise


def preview(picture: Picture, found: Sequence[Found], mask: Mask) -> Image.Image:
    """Draw the outline of the mask and of each text: red goes, green stays."""
    import cv2
    from PIL import Image

    canvas = np.array(picture.levels, order="C")
    width = max(1, round(min(mask.shape) / 300))
    outlines = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(canvas, outlines, -1, (220, 30, 30), width)
    for item in found:
        colour = (30, 160, 60) if item.stays else (220, 30, 30)
        cv2.polylines(canvas, [np.round(item.box.polygon).astype(np.int32)], True, colour, width, cv2.LINE_AA)
    return Image.fromarray(canvas)
