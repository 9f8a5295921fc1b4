"""Give crops of pictures of whose text only the boxes are known, not what is behind it.

The boxes come from the user, or from the text detector. Where there is no folder, or for a claim, text of one hidden
style is written on photographs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.errors import DataError
from efface.parts.data.photos import SUFFIXES, read_photo
from efface.parts.text import words
from efface.parts.text.render import as_float, make_layer, paste
from efface.parts.text.space import Context, StyleSpace
from efface.parts.text.synth import palette
from efface.seeds import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float32]
Photo = NDArray[np.uint8]
Boxes = NDArray[np.int64]

MOST = 16
"""Boxes that a sample holds at most, the largest first."""
ROOM = 0.4
"""Share of a crop that should be free of text, so that there is room for more."""
TRIES = 6
GROW = (4, 8)
"""Width and height of the kernel that widens boxes to the mask of the text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxedPictures:
    """Source of crops of the pictures in ``folder``, at their own scale.

    ``boxes`` is a JSON file ``{"name.jpg": [[x0, y0, x1, y1], ...], ...}`` in pixels, names relative to ``folder``;
    None asks the text detector. Raises :class:`DataError` where folder, file or an entry is not as described, where a
    picture is smaller than ``size``, and where its text leaves no room for more.
    """

    folder: Path
    boxes: Path | None = None
    size: int = 256
    _names: list[str] = field(init=False)
    _given: dict[str, Boxes] = field(init=False)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise DataError("there is no such folder", where=self.folder, fix="Give a folder of pictures with text")
        found = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError("holds no pictures", where=self.folder, fix=f"Known endings: {', '.join(sorted(SUFFIXES))}")
        names = [p.relative_to(self.folder).as_posix() for p in found]
        given = {} if self.boxes is None else read_boxes(self.boxes)
        if self.boxes is not None and (missing := [n for n in names if n not in given]):
            raise DataError(
                f"has no entry for {len(missing)} pictures, such as {missing[0]!r}",
                where=self.boxes,
                fix="Add them, with an empty list where there is no text, or take the pictures out of the folder",
            )
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_given", given)

    def sample(self, generator: Generator) -> dict[str, Array | Boxes]:
        """Return ``picture`` (3, s, s), ``mask`` (1, s, s) of its text, ``boxes`` (:data:`MOST`, 4) filled up by -1."""
        picture, boxes = self._read(words.pick(generator, self._names))
        best = max((_window(picture, boxes, self.size, generator) for _ in range(TRIES)), key=_room)
        return _sample(*best)

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``count`` samples stacked: a pure function of ``seed`` and ``step``."""
        return _stack([self.sample(numpy_generator(seed, step, "boxed-text", i)) for i in range(count)])

    def _read(self, name: str) -> tuple[Photo, Boxes]:
        path = self.folder / name
        picture = read_photo(path)
        height, width = picture.shape[:2]
        if min(height, width) < self.size:
            raise DataError(f"{width}x{height} is smaller than {self.size}", where=path, fix="Lower size in [data]")
        if name not in self._given:
            self._given[name] = _detected(picture)
        boxes = self._given[name]
        if len(boxes) and ((boxes[:, :2] < 0).any() or (boxes[:, 2:] > (width, height)).any()):
            raise DataError(f"boxes leave the picture of {width}x{height}", where=f"{self.boxes}: {name}")
        if text_mask(boxes, height, width).mean() > 1 - ROOM / 4:
            raise DataError("text fills the picture and leaves no room for more", where=path, fix="Take it out")
        return picture, boxes


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenStyle:
    """Source of crops of photographs, each with a text of one style that is told to nobody.

    ``options`` names the options of :class:`~efface.parts.text.space.StyleSpace` that differ from plain text.
    """

    photos: Sequence[Photo]
    size: int = 64
    letters: tuple[float, float] = (0.25, 0.35)
    """Least and greatest size of the letters, as shares of ``size``."""
    options: dict[str, int] = field(default_factory=dict)
    scale: float = 1.0
    fonts: Sequence[Path] = ()

    def sample(self, generator: Generator) -> dict[str, Array | Boxes]:
        """Return a sample as :class:`BoxedPictures` does, with the truth (3, s, s) as ``target`` besides."""
        space = StyleSpace(names=tuple(self.options), scale=self.scale)
        action = np.asarray([self.options[d.name] for d in space.decisions])
        for _ in range(50):
            photo = self.photos[int(generator.integers(len(self.photos)))]
            clean = as_float(_window(photo, np.empty((0, 4), np.int64), self.size, generator)[0])
            background = clean.mean((0, 1))
            context = Context(
                generator.uniform(*self.letters) * self.size,
                palette(clean, tuple(background.tolist())),
                tuple(background.tolist()),
            )
            style = space.style(action, context, generator)
            font = words.pick(generator, self.fonts) if self.fonts else None
            layer = make_layer([words.word(generator)], style, font=font)
            if layer is None or max(layer.size) > self.size or layer.size[1] > (1 - ROOM) * self.size:
                continue
            left, top = (int(generator.integers(self.size - n + 1)) for n in layer.size)
            drawn = paste(layer, clean, (left + layer.size[0] / 2, top + layer.size[1] / 2))
            if drawn is not None:
                box = np.concatenate([np.floor(drawn.box.min(0)), np.ceil(drawn.box.max(0))]).astype(np.int64)
                return _sample(drawn.picture, box[None]) | {"target": clean.transpose(2, 0, 1).copy()}
        raise DataError(
            "no word fits", where=f"crops of {self.size} pixels", fix="Take smaller letters or larger crops"
        )

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``count`` samples stacked: a pure function of ``seed`` and ``step``."""
        return _stack([self.sample(numpy_generator(seed, step, "hidden-style", i)) for i in range(count)])


