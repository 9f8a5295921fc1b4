"""What was not touched comes back as it was: pixels bit by bit, and what stands beside them."""

from __future__ import annotations

import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from efface.errors import OutputError
from efface.io import ifd, tiff
from efface.io.images import read_picture, write_picture

LOSSLESS = {".png", ".tif", ".ppm", ".bmp", ".webp"}
DEEP = {np.uint8: LOSSLESS, np.uint16: {".png", ".tif", ".ppm"}, np.float32: {".tif"}}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>1</a></x:xmpmeta>'


def save(image: Image.Image, path, **settings):
    image.save(path, **settings)
    return path


def again(path, name=None):
    """Read ``path``, write it as ``name`` (by default its own kind), and return both pictures."""
    before = read_picture(path)
    target = path.with_name(name or f"again{path.suffix}")
    write_picture(before, target)
    return before, read_picture(target), target


def opened(path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def same(a, b):
    assert a.pixels.dtype == b.pixels.dtype
    assert np.array_equal(a.pixels, b.pixels)
    assert (a.alpha is None) == (b.alpha is None)
    assert a.alpha is None or (a.alpha.dtype == b.alpha.dtype and np.array_equal(a.alpha, b.alpha))


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "suffix"), [(d, s) for d, suffixes in DEEP.items() for s in sorted(suffixes)], ids=lambda v: str(v)[-9:]
)
def test_arrays_survive_every_format_that_holds_them(tmp_path, noise, dtype, suffix, channels, size):
    if channels == 4 and suffix == ".ppm":
        pytest.skip("holds no alpha")
    picture = read_picture(noise(*size, channels, dtype=dtype))
    write_picture(picture, tmp_path / f"a{suffix}")
    before, after, _ = again(tmp_path / f"a{suffix}")
    same(before, after)
    assert before.notes == after.notes == []
    if (suffix, channels) == (".webp", 1):
        assert np.array_equal(before.pixels, np.repeat(picture.pixels, 3, 2))  # WebP knows colour alone
    else:
        same(picture, before)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_with_alpha_survives(tmp_path, noise, dtype, suffix):
    picture = read_picture(noise(6, 5, 1, dtype=dtype))
    picture.alpha = noise(6, 5, dtype=dtype)
    write_picture(picture, tmp_path / f"a{suffix}")
    if (dtype, suffix) == (np.uint16, ".tif"):
        assert "saved as RGB" in picture.notes[0]
        picture.pixels = np.repeat(picture.pixels, 3, 2)
    same(picture, again(tmp_path / f"a{suffix}")[1])


def test_what_we_write_others_read_alike(tmp_path, noise):
    for dtype, channels, suffix in itertools.product((np.uint8, np.uint16), (1, 3, 4), (".png", ".tif")):
        array, path = noise(37, 23, channels, dtype=dtype), tmp_path / f"{np.dtype(dtype)}{channels}{suffix}"
        write_picture(read_picture(array), path)
        if dtype is np.uint8 or channels == 1:
            theirs = np.asarray(opened(path))
        else:
            theirs = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3][:channels]]
        assert np.array_equal(theirs.reshape(array.shape), array)


def test_a_smooth_picture_crosses_strips_and_compresses(tmp_path, monkeypatch):
    monkeypatch.setattr("efface.io.picture.STRIP", 40_000)
    ramp = np.add.outer(np.arange(150), np.arange(200))[..., None] * np.array([20, 30, 40])
    for dtype in (np.uint8, np.uint16):
        picture = read_picture((ramp % (np.iinfo(dtype).max + 1)).astype(dtype))
        for suffix in (".png", ".tif"):
            path = tmp_path / f"{np.dtype(dtype)}{suffix}"
            write_picture(picture, path)
            same(picture, read_picture(path))
            assert path.stat().st_size < picture.pixels.nbytes / 10


def test_a_jpeg_keeps_tables_sampling_profile_exif_comment_and_density(tmp_path, noise):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    smooth = Image.fromarray(noise(8, 8, 3)).resize((64, 48))
    for subsampling, quality, progressive in [(0, 61, False), (1, 83, True), (2, 97, False)]:
        path = tmp_path / f"{quality}.jpg"
        smooth.save(
            path, subsampling=subsampling, quality=quality, progressive=progressive, icc_profile=ICC, xmp=XMP,
            exif=exif.tobytes(), comment=b"a comment", dpi=(240, 240), extra=b"\xff\xed\x00\x10Photoshop 3.0\0",
        )  # fmt: skip
        *_, target = again(path, f"{quality}-again.jpg")
        with Image.open(path) as before, Image.open(target) as after:
            assert after.quantization == before.quantization
            assert after.layer == before.layer
            assert after.info.get("progressive") == before.info.get("progressive")
            for name in ("icc_profile", "exif", "xmp", "comment", "dpi", "jfif_density"):
                assert after.info[name] == before.info[name], name
            assert [name for name, _ in after.applist if name == "APP13"] == ["APP13"]


