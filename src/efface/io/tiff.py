"""Read what TIFF files say beside their pixels, and write TIFF files strip by strip at any depth."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from efface.errors import PictureError
from efface.io import ifd
from efface.io.picture import Origin, strips

X, Y, UNIT, XMP, IPTC, PHOTOSHOP, ICC = 282, 283, 296, 700, 33723, 34377, 34675
# Tags that stay true when the pixels change: names, dates, resolution, places on the globe, and the blocks above.
KEPT = {269, 270, 271, 272, X, Y, 285, UNIT, 305, 306, 315, 316, XMP, 33432, 33550, IPTC, 33922, 34264}
KEPT |= {PHOTOSHOP, ifd.EXIF, ICC, 34735, 34736, 34737, ifd.GPS, 42112, 42113}
RAW, DEFLATE = 1, 8
CONVERT_COLOURS = "Convert it to RGB with its colour profile first, as colours would change"
CONVERT = "Convert it to 8 or 16 bits of grey or RGB first"


class Layout(NamedTuple):
    """How the samples of the first page are stored, and how many pages there are."""

    width: int
    height: int
    depths: tuple[int, ...]
    kinds: tuple[int, ...]  # 1 unsigned, 2 signed, 3 float
    samples: int
    photometric: int  # 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab
    extra: tuple[int, ...]  # of each further channel: 0 unknown, 1 associated alpha, 2 alpha
    compression: int
    pages: int

    @property
    def deep_colour(self) -> bool:
        """Whether it has several channels of more than 8 bits."""
        return self.samples > 1 and max(self.depths) > 8


def read_layout(file: BinaryIO) -> Layout:
    """Read the layout; raise ValueError or struct.error if the structure is damaged."""
    order, start = ifd.open_structure(file)
    first, following = ifd.places(file, order, start)
    pages = {start}
    while following and following not in pages:
        pages.add(following)
        following = ifd.places(file, order, following)[1]

    def values(tag: int, *default: int) -> tuple[int, ...]:
        place = first.get(tag)
        if place is None or place.type not in (ifd.SHORT, ifd.LONG) or place.size > 64:
            return default
        form = "H" if place.type == ifd.SHORT else "I"
        return ifd.unpack(file, f"{order}{place.size // ifd.SIZES[place.type]}{form}", place.start)

    return Layout(
        values(256, 0)[0], values(257, 0)[0], values(258, 1), values(339, 1), values(277, 1)[0], values(262, 1)[0],
        values(338), values(259, 1)[0], len(pages),
    )  # fmt: skip


def check_layout(layout: Layout) -> None:
    """Raise :class:`PictureError` for several pages, and for layouts that cannot be decoded exactly."""
    depths, kinds = set(layout.depths), set(layout.kinds)
    if layout.pages > 1:
        raise PictureError(f"has {layout.pages} pages, and one is expected", fix="Save the pages as files of their own")
    if layout.photometric == 5:
        raise PictureError("is CMYK", fix=CONVERT_COLOURS)
    if (depths, kinds) not in [({1}, {1}), ({2}, {1}), ({4}, {1}), ({8}, {1}), ({16}, {1}), ({32}, {3})]:
        kind = "/".join({1: "unsigned", 2: "signed", 3: "float"}.get(k, "unknown") for k in sorted(kinds))
        raise PictureError(f"has {'/'.join(map(str, sorted(depths)))}-bit {kind} samples", fix=CONVERT)
    if 1 in layout.extra:
        raise PictureError("has colours multiplied by alpha", fix="Save it with unassociated alpha first")
    colours = 3 if layout.photometric in (2, 6, 8) else 1
    if layout.samples not in (colours, colours + 1):
        raise PictureError(f"has {layout.samples} channels", fix=CONVERT)
    if max(depths) > 8 and (layout.samples, layout.photometric) not in [(1, 1), (3, 2), (4, 2)]:
        raise PictureError("is a deep TIFF that is neither grey, RGB nor RGBA", fix=CONVERT)


def describe(file: BinaryIO, layout: Layout) -> Origin:
    """Return the origin, without the orientation: Pillow and OpenCV turn TIFF files upright themselves."""
    order, start = ifd.open_structure(file)
    tags = ifd.read_directory(file, order, start, KEPT)
    exif = {tag: entry for tag, entry in tags.items() if tag not in (XMP, PHOTOSHOP, ICC, IPTC)}
    return Origin(
        format="TIFF",
        bilevel=layout.depths == (1,) and layout.samples == 1 and layout.photometric < 2,
        exif=ifd.pack_header(order, 8) + ifd.pack_directory(exif, 8, order) if exif else b"",
        icc=_bytes(tags, ICC),
        xmp=_bytes(tags, XMP),
        dpi=_resolution(order, tags),
        settings={"order": order, "tags": tags, "compressed": layout.compression != RAW},
    )


def _bytes(tags: ifd.Directory, tag: int) -> bytes:
    value = tags[tag].value if tag in tags else b""
    return value if isinstance(value, bytes) else b""


def _resolution(order: str, tags: ifd.Directory) -> tuple[float, float] | None:
    unit = {b"\2": 1.0, b"\3": 2.54}.get(_bytes(tags, UNIT).strip(b"\0"))
    pair = [struct.unpack(order + "II", _bytes(tags, tag)) for tag in (X, Y) if len(_bytes(tags, tag)) == 8]
    if unit is None or len(pair) < 2 or min(map(min, pair)) < 1:
        return None
    return pair[0][0] / pair[0][1] * unit, pair[1][0] / pair[1][1] * unit


def metadata_tags(exif: bytes, icc: bytes, xmp: bytes, dpi: tuple[float, float] | None) -> tuple[str, ifd.Directory]:
    """Return the byte order and the tags that carry metadata from another format."""
    order, tags = "<", ifd.Directory()
    with contextlib.suppress(ValueError, struct.error):
        order, start = ifd.open_structure(io.BytesIO(exif))
        tags = ifd.read_directory(io.BytesIO(exif), order, start, KEPT)
    if icc:
        tags[ICC] = ifd.Entry(7, icc)
    if xmp:
        tags[XMP] = ifd.Entry(1, xmp)
    if dpi:
        for tag, value in zip((X, Y), dpi, strict=True):
            tags[tag] = ifd.Entry(5, struct.pack(order + "II", round(value * 1000), 1000))
        tags[UNIT] = ifd.Entry(ifd.SHORT, struct.pack(order + "H", 2))  # per inch
    return order, tags


def write_tiff(
    file: BinaryIO,
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    *,
    bilevel: bool = False,
    palette: np.ndarray | None = None,
    order: Literal["<", ">"] = "<",
    tags: Mapping[int, ifd.Entry] | None = None,
    compressed: bool = True,
) -> None:
    """Write (h, w, c) ``pixels`` of 8, 16 or 32 bits; with a ``palette`` (n, 4) they are (h, w, 1) indices into it."""
    height, width, channels = pixels.shape
    samples = channels + (alpha is not None)
    predict = compressed and palette is None and not bilevel and pixels.dtype.kind == "u"
    file.write(ifd.pack_header(order, 0))
    starts, sizes = [], []
    for rows in strips(height, width * 4):
        part = pixels[rows] if alpha is None else np.concatenate([pixels[rows], alpha[rows, :, None]], 2)
        if predict:
            part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], 1)
        if bilevel:
            part = np.packbits(part[..., 0] > 0, axis=1)
        data = part.astype(part.dtype.newbyteorder(order), copy=False).tobytes()
        data = zlib.compress(data, 4) if compressed else data
        starts.append(file.tell())
        sizes.append(len(data))
        file.write(data)

    photometric = 3 if palette is not None else 2 if channels == 3 else 1
    bits = 1 if bilevel else 8 * pixels.dtype.itemsize
    colours = None
    if palette is not None:
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(palette)] = palette[:, :3].T.astype(np.uint16) * 257
        colours = [int(value) for value in table.ravel()]
    layout: dict[int, tuple[int, list[int] | None]] = {
        256: (ifd.LONG, [width]), 257: (ifd.LONG, [height]), 258: (ifd.SHORT, [bits] * samples),
        259: (ifd.SHORT, [DEFLATE if compressed else RAW]), 262: (ifd.SHORT, [photometric]), 273: (ifd.LONG, starts),
        277: (ifd.SHORT, [samples]), 278: (ifd.LONG, [next(strips(height, width * 4)).stop]), 279: (ifd.LONG, sizes),
        284: (ifd.SHORT, [1]), 317: (ifd.SHORT, [2] if predict else None), 320: (ifd.SHORT, colours),
        338: (ifd.SHORT, None if alpha is None else [2]),
        339: (ifd.SHORT, [3 if pixels.dtype.kind == "f" else 1] * samples),
    }  # fmt: skip
    directory = dict(tags or {})
    for tag, (kind, values) in layout.items():
        if values is not None:
            form = f"{order}{len(values)}{'H' if kind == ifd.SHORT else 'I'}"
            directory[tag] = ifd.Entry(kind, struct.pack(form, *values))
    start = file.seek(file.tell() + file.tell() % 2)
    file.write(ifd.pack_directory(directory, start, order))
    file.seek(0)
    file.write(ifd.pack_header(order, start))
