from __future__ import annotations

import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from efface.parts.text import detect
from efface.parts.text.detect import TextBox, find_text


def drawn(size: tuple[int, int], *texts: tuple[str, int, tuple[int, int]]) -> np.ndarray:
    """Draw (words, height, (x, y)) in dark letters on a plain ground of ``size`` (w, h)."""
    picture = Image.new("RGB", size, (206, 214, 198))
    draw = ImageDraw.Draw(picture)
    for words, height, place in texts:
        draw.text(place, words, font=ImageFont.load_default(height), fill=(30, 20, 40))
    return np.asarray(picture)


def covered(boxes: list[TextBox], pixels: np.ndarray) -> float:
    """Return the fraction of the dark pixels that lie inside ``boxes``."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(box.polygon).astype(np.int32) for box in boxes], 1)
    return float(mask[pixels.max(2) < 120].mean())


@pytest.mark.parametrize("height", [14, 24, 48, 110])
def test_finds_and_reads_words_of_several_sizes(height):
    pixels = drawn((640, 480), ("Harbour", height, (40, 60)))
    (box,) = find_text(pixels)
    assert box.words == "Harbour"
    assert box.confidence > 0.9
    assert box.polygon.shape == (4, 2)
    assert box.polygon.dtype == np.float32
    assert covered([box], pixels) > 0.97


def test_finds_small_and_big_text_in_a_large_picture():
    pixels = drawn((3000, 2000), ("small print", 32, (2500, 1900)), ("BIG", 400, (60, 100)))
    boxes = find_text(pixels)
    assert [box.words for box in boxes] == ["BIG", "small print"]
    assert covered(boxes, pixels) > 0.97


def test_a_line_across_the_border_of_tiles_is_one_box(monkeypatch):
    pixels = drawn((900, 200), ("the quick brown fox jumps over it", 40, (60, 70)))
    monkeypatch.setattr(detect, "TILE", 480)
    assert [box.words for box in find_text(pixels)] == ["the quick brown fox jumps over it"]


def test_reads_turned_text():
    flat = Image.fromarray(drawn((500, 500), ("northern lights", 44, (90, 220))))
    pixels = np.asarray(flat.rotate(20, fillcolor=(206, 214, 198), resample=Image.Resampling.BICUBIC))
    (box,) = find_text(pixels)
    assert box.words == "northern lights"
    x, y = box.polygon[1] - box.polygon[0]
    assert np.degrees(np.arctan2(-y, x)) == pytest.approx(20, abs=3)


def test_boxes_come_in_reading_order():
    words = [("alpha", (30, 40)), ("beta", (330, 46)), ("gamma", (20, 160)), ("delta", (320, 155))]
    pixels = drawn((560, 260), *((text, 36, place) for text, place in reversed(words)))
    assert [box.words for box in find_text(pixels)] == ["alpha", "beta", "gamma", "delta"]


def test_detection_alone_finds_the_same_boxes_without_words():
    pixels = drawn((400, 300), ("market", 30, (30, 40)), ("street", 30, (200, 200)))
    alone, read = find_text(pixels, words=False), find_text(pixels)
    assert [box.words for box in alone] == ["", ""]
    for a, b in zip(alone, read, strict=True):
        assert np.array_equal(a.polygon, b.polygon)


def test_least_confidence_leaves_boxes_out():
    pixels = drawn((400, 300), ("market", 30, (30, 40)))
    assert find_text(pixels, words=False, min_confidence=0.5)
    assert find_text(pixels, min_confidence=1.0001) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (5, 5), (300, 200)])
def test_finds_nothing_where_there_is_nothing(size):
    assert find_text(drawn(size)) == []


def test_same_picture_same_boxes():
    pixels = drawn((400, 300), ("market", 30, (30, 40)))
    first, second = find_text(pixels), find_text(pixels)
    assert [(b.words, b.confidence, b.polygon.tolist()) for b in first] == [
        (b.words, b.confidence, b.polygon.tolist()) for b in second
    ]


def test_needs_no_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(detect, "_sessions", {})
    detect.warm()
    assert {kind for kind, _ in detect._sessions} == {"det", "rec"}


@pytest.mark.parametrize(("wanted", "threads"), [("3", 3), ("2,4", 2), ("", None), ("0", None), ("many", None)])
def test_threads_follow_the_environment(monkeypatch, wanted, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert detect._threads() >= 1 if threads is None else detect._threads() == threads


def test_importing_is_light():
    heavy = "import sys, efface.parts.text.detect; sys.exit(any(m in sys.modules for m in ('torch', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
