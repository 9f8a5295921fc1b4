"""Read pictures of the accepted formats, by content, in their stored depth, with what they say beside their pixels."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from efface.errors import PictureError
from efface.io import metadata, png, tiff
from efface.io.decoding import Decoded, check_range, decode, decode_deep, decode_pnm, key_alpha
from efface.io.describing import check_avif, describe, jpeg_settings, webp_settings
from efface.io.picture import Origin, Picture

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 300_000_000
_LOCK = threading.Lock()  # warning filters and Pillow's limit are those of the whole process
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "AVIF")


def read_picture(
    source: Path | str | bytes | Image.Image | np.ndarray | torch.Tensor, *, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Read a picture from a path, the bytes of a file, a PIL image, an array or a tensor.

    Arrays are (h, w) or (h, w, 1 | 3 | 4), uint8, uint16, or float in [0, 1]; tensors are (h, w), (1 | 3, h, w), or
    with a batch of one before it, uint8, or float in [0, 1]. The source is copied, never changed. The size that a file
    states is checked against ``max_pixels`` before any pixel is decoded.

    Raises
    ------
    PictureError
        If the source is missing, empty, damaged, too large, animated, has several pages, or has a form that cannot be
        kept exactly (CMYK and other colour models, odd depths).
    """
    if isinstance(source, np.ndarray):
        return _guarded(lambda: _from_array(source, max_pixels), "array")
    if isinstance(source, Image.Image):
        return _guarded(lambda: _from_pillow(source, max_pixels), "PIL image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _guarded(lambda: _from_file(io.BytesIO(source), max_pixels), "picture bytes")
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source), max_pixels)
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is not None and isinstance(source, torch.Tensor):
        return _guarded(lambda: _from_tensor(source, max_pixels), "tensor")
    fix = "Give a path, the bytes of a file, a PIL image, an array or a tensor"
    raise PictureError(f"a {type(source).__name__} is not a picture", fix=fix)


def _guarded(read: Callable[[], Picture], where: object) -> Picture:
    """Turn whatever a decoder raises on damaged data into a PictureError, and keep its warnings quiet."""
    try:
        with _LOCK, warnings.catch_warnings(action="ignore"):
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is checked before decoding
            try:
                return read()
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except PictureError as error:
        error.where = error.where or str(where)
        raise
    except Exception as error:  # decoders raise nearly anything, in words that only they understand
        fix = "It seems damaged: get it again, or save it anew with another program"
        raise PictureError("cannot be decoded", where=where, fix=fix) from error


def _from_path(path: Path, max_pixels: int) -> Picture:
    if not path.is_file():
        what = "is a folder, not a picture" if path.is_dir() else "there is no such file"
        raise PictureError(what, where=path, fix="Check the path")
    try:
        file = path.open("rb")
    except OSError as error:
        raise PictureError(f"cannot be read ({error.strerror})", where=path, fix="Check its permissions") from error
    with file:
        return _guarded(lambda: _from_file(file, max_pixels), path)


def _from_file(file: BinaryIO, max_pixels: int) -> Picture:
    form = _sniff(file)
    if form == "TIFF":
        layout = tiff.read_layout(file)
        _check_size(layout.width, layout.height, max_pixels)
        tiff.check_layout(layout)
        origin = tiff.describe(file, layout)
        if layout.deep_colour:
            return _assemble(decode_deep(file, grey=False, has_alpha=layout.samples == 4), origin)
        with contextlib.closing(_open(form, file)) as image:
            decoded = decode(image)
        return _assemble(decoded, origin)
    with contextlib.closing(_open(form, file)) as image:  # closing frees its memory
        _check_size(*image.size, max_pixels)
        count = getattr(image, "n_frames", 1)
        if count > 1 and image.format != "MPO":  # the further pictures of a telephone's JPEG are aids to the first
            fix = "Save the frames as files of their own first"
            raise PictureError(f"is animated: {count} frames, and one is expected", fix=fix)
        decoded, origin = _FORMS[form](image, file)
    return _assemble(decoded, origin)


def _read_jpeg(image: Image.Image, file: BinaryIO) -> tuple[Decoded, Origin]:
    return decode(image), describe(image, "JPEG", jpeg_settings(image))