def test_a_jpeg_encoded_again_stays_close_and_quality_is_obeyed(tmp_path, noise):
    path = save(Image.fromarray(noise(8, 8, 3)).resize((64, 64)), tmp_path / "a.jpg", quality=90, subsampling=0)
    before, after, target = again(path)
    assert np.abs(before.pixels.astype(int) - after.pixels).max() <= 4
    write_picture(before, tmp_path / "low.jpg", quality=20)
    assert (tmp_path / "low.jpg").stat().st_size < target.stat().st_size / 2


def test_grey_and_rgb_jpegs_stay_so(tmp_path, noise):
    grey = save(Image.fromarray(noise(16, 16)), tmp_path / "grey.jpg")
    rgb = save(Image.fromarray(noise(16, 16, 3)), tmp_path / "rgb.jpg", keep_rgb=True)
    for path in (grey, rgb):
        *_, target = again(path, f"again-{path.name}")
        with Image.open(path) as before, Image.open(target) as after:
            assert after.mode == before.mode
            assert after.layer == before.layer


def chunks(path):
    data, position = path.read_bytes(), 8
    while position < len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        yield name, data[position + 8 : position + 8 + size]
        position += 12 + size


@pytest.mark.parametrize("deep", [False, True])
def test_a_png_keeps_its_chunks_byte_by_byte(tmp_path, noise, deep):
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 45455))
    info.add_text("Title", "naïve", zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    path = tmp_path / "a.png"
    Image.fromarray(noise(9, 8, 3)).save(
        path, pnginfo=info, icc_profile=ICC, exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", dpi=(72, 72)
    )
    if deep:
        array = noise(9, 8, 3, dtype=np.uint16)
        extra = b"".join(_chunk(n, d) for n, d in chunks(path) if n not in (b"IHDR", b"IDAT", b"IEND"))
        bare = cv2.imencode(".png", array)[1].tobytes()
        path.write_bytes(bare[:33] + extra + bare[33:])
    before, after, target = again(path)
    same(before, after)
    kept = (b"gAMA", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs")
    assert {n: d for n, d in chunks(target) if n in kept} == {n: d for n, d in chunks(path) if n in kept}
    assert {n for n, _ in chunks(path)} >= set(kept)


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_keeps_its_tags_and_whether_it_is_compressed(tmp_path, noise, compression):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[305], tags[700] = "a description", "a program", XMP
    path = tmp_path / "a.tif"
    image = Image.fromarray(noise(20, 30, 3))
    before, after, target = again(
        save(image, path, tiffinfo=tags, compression=compression, icc_profile=ICC, dpi=(300, 150))
    )
    same(before, after)
    with Image.open(path) as a, Image.open(target) as b:
        assert (a.info["compression"] == "raw") == (b.info["compression"] == "raw")
        for tag in (270, 305, 700, 282, 283, 296, 34675):
            assert a.tag_v2[tag] == b.tag_v2[tag], tag


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiffs_of_either_byte_order_keep_theirs_and_their_directories(tmp_path, noise, order, dtype):
    below = {
        36867: ifd.Entry(2, b"2001:01:01 00:00:00\0"),
        37510: ifd.Entry(7, b"a comment"),
        37121: ifd.Entry(7, b"1234"),
    }
    tags = {
        270: ifd.Entry(2, "naïve\0".encode()),
        ifd.EXIF: ifd.Entry(ifd.LONG, below),
        ifd.GPS: ifd.Entry(ifd.LONG, {1: ifd.Entry(2, b"N\0")}),
    }
    array = noise(20, 30, 3, dtype=dtype)
    with (tmp_path / "a.tif").open("wb") as file:
        tiff.write_tiff(file, array, None, order=order, tags=tags)
    before, after, target = again(tmp_path / "a.tif")
    same(before, after)
    assert np.array_equal(before.pixels, array)
    assert target.read_bytes() == (tmp_path / "a.tif").read_bytes()
    assert after.origin.settings["tags"] == tags
    if dtype is np.uint8:
        assert dict(opened(target).getexif().get_ifd(ifd.EXIF))[36867] == "2001:01:01 00:00:00"


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".avif", ".jpg"])
@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_profile_exif_and_xmp_cross_formats(tmp_path, noise, source, suffix):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    path = save(
        Image.fromarray(noise(16, 24, 3)), tmp_path / source, icc_profile=ICC, exif=exif.tobytes(), dpi=(96, 96)
    )
    *_, target = again(path, f"b{suffix}")
    with Image.open(target) as after:
        assert after.info["icc_profile"] == ICC
        assert after.getexif()[0x010E] == "a description"
        if suffix in (".png", ".tif", ".jpg") and source != "a.webp":
            assert np.allclose(after.info["dpi"], 96, atol=0.1)


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_stays_as_lossless_as_it_was(tmp_path, noise, lossless):
    image = Image.fromarray(noise(40, 40, 4))
    before, after, target = again(save(image, tmp_path / "a.webp", lossless=lossless, exact=True, xmp=XMP))
    assert (b"VP8L" in target.read_bytes()) == lossless
    assert opened(target).info["xmp"] == XMP
    if lossless:
        same(before, after)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".bmp"])
