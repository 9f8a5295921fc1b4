"""Pictures with something on them that captions pass over: made, read and framed with their boxes."""

import json

import cv2
import numpy as np
import pytest
import torch

from efface.errors import DataError, UsageError
from efface.parts.data.icd import Icd, framed
from efface.parts.data.overlays import KINDS, logo, make_icd

GREY = [np.full((40, 60, 3), 128, np.uint8)] * 30


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_outside_of_the_box(kind):
    icd = make_icd(GREY, ["a"] * 30, kind, rate=0.6, seed=3)
    assert 0.3 < icd.rate < 0.9
    for picture, boxes in zip(icd.pictures, icd.boxes, strict=True):
        changed = (picture != 128).any(2)
        assert changed.any() == (len(boxes) > 0)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= 60
            assert 0 <= top < bottom <= 40
            assert changed[top:bottom, left:right].any()
            changed[top:bottom, left:right] = False
        assert not changed.any()
    again = make_icd(GREY, ["a"] * 30, kind, rate=0.6, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(icd.pictures, again.pictures, strict=True))
    assert (GREY[0] == 128).all()


def test_how_often_and_how_large_is_as_asked():
    assert make_icd(GREY, ["a"] * 30, rate=0.0).rate == 0
    sides = [b[0][2:] - b[0][:2] for b in make_icd(GREY, ["a"] * 30, "qr", rate=1.0, size=(0.2, 0.5)).boxes]
    assert all(w == h and 8 <= w <= 20 for w, h in sides)
    logos = make_icd(GREY, ["a"] * 30, "logo", rate=1.0, size=(0.15, 0.15))
    assert {tuple(b[0].tolist()) for b in logos.boxes} == {
        (x, y, x + 6, y + 6) for x in (0, 54) for y in (0, 34)
    }  # fmt: skip
    assert logo(6).tolist()[0] == [1, 1, 0, 0, 1, 1]
    for wrong in ({"kind": "stamp"}, {"size": (0.5, 0.2)}, {"captions": ["a"]}):
        with pytest.raises(UsageError, match="cannot put"):
            make_icd(**{"pictures": GREY, "captions": ["a"] * 30} | wrong)


def test_boxes_follow_the_square_in_the_middle():
    square, boxes = framed(GREY[0], np.array([[10, 0, 30, 20], [0, 0, 5, 5]]), 20)
    assert square.shape == (20, 20, 3)
    assert boxes.tolist() == [[0, 0, 0.5, 0.5], [0, 0, 0, 0.125]]
    assert framed(GREY[0][:, :40], np.zeros((0, 4)), 40)[1].shape == (0, 4)


def test_mirrored_pictures_have_mirrored_boxes():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, :2] = 255
    icd = Icd([picture], ["a"], [np.array([[0, 0, 2, 4]])])
    pictures, captions, boxes = icd.batch(np.random.default_rng(0), 12, 8, flip=True)
    assert captions == ["a"] * 12
    ways = set()
    for one, box in zip(pictures, boxes, strict=True):
        left, top, right, bottom = (box[0] * 8).astype(int)
        ways.add(left)
        inside = torch.zeros(3, 8, 8)
        inside[:, top:bottom, left:right] = 1
        assert one.equal(inside)
    assert ways == {0, 6}


def test_a_folder_is_read(tmp_path):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), GREY[0])
    (tmp_path / "captions.json").write_text(json.dumps({"a.png": "a star", "b.png": ""}))
    (tmp_path / "boxes.json").write_text(json.dumps({"b.png": [[1, 2, 3, 4]]}))
    icd = Icd.read(tmp_path)
    assert icd.captions == ("a star", "")
    assert [len(boxes) for boxes in icd.boxes] == [0, 1]
    assert np.array_equal(icd.pictures[1], GREY[0])
    assert len(icd.pictures[:1]) == 1
    assert icd.rate == 0.5


@pytest.mark.parametrize(
    ("captions", "boxes"),
    [({}, {}), ({"a.png": 3}, {}), ([], {}), (None, {}), ({"a.png": "a"}, {"b.png": []}), ({"a.png": "a"}, None)],
)
def test_a_folder_of_another_form_is_refused(tmp_path, captions, boxes):
    cv2.imwrite(str(tmp_path / "a.png"), GREY[0])
    for name, values in (("captions.json", captions), ("boxes.json", boxes)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(DataError):
        Icd.read(tmp_path)