def _read_png(image: Image.Image, file: BinaryIO) -> tuple[Decoded, Origin]:
    chunks = png.read_chunks(file)
    first = dict(reversed(chunks))
    depth, colour = first[b"IHDR"][8:10]
    if depth == 16 and colour:
        pixels, alpha, palette = decode_deep(file, grey=colour == 4, has_alpha=colour in (4, 6))
    else:
        pixels, alpha, palette = decode(image)
    if b"tRNS" in first and palette is None:
        alpha = key_alpha(pixels, first[b"tRNS"], depth)
    origin = describe(image, "PNG", {"chunks": [chunk for chunk in chunks if chunk[0] in png.KEPT]})
    return (pixels, alpha, palette), replace(origin, exif=first.get(b"eXIf", b""))


def _read_webp(image: Image.Image, file: BinaryIO) -> tuple[Decoded, Origin]:
    return decode(image), describe(image, "WEBP", webp_settings(file))


def _read_pnm(image: Image.Image, file: BinaryIO) -> tuple[Decoded, Origin]:
    return decode_pnm(image, file), describe(image, "PPM", {})


def _read_avif(image: Image.Image, file: BinaryIO) -> tuple[Decoded, Origin]:
    check_avif(file)
    return decode(image), describe(image, "AVIF", {})


def _read_plain(image: Image.Image, file: BinaryIO) -> tuple[Decoded, Origin]:
    return decode(image), describe(image, image.format, {})


_FORMS = {
    "JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp, "BMP": _read_plain, "PPM": _read_pnm,
    "GIF": _read_plain, "AVIF": _read_avif,
}  # fmt: skip


def _sniff(file: BinaryIO) -> str:
    head = file.read(16)
    if not head:
        raise PictureError("the file is empty", fix="Get it again")
    Image.init()
    for form in FORMATS:
        accept = Image.OPEN[form][1] if form in Image.OPEN else None
        if accept is not None and accept(head) is True:
            return form
    fix = f"Convert it to one of {', '.join(FORMATS)}"
    raise PictureError("is not a picture of an accepted format", fix=fix)


def _open(form: str, file: BinaryIO) -> Image.Image:
    """Read the header as the one format that was recognised."""
    file.seek(0)
    return Image.OPEN[form][0](file, b"")


def _from_pillow(image: Image.Image, max_pixels: int) -> Picture:
    _check_size(*image.size, max_pixels)
    settings = jpeg_settings(image) if hasattr(image, "quantization") else {}
    return _assemble(decode(image), describe(image, image.format, settings))


def _assemble(decoded: Decoded, origin: Origin) -> Picture:
    pixels, alpha, palette = decoded
    check_range(pixels)
    if alpha is not None:
        check_range(alpha)
    turn = metadata.orientation(origin.exif)
    if turn != 1:
        pixels = metadata.upright(pixels, turn)
        alpha = None if alpha is None else metadata.upright(alpha, turn)
    exif, xmp = metadata.reset_orientation(origin.exif), metadata.xmp_upright(origin.xmp)
    return Picture(pixels, alpha, replace(origin, palette=palette, exif=exif, xmp=xmp))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise PictureError("has no pixels", fix="Give a picture of at least 1 x 1")
    if width * height > max_pixels:
        what = f"has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million"
        raise PictureError(what, fix="Give a smaller picture, or raise the limit on purpose (--max-pixels)")


def _from_array(array: np.ndarray, max_pixels: int) -> Picture:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        fix = "Give (h, w), or (h, w, c) with 1, 3 or 4 channels"
        raise PictureError(f"an array of shape {array.shape} is not a picture", fix=fix)
    _check_size(array.shape[1], array.shape[0], max_pixels)
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    if dtype not in (np.uint8, np.uint16, np.float32):
        fix = "Give uint8, uint16, or floats in [0, 1]"
        raise PictureError(f"an array of {array.dtype} is not a picture", fix=fix)
    copy = np.array(array[..., : 1 if array.shape[2] == 1 else 3], dtype, order="C")
    alpha = np.array(array[..., 3], dtype, order="C") if array.shape[2] == 4 else None
    return _assemble((copy, alpha, None), Origin())


def _from_tensor(tensor: torch.Tensor, max_pixels: int) -> Picture:
    import torch

    planes = tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor[None] if tensor.ndim == 2 else tensor
    levels = tensor.dtype == torch.uint8
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or not (levels or planes.is_floating_point()):
        raise PictureError(
            f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} is not a picture",
            fix="Give uint8, or floats in [0, 1], of shape (3, h, w), (1, 3, h, w) or (h, w)",
        )
    planes = planes.detach().cpu() if levels else planes.detach().cpu().float()
    return _from_array(planes.permute(1, 2, 0).numpy(), max_pixels)
