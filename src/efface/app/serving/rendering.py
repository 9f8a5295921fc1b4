"""Keep 8-bit renditions of pictures on the disk, and show any part of them at once, however large they are."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from efface.errors import PictureError
from efface.io.images import Picture
from efface.io.picture import full_scale, strips

_turn = threading.Semaphore(2)  # renderings at a time, which bounds their memory


@dataclass(frozen=True)
class Rendition:
    """Where the raw levels (h, w, c) uint8 of a picture lie, and the profile that they are meant in."""

    path: Path
    height: int
    width: int
    channels: int
    icc: bytes = b""

    def png(self, box: tuple[int, int, int, int] | None = None, size: int | None = None) -> bytes:
        """Return the part in ``box`` (x, y, w, h; clipped) as PNG, its longer side at most ``size``.

        Raises :class:`PictureError` where nothing of the picture lies in ``box``.
        """
        levels: np.ndarray = np.memmap(self.path, np.uint8, "r", shape=(self.height, self.width, self.channels))
        if box is not None:
            x, y, w, h = box
            levels = levels[y : y + h, x : x + w]
        if levels.size == 0:
            what = f"nothing of {self.width} x {self.height} pixels is there"
            raise PictureError(what, where=box, fix="Give x, y, w and h inside the picture")
        with _turn:
            image = Image.fromarray(np.ascontiguousarray(levels[..., 0] if self.channels == 1 else levels))
            if size is not None:
                image.thumbnail((size, size), reducing_gap=2.0)
            return png_bytes(image, self.icc)


def render(picture: Picture, path: Path) -> Rendition:
    """Write the levels of ``picture``, its alpha included, to ``path``."""
    planes = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha[..., None]]
    scale = 255 / full_scale(picture.pixels.dtype)
    with path.open("wb") as file:
        for rows in strips(picture.height, picture.width):
            part = np.concatenate([plane[rows] for plane in planes], 2)
            file.write((part if scale == 1 else cv2.convertScaleAbs(part, alpha=scale)).data)
    channels = sum(plane.shape[2] for plane in planes)
    return Rendition(path, picture.height, picture.width, channels, picture.origin.icc)


def grey_png(levels: np.ndarray, size: int | None = None) -> bytes:
    """Return levels (h, w) as PNG, its longer side at most ``size``."""
    image = Image.fromarray(levels)
    if size is not None:
        image.thumbnail((size, size), reducing_gap=2.0)
    return png_bytes(image)


def png_bytes(image: Image.Image, icc: bytes = b"") -> bytes:
    """Encode quickly rather than small."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, **({"icc_profile": icc} if icc else {}))
    return file.getvalue()
