"""Read the chunks of PNG files, and write PNG files strip by strip at 1, 8 or 16 bits with any chunks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from efface.io.picture import strips

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that stay true when the pixels change; each is copied to the file written.
KEPT = {b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"mDCV", b"cLLI", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME"}
LEVEL = 4  # of zlib, behind adaptive filters: smaller than level 6 behind fixed ones, and faster

Chunk = tuple[bytes, bytes]


def read_chunks(file: BinaryIO) -> list[Chunk]:
    """Return every chunk but the pixel data; raise ValueError if the file ends early."""
    file.seek(len(SIGNATURE))
    chunks: list[Chunk] = []
    while not chunks or chunks[-1][0] != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("the file ends early")
        length, name = struct.unpack(">I4s", head)
        if name == b"IDAT":
            file.seek(length, 1)
        else:
            chunks.append((name, file.read(length)))
        if len(file.read(4)) < 4:
            raise ValueError("the file ends early")
    return chunks


def metadata_chunks(icc: bytes, xmp: bytes, dpi: tuple[float, float] | None) -> list[Chunk]:
    """Return the chunks that carry metadata from another format."""
    chunks = []
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1)))
    if xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    return chunks


def write_png(
    file: BinaryIO,
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    *,
    bilevel: bool = False,
    palette: np.ndarray | None = None,
    chunks: Iterable[Chunk] = (),
) -> None:
    """Write (h, w, c) uint8 or uint16 ``pixels``; with a ``palette`` (n, 4) they are (h, w, 1) indices into it."""
    height, width, channels = pixels.shape
    depth = 1 if bilevel else 8 * pixels.dtype.itemsize
    colour = 3 if palette is not None else (2 if channels == 3 else 0) + (4 if alpha is not None else 0)
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    for name, data in chunks:
        _write_chunk(file, name, data)
    if palette is not None:
        _write_chunk(file, b"PLTE", palette[:, :3].tobytes())
        if (palette[:, 3] < 255).any():
            _write_chunk(file, b"tRNS", palette[:, 3].tobytes())
    packer = zlib.compressobj(LEVEL)
    above: np.ndarray | None = None
    for rows in strips(height, width * 4):
        part = pixels[rows] if alpha is None else np.concatenate([pixels[rows], alpha[rows, :, None]], 2)
        if depth == 1:
            part = np.packbits(part[..., 0] > 0, axis=1)
        lines = part.astype(part.dtype.newbyteorder(">"), copy=False).reshape(len(part), -1).view(np.uint8)
        if colour == 3 or depth == 1:
            filtered = np.pad(lines, ((0, 0), (1, 0)))  # no filter: indices and bits are not smooth
        else:
            above = np.zeros_like(lines[:1]) if above is None else above
            filtered = _filter(lines, above, part.shape[2] * part.dtype.itemsize)
            above = lines[-1:].copy()
        if data := packer.compress(filtered.tobytes()):
            _write_chunk(file, b"IDAT", data)
    _write_chunk(file, b"IDAT", packer.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _filter(lines: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """Filter each line by the one of the five PNG filters that leaves the smallest sum of differences."""
    up = np.concatenate([above, lines[:-1]])
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, step:], corner[:, step:] = lines[:, :-step], up[:, :-step]
    guess = left.astype(np.int16) + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    mean = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    choices = np.stack([lines, lines - left, lines - up, lines - mean, lines - paeth])
    best = np.abs(choices.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64).argmin(0)
    return np.concatenate([best[:, None].astype(np.uint8), choices[best, np.arange(len(lines))]], 1)
