"""Mend what a picture's metadata says about its pixels: the orientation, and the small copies of the picture in it."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from dataclasses import replace

import numpy as np

from efface.io import ifd, tiff
from efface.io.picture import Origin

_DAMAGED = (ValueError, struct.error)  # metadata that cannot be read is kept as it is


def orientation(exif: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none that makes sense."""
    with contextlib.suppress(*_DAMAGED):
        file = io.BytesIO(exif)
        order, start = ifd.open_structure(file)
        place = ifd.places(file, order, start)[0].get(ifd.ORIENTATION)
        if place and place.size == 2:
            (value,) = ifd.unpack(file, order + "H", place.start)
            return value if 1 <= value <= 8 else 1
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror (h, w, ...) so that it is seen as its EXIF ``orientation`` asks."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


def reset_orientation(exif: bytes) -> bytes:
    """Set the orientation to 1, in place: maker notes, which count from fixed positions, stay readable."""
    block = bytearray(exif)
    with contextlib.suppress(*_DAMAGED):
        file = io.BytesIO(exif)
        order, start = ifd.open_structure(file)
        place = ifd.places(file, order, start)[0].get(ifd.ORIENTATION)
        if place and place.size == 2:
            struct.pack_into(order + "H", block, place.start, 1)
    return bytes(block)


def without_thumbnail(exif: bytes) -> bytes:
    """Blank the small copy of the picture, which would still show what was taken out of the large one."""
    block = bytearray(exif)
    with contextlib.suppress(*_DAMAGED):
        file = io.BytesIO(exif)
        order, first = ifd.open_structure(file)
        second = ifd.places(file, order, first)[1]
        if second:
            count = ifd.unpack(file, order + "H", first)[0]
            struct.pack_into(order + "I", block, first + 2 + 12 * count, 0)
            small = ifd.places(file, order, second)[0]
            start, length = (ifd.unpack(file, order + "I", small[tag].start)[0] for tag in (513, 514) if tag in small)
            block[start : start + length] = bytes(len(block[start : start + length]))
    return bytes(block)


def xmp_upright(xmp: bytes) -> bytes:
    """Set the orientation in an XMP packet to 1."""
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", xmp)


def xmp_without_thumbnail(xmp: bytes) -> bytes:
    """Empty the small copies of the picture in an XMP packet."""
    return re.sub(rb"(<xmpGImg:image>|xmpGImg:image=[\"'])[^<\"']*", rb"\1", xmp)


def without_thumbnails(origin: Origin) -> Origin:
    """Return ``origin`` without any small copy of the picture, for a picture whose pixels have changed."""
    settings = dict(origin.settings)
    if "chunks" in settings:
        settings["chunks"] = [(name, xmp_without_thumbnail(data)) for name, data in settings["chunks"]]
    if "tags" in settings:
        settings["tags"] = {
            tag: ifd.Entry(kind, value if isinstance(value, dict) else xmp_without_thumbnail(value))
            for tag, (kind, value) in settings["tags"].items()
            if tag != tiff.PHOTOSHOP or not _photoshop_thumbnail(value)
        }
    if _photoshop_thumbnail(settings.get("extra", b"")):
        del settings["extra"]
    exif, xmp = without_thumbnail(origin.exif), xmp_without_thumbnail(origin.xmp)
    return replace(origin, exif=exif, xmp=xmp, settings=settings)


def _photoshop_thumbnail(block: bytes) -> bool:
    return b"8BIM\x04\x09" in block or b"8BIM\x04\x0c" in block
