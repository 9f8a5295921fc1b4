"""Give pictures with captions, and with boxes around a thing that the captions pass over.

The name is that of Geom-Erasing's implicit concept dataset. Of a folder, pictures are read when they are asked for, so
it may be of any size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from efface.errors import DataError
from efface.parts.concepts.places import mirrored, shares
from efface.parts.data.boxed import read_boxes
from efface.parts.data.photos import read_photo

Photo = NDArray[np.uint8]
Boxes = NDArray[np.int64]
CAPTIONS, BOXES = "captions.json", "boxes.json"


@dataclass(frozen=True, eq=False)
class Icd:
    """Pictures (h, w, 3) uint8, a caption for each, and boxes (n, 4) in pixels, none where there is nothing."""

    pictures: Sequence[Photo]
    captions: Sequence[str]
    boxes: Sequence[Boxes]

    @classmethod
    def read(cls, folder: str | Path) -> Icd:
        """Read a folder with pictures, ``captions.json`` and ``boxes.json``.

        They are ``{"name.jpg": "a caption", ...}`` and ``{"name.jpg": [[x0, y0, x1, y1], ...], ...}``, names relative
        to the folder; a picture without boxes is clean. Raises :class:`DataError` for any other form.
        """
        folder = Path(folder)
        where, form = folder / CAPTIONS, 'Write it as {"name.jpg": "a caption", ...}'
        try:
            captions = json.loads(where.read_text("utf-8"))
            if not captions or not all(isinstance(text, str) for text in captions.values()):
                raise ValueError("it names no picture with a text")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"not a file of captions: {error}", where=where, fix=form) from error
        boxes = read_boxes(folder / BOXES)
        if lost := [name for name in (*captions, *boxes) if not (folder / name).is_file() or name not in captions]:
            what = f"{lost[0]} has no picture or no caption"
            raise DataError(what, where=folder, fix=f"Name the same pictures in {CAPTIONS} and {BOXES}")
        none = np.zeros((0, 4), np.int64)
        paths = [folder / name for name in captions]
        return cls(_Files(paths), tuple(captions.values()), tuple(boxes.get(name, none) for name in captions))

    @property
    def rate(self) -> float:
        """Share of the pictures with a box."""
        return float(np.mean([len(boxes) > 0 for boxes in self.boxes]))

    def batch(
        self, generator: Generator, count: int, side: int, *, flip: bool = False
    ) -> tuple[Tensor, list[str], list[NDArray[np.float64]]]:
        """Draw ``count`` pictures (b, 3, side, side) in [0, 1], their captions, and boxes as shares of the pictures.

        ``flip`` mirrors every other one, on average.
        """
        pictures, captions, boxes = [], [], []
        for place in generator.integers(len(self.captions), size=count):
            picture, box = framed(self.pictures[place], self.boxes[place], side)
            if flip and generator.random() < 0.5:
                picture, box = picture[:, ::-1], mirrored(box)
            pictures.append(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))))
            captions.append(self.captions[place])
            boxes.append(box)
        return torch.stack(pictures).float() / 255, captions, boxes


def framed(picture: Photo, boxes: Boxes, side: int) -> tuple[Photo, NDArray[np.float64]]:
    """Return the square in the middle of a picture, scaled to ``side``, and its boxes as shares of that square."""
    height, width = picture.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = picture[top : top + short, left : left + short]
    if short != side:
        how = cv2.INTER_AREA if short > side else cv2.INTER_CUBIC
        square = np.asarray(cv2.resize(square, (side, side), interpolation=how), np.uint8)
    return square, shares(boxes - np.array([left, top, left, top]), (short, short))


class _Files(Sequence[Photo]):
    """Pictures that are read whenever they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Photo: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Photo]: ...
    def __getitem__(self, index: int | slice) -> Photo | Sequence[Photo]:
        if isinstance(index, slice):
            return _Files(self._paths[index])
        return read_photo(self._paths[index])