@pytest.mark.parametrize("clear", [None, 3])
def test_palettes_are_kept(tmp_path, noise, suffix, clear):
    if clear is not None and suffix in (".tif", ".bmp"):
        pytest.skip("holds no transparent colour")
    image = Image.fromarray(noise(20, 20) % 50)
    image.putpalette(noise(50, 3).tobytes())
    settings = {} if clear is None else {"transparency": clear}
    before, after, target = again(save(image, tmp_path / f"a{suffix}", **settings))
    same(before, after)
    assert (before.alpha is None) == (clear is None)
    assert before.pixels.shape == (20, 20, 3)
    assert opened(target).mode == "P"
    assert before.notes == []


def test_half_clear_palettes_are_kept(tmp_path, noise):
    image = Image.fromarray(noise(20, 20) % 50)
    image.putpalette(noise(50, 3).tobytes())
    path = save(image, tmp_path / "a.png", transparency=noise(30).tobytes())
    before, after, target = again(path)
    same(before, after)
    assert opened(target).mode == "P"
    with pytest.raises(OutputError, match="nothing half clear"):
        write_picture(before, tmp_path / "a.gif")


def test_a_palette_that_no_longer_fits_is_given_up_with_a_note(tmp_path):
    image = Image.new("P", (4, 4))
    image.putpalette([255, 0, 0, 0, 0, 255])
    save(image, tmp_path / "a.png")
    save(image, tmp_path / "a.gif")
    for suffix in (".png", ".gif"):
        picture = read_picture(tmp_path / f"a{suffix}")
        picture.paste((1, 1, 2, 1), np.full((3, 1, 2), [[[0.1]], [[0.1]], [[0.9]]], np.float32), np.ones((1, 2)))
        write_picture(picture, tmp_path / f"b{suffix}")
        after = read_picture(tmp_path / f"b{suffix}")
        assert len(picture.notes) == 1
        assert np.array_equal(after.pixels[0], picture.pixels[0])
        if suffix == ".png":
            same(picture, after)
        else:
            assert after.pixels[1, 1].tolist() == [0, 0, 255]
            assert "2 pixels took the nearest colour" in picture.notes[0]


def test_gif_refuses_what_it_cannot_hold(tmp_path, noise):
    with pytest.raises(OutputError, match="256 colours"):
        write_picture(read_picture(noise(20, 20, 3)), tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".pbm", ".gif"])
def test_black_and_white_stays_so_until_something_grey_is_pasted(tmp_path, noise, suffix):
    image = Image.fromarray(noise(9, 13) > 99)
    before, after, target = again(save(image, tmp_path / f"a{suffix}"))
    same(before, after)
    assert set(np.unique(before.pixels)) == {0, 255}
    if suffix == ".gif":
        return
    assert opened(target).mode == "1"
    assert before.pixels.shape == (9, 13, 1)
    before.paste((0, 0, 1, 1), np.full((3, 1, 1), 0.5, np.float32), np.ones((1, 1)))
    write_picture(before, tmp_path / f"grey{suffix}")
    same(before, read_picture(tmp_path / f"grey{suffix}"))
    assert "saved as grey" in before.notes[0]


