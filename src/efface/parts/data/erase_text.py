"""Make pictures with text, and what they should be once the chosen text is gone.

Some texts of a picture may be chosen and others not: the target then keeps the others, which teaches an eraser to obey
its mask (custom-mask data of DeepEraser, arXiv:2402.19108).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.errors import DataError
from efface.parts.text.fonts import families
from efface.parts.text.render import Drawn, as_float, make_layer, paste
from efface.parts.text.style import random_style, rarer
from efface.parts.text.words import Split, lines_of, pick
from efface.seeds import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float32]
Photo = NDArray[np.uint8]

SIZES = (8.0, 64.0)
"""Least and greatest size of text, in pixels per em."""
_TRIES = 50  # to draw one text that can be seen
_WHOLE = 0.9  # share of texts that are moved until no edge cuts them
_DECOY = 0.1  # share of masks that also mark a place at random


@dataclass(frozen=True, kw_only=True, eq=False)
class EraseText:
    """Source of square crops of photographs with made-up text on them."""

    photos: Sequence[Photo]
    fonts: tuple[Path, ...] = ()
    """Font files; each family is as likely as any other. None at all means the built-in face."""
    size: int = 128
    words: tuple[int, int] = (1, 3)
    """Least and most texts in a crop."""
    sizes: tuple[float, float] = SIZES
    rare: float = 0.0
    """How often a text has a look that few have: it glows, is faint, or is soft."""
    split: Split = "train"
    subset: float = 0.5
    """How often only some of the texts are chosen to go."""
    jpeg: float = 0.25
    """How often the picture with text has been through JPEG."""

    @cached_property
    def _texts(self) -> _Texts:
        return _Texts(list(families(self.fonts).values()), self.split, self.sizes, self.rare)

    def sample(self, generator: Generator) -> dict[str, Array]:
        """Return one sample: ``picture`` and ``target`` (3, s, s) in [0, 1], ``mask`` and ``alpha`` (1, s, s).

        ``target`` is the picture outside ``mask`` and the photograph without text inside; ``alpha`` is the coverage by
        text inside the mask.
        """
        clean = _crop(pick(generator, self.photos), self.size, generator)
        count = int(generator.integers(self.words[0], self.words[1] + 1))
        picture, drawn = _write(clean, count, self._texts, generator)
        chosen = drawn
        if len(drawn) > 1 and generator.random() < self.subset:
            some = generator.permutation(len(drawn))[: int(generator.integers(1, len(drawn) + 1))]
            chosen = [drawn[i] for i in some]
        mask = _mask(clean.shape[:2], chosen, generator)
        alpha = 1 - np.prod([1 - text.alpha for text in drawn], axis=0)
        stored = np.round(picture * 255).astype(np.uint8)
        if generator.random() < self.jpeg:
            stored = _jpeg(stored, int(generator.integers(70, 99)))
        picture = as_float(stored)
        target = np.where(mask[..., None], clean, picture)
        layers = {"picture": picture, "target": target, "mask": mask[..., None], "alpha": (alpha * mask)[..., None]}
        return {name: np.ascontiguousarray(x.transpose(2, 0, 1), np.float32) for name, x in layers.items()}

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``count`` samples stacked: a pure function of ``seed`` and ``step``."""
        import torch

        samples = [self.sample(numpy_generator(seed, step, "erase-text", i)) for i in range(count)]
        return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}


@dataclass(frozen=True)
class _Texts:
    """What texts are drawn."""

    fonts: Sequence[Sequence[Path]]
    """By family."""
    split: Split
    sizes: tuple[float, float] = SIZES
    rare: float = 0.0


def evaluation_set(
    photos: Sequence[Photo],
    fonts: Sequence[Path],
    seed: int,
    count: int,
    words: tuple[int, int] = (2, 6),
    rare: float = 0.0,
) -> list[dict[str, Any]]:
    """Return ``count`` whole photographs with test words on them, and everything known about the text.

    Each has ``picture`` and ``clean`` (h, w, 3) uint8, ``boxes`` (n, 4, 2) corners, ``mask`` (h, w) bool: the boxes
    3 px wider, and ``strokes`` (h, w) bool: the pixels that differ. ``rare`` is that of :class:`EraseText`.
    """
    made: list[dict[str, Any]] = []
    texts = _Texts(list(families(fonts).values()), "test", rare=rare)
    for index in range(count):
        generator = numpy_generator(seed, index, "erase-text evaluation")
        clean = photos[index % len(photos)]
        wanted = int(generator.integers(words[0], words[1] + 1))
        picture, drawn = _write(as_float(clean), wanted, texts, generator)
        stored = np.round(picture * 255).astype(np.uint8)
        mask = np.zeros(clean.shape[:2], np.uint8)
        for text in drawn:
            mask |= _grow(_polygon(mask.shape, text.box), 3)
        strokes = (stored != clean).any(axis=2)
        boxes = np.stack([text.box for text in drawn])
        made.append({"picture": stored, "clean": clean, "boxes": boxes, "mask": mask > 0, "strokes": strokes})
    return made


