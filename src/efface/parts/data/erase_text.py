"""Make pictures with text, and what they should be once the chosen text is gone.

Some texts of a picture may be chosen and others not: the target then keeps the others, which teaches an eraser to obey
its mask (custom-mask data of DeepEraser, arXiv:2402.19108).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from efface.parts.text import words as vocabulary
from efface.parts.text.render import Drawn, as_float, make_layer, paste
from efface.parts.text.style import random_style
from efface.seeds import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float32]
Photo = NDArray[np.uint8]

_TRIES = 6  # to find a free place, or a text that can be seen


@dataclass(frozen=True, kw_only=True, eq=False)
class EraseText:
    """Source of square crops of photographs with made-up text on them."""

    photos: Sequence[Photo]
    fonts: tuple[Path, ...] = ()
    """Font files; none means the built-in face."""
    size: int = 128
    words: tuple[int, int] = (1, 3)
    """Least and most texts in a crop."""
    split: vocabulary.Split = "train"
    subset: float = 0.5
    """How often only some of the texts are chosen to go."""
    jpeg: float = 0.25
    """How often the picture with text has been through JPEG."""

    def sample(self, generator: Generator) -> dict[str, Array]:
        """Return one sample: ``picture`` and ``target`` (3, s, s) in [0, 1], ``mask`` and ``alpha`` (1, s, s).

        ``target`` is the picture outside ``mask`` and the photograph without text inside; ``alpha`` is the coverage by
        text inside the mask.
        """
        clean = _crop(self.photos[int(generator.integers(len(self.photos)))], self.size, generator)
        count = int(generator.integers(self.words[0], self.words[1] + 1))
        picture, texts = _write(clean, count, self.fonts, self.split, generator)
        chosen = texts
        if len(texts) > 1 and generator.random() < self.subset:
            some = generator.permutation(len(texts))[: int(generator.integers(1, len(texts) + 1))]
            chosen = [texts[i] for i in some]
        mask = _mask(clean.shape[:2], chosen, generator)
        alpha = np.zeros(mask.shape, np.float32)
        for text in texts:
            alpha = 1 - (1 - alpha) * (1 - text.alpha)
        picture = np.round(picture * 255).astype(np.uint8)
        if generator.random() < self.jpeg:
            picture = _jpeg(picture, int(generator.integers(70, 99)))
        picture = as_float(picture)
        target = np.where(mask[..., None], clean, picture)
        layers = {"picture": picture, "target": target, "mask": mask[..., None], "alpha": (alpha * mask)[..., None]}
        return {name: np.ascontiguousarray(x.transpose(2, 0, 1), np.float32) for name, x in layers.items()}

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``count`` samples stacked: a pure function of ``seed`` and ``step``."""
        import torch

        samples = [self.sample(numpy_generator(seed, step, "erase-text", i)) for i in range(count)]
        return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}


def evaluation_set(
    photos: Sequence[Photo], fonts: Sequence[Path], seed: int, count: int, words: tuple[int, int] = (2, 6)
) -> list[dict[str, Any]]:
    """Return ``count`` whole photographs with test words on them, and everything known about the text.

    Each has ``picture`` and ``clean`` (h, w, 3) uint8, ``boxes`` (n, 4, 2) corners, ``mask`` (h, w) bool: the boxes
    3 px wider, and ``strokes`` (h, w) bool: the pixels that differ.
    """
    made: list[dict[str, Any]] = []
    for index in range(count):
        generator = numpy_generator(seed, index, "erase-text evaluation")
        clean = photos[index % len(photos)]
        wanted = int(generator.integers(words[0], words[1] + 1))
        picture, texts = _write(as_float(clean), wanted, fonts, "test", generator)
        stored = np.round(picture * 255).astype(np.uint8)
        mask = np.zeros(clean.shape[:2], np.uint8)
        for text in texts:
            mask |= _grow(_polygon(mask.shape, text.box), 3)
        strokes = (stored != clean).any(axis=2)
        boxes = np.stack([text.box for text in texts])
        made.append({"picture": stored, "clean": clean, "boxes": boxes, "mask": mask > 0, "strokes": strokes})
    return made


