"""Bring a picture into what a file format can hold, exactly or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efface.errors import OutputError
from efface.io.picture import Picture, strips

_LONGEST = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535, "AVIF": 65535}  # pixels along a side
_DEEP = ("PNG", "TIFF", "PPM")
_BILEVEL = ("PNG", "TIFF", "PPM", "BMP")


@dataclass
class Stored:
    """Arrays as a file holds them: with a ``palette`` (n, 4), ``pixels`` are (h, w, 1) indices into it."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    palette: np.ndarray | None = None
    bilevel: bool = False


def fit(picture: Picture, form: str, path: Path) -> Stored:
    """Return ``picture`` as the format ``form`` holds it; raise OutputError where something would be lost.

    What changes without loss of pixels (a palette given up, say) is added to ``picture.notes``.
    """
    refuse(picture, form, path)
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.dtype == np.float32 and form != "TIFF":
        pixels, alpha = _to_8_bits(pixels), None if alpha is None else _to_8_bits(alpha)
        picture.notes.append("the float values were rounded to 8 bits")
    if form == "TIFF" and alpha is not None and pixels.shape[2] == 1 and pixels.dtype != np.uint8:
        pixels = np.repeat(pixels, 3, 2)
        picture.notes.append("saved as RGB: deep grey with alpha is a TIFF that few programs read")
    stored = Stored(pixels, alpha)
    if form == "GIF":
        return _for_gif(stored, picture, path)
    if picture.origin.bilevel and form in _BILEVEL:
        stored.bilevel = alpha is None and _black_and_white(pixels)
        if not stored.bilevel:
            picture.notes.append("saved as grey: the result has more than black and white")
    palette = picture.origin.palette
    if palette is not None and (form == "PNG" or (form in ("TIFF", "BMP") and alpha is None)):
        indices, strange = _find(stored, palette)
        if not strange.any():
            return Stored(indices, None, palette)
        picture.notes.append("saved with full colours: the result has colours that the palette lacks")
    return stored


def refuse(picture: Picture, form: str, path: Path) -> None:
    """Raise OutputError where the format ``form`` can hold no picture of this size, depth or alpha."""
    if max(picture.height, picture.width) > _LONGEST.get(form, 1 << 31):
        raise OutputError(f"{form} holds at most {_LONGEST[form]} pixels along a side", where=path, fix="Choose .png")
    if picture.alpha is not None and form in ("JPEG", "PPM"):
        raise OutputError(f"{form} holds no alpha", where=path, fix="Choose .png, .tif or .webp")
    if picture.pixels.dtype == np.float32 and form != "TIFF" and picture.origin.format is not None:
        raise OutputError(f"{form} holds no float pixels", where=path, fix="Choose .tif")
    if picture.pixels.dtype == np.uint16 and form not in _DEEP:
        raise OutputError(f"{form} holds 8 bits per channel, the picture has 16", where=path, fix="Choose .png or .tif")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    rounded = np.empty(values.shape, np.uint8)
    for rows in strips(*values.shape[:2]):
        rounded[rows] = np.rint(values[rows] * 255)
    return rounded


def _black_and_white(pixels: np.ndarray) -> bool:
    return all(np.isin(pixels[rows], (0, 255)).all() for rows in strips(*pixels.shape[:2]))


def _for_gif(stored: Stored, picture: Picture, path: Path) -> Stored:
    palette = picture.origin.palette
    if palette is None:
        palette = np.unique(_codes(stored)).view(np.uint8).reshape(-1, 4)
        if len(palette) > 256:
            raise OutputError("GIF holds 256 colours, the picture has more", where=path, fix="Choose .png")
    if not np.isin(palette[:, 3], (0, 255)).all() or (palette[:, 3] == 0).sum() > 1:
        raise OutputError("GIF holds one transparent colour and nothing half clear", where=path, fix="Choose .png")
    indices, strange = _find(stored, palette)
    if strange.any():  # only pixels that were pasted; all others came from this palette
        codes, back = np.unique(_codes(stored)[strange], return_inverse=True)
        colours = codes.view(np.uint8).reshape(-1, 1, 4).astype(np.int32)
        parts = np.array_split(colours, len(colours) // 4096 + 1)
        nearest = np.concatenate([((part - palette.astype(np.int32)) ** 2).sum(2).argmin(1) for part in parts])
        indices[strange] = nearest[back][:, None]
        picture.notes.append(f"{strange.sum()} pixels took the nearest colour of the palette, as GIF holds no more")
    return Stored(indices, None, palette)


def _codes(stored: Stored) -> np.ndarray:
    """Return each pixel's RGBA as one number (h, w)."""
    colours = np.empty((*stored.pixels.shape[:2], 4), np.uint8)
    colours[..., :3] = stored.pixels
    colours[..., 3] = 255 if stored.alpha is None else stored.alpha
    return colours.view(np.uint32)[..., 0]


def _find(stored: Stored, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's index (h, w, 1) in ``palette``, and which pixels (h, w) have a colour that it lacks."""
    codes, table = _codes(stored), np.ascontiguousarray(palette).view(np.uint32)[:, 0]
    order = np.argsort(table, kind="stable")
    indices = order[np.searchsorted(table, codes, sorter=order).clip(max=len(table) - 1)]
    return indices[..., None].astype(np.uint8), table[indices] != codes
