"""Pictures come from paths, bytes, PIL images, arrays and tensors, upright, and are copies."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from efface.io import ifd, metadata, tiff
from efface.io.images import read_picture, write_picture


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays_are_copied_as_they_are(noise, shape, dtype):
    array = noise(*shape, dtype=dtype)
    before = array.copy()
    picture = read_picture(array)
    whole = array.reshape(4, 5, -1)
    assert picture.pixels.dtype == dtype
    assert np.array_equal(picture.pixels, whole[..., : 3 if whole.shape[2] > 1 else 1])
    assert (picture.alpha is not None) == (whole.shape[2] == 4)
    picture.paste(None, np.zeros((3, 4, 5)), np.ones((4, 5)))
    assert np.array_equal(array, before)


def test_arrays_of_any_layout_are_read(noise):
    array = noise(4, 6, 3, dtype=np.uint16)
    for view in (array[::-1, ::2], array.astype(">u2"), np.asfortranarray(array), array.transpose(1, 0, 2)):
        picture = read_picture(view)
        assert np.array_equal(picture.pixels, view)
        assert picture.pixels.flags.c_contiguous
        assert picture.pixels.dtype.isnative


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(dtype):
    assert read_picture(np.array([[0.25]], dtype)).pixels.dtype == np.float32


def test_tensors_are_read_with_and_without_a_batch():
    tensor = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for source in (tensor, tensor[None], tensor.clone().requires_grad_()):
        assert np.array_equal(read_picture(source).rgb(), tensor.numpy())
    assert read_picture(tensor[:1]).pixels.shape == (4, 5, 1)
    assert np.array_equal(read_picture(tensor[0]).pixels[..., 0], tensor[0].numpy())
    assert read_picture(tensor.half()).pixels.dtype == np.float32
    assert read_picture((tensor * 255).byte()).pixels.dtype == np.uint8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
def test_pil_images_in_memory_are_read(mode):
    image = Image.new("L", (5, 4)).convert(mode) if mode == "P" else Image.new(mode, (5, 4))
    assert read_picture(image).pixels.shape == (4, 5, 3 if mode in ("P", "RGB", "RGBA") else 1)
    assert image.size == (5, 4)


def test_paths_bytes_and_images_of_one_file_are_alike(tmp_path, noise):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(8, 9, 3)).save(path, quality=70)
    with Image.open(path) as image:
        pictures = [read_picture(source) for source in (path, str(path), path.read_bytes(), image)]
    for picture in pictures[1:]:
        assert np.array_equal(picture.pixels, pictures[0].pixels)
        assert picture.origin.settings == pictures[0].origin.settings


def oriented(path, array, value):
    exif = Image.Exif()
    exif[274] = value
    exif[0x010F] = "a maker with a long name"
    settings = {"tiffinfo": {274: value}} if path.suffix == ".tif" else {"exif": exif.tobytes()}
    Image.fromarray(array).save(path, **settings, **({"lossless": True} if path.suffix == ".webp" else {}))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("value", range(1, 9))
def test_pictures_are_turned_upright_once(tmp_path, noise, value, suffix):
    oriented(tmp_path / f"a{suffix}", noise(6, 9, 3), value)
    with Image.open(tmp_path / f"a{suffix}") as image:
        truth = np.asarray(ImageOps.exif_transpose(image))
    picture = read_picture(tmp_path / f"a{suffix}")
    assert np.array_equal(picture.pixels, truth)
    assert picture.pixels.flags.c_contiguous
    write_picture(picture, tmp_path / f"b{suffix}")
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.getexif().get(274, 1) == 1
        assert image.size == truth.shape[1::-1]
        if suffix != ".tif":
            assert image.getexif()[0x010F] == "a maker with a long name"


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiffs_of_every_depth_are_turned_once(tmp_path, noise, value, channels, dtype):
    array = noise(6, 9, channels, dtype=dtype)
    alpha = array[..., 3] if channels == 4 else None
    tags = {274: ifd.Entry(ifd.SHORT, struct.pack("<H", value))}
    with (tmp_path / "a.tif").open("wb") as file:
        tiff.write_tiff(file, array[..., :3], alpha, tags=tags)
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.pixels, metadata.upright(array[..., :3], value))
    assert alpha is None or np.array_equal(picture.alpha, metadata.upright(alpha, value))


def test_alpha_turns_with_the_picture(tmp_path, noise):
    array = noise(3, 5, 4)
    oriented(tmp_path / "a.png", array, 6)
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.alpha, np.rot90(array[..., 3], -1))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_make_no_sense_are_left(tmp_path, noise, value):
    array = noise(3, 5, 3)
    oriented(tmp_path / "a.png", array, value)
    assert np.array_equal(read_picture(tmp_path / "a.png").pixels, array)


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_orientation_changes_in_the_exif_block(order):
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entries = struct.pack(order + "HHHIHH", 1, 274, 3, 1, 6, 0) + struct.pack(order + "I", 0)
    block = head + entries + b"maker note at a fixed place"
    assert metadata.orientation(block) == 6
    reset = metadata.reset_orientation(block)
    assert metadata.orientation(reset) == 1
    assert [i for i in range(len(block)) if block[i] != reset[i]] == [18 if order == "<" else 19]


@pytest.mark.parametrize(
    "block", [b"", b"x", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 9]
)
def test_damaged_exif_is_kept_as_it_is(block):
    assert metadata.orientation(block) == 1
    assert metadata.reset_orientation(block) == block
    assert metadata.without_thumbnail(block) == block


def test_the_orientation_in_xmp_is_reset_too():
    for text in (b'<a tiff:Orientation="6"/>', b"<tiff:Orientation>8</tiff:Orientation>"):
        assert metadata.orientation(b"") == 1
        assert b"1" in metadata.xmp_upright(text)
        assert not set(b"2345678") & set(metadata.xmp_upright(text))


def with_thumbnail(tmp_path, noise):
    thumbnail = io.BytesIO()
    Image.new("L", (8, 8)).save(thumbnail, "JPEG")
    small = thumbnail.getvalue()
    first = struct.pack("<HHHIII", 1, 270, 2, 4, int.from_bytes(b"hey\0", "little"), 26)
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(small), 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + first + second + small
    assert exif[6 + 56 :] == small
    xmp = b"<xmpGImg:image>/9j/4AAQ</xmpGImg:image>"
    Image.fromarray(noise(16, 16, 3)).save(
        tmp_path / "a.jpg", exif=exif, xmp=xmp, extra=b"\xff\xed\x00\x1cPhotoshop 3.0\x008BIM\x04\x0c" + bytes(6)
    )
    return tmp_path / "a.jpg", small


@pytest.mark.parametrize("changed", [False, True])
def test_thumbnails_go_once_the_picture_changed(tmp_path, noise, changed):
    path, small = with_thumbnail(tmp_path, noise)
    picture = read_picture(path)
    if changed:
        picture.paste((0, 0, 1, 1), np.zeros((3, 1, 1)), np.ones((1, 1)))
    write_picture(picture, tmp_path / "b.jpg")
    data = (tmp_path / "b.jpg").read_bytes()
    for trace in (small[:40], b"/9j/4AAQ", b"8BIM\x04\x0c"):
        assert trace in path.read_bytes()
        assert (trace in data) == (not changed)
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.getexif()[270] == "hey"


def test_reading_pictures_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, efface.io.images, efface.io.manifest, efface.io.weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