def read_boxes(path: Path) -> dict[str, Boxes]:
    """Read the boxes of each picture; a file of another form is a :class:`DataError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        boxes = {name: np.asarray(value, np.float64).reshape(-1, 4) for name, value in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        form = 'Write it as {"name.jpg": [[x0, y0, x1, y1], ...], ...}'
        raise DataError(f"not a file of boxes: {error}", where=path, fix=form) from error
    for name, box in boxes.items():
        if not np.isfinite(box).all() or (box[:, 2:] <= box[:, :2]).any():
            raise DataError("a box is empty: x0 < x1 and y0 < y1 must hold", where=f"{path}: {name}")
    return {name: np.round(box).astype(np.int64) for name, box in boxes.items()}


def text_mask(boxes: Boxes, height: int, width: int) -> NDArray[np.bool_]:
    """Return the widened boxes as a mask (h, w)."""
    mask = np.zeros((height, width), np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    return cv2.dilate(mask, np.ones(GROW[::-1], np.uint8)) > 0


def _detected(picture: Photo) -> Boxes:
    from efface.parts.text.detect import find_text

    height, width = picture.shape[:2]
    corners = [(*np.floor(t.polygon.min(0)), *np.ceil(t.polygon.max(0))) for t in find_text(picture, words=False)]
    return np.clip(np.asarray(corners, np.int64).reshape(-1, 4), 0, (width, height, width, height))


def _window(picture: Photo, boxes: Boxes, size: int, generator: Generator) -> tuple[Photo, Boxes]:
    """Cut a square out of the picture, on most draws one with text in it; boxes are cut with it."""
    limit = np.asarray(picture.shape[1::-1]) - size
    corner = generator.integers(limit + 1)
    if len(boxes) and generator.random() < 0.8:
        box = boxes[int(generator.integers(len(boxes)))]
        low = np.clip(box[2:] - size, 0, limit)
        corner = generator.integers(low, np.maximum(np.clip(box[:2], 0, limit), low) + 1)
    moved = np.clip(boxes - np.tile(corner, 2), 0, size)
    seen = moved[((moved[:, 2:] - moved[:, :2]) >= 3).all(1)]
    return picture[corner[1] : corner[1] + size, corner[0] : corner[0] + size], seen


def _room(window: tuple[Photo, Boxes]) -> float:
    """Return the free share of a crop, no more than enough, so that the first crop with enough is the best."""
    return min(ROOM, 1 - float(text_mask(window[1], *window[0].shape[:2]).mean()))


def _sample(picture: Photo | Array, boxes: Boxes) -> dict[str, Array | Boxes]:
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = np.full((MOST, 4), -1, np.int64)
    kept[: len(boxes)] = boxes[np.argsort(-areas, kind="stable")[:MOST]]
    return {
        "picture": np.ascontiguousarray(as_float(picture).transpose(2, 0, 1)),
        "mask": text_mask(boxes, *picture.shape[:2])[None].astype(np.float32),
        "boxes": kept,
    }


def _stack(samples: Sequence[dict[str, Array | Boxes]]) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}
