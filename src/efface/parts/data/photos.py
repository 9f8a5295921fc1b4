"""Give photographs to draw on: of a folder, or made up where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import overload

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from efface.errors import DataError, UsageError
from efface.parts.text.fonts import hash_unit
from efface.seeds import numpy_generator

Photo = NDArray[np.uint8]

SPLITS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}
"""Range of the hash of a file's name that goes to each split of a flat folder."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
MADE_UP = {"train": 200, "val": 25, "test": 50}
"""How many pictures are made up for each split where there is no folder."""


class Photographs(Sequence[Photo]):
    """Photographs (h, w, 3) uint8 RGB, each read or made when first asked for and then kept in memory."""

    def __init__(self, makers: Sequence[Callable[[], Photo]]) -> None:
        self._makers = list(makers)
        self._kept: dict[int, Photo] = {}

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> Photo: ...
    @overload
    def __getitem__(self, index: slice) -> Photographs: ...
    def __getitem__(self, index: int | slice) -> Photo | Photographs:
        if isinstance(index, slice):
            return Photographs(self._makers[index])
        index = range(len(self))[index]
        if index not in self._kept:
            self._kept[index] = self._makers[index]()
        return self._kept[index]


def photographs(folder: Path | None, split: str) -> Photographs:
    """Return the photographs of ``split``: ``train``, ``val``, ``test``, or several joined by ``+``.

    A ``folder`` with subfolders of these names (BSDS500 has them) is taken as split; the files of any other are split
    by the hash of their names. None makes pictures up, the same ones every time.

    Raises
    ------
    DataError
        The folder is missing or holds no picture of the split.
    """
    splits = split.split("+")
    for name in splits:
        if name not in SPLITS:
            raise UsageError(f"no split is called {name!r}", fix="Use train, val, test, or several joined by +")
    if folder is None:
        return Photographs([partial(made_up, name, index) for name in splits for index in range(MADE_UP[name])])
    if not folder.is_dir():
        raise DataError(
            "there is no such folder",
            where=folder,
            fix="Download BSDS500 (the Berkeley Segmentation Data Set and Benchmarks 500), put its images/train, "
            "images/val and images/test there, or give any folder of photographs",
        )
    files = [path for name in splits for path in _files(folder, name)]
    if not files:
        raise DataError(
            f"holds no picture of the split {split}", where=folder, fix=f"Add {', '.join(sorted(SUFFIXES))}"
        )
    return Photographs([partial(read_photo, path) for path in files])


def _files(folder: Path, split: str) -> list[Path]:
    inside = folder / split
    found = sorted(p for p in (inside if inside.is_dir() else folder).iterdir() if p.suffix.lower() in SUFFIXES)
    if inside.is_dir():
        return found
    low, high = SPLITS[split]
    return [p for p in found if low <= hash_unit(p.name) < high]


def read_photo(path: Path) -> Photo:
    """Read a picture file as upright RGB; one that cannot be read is a :class:`DataError`."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(
            f"cannot be read as a picture: {error}", where=path, fix="Remove or replace the file"
        ) from error


def made_up(split: str, index: int, height: int = 320, width: int = 480) -> Photo:
    """Make picture ``index`` of ``split``: textured shapes of all sizes before each other, uneven light, grain.

    Dead leaves with a power law of sizes have the edges and the 1/f spectrum of natural pictures (Lee, Mumford and
    Huang 2001); each leaf has its own shade and 1/f texture.
    """
    generator = numpy_generator(0, "made-up photograph", split, index)
    textures = [_one_over_f(generator, height, width) for _ in range(3)]
    tint = generator.normal(0, 0.08, 3)
    picture = (generator.random() + tint + 0.05 * textures[0][..., None]).astype(np.float32)
    radii = 10 * generator.random(int(generator.integers(60, 300))) ** -0.6
    for radius in np.sort(radii)[::-1]:
        colour = generator.beta(1.3, 1.3) + tint + generator.normal(0, 0.05, 3)
        texture = textures[int(generator.integers(3))] * generator.uniform(0, 0.12)
        corners = _leaf(generator, min(radius, width)) + generator.uniform((0, 0), (width, height))
        x0, y0 = np.clip(corners.min(0) - 1, 0, (width, height)).astype(int)
        x1, y1 = np.clip(corners.max(0) + 2, 0, (width, height)).astype(int)
        if x1 <= x0 or y1 <= y0:
            continue  # the leaf lies beside the picture
        cover = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(cover, [np.round((corners - (x0, y0)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        here = picture[y0:y1, x0:x1]
        shade = (colour + texture[y0:y1, x0:x1, None]).astype(np.float32)
        here += (cover[..., None] / np.float32(255)) * (shade - here)
    light = (1 + 0.15 * _one_over_f(generator, height, width, power=2)).astype(np.float32)
    soft = cv2.GaussianBlur(picture * light[..., None], (0, 0), generator.uniform(0.4, 1.0))
    grainy = soft + generator.normal(0, generator.uniform(0.002, 0.02), picture.shape)
    return np.round(np.clip(grainy, 0, 1) * 255).astype(np.uint8)


def _leaf(generator: Generator, radius: float) -> NDArray[np.float64]:
    """Return the outline (n, 2) of a shape around 0: half of them polygons, half of them round."""
    if generator.random() < 0.5:
        angles = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 9))))
        away = radius * generator.uniform(0.6, 1.4, angles.size)
    else:
        angles, lobes = np.linspace(0, 2 * np.pi, 48, endpoint=False), int(generator.integers(2, 6))
        away = radius * (1 + generator.uniform(0, 0.4) * np.cos(lobes * angles + generator.uniform(0, 2 * np.pi)))
    outline = away[:, None] * np.stack([np.cos(angles), np.sin(angles) * generator.uniform(0.3, 1)], axis=1)
    turn = generator.uniform(0, np.pi)
    return outline @ np.asarray([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def _one_over_f(generator: Generator, height: int, width: int, power: float = 1.2) -> NDArray[np.float32]:
    """Return noise of mean 0 and deviation 1 whose amplitude falls as frequency to the ``power``."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(generator.normal(size=(height, width))) / frequency**power
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return (noise / noise.std()).astype(np.float32)