def _crop(photo: Photo, size: int, generator: Generator) -> Array:
    """Cut a square out of the photograph at a scale of 0.5 to 1.5, flipped and relit at random; 8-bit levels."""
    height, width = photo.shape[:2]
    side = min(round(size / float(np.exp(generator.uniform(np.log(0.5), np.log(1.5))))), height, width)
    x, y = int(generator.integers(width - side + 1)), int(generator.integers(height - side + 1))
    crop = photo[y : y + side, x : x + side]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    if generator.random() < 0.5:
        crop = crop[:, ::-1]
    levels = np.arange(256, dtype=np.float32) / 255
    contrast, brightness = generator.uniform(0.85, 1.15), generator.uniform(-0.1, 0.1)
    table = np.clip((levels - 0.5) * contrast + 0.5 + brightness, 0, 1)
    return (np.round(table * 255) / 255).astype(np.float32)[crop]


def _write(
    clean: Array, count: int, fonts: Sequence[Path], split: vocabulary.Split, generator: Generator
) -> tuple[Array, list[Drawn]]:
    """Draw up to ``count`` texts, at least one, on places of their own."""
    picture, texts = clean, list[Drawn]()
    taken = np.zeros(clean.shape[:2], bool)
    while not texts:
        for _ in range(_TRIES * count):
            drawn = _one_text(picture, taken, fonts, split, generator)
            if drawn is not None:
                picture = drawn.picture
                texts.append(drawn)
                taken |= _grow(_polygon(taken.shape, drawn.box), 3) > 0
            if len(texts) == count:
                break
    return picture, texts


def _one_text(
    picture: Array, taken: NDArray[np.bool_], fonts: Sequence[Path], split: vocabulary.Split, generator: Generator
) -> Drawn | None:
    """Draw a text somewhere, mostly whole; None where it would meet another or cannot be seen."""
    height, width = picture.shape[:2]
    x, y = int(generator.integers(width)), int(generator.integers(height))
    if taken[y, x]:
        return None
    near = picture[max(y - 16, 0) : y + 16, max(x - 32, 0) : x + 32]
    style = random_style(generator, near)
    lines = vocabulary.lines(generator, split)
    room = 1.9 * width / style.size  # letters are about half an em wide
    lines = [line if len(line) <= room else line.split()[0] for line in lines]
    layer = make_layer(lines, style, font=vocabulary.pick(generator, fonts) if fonts else None)
    if layer is None:
        return None
    at = (x, y) if generator.random() < 0.1 else tuple(_inside(c, l, s) for c, l, s in zip((x, y), layer.size, (width, height)))
    drawn = paste(layer, picture, at)
    return None if drawn is None or (drawn.strokes & taken).any() else drawn


def _inside(centre: float, length: int, room: int) -> float:
    """Move ``centre`` so that ``length`` around it stays in ``room``, where it fits."""
    return room / 2 if length >= room else min(max(centre, length / 2), room - length / 2)


def _mask(shape: tuple[int, int], texts: Sequence[Drawn], generator: Generator) -> NDArray[np.bool_]:
    """Mark ``texts`` as people and detectors do: as boxes, tight polygons or widened strokes."""
    kind = generator.random()
    mask = np.zeros(shape, np.uint8)
    for text in texts:
        grow = int(generator.integers(2, 7))
        if kind < 0.1:
            mask |= _grow(text.strokes.astype(np.uint8), grow)
        elif kind < 0.5:
            (x0, y0), (x1, y1) = text.box.min(0), text.box.max(0)
            low, high = generator.integers(1, 9, 2), generator.integers(1, 9, 2)
            box = [[x0 - low[0], y0 - low[1]], [x1 + high[0], y0 - low[1]], [x1 + high[0], y1 + high[1]], [x0 - low[0], y1 + high[1]]]
            mask |= _polygon(shape, np.asarray(box, np.float32))
        else:
            mask |= _grow(_polygon(shape, text.box), grow)
    return mask > 0


def _polygon(shape: tuple[int, ...], corners: Array) -> NDArray[np.uint8]:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.round(corners).astype(np.int32), 1)
    return mask


def _grow(mask: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    return cv2.dilate(mask, np.ones((2 * by + 1, 2 * by + 1), np.uint8))


def _jpeg(picture: Photo, quality: int) -> Photo:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
