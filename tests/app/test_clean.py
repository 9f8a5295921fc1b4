"""`efface.clean` and its rules: what goes, what stays to the bit, and what forms pictures and masks may have."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import efface
from efface.errors import MaskError, PictureError, UnknownNameError, UsageError
from efface.io.images import Picture, read_picture, write_picture
from efface.parts.masks import feather, from_boxes
from efface.parts.text.detect import TextBox
from efface.verbs import marking, repairing
from efface.verbs.clean import apply
from efface.verbs.marking import find
from efface.verbs.rules import Rules

BOX = (20, 12, 30, 10)
DEEP = np.uint8, np.uint16
EMPTY = "nothing was taken away: no pixel of the mask is at least half white and not kept"
TEXTS = [("Sale", 0.9, (8, 8)), ("Exit", 0.8, (60, 8)), ("???", 0.2, (8, 40)), ("Sale 2", 0.7, (60, 40))]


def noise(height, width, channels=3, dtype=np.uint8):
    """Return a picture that is nowhere flat, so that a network is needed."""
    draw = np.random.default_rng(height * width)
    if dtype == np.float32:
        return draw.random((height, width, channels), dtype=np.float32)
    return draw.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)


@pytest.fixture
def run(weights):
    """Clean by the tiny network."""
    return lambda image, name="strokefill", **rules: efface.clean(image, weights=weights / name, **rules)


@pytest.fixture
def texts(monkeypatch):
    """Let the finder find TEXTS, 30 x 16 pixels each."""
    corners = np.array([(0, 0), (30, 0), (30, 16), (0, 16)], np.float32)
    boxes = [TextBox(corners + np.float32(at), words, sure) for words, sure, at in TEXTS]
    monkeypatch.setattr(marking, "find_text", lambda pixels: boxes)


@pytest.mark.parametrize(
    ("suffix", "dtype", "channels", "alpha"),
    [
        *[(".png", dtype, channels, alpha) for dtype in DEEP for channels in (1, 3) for alpha in (0, 1)],
        *[(".tif", dtype, channels, 0) for dtype in (*DEEP, np.float32) for channels in (1, 3)],
        *[(".ppm", dtype, channels, 0) for dtype in DEEP for channels in (1, 3)],
        *[(".webp", np.uint8, 3, alpha) for alpha in (0, 1)],
        *[(".bmp", np.uint8, channels, 0) for channels in (1, 3)],
        (".tif", np.uint16, 3, 1),
    ],
)  # fmt: skip
def test_all_outside_the_feathered_mask_is_bit_equal(run, tmp_path, suffix, dtype, channels, alpha):
    values = noise(40, 70, channels + alpha, dtype)
    picture = Picture(values[..., :channels], values[..., -1].copy() if alpha else None)
    path, out = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_picture(picture, path)
    cleaned = run(path, boxes=[BOX], feather=3)
    cleaned.save(out)
    before, after = read_picture(path), read_picture(out)
    same = feather(from_boxes((40, 70), [BOX]), 3) == 0
    assert before.pixels.dtype == after.pixels.dtype == dtype
    assert np.array_equal(after.pixels[same], before.pixels[same])
    assert (after.pixels[~same] != before.pixels[~same]).mean() > 0.1
    assert (after.alpha is None) == (not alpha)
    assert not alpha or np.array_equal(after.alpha, before.alpha)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("feather_px", [0, 4, 100])
def test_regions_to_keep_stay_to_the_bit_even_where_the_feather_would_reach(run, flat, feather_px):
    image = np.full((60, 90, 3), 180, np.uint8) if flat else noise(60, 90)
    image[14:20, 22:48] = 0
    keep = (30, 0, 8, 60)
    cleaned = run(image, boxes=[BOX], keep=[keep], feather=feather_px)
    assert np.array_equal(cleaned.picture.pixels[:, 30:38], image[:, 30:38])
    assert not cleaned.mask[:, 30:38].any()
    assert (cleaned.picture.pixels[14:20, 22:30] != image[14:20, 22:30]).any()


@pytest.mark.parametrize("name", ["strokefill", "deeperaser"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 3), (17, 33), (31, 200)])
def test_any_size_will_do(run, name, size):
    image, mask = noise(*size), np.zeros(size, bool)
    mask[size[0] // 2, size[1] // 2] = True
    cleaned = run(image, name, mask=mask, feather=0)
    assert cleaned.picture.pixels.shape == image.shape
    assert np.array_equal(cleaned.picture.pixels[~mask], image[~mask])


def test_pictures_may_have_any_form_and_are_not_changed(run, tmp_path):
    image = noise(40, 70)
    path, buffer = tmp_path / "a.png", io.BytesIO()
    Image.fromarray(image).save(path)
    Image.fromarray(image).save(buffer, "PNG")
    planes = torch.from_numpy(image).permute(2, 0, 1) / 255
    forms = [image, path, str(path), buffer.getvalue(), Image.fromarray(image), planes, planes[None]]
    copies = image.copy(), planes.clone()
    results = [run(form, boxes=[BOX]).picture.pixels for form in forms]
    assert np.array_equal(run(torch.from_numpy(image).permute(2, 0, 1), boxes=[BOX]).picture.pixels, results[0])
    assert all(np.array_equal(np.rint(r * 255) if r.dtype == np.float32 else r, results[0]) for r in results[:5])
    assert all(np.abs(r * 255 - results[0]).max() < 1 for r in results[5:])
    assert np.array_equal(image, copies[0])
    assert torch.equal(planes, copies[1])


@pytest.mark.parametrize(
    ("mask", "share"),
    [
        (np.eye(40, 70) > 0, 40),
        (np.eye(40, 70, dtype=np.uint8) * 255, 40),
        (np.eye(40, 70, dtype=np.float32) * 0.6, 40),
        (np.eye(40, 70, dtype=np.float32) * 0.4, 0),
        (Image.fromarray(np.eye(40, 70) > 0), 40),
        (Image.fromarray(np.stack([np.zeros((40, 70)), np.eye(40, 70) * 255], -1).astype(np.uint8), "LA"), 40),
        (torch.eye(40, 70)[None], 40),
        (torch.eye(40, 70), 40),
        (torch.eye(40, 70)[None, None] > 0, 40),
        ((torch.eye(40, 70) * 255).byte(), 40),
        (np.zeros((40, 70), bool), 0),
        (np.ones((40, 70), bool), 2800),
    ],
    ids=[
        "bool",
        "levels",
        "soft-in",
        "soft-out",
        "PIL",
        "alpha",
        "tensor",
        "flat tensor",
        "bool tensor",
        "uint8 tensor",
        "empty",
        "full",
    ],
)
def test_masks_may_have_any_form(run, mask, share):
    cleaned = run(noise(40, 70), mask=mask)
    assert cleaned.mask.sum() == share
    assert cleaned.notes == ([] if share else [EMPTY])
    assert np.isfinite(list(cleaned.scores.values())).all()


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (np.ones((40, 71), bool), MaskError, "71 x 40"),
        (np.eye(40, 70, dtype=np.uint8), MaskError, "only 0 and 1"),
        (np.full((40, 70), np.nan, np.float32), PictureError, "^mask: .*NaN"),
        (np.full((40, 70), 255.0), PictureError, "255"),
        ("nowhere.png", PictureError, "nowhere.png: there is no such file"),
        (object(), PictureError, "^mask: a object"),
        (torch.zeros(40, 70, dtype=torch.int64), PictureError, "^mask: .*int64"),
    ],
)
def test_masks_that_fit_nothing_are_refused(mask, error, says):
    with pytest.raises(error, match=says) as caught:
        efface.clean(noise(40, 70), mask=mask)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        ({}, ["", "", "confidence too low", ""]),
        ({"min_confidence": 0}, ["", "", "", ""]),
        ({"min_confidence": 0.75}, ["", "", "confidence too low", "confidence too low"]),
        ({"only": "^Sale"}, ["", "other words", "confidence too low", ""]),
        ({"keep": ["Ex?it"]}, ["", "words to keep", "confidence too low", ""]),
        ({"keep": ["Sale"], "only": "2$"}, ["words to keep", "other words", "confidence too low", "words to keep"]),
        ({"keep": [" 0, 0,40,30"]}, ["in a region to keep", "", "confidence too low", ""]),
        ({"keep": [(60, 0, 36, 30), "^Sale$"]}, ["words to keep", "in a region to keep", "confidence too low", ""]),
    ],
)
def test_what_is_found_is_chosen_by_words_region_and_confidence(texts, rules, stays):
    picture = read_picture(noise(70, 100))
    found, mask = find(picture, Rules(grow=0, **rules))
    assert picture.notes == []
    assert [item.stays for item in found] == stays
    for item in found:
        x, y = map(int, item.box.polygon.mean(0))
        assert mask[y, x] == (not item.stays)
        assert item.as_dict() == json.loads(json.dumps(item.as_dict()))


def test_found_text_grows_by_itself_and_what_is_given_does_not(texts):
    image = read_picture(noise(70, 100))
    sizes = [find(image, Rules(only="Exit", grow=grow))[1].sum() for grow in (0, None, 2, 5)]
    assert sizes[0] < sizes[1] == sizes[2] < sizes[3]
    sizes = [find(image, Rules(boxes=["10,10,20,9"], grow=grow))[1].sum() for grow in (None, 0, 1)]
    assert sizes == [180, 180, 180 + 2 * (20 + 9)]


def test_outlines_chosen_before_are_grown_as_found_ones_and_none_means_nothing(texts):
    image = read_picture(noise(70, 100))
    by_rule = find(image, Rules(only="Exit"))[1]
    corners = np.array([(60, 8), (90, 8), (90, 24), (60, 24)])
    assert np.array_equal(find(image, Rules(polygons=[corners]))[1], by_rule)
    assert not find(image, Rules(polygons=[]))[1].any()


@pytest.mark.parametrize(
    ("rules", "error", "says"),
    [
        ({"remove": "rain"}, UnknownNameError, "rain"),
        ({"quality": "bets"}, UnknownNameError, "best"),
        ({"method": "strokefil"}, UnknownNameError, "strokefill"),
        ({"feather": 101}, UsageError, "0 to 100"),
        ({"grow": -1}, UsageError, "0 to 1000"),
        ({"min_confidence": float("nan")}, UsageError, "0 to 1"),
        ({"iterations": 0}, UsageError, "1 or more"),
        ({"method": "lth"}, UnknownNameError, "no method for pictures"),
        ({"only": "("}, UsageError, "regular expression"),
        ({"only": ""}, UsageError, "every text"),
        ({"keep": ""}, UsageError, "every text"),
        ({"keep": ["["]}, UsageError, "regular expression"),
        ({"keep": ["0,0,0,9"]}, UsageError, "at least 1"),
        ({"boxes": [(1, 2, 3)]}, UsageError, "x,y,w,h"),
        ({"boxes": [(0.5, 2, 3, 4)]}, UsageError, "whole pixels"),
        ({"boxes": 5}, UsageError, "'5' is not a box"),
        ({"boxes": [None]}, UsageError, "'None' is not a box"),
        ({"boxes": [[1, [2]]]}, UsageError, "is not a box"),
        ({"weights": 5}, UsageError, "^weights: 5 is not a path"),
        ({"memory": "much"}, UsageError, "amount of memory"),
        ({"grow": "3"}, UsageError, "^grow: '3' is not a whole number"),
        ({"feather": 1.5}, UsageError, "^feather: 1.5 is not a whole number"),
        ({"feather": None}, UsageError, "^feather: None"),
        ({"min_confidence": "0.5"}, UsageError, "^min_confidence: '0.5' is not a number"),
        ({"only": 5}, UsageError, "^only: 5 is not a text"),
        ({"method": 5}, UsageError, "^method: 5 is not a text"),
        ({"only": "a", "boxes": [BOX]}, UsageError, "none is looked for"),
        ({"keep": "a", "mask": "b.png"}, UsageError, "none is looked for"),
        ({"min_confidence": 0, "boxes": [BOX]}, UsageError, "none is looked for"),
    ],
)
def test_wrong_rules_are_refused_before_any_work(rules, error, says):
    with pytest.raises(error, match=says):
        efface.clean("not read", **rules)


@pytest.mark.parametrize("region", ["20,10,60", "-5,0,10,10", "0.5,0,9,9", "0;0;9;9", "(0, 0, 9, 9)", "9x9+0+0"])
def test_a_region_that_is_mistyped_is_no_pattern(region):
    with pytest.raises(UsageError, match=r"not a box.*begin with \^"):
        Rules(keep=[region])
    assert Rules(keep=[f"^{region}"]).regions == []


@pytest.mark.parametrize("words", ["2024", "19.99", "555-1234", "[0-9]", "SALE 1, 2, 3", "^1, 2, 3"])
def test_numbers_may_be_words_to_keep(words):
    assert Rules(keep=words).patterns == [words]


@pytest.mark.parametrize("boxes", [BOX, [BOX], "20,12,30,10", ["20,12,30,10"], np.array(BOX), torch.tensor([BOX])])
def test_one_or_several_boxes_are_the_same_rules_in_all_forms(boxes):
    one = Rules(boxes=boxes, keep=boxes, memory="2GB", grow=np.int64(3))
    assert one == Rules(boxes=[BOX], keep=[BOX], memory=2 * 10**9, grow=3)
    assert json.dumps([one.boxes, one.grow]) == json.dumps([[BOX], 3])


def test_a_pattern_that_no_text_matches_is_told(texts):
    picture = read_picture(noise(70, 100))
    find(picture, Rules(keep=["Sale", "HELLO"]))
    assert picture.notes == ["no text that was found matches 'HELLO', which is to stay"]


def test_boxes_outside_of_the_picture_are_refused():
    with pytest.raises(MaskError, match="70 x 40"):
        efface.clean(noise(40, 70), boxes=[(60, 0, 20, 10)])


def test_regions_to_keep_may_reach_out_of_the_picture():
    picture = read_picture(noise(40, 70))
    mask = find(picture, Rules(mask=np.ones((40, 70), bool), keep=[(0, 0, 400, 30), (80, 0, 5, 5)]))[1]
    assert not mask[:30].any()
    assert mask[30:].all()


def test_the_limit_of_pixels_is_the_callers():
    with pytest.raises(PictureError, match="40 pixels, more than the limit") as caught:
        efface.clean(noise(40, 70), "text", boxes=[BOX], max_pixels=2799)
    assert "--max-pixels" in caught.value.fix


def test_too_little_memory_is_refused_with_the_least_that_will_do(run):
    with pytest.raises(UsageError, match="Allow at least") as caught:
        run(noise(40, 70), boxes=[BOX], memory=10**8)
    least = int(caught.value.fix.split()[-2]) * 10**6
    assert run(noise(40, 70), boxes=[BOX], memory=least).mask.any()


def test_little_memory_means_tiles_and_no_other_holes(run, monkeypatch):
    image = noise(200, 200, dtype=np.uint16)
    monkeypatch.setattr(repairing, "LARGEST_CROP", 128 * 128)
    cleaned = run(image, boxes=[(10, 10, 180, 180)], feather=0)
    same = ~cleaned.mask
    assert np.array_equal(cleaned.picture.pixels[same], image[same])
    assert (cleaned.picture.pixels[~same] != image[~same]).any(1).mean() > 0.9


def test_progress_only_grows_and_an_exception_in_it_ends_the_job(run):
    told = []
    run(noise(40, 70), boxes=[BOX], progress=lambda fraction, what: told.append(fraction))
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1)

    def stop(fraction, what):
        raise InterruptedError(what)

    with pytest.raises(InterruptedError):
        run(noise(40, 70), boxes=[BOX], progress=stop)


def test_iterations_are_for_iterative_methods_whose_iterates_can_be_had(run, weights):
    image = noise(40, 70)
    with pytest.raises(UsageError, match="not iterative"):
        run(image, boxes=[BOX], iterations=2)
    cleaned = apply(image, Rules(boxes=[BOX], iterations=3, weights=weights / "deeperaser"), iterates=True)
    assert len(cleaned.iterates) == 3
    assert cleaned.iterates[-1] is cleaned.picture
    assert len({iterate.pixels.tobytes() for iterate in cleaned.iterates}) == 3
    twice = run(image, "deeperaser", boxes=[BOX], iterations=2)
    assert np.abs(twice.picture.pixels.astype(int) - cleaned.iterates[1].pixels).max() <= 1


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (noise(9, 8, 1), "L"),
        (noise(9, 8, 3), "RGB"),
        (noise(9, 8, 4), "RGBA"),
        (noise(9, 8, 1, np.uint16), "L"),
        (noise(9, 8, 4, np.float32), "RGBA"),
    ],
)
def test_the_image_is_the_picture_at_eight_bits_with_its_alpha(values, mode):
    image = efface.clean(values, mask=np.zeros((9, 8), bool)).image
    scale = {np.uint8: 1, np.uint16: 1 / 257, np.float32: 255}[values.dtype.type]
    assert image.mode == mode
    assert np.abs(np.asarray(image).reshape(values.shape) - values * scale).max() <= 0.5 + 1e-4


def test_what_is_told_fits_into_json(run, texts):
    cleaned = run(noise(70, 100), only="Exit")
    told = json.loads(json.dumps(cleaned.as_dict()))
    assert told["size"] == [100, 70]
    assert told["method"] == "strokefill"
    assert [text["words"] for text in told["texts"] if text["taken"]] == ["Exit"]
    assert 0 < told["scores"]["masked"] < 1
    assert run(noise(70, 100), only="nothing").notes == ["nothing was taken away: no such text"]
