"""Whatever is wrong with a picture, a PictureError says what and what to do, and no warning is heard."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efface.errors import PictureError
from efface.io import ifd, tiff
from efface.io.images import Picture, read_picture, write_picture

FORMS = ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "AVIF"]


def encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def refused(match, source, **options):
    with pytest.raises(PictureError, match=match) as caught:
        read_picture(source, **options)
    assert caught.value.fix
    return caught.value


@pytest.fixture(scope="module")
def files():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    return {form: encode(image, form) for form in FORMS}


def test_paths_that_lead_to_no_picture_say_so(tmp_path):
    assert refused("no such file", tmp_path / "x.png").where == str(tmp_path / "x.png")
    refused("is a folder", str(tmp_path))
    (tmp_path / "empty.png").touch()
    assert refused("empty", tmp_path / "empty.png").where == str(tmp_path / "empty.png")


@pytest.mark.parametrize(
    "data",
    [b"x", b"hello, world" * 9, b"%PDF-1.7", b"8BPS\0\1", b"<svg/>", b"\0" * 99, b"%!PS-Adobe", b"\0\0\1\0\1\0"],
)
def test_content_decides_and_the_list_is_told(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    assert "JPEG, PNG, TIFF" in refused("accepted format", tmp_path / "a.png").fix


@pytest.mark.parametrize("form", ["ICO", "TGA", "PCX", "JPEG2000", "PDF", "EPS", "SGI"])
def test_formats_off_the_list_are_refused_whatever_their_name(tmp_path, form):
    (tmp_path / "a.jpg").write_bytes(encode(Image.new("RGB", (8, 8)), form))
    refused("accepted format", tmp_path / "a.jpg")


@pytest.mark.parametrize("form", FORMS)
def test_the_suffix_does_not_matter(tmp_path, files, form):
    (tmp_path / "a.txt").write_bytes(files[form])
    assert read_picture(tmp_path / "a.txt").origin.format == form


@pytest.mark.parametrize("form", FORMS)
def test_truncated_files_are_refused(files, form):
    whole = files[form]
    for size in {1, 2, 4, 8, 16, 24, 32, len(whole) // 3, len(whole) // 2, len(whole) * 3 // 4, len(whole) - 30}:
        refused(".", whole[:size])


@pytest.mark.parametrize(
    ("dtype", "form"), [(np.uint16, ".png"), (np.uint16, ".tif"), (np.float32, ".tif"), (np.uint16, ".ppm")]
)
def test_truncated_deep_files_are_refused(tmp_path, noise, dtype, form):
    write_picture(read_picture(noise(12, 10, 3, dtype=dtype)), tmp_path / f"a{form}")
    whole = (tmp_path / f"a{form}").read_bytes()
    for size in {8, 40, len(whole) // 2, len(whole) - 20}:
        refused(".", whole[:size])


def headers(width: int, height: int) -> dict[str, bytes]:
    """Files that state a size and hold no pixels to speak of."""
    png = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(png)) + b"IHDR" + png + struct.pack(">I", zlib.crc32(b"IHDR" + png))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    tags = {256: (width,), 257: (height,), 258: (8, 8, 8), 259: (1,), 262: (2,), 273: (8,), 277: (3,), 279: (9,)}
    entries = {tag: ifd.Entry(ifd.LONG, struct.pack(f"<{len(v)}I", *v)) for tag, v in tags.items()}
    return {
        "PNG": b"\x89PNG\r\n\x1a\n" + chunk + end,
        "PPM": b"P6 %d %d 255 abc" % (width, height),
        "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0),
        "TIFF": ifd.pack_header("<", 8) + ifd.pack_directory(entries, 8, "<"),
    }


@pytest.mark.parametrize("form", ["PNG", "PPM", "BMP", "TIFF"])
def test_bombs_are_refused_by_their_header(form):
    data = headers(60_000, 60_000)[form]
    assert "--max-pixels" in refused("60000 x 60000 pixels, more than the limit of 300 million", data).fix
    refused("decoded|damaged|early|truncated", headers(20, 20)[form])  # the limit aside they are damaged


@pytest.mark.parametrize("form", FORMS)
def test_the_limit_is_exact(files, form):
    refused("more than the limit", files[form], max_pixels=119)
    assert read_picture(files[form], max_pixels=120).pixels.shape == (12, 10, 3)


def test_the_limit_holds_for_arrays_images_and_tensors():
    for source in (np.zeros((4, 4), np.uint8), Image.new("L", (4, 4)), torch.zeros(1, 4, 4)):
        refused("more than the limit", source, max_pixels=15)


def test_pillows_own_limit_is_neither_needed_nor_changed(files, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    for data in files.values():
        assert read_picture(data).width == 10
    assert Image.MAX_IMAGE_PIXELS == 30


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animations_and_pages_are_counted_and_refused(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert "files of their own" in refused("3 (frames|pages)", data).fix


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_refused_with_the_way_out(form):
    data = encode(Image.new("CMYK", (8, 8)), form)
    assert "profile" in refused("is CMYK", data).fix
    refused("is CMYK", Image.new("CMYK", (8, 8)))


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "I", "RGBX", "RGBa", "La", "PA"])
def test_other_colour_models_are_refused(mode):
    refused("has pixels of the form", Image.new(mode, (4, 4)))


@pytest.mark.parametrize(
    ("mode", "match"),
    [("LAB", "form 'LAB'|channels"), ("YCbCr", "form 'YCbCr'"), ("I", "32-bit signed"), ("RGBX", "channels|alpha")],
)
def test_odd_tiffs_are_refused(mode, match):
    data = encode(Image.new(mode, (4, 4)), "TIFF")
    if mode == "RGBX":
        read_picture(data)  # four channels without a word about the fourth: it is kept as alpha
    else:
        refused(match, data)


@pytest.mark.parametrize(
    ("array", "change", "match"),
    [
        (np.zeros((3, 3, 3), np.uint16), {262: (0,)}, "channels"),
        (np.zeros((3, 3, 1), np.uint16), {262: (0,)}, "deep TIFF"),
        (np.zeros((3, 3, 3), np.uint16), {339: (2, 2, 2)}, "16-bit signed"),
        (np.zeros((3, 3, 3), np.uint16), {339: (3, 3, 3)}, "16-bit float"),
        (np.zeros((3, 3, 3), np.uint16), {258: (12, 12, 12)}, "12-bit unsigned"),
        (np.zeros((3, 3, 3), np.float32), {339: (1, 1, 1)}, "32-bit unsigned"),
        (np.zeros((3, 3, 3), np.uint8), {262: (5,)}, "CMYK"),
    ],
)
def test_odd_tiff_layouts_are_refused_by_name(array, change, match):
    buffer = io.BytesIO()
    tiff.write_tiff(buffer, array, None)
    data = bytearray(buffer.getvalue())
    order, start = ifd.open_structure(buffer)
    for tag, values in change.items():
        struct.pack_into(f"<{len(values)}H", data, ifd.places(buffer, order, start)[0][tag].start, *values)
    refused(match, bytes(data))


def test_colours_multiplied_by_alpha_are_refused():
    buffer = io.BytesIO()
    tiff.write_tiff(buffer, np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), np.uint8))
    order, start = ifd.open_structure(buffer)
    data = bytearray(buffer.getvalue())
    struct.pack_into("<H", data, ifd.places(buffer, order, start)[0][338].start, 1)
    refused("multiplied by alpha", bytes(data))


@pytest.mark.parametrize("data", [b"P5 2 2 1023 aabbccdd", b"P6 1 1 7 abc", b"P2 1 1 65535 9", b"Pf 1 1 -1 abcd"])
def test_odd_pnm_scales_are_refused(data):
    refused("values up to|float PNM|accepted", data)


@pytest.mark.parametrize("values", [[-0.1, 1.0], [0.0, 1.5], [np.nan, 0.0], [np.inf, 0.0]])
def test_floats_out_of_range_are_refused_with_their_range(tmp_path, values):
    array = np.array([values], np.float32)
    for source in (array, array.astype(np.float64), torch.from_numpy(array)[None], Image.fromarray(array)):
        assert "nothing is clipped" in refused("float values (from|that are no numbers)", source).fix
    write_picture(Picture(np.repeat(array[..., None], 3, 2)), tmp_path / "a.tif")
    refused("float values (from|that are no numbers)", tmp_path / "a.tif")


@pytest.mark.parametrize(
    "source",
    [
        np.zeros(4, np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros((1, 3, 4, 4), np.uint8),
        np.zeros((0, 4), np.uint8), np.zeros((4, 4), np.int32), np.zeros((4, 4), bool), np.zeros((4, 4), complex),
        torch.zeros(4), torch.zeros(2, 3, 4, 4), torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.int16),
        torch.zeros(3, 0, 4), 7, None, [1, 2],
    ],
    ids=lambda s: f"{type(s).__name__} {getattr(s, 'shape', s)} {getattr(s, 'dtype', '')}",
)  # fmt: skip
def test_sources_that_are_no_pictures_are_refused(source):
    refused("not a picture|no pixels", source)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_anywhere_is_an_error_of_ours_or_a_picture(files, data):
    whole = bytearray(files[data.draw(st.sampled_from(FORMS))])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(200, len(whole) - 1)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    with contextlib.suppress(PictureError):
        picture = read_picture(bytes(whole[: cut if data.draw(st.booleans()) else None]), max_pixels=1_000_000)
        assert picture.pixels.shape[2] in (1, 3)