@pytest.mark.parametrize("compression", ["group4", "packbits", "raw"])
@pytest.mark.parametrize("white", [0, 1])
def test_bilevel_tiffs_of_either_sense_are_read(tmp_path, noise, compression, white):
    image = Image.fromarray(noise(16, 13) > 99)
    path = save(image, tmp_path / "a.tif", compression=compression, tiffinfo={262: white})
    before, after, _ = again(path)
    same(before, after)
    assert np.array_equal(before.pixels[..., 0] > 0, np.asarray(opened(path)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_pngs_of_few_bits_with_a_transparent_value(tmp_path, noise, bits):
    values = noise(6, 8) % (1 << bits)
    scaled = (values.astype(int) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(6, -1), axis=1)
    data = zlib.compress(np.pad(packed, ((0, 0), (1, 0))).tobytes())
    head = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    pieces = [(b"IHDR", head), (b"tRNS", b"\0\1"), (b"IDAT", data), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*piece) for piece in pieces))
    before, after, _ = again(tmp_path / "a.png")
    assert np.array_equal(before.pixels[..., 0], scaled)
    assert np.array_equal(before.alpha, np.where(values == 1, 0, 255))
    same(before, after)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_with_a_transparent_colour(tmp_path, noise, channels, dtype):
    array = noise(5, 6, channels, dtype=dtype)
    key = _chunk(b"tRNS", array[2, 3].astype(">u2").tobytes())
    bare = cv2.imencode(".png", array[..., ::-1])[1].tobytes()
    (tmp_path / "a.png").write_bytes(bare[:33] + key + bare[33:])
    before, after, _ = again(tmp_path / "a.png")
    assert np.array_equal(before.pixels, array)
    assert before.alpha[2, 3] == 0
    assert (before.alpha > 0).sum() == (array != array[2, 3]).any(2).sum()
    same(before, after)


@pytest.mark.parametrize("text", [b"P2 # grey\n2 1\n255 0 9", b"P3 1 1 255 1 2 3", b"P1 2 2 0 1 1 0", b"P5 1 2 255 ab"])
def test_pnm_files_of_text_and_bytes_are_read(tmp_path, text):
    (tmp_path / "a.pnm").write_bytes(text)
    before, after, _ = again(tmp_path / "a.pnm")
    same(before, after)


@pytest.mark.parametrize(
    ("suffix", "dtype", "channels", "match"),
    [
        (".jpg", np.uint16, 3, "16"), (".webp", np.uint16, 3, "16"), (".bmp", np.uint16, 1, "16"),
        (".jpg", np.uint8, 4, "no alpha"), (".pgm", np.uint8, 4, "no alpha"), (".xyz", np.uint8, 3, "no format"),
        ("", np.uint8, 3, "no format"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused(tmp_path, noise, suffix, dtype, channels, match):
    with pytest.raises(OutputError, match=match) as caught:
        write_picture(read_picture(noise(4, 4, channels, dtype=dtype)), tmp_path / f"a{suffix}")
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".webp", ".jpg", ".gif", ".avif"])
def test_sides_too_long_for_a_format_are_refused(tmp_path, suffix):
    with pytest.raises(OutputError, match="pixels along a side"):
        write_picture(read_picture(np.zeros((1, 70000), np.uint8)), tmp_path / f"a{suffix}")


def test_float_arrays_are_rounded_with_a_note_but_float_files_stay_float(tmp_path):
    picture = read_picture(np.array([[0.0, 0.5, 1.0]], np.float32))
    write_picture(picture, tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").pixels.ravel().tolist() == [0, 128, 255]
    assert "rounded" in picture.notes[0]
    write_picture(picture, tmp_path / "a.tif")
    with pytest.raises(OutputError, match="float"):
        write_picture(read_picture(tmp_path / "a.tif"), tmp_path / "b.png")


def test_nothing_is_overwritten_unasked(tmp_path, noise):
    picture = read_picture(noise(4, 4, 3))
    write_picture(picture, tmp_path / "a.png")
    with pytest.raises(OutputError, match="exists already"):
        write_picture(picture, tmp_path / "a.png")
    write_picture(picture, tmp_path / "a.png", overwrite=True)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm", ".bmp", ".webp", ".jpg", ".gif", ".avif"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, noise, suffix):
    resource = pytest.importorskip("resource")
    grey = noise(64, 64) // 2 * 2  # few enough colours for a GIF, too many bytes for the limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        with pytest.raises(OutputError, match="larger than the file system allows") as caught:
            write_picture(read_picture(grey), tmp_path / f"a{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.where == str(tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []
