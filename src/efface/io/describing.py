"""Gather what a picture says beside its pixels, and how its format was used."""

from __future__ import annotations

from typing import Any, BinaryIO

from PIL import Image, JpegImagePlugin

from efface.errors import PictureError
from efface.io.picture import Origin


def describe(image: Image.Image, form: str | None, settings: dict[str, Any]) -> Origin:
    """Return the origin of a Pillow ``image``, with the orientation of the file still in its EXIF block."""
    info = image.info
    xmp, dpi = info.get("xmp") or b"", info.get("dpi")
    return Origin(
        format=form,
        bilevel=image.mode == "1",
        exif=bytes(info.get("exif") or b"").removeprefix(b"Exif\0\0"),
        icc=bytes(info.get("icc_profile") or b""),
        xmp=xmp.encode() if isinstance(xmp, str) else bytes(xmp),
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None,
        settings=settings,
    )


def jpeg_settings(image: Image.Image) -> dict[str, Any]:
    """Return how a JPEG was encoded, as keyword arguments of Pillow's encoder."""
    tables = image.quantization  # type: ignore[attr-defined]
    photoshop = [data for name, data in image.applist if name == "APP13"]  # type: ignore[attr-defined]
    return {
        "qtables": [tables[key] for key in sorted(tables)],
        "subsampling": max(JpegImagePlugin.get_sampling(image), 0),  # none for forms that the encoder lacks
        "progressive": bool(image.info.get("progressive")),
        "keep_rgb": image.info.get("adobe_transform") == 0 and image.mode == "RGB",
        "comment": image.info.get("comment", b""),
        "extra": b"".join(b"\xff\xed" + (len(data) + 2).to_bytes(2, "big") + data for data in photoshop),
    }


def webp_settings(file: BinaryIO) -> dict[str, Any]:
    """Return whether a WebP is lossless."""
    position, name = 12, b"RIFF"
    while name not in (b"VP8 ", b"VP8L", b""):
        file.seek(position)
        name, size = file.read(4), int.from_bytes(file.read(4), "little")
        position += 8 + size + size % 2
    return {"lossless": name == b"VP8L"}


def check_avif(file: BinaryIO) -> None:
    """Raise :class:`PictureError` for an AVIF that Pillow would cut down to 8 bits."""
    file.seek(0)
    head = file.read(1 << 16)
    place = head.find(b"av1C")  # the third byte of this box has a bit for depths of 10 and 12
    if 0 <= place < len(head) - 6 and head[place + 6] & 0x40:
        raise PictureError("is an AVIF of more than 8 bits", fix="Convert it to a 16-bit PNG or TIFF first")
