"""Write pictures by the suffix of the path, as the kind of file they came from where the format is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from efface.errors import OutputError
from efface.io import metadata, png, tiff
from efface.io.atomic import atomic_write
from efface.io.fitting import Stored, fit, refuse
from efface.io.picture import Origin, Picture

SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".gif": "GIF",
    ".avif": "AVIF",
}  # fmt: skip


def write_picture(
    picture: Picture,
    path: Path | str,
    *,
    overwrite: bool = False,
    quality: int | None = None,
    root: Path | str | None = None,
) -> None:
    """Write ``picture`` to ``path`` atomically, in the format that its suffix names.

    Profile, EXIF and resolution are kept where the format can hold them. In the format it came from, the picture keeps
    the rest too: JPEG its quantisation tables and subsampling, PNG its chunks, TIFF its tags, WebP whether it is
    lossless. ``quality`` (1 to 100) replaces the JPEG tables, or the defaults: 95 for JPEG, 90 for AVIF and for WebP
    from lossy sources, else WebP is lossless. Once pixels were pasted, thumbnails in the metadata are blanked.
    ``root`` is a folder that links must not lead out of. What could not be kept is added to ``picture.notes``.

    Raises
    ------
    OutputError
        If the suffix names no format, the format cannot hold the depth, the alpha or the size, or the file cannot be
        written.
    """
    path = Path(path)
    form = format_of(path)
    origin = metadata.without_thumbnails(picture.origin) if picture.changed else picture.origin
    if origin.format != form:
        origin = replace(origin, settings={})
    stored = fit(picture, form, path)
    with atomic_write(path, overwrite=overwrite, root=root) as temporary, temporary.open("wb") as file:
        try:
            _WRITERS[form](file, stored, origin, quality)
        except (ValueError, RuntimeError, SystemError, cv2.error) as error:
            raise OutputError(
                f"cannot be encoded as {form} ({error})", where=path, fix="Choose .png or .tif"
            ) from error
    if form in ("JPEG", "AVIF") or (form == "WEBP" and not _lossless(origin, quality)):
        picture.notes.append(f"{form} stores pixels inexactly: those that were left alone may differ by a little")


def check_fits(picture: Picture, path: Path | str) -> None:
    """Raise :class:`OutputError` where the format that ``path`` names can hold no picture of that size, depth or alpha.

    To be asked before long work: :func:`write_picture` refuses the same at its end.
    """
    refuse(picture, format_of(path), Path(path))


def format_of(path: Path | str) -> str:
    """Return the format that the suffix of ``path`` names; raise :class:`OutputError` where it names none."""
    suffix = Path(path).suffix
    if suffix.lower() not in SUFFIXES:
        raise OutputError(f"no format has the suffix {suffix!r}", where=path, fix=f"Use one of {' '.join(SUFFIXES)}")
    return SUFFIXES[suffix.lower()]


def _write_png(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    chunks = origin.settings.get("chunks") or png.metadata_chunks(origin.icc, origin.xmp, origin.dpi)
    exif = [(b"eXIf", origin.exif)] if origin.exif else []
    png.write_png(
        file, stored.pixels, stored.alpha, bilevel=stored.bilevel, palette=stored.palette, chunks=[*chunks, *exif]
    )


def _write_tiff(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    settings = dict(origin.settings)
    if not settings:
        settings["order"], settings["tags"] = tiff.metadata_tags(origin.exif, origin.icc, origin.xmp, origin.dpi)
    tiff.write_tiff(file, stored.pixels, stored.alpha, bilevel=stored.bilevel, palette=stored.palette, **settings)


def _write_pnm(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    height, width, channels = stored.pixels.shape
    if stored.bilevel:
        file.write(f"P4\n{width} {height}\n".encode())
        file.write(np.packbits(stored.pixels[..., 0] == 0, axis=1).data)  # 1 is black
    else:
        file.write(f"P{6 if channels == 3 else 5}\n{width} {height}\n{np.iinfo(stored.pixels.dtype).max}\n".encode())
        file.write(stored.pixels.astype(stored.pixels.dtype.newbyteorder(">"), order="C", copy=False).data)


def _write_jpeg(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    settings: dict[str, Any] = {"subsampling": 0, **origin.settings}
    if quality is not None:
        settings.pop("qtables", None)
    if "qtables" not in settings:  # a quality beside them would scale the tables
        settings["quality"] = quality or 95
    exif = b"Exif\0\0" + origin.exif if origin.exif else b""
    _save(stored, file, "JPEG", **_common(origin), exif=exif, **settings)


def _write_webp(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    settings = {"lossless": _lossless(origin, quality), "exact": True, "quality": quality or 90}
    _save(stored, file, "WEBP", **_common(origin), exif=origin.exif, **settings)


def _lossless(origin: Origin, quality: int | None) -> bool:
    """Return whether a WebP is to hold the pixels exactly."""
    return quality is None and origin.settings.get("lossless", origin.format not in ("JPEG", "AVIF"))


def _write_avif(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    _save(stored, file, "AVIF", **_common(origin), exif=origin.exif, quality=quality or 90)


def _write_bmp(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    if stored.alpha is None:
        _save(stored, file, "BMP", dpi=origin.dpi or (96, 96))
    else:  # Pillow would write the alpha as padding
        colours = np.broadcast_to(stored.pixels[..., ::-1], (*stored.alpha.shape, 3))
        file.write(cv2.imencode(".bmp", np.concatenate([colours, stored.alpha[..., None]], 2))[1].data)


def _write_gif(file: BinaryIO, stored: Stored, origin: Origin, quality: int | None) -> None:
    assert stored.palette is not None
    clear = np.flatnonzero(stored.palette[:, 3] == 0)
    _save(stored, file, "GIF", optimize=False, **({"transparency": int(clear[0])} if len(clear) else {}))


_WRITERS = {
    "JPEG": _write_jpeg, "PNG": _write_png, "TIFF": _write_tiff, "WEBP": _write_webp, "BMP": _write_bmp,
    "PPM": _write_pnm, "GIF": _write_gif, "AVIF": _write_avif,
}  # fmt: skip


def _common(origin: Origin) -> dict[str, Any]:
    common = {"icc_profile": origin.icc, "xmp": origin.xmp, "dpi": origin.dpi}
    return {name: value for name, value in common.items() if value}


def _save(stored: Stored, file: BinaryIO, form: str, **settings: Any) -> None:
    # Given a file of the system, Pillow writes past Python and does not notice when a disk fills up.
    plain: Any = SimpleNamespace(write=file.write, flush=file.flush)
    _pillow(stored).save(plain, form, **settings)


def _pillow(stored: Stored) -> Image.Image:
    """Return 8-bit arrays as a Pillow image that shares their memory where Pillow can."""
    pixels = stored.pixels
    if stored.alpha is not None:
        pixels = np.concatenate([pixels, stored.alpha[..., None]], 2)
    height, width, channels = pixels.shape
    mode = "P" if stored.palette is not None else ("L", "LA", "RGB", "RGBA")[channels - 1]
    image = Image.frombuffer(mode, (width, height), np.ascontiguousarray(pixels), "raw", mode, 0, 1)
    if stored.palette is not None:
        image.putpalette(stored.palette[:, :3].tobytes())
    return image.convert("1", dither=Image.Dither.NONE) if stored.bilevel else image
