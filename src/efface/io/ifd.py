"""Read and write the tagged directories that TIFF files and EXIF blocks are made of (TIFF 6.0, section 2).

Everything that reads may raise ValueError or struct.error on a damaged structure.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import BinaryIO, NamedTuple

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of each type
SHORT, LONG = 3, 4
ORIENTATION, EXIF, GPS, INTEROP = 274, 34665, 34853, 40965
HEADERS = {b"II*\0": "<", b"MM\0*": ">"}


class Place(NamedTuple):
    """Where the values of a tag stand: their type, first byte and number of bytes."""

    type: int
    start: int
    size: int


class Entry(NamedTuple):
    """The values of a tag: their type and bytes, or the directory that the tag leads to."""

    type: int
    value: bytes | dict[int, Entry]


Directory = dict[int, Entry]


def unpack(file: BinaryIO, form: str, start: int) -> tuple[int, ...]:
    """Unpack the struct ``form`` at ``start``."""
    file.seek(start)
    return struct.unpack(form, file.read(struct.calcsize(form)))


def open_structure(file: BinaryIO) -> tuple[str, int]:
    """Return the byte order, ``<`` or ``>``, and where the first directory begins."""
    file.seek(0)
    order = HEADERS.get(file.read(4))
    if order is None:
        raise ValueError("no TIFF header")
    return order, unpack(file, order + "I", 4)[0]


def places(file: BinaryIO, order: str, start: int) -> tuple[dict[int, Place], int]:
    """Return the place of each tag's values in the directory at ``start``, and where the next directory begins."""
    (count,) = unpack(file, order + "H", start)
    found = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = unpack(file, order + "HHI", entry)
        if kind in SIZES:
            size = SIZES[kind] * number
            found[tag] = Place(kind, entry + 8 if size <= 4 else unpack(file, order + "I", entry + 8)[0], size)
    return found, unpack(file, order + "I", start + 2 + 12 * count)[0]


def read_directory(file: BinaryIO, order: str, start: int, tags: Collection[int] | None = None) -> Directory:
    """Read the ``tags`` (all by default) of the directory at ``start``, with the EXIF and GPS directories below it."""
    directory: Directory = {}
    for tag, (kind, position, size) in places(file, order, start)[0].items():
        if tags is not None and tag not in tags:
            continue
        if tag in (EXIF, GPS):  # these two stand in the first directory alone, so this goes one level deep
            below = read_directory(file, order, unpack(file, order + "I", position)[0], _ANY_BUT_LINKS)
            directory[tag] = Entry(LONG, below)
        else:
            file.seek(position)
            value = file.read(size)
            if len(value) == size:
                directory[tag] = Entry(kind, value)
    return directory


def pack_directory(directory: Directory, start: int, order: str) -> bytes:
    """Return ``directory`` as bytes that will stand at ``start``, with the values it points to behind it."""
    head, tail = struct.pack(order + "H", len(directory)), b""
    behind = start + 2 + 12 * len(directory) + 4
    for tag, (kind, value) in sorted(directory.items()):
        if isinstance(value, dict):
            head += struct.pack(order + "HHII", tag, kind, 1, behind + len(tail))
            tail += pack_directory(value, behind + len(tail), order)
        elif len(value) <= 4:
            head += struct.pack(order + "HHI", tag, kind, len(value) // SIZES[kind]) + value.ljust(4, b"\0")
        else:
            head += struct.pack(order + "HHII", tag, kind, len(value) // SIZES[kind], behind + len(tail))
            tail += value + b"\0" * (len(value) % 2)
    return head + struct.pack(order + "I", 0) + tail


def pack_header(order: str, start: int) -> bytes:
    """Return the eight bytes that begin a structure whose first directory is at ``start``."""
    return next(head for head, o in HEADERS.items() if o == order) + struct.pack(order + "I", start)


_ANY_BUT_LINKS = frozenset(range(65536)) - {EXIF, GPS, INTEROP}
