"""Decode opened pictures into arrays of their stored depth, and refuse what cannot be kept exactly."""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from efface.errors import PictureError
from efface.io.picture import full_scale, strips
from efface.io.tiff import CONVERT, CONVERT_COLOURS

Decoded = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # pixels (h, w, c), alpha (h, w), palette (n, 4)
_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "F")


def decode(image: Image.Image) -> Decoded:
    """Return pixels (h, w, c), alpha (h, w) or None, and the palette (n, 4) or None of a Pillow ``image``.

    Raises :class:`PictureError` for colour models and depths that cannot be kept.
    """
    if image.mode == "CMYK":
        raise PictureError("is CMYK", fix=CONVERT_COLOURS)
    if image.mode == "P" or image.format == "GIF":
        return _expand(image)
    if image.mode not in _MODES:
        raise PictureError(f"has pixels of the form {image.mode!r}", fix=CONVERT)
    image.load()
    width, height = image.size
    bands = len(image.getbands())
    dtype = {"I": np.uint16, "F": np.float32}.get(image.mode[0], np.uint8)
    pixels = np.empty((height, width, bands - (bands % 2 == 0)), dtype)
    alpha = np.empty((height, width), dtype) if bands % 2 == 0 else None
    for rows in strips(height, width):  # a whole copy at once would need the memory twice more
        part = np.asarray(image.crop((0, rows.start, width, rows.stop))).reshape(-1, width, bands)
        pixels[rows] = part[..., : pixels.shape[2]]
        if alpha is not None:
            alpha[rows] = part[..., -1]
    if image.mode == "1":
        pixels *= 255
    return pixels, alpha, None


def decode_deep(file: BinaryIO, *, grey: bool, has_alpha: bool) -> Decoded:
    """Return what :func:`decode` does for colour of 16 bits or floats, which Pillow would cut down to 8 bits."""
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.dtype not in (np.uint16, np.float32):
        raise PictureError("cannot be decoded", fix="It seems damaged: get it again")
    alpha = np.ascontiguousarray(pixels[..., 3]) if has_alpha else None
    if grey:
        return np.ascontiguousarray(pixels[..., :1]), alpha, None
    if pixels.shape[2] == 4:
        pixels = np.ascontiguousarray(pixels[..., :3])
    for rows in strips(*pixels.shape[:2]):  # BGR to RGB in place
        pixels[rows] = pixels[rows, :, ::-1].copy()
    return pixels, alpha, None


def decode_pnm(image: Image.Image, file: BinaryIO) -> Decoded:
    """Return what :func:`decode` does for an opened PNM file of 8 or 16 bits; other scales are refused."""
    start = image.tile[0].offset  # type: ignore[attr-defined]
    file.seek(0)
    words = re.sub(rb"#[^\n]*", b" ", file.read(start)).split()
    if words[0] not in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"):
        raise PictureError("is a float PNM", fix=CONVERT)
    if image.mode == "1" or words[3] == b"255":
        return decode(image)
    if words[3] != b"65535" or words[0] not in (b"P5", b"P6"):
        raise PictureError(f"is a {words[0].decode()} file with values up to {words[3].decode()}", fix=CONVERT)
    shape = (*image.size[::-1], 3 if words[0] == b"P6" else 1)
    file.seek(start)
    return np.frombuffer(file.read(2 * int(np.prod(shape))), ">u2").astype(np.uint16).reshape(shape), None, None


def key_alpha(pixels: np.ndarray, key: bytes, depth: int) -> np.ndarray:
    """Return the alpha of a PNG that names one transparent colour, ``key``, at ``depth`` bits."""
    colour = np.array(struct.unpack_from(f">{pixels.shape[2]}H", key))
    if depth < 8:
        colour = colour * 255 // ((1 << depth) - 1)
    return np.where((pixels == colour).all(2), 0, full_scale(pixels.dtype)).astype(pixels.dtype)


def check_range(values: np.ndarray) -> None:
    """Raise :class:`PictureError` if ``values`` are floats outside [0, 1]."""
    if values.dtype.kind == "f" and not (values.min() >= 0 and values.max() <= 1):  # NaN too
        low, high = values.min(), values.max()
        span = "that are no numbers (NaN)" if np.isnan(low) else f"from {low:.6g} to {high:.6g}, outside [0, 1]"
        raise PictureError(f"has float values {span}", fix="Scale them to [0, 1] first, as nothing is clipped")


def _expand(image: Image.Image) -> Decoded:
    image.load()
    indices = np.asarray(image)
    greys = [grey for grey in range(256) for _ in range(3)]  # Pillow calls such a palette L
    colours = (image.getpalette("RGB") or []) if image.mode == "P" else greys
    palette = np.full((len(colours) // 3, 4), 255, np.uint8)
    palette[:, :3] = np.reshape(colours, (-1, 3))
    clear = image.info.get("transparency")
    if isinstance(clear, bytes):
        palette[: len(clear), 3] = np.frombuffer(clear, np.uint8)[: len(palette)]
    elif isinstance(clear, int) and clear < len(palette):
        palette[clear, 3] = 0
    if indices.max() >= len(palette):
        raise PictureError("uses colours that its palette lacks", fix="It is damaged: get it again")
    alpha = palette[:, 3][indices] if (palette[:, 3] < 255).any() else None
    return palette[:, :3][indices], alpha, palette
