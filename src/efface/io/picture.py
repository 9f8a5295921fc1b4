"""Hold a picture in its stored depth, lend regions of it as float RGB, and take them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efface.errors import MaskError, PictureError

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]  # x, y, width, height in pixels from the upper left corner
STRIP = 1 << 20  # pixels worked on at a time, so that large pictures need little extra memory


@dataclass(frozen=True)
class Origin:
    """What is needed to write a picture as the kind of file it came from."""

    format: str | None = None  # Pillow's name; None for arrays and tensors
    bilevel: bool = False  # stored with one bit per pixel
    palette: np.ndarray | None = None  # (n, 4) uint8 RGBA
    exif: bytes = b""  # a TIFF structure, orientation 1
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments for the writer of the same format


@dataclass
class Picture:
    """Pixels of a picture, upright, with its alpha and its origin.

    ``pixels`` is (h, w, c), uint8, uint16 or float32 in [0, 1], with c = 1 (grey) or 3 (RGB); ``alpha`` is (h, w) of
    the same type, or None. ``notes`` says what could not be kept; ``changed`` whether anything was pasted.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    origin: Origin = field(default_factory=Origin)
    notes: list[str] = field(default_factory=list)
    changed: bool = False

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.pixels.shape[1]

    @property
    def levels(self) -> NDArray[np.uint8]:
        """The pixels as RGB (h, w, 3) in 8 bits, rounded; those that are stored so are not copied."""
        return _eight_bits(self.pixels)

    @property
    def image(self) -> Image.Image:
        """The picture for Pillow, in 8 bits, with its alpha."""
        from PIL import Image

        levels = self.levels[..., : self.pixels.shape[2]]
        if self.alpha is not None:
            levels = np.concatenate([levels, _eight_bits(self.alpha[..., None])[..., :1]], 2)
        return Image.fromarray(levels if levels.shape[2] > 1 else levels[..., 0])

    def rgb(self, box: Box | None = None) -> np.ndarray:
        """Return the pixels in ``box`` (by default all) as float32 (3, h, w) in [0, 1]; grey is repeated."""
        region = self._region(box)
        values = np.empty((3, *region.shape[:2]), np.float32)
        np.divide(region.transpose(2, 0, 1), np.float32(full_scale(region.dtype)), out=values, casting="unsafe")
        return values

    def paste(self, box: Box | None, values: np.ndarray, weight: np.ndarray) -> None:
        """Blend ``values`` into ``box``, rounded to the stored depth: ``(1 - weight) * pixels + weight * values``.

        ``values`` is (3, h, w) in [0, 1] and ``weight`` (h, w) in [0, 1]. Pixels of weight 0 keep their bits, whatever
        the values are there. A grey picture takes the mean of the three channels.

        Raises
        ------
        MaskError
            If the box or a shape does not fit.
        PictureError
            If a weight, or a value with weight, is not in [0, 1].
        """
        region = self._region(box)
        if values.shape != (3, *region.shape[:2]) or weight.shape != region.shape[:2]:
            raise MaskError(
                f"values {values.shape} and weight {weight.shape} do not fit a region of {region.shape[:2]}",
                fix="Give values (3, h, w) and weight (h, w) of the region's height and width",
            )
        if not (weight.size == 0 or (weight.min() >= 0 and weight.max() <= 1)):
            raise PictureError("the weight of a paste is not in [0, 1]", fix="Clamp or scale the mask first")
        for rows in strips(region.shape[0], region.shape[1]):
            _blend(region[rows], values[:, rows], weight[rows])
        self.changed = True

    def _region(self, box: Box | None) -> np.ndarray:
        x, y, width, height = box or (0, 0, self.width, self.height)
        if min(x, y, width, height) < 0 or x + width > self.width or y + height > self.height:
            raise MaskError(
                f"box {box} leaves the picture of {self.width} x {self.height} pixels",
                fix="Give x, y, width, height inside the picture",
            )
        return self.pixels[y : y + height, x : x + width]


def full_scale(dtype: np.dtype) -> int:
    """Return the stored value that means 1.0."""
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def strips(height: int, width: int) -> Iterator[slice]:
    """Yield slices of rows that cover ``height``, each of about :data:`STRIP` pixels."""
    rows = max(1, STRIP // max(1, width))
    for start in range(0, height, rows):
        yield slice(start, min(height, start + rows))


def _eight_bits(pixels: np.ndarray) -> NDArray[np.uint8]:
    import cv2

    if pixels.dtype != np.uint8:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / full_scale(pixels.dtype)).reshape(pixels.shape)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _blend(stored: np.ndarray, values: np.ndarray, weight: np.ndarray) -> None:
    where = weight > 0
    if not where.any():
        return
    scale = full_scale(stored.dtype)
    new = values[:, where].T.astype(np.float32)  # (n, 3)
    if not (new.min() >= 0 and new.max() <= 1):  # NaN too
        raise PictureError("a value to paste is not in [0, 1]", fix="Clamp the values first")
    if stored.shape[2] == 1:
        new = new.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)  # three equal ones give the same
    share = weight[where].astype(np.float32)[:, None]
    old = stored[where].astype(np.float32)
    blend = np.where(share == 1, new * scale, old + share * (new * scale - old))
    stored[where] = blend.clip(0, 1) if scale == 1 else np.rint(blend)  # the blend may leave [0, 1] by an ulp