def _crop(photo: Photo, size: int, generator: Generator) -> Array:
    """Cut a square out of the photograph at a scale of 0.5 to 1.5, flipped and relit at random; 8-bit levels."""
    height, width = photo.shape[:2]
    side = min(round(size / float(np.exp(generator.uniform(np.log(0.5), np.log(1.5))))), height, width)
    x, y = int(generator.integers(width - side + 1)), int(generator.integers(height - side + 1))
    crop = photo[y : y + side, x : x + side]
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    crop = np.asarray(cv2.resize(crop, (size, size), interpolation=how), np.uint8)
    if generator.random() < 0.5:
        crop = crop[:, ::-1]
    levels = np.arange(256, dtype=np.float32) / 255
    contrast, brightness = generator.uniform(0.85, 1.15), generator.uniform(-0.1, 0.1)
    table = np.clip((levels - 0.5) * contrast + 0.5 + brightness, 0, 1)
    return (np.round(table * 255) / 255).astype(np.float32)[crop]


def _write(clean: Array, count: int, kind: _Texts, generator: Generator) -> tuple[Array, list[Drawn]]:
    """Draw ``count`` texts on places of their own, or as many as are found room for; at least one."""
    picture, texts = clean, list[Drawn]()
    taken = np.zeros(clean.shape[:2], bool)
    for attempt in range(_TRIES):
        if len(texts) == count or (texts and attempt >= 4 * count):
            break
        drawn = _write_one(picture, taken, kind, generator)
        if drawn is not None:
            picture = drawn.picture
            texts.append(drawn)
            taken |= _grow(_polygon(taken.shape, drawn.box), 3) > 0
    if not texts:
        raise DataError(
            "no text can be drawn", where=f"picture of {clean.shape[1]}x{clean.shape[0]}", fix="Use larger ones"
        )
    return picture, texts


def _write_one(picture: Array, taken: NDArray[np.bool_], kind: _Texts, generator: Generator) -> Drawn | None:
    """Draw a text somewhere, mostly whole; None where it would meet another or cannot be seen."""
    height, width = picture.shape[:2]
    size = float(np.exp(generator.uniform(*np.log(kind.sizes))))
    lines = _fitting(lines_of(generator, kind.split), 2 * width / size, 0.7 * height / size)
    half = np.asarray([0.25 * size * max(map(len, lines)), 0.6 * size * len(lines)])  # letters are half an em wide
    middle = generator.uniform((0, 0), (width, height))
    if generator.random() < _WHOLE:
        middle = _inside(middle, half, np.asarray([width, height]))
    (x0, y0), (x1, y1) = np.maximum(middle - half, 0).astype(int), (middle + half).astype(int) + 1
    if taken[y0:y1, x0:x1].any():
        return None
    style = random_style(generator, picture[y0:y1, x0:x1], sizes=(size, size))
    if kind.rare and generator.random() < kind.rare:  # no draw where none is rare: usual texts stay what they were
        style = rarer(generator, style)
    layer = make_layer(lines, style, font=pick(generator, pick(generator, kind.fonts)) if kind.fonts else None)
    if layer is None:
        return None
    if generator.random() < _WHOLE:
        middle = _inside(middle, np.asarray(layer.size) / 2, np.asarray([width, height]))
    drawn = paste(layer, picture, (float(middle[0]), float(middle[1])))
    return None if drawn is None or (drawn.strokes & taken).any() else drawn


def _fitting(lines: list[str], letters: float, rows: float) -> list[str]:
    """Drop lines, and words off the ends of lines, until the text fits; one word always stays."""
    fitting = []
    for line in lines[: max(int(rows), 1)]:
        while len(line) > letters and " " in line:
            line = line.rpartition(" ")[0]
        fitting.append(line)
    return fitting


def _inside(middle: NDArray[np.float64], half: NDArray[np.float64], room: NDArray[np.int64]) -> NDArray[np.float64]:
    """Move ``middle`` so that ``half`` on either side stays in ``room``, where it fits."""
    return np.where(2 * half >= room, room / 2, np.clip(middle, half, np.maximum(room - half, half)))


def _mask(shape: tuple[int, ...], texts: Sequence[Drawn], generator: Generator) -> NDArray[np.bool_]:
    """Mark ``texts`` as people and detectors do: as upright boxes, tight polygons or widened strokes."""
    kind = generator.random()
    mask = np.zeros(shape, np.uint8)
    for text in texts:
        if kind < 0.1:
            mask |= _grow(text.strokes.astype(np.uint8), int(generator.integers(2, 7)))
        elif kind < 0.5:
            low = text.box.min(0) - generator.integers(1, 9, 2)
            high = text.box.max(0) + generator.integers(1, 9, 2)
            mask |= _rectangle(shape, low, high)
        else:
            mask |= _grow(_polygon(shape, text.box), int(generator.integers(2, 7)))
    if generator.random() < _DECOY:  # people also mark what is no text: nothing may change there
        low = generator.uniform((0, 0), shape[::-1])
        mask |= _rectangle(shape, low, low + generator.uniform(4, 40, 2))
    return mask > 0


def _rectangle(shape: tuple[int, ...], low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.uint8]:
    return _polygon(shape, np.asarray([low, (high[0], low[1]), high, (low[0], high[1])], np.float32))


def _polygon(shape: tuple[int, ...], corners: Array) -> NDArray[np.uint8]:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.round(corners).astype(np.int32), 1)
    return mask


def _grow(mask: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.dilate(mask, np.ones((2 * by + 1, 2 * by + 1), np.uint8)), np.uint8)


def _jpeg(picture: Photo, quality: int) -> Photo:
    """Return the RGB picture as it comes back from JPEG; OpenCV's codecs work in BGR."""
    stored = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR_RGB), np.uint8)
