from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import convolve
from scipy.optimize import linear_sum_assignment
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)
from torchmetrics.image.kid import poly_mmd

from efface.errors import DataError, MaskError, PictureError
from efface.parts.metrics import erasing, features, pixels, residue, structure
from efface.seeds import numpy_generator


def noise(*size: int, name: object = "noise", dtype: type = np.uint8) -> np.ndarray:
    return numpy_generator(0, name, *size).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)


def scene(h: int = 192, w: int = 200, *, name: object = "scene") -> np.ndarray:
    """Return a picture with structure at every scale."""
    rgb = sum(
        cv2.resize(noise(n, n, 3, name=name).astype(float), (w, h), interpolation=cv2.INTER_CUBIC) for n in (4, 16, 64)
    )
    return np.clip(rgb / 3, 0, 255).astype(np.uint8)


def blurred(picture: np.ndarray, sigma: float = 2) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def box(x: int, y: int, w: int, h: int) -> np.ndarray:
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], np.float32)


def mask_of(h: int, w: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((h, w), bool)
    mask[rows, columns] = True
    return mask


GREY = np.full((40, 50, 3), 100, np.uint8)
PAIR = scene(), blurred(scene())
PICTURES = arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14), st.just(3)))


def with_error(rows: slice | int, columns: slice | int, levels: int = 21) -> np.ndarray:
    output = GREY.copy()
    output[rows, columns] += np.uint8(levels)
    return output


# pixels


def test_identical_pictures_are_perfect():
    row = erasing.whole_row(PAIR[0], PAIR[0])
    assert row == pytest.approx(
        {"psnr": 100, "mse": 0, "ssim": 1, "mssim_legacy": 1, "ms_ssim": 1, "age": 0, "peps": 0, "pceps": 0}, abs=1e-12
    )
    assert row["psnr"] == pixels.CAP


@pytest.mark.parametrize(
    ("rows", "columns", "levels", "errors", "clusters"),
    [
        (slice(5, 9), slice(5, 11), 21, 24, 8),
        (slice(5, 9), slice(5, 11), 20, 0, 0),
        (7, slice(None), 21, 50, 0),
        (slice(5, 8), slice(5, 8), 21, 9, 1),
        (slice(0, 3), slice(0, 3), 21, 9, 1),
        (slice(None), slice(None), 21, 2000, 38 * 48),
    ],
    ids=["block", "below the threshold", "line", "3x3", "3x3 in the corner", "everywhere"],
)
def test_error_pixels_are_counted_exactly(rows, columns, levels, errors, clusters):
    output = with_error(rows, columns, levels)
    assert pixels.peps(output, GREY) == errors / 2000
    assert pixels.pceps(output, GREY) == clusters / 2000
    touched = int((output != GREY).any(axis=2).sum())
    assert pixels.age(output, GREY) == pytest.approx(levels * touched / 2000)


def test_brightness_decides_about_error_pixels():
    output = GREY.copy()
    output[3, 3, 2] += 100  # blue weighs .114
    output[4, 4, 1] += 100  # green weighs .587
    assert np.argwhere(pixels.error_map(output, GREY)).tolist() == [[4, 4]]
    assert pixels.age(output, GREY) == (11 + 59) / 2000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_psnr_equals_scikit_image(dtype):
    a, b = noise(30, 40, 3, name=1, dtype=dtype), noise(30, 40, 3, name=2, dtype=dtype)
    assert pixels.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b, a), rel=1e-12)
    assert pixels.mse(a, b) == pytest.approx(10 ** (-pixels.psnr(a, b) / 10), rel=1e-12)


def test_tiny_errors_are_capped_and_sixteen_bits_kept():
    a = np.full((4, 4, 3), 1 / 2)
    assert pixels.psnr(a + 1e-9, a) == pixels.CAP
    deep = np.full((4, 4, 3), 30000, np.uint16)
    assert pixels.mse(deep + np.uint16(1), deep) == pytest.approx(65535.0**-2)
    assert math.isnan(pixels.decibels(math.nan))


def test_depths_and_channels_mean_the_same_picture():
    grey = noise(12, 13)
    rgb = np.dstack([grey] * 3)
    same = [grey, grey[:, :, None], rgb, np.dstack([rgb, noise(12, 13, name="alpha")]), rgb / 255]
    same += [rgb.astype(np.uint16) * 257, np.dstack([grey, noise(12, 13, name="alpha")])]
    assert all(pixels.mse(a, b) < 1e-30 for a, b in itertools.combinations(same, 2))


def test_eight_bits_rounds_instead_of_truncating():
    assert pixels.eight_bits(np.full((1, 1), 0.999 / 255)).max() == 1
    assert np.array_equal(pixels.eight_bits(noise(5, 6, 3) / 255), noise(5, 6, 3))


@pytest.mark.parametrize(
    "bad",
    [
        np.full((3, 3), math.nan),
        np.full((3, 3), 1.01),
        np.full((3, 3), -0.01),
        np.zeros((3, 3), np.int32),
        np.zeros((3, 3), bool),
        np.zeros((0, 3), np.uint8),
        np.zeros((3, 3, 5), np.uint8),
        np.zeros(3, np.uint8),
    ],
    ids=["nan", "above 1", "below 0", "int32", "bool", "empty", "5 channels", "1 axis"],
)
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(PictureError):
        pixels.unit_rgb(bad)


MEASURES = [
    pixels.mse,
    pixels.psnr,
    pixels.age,
    pixels.peps,
    pixels.pceps,
    structure.ssim,
    structure.mssim_legacy,
    structure.ms_ssim,
]


@pytest.mark.parametrize("measure", MEASURES)
def test_sizes_must_agree(measure):
    with pytest.raises(PictureError, match="200x192 and 199x192"):
        measure(PAIR[0], PAIR[1][:, :-1])


@pytest.mark.parametrize("measure", [erasing.psnr_m, erasing.psnr_bg, structure.ssim_m, erasing.keep_err, erasing.rim])
def test_masks_must_have_the_size_of_their_picture(measure):
    with pytest.raises(PictureError, match="differ in size"):
        measure(*PAIR, np.ones((192, 199), bool))


@given(PICTURES, st.data())
def test_measures_are_symmetric_and_bounded(a, data):
    b = data.draw(arrays(np.uint8, a.shape))
    assert erasing.whole_row(a, b) == pytest.approx(erasing.whole_row(b, a), nan_ok=True)
    assert 0 <= pixels.mse(a, b) <= 1
    assert 0 <= pixels.psnr(a, b) <= pixels.CAP
    assert (pixels.mse(a, b) == 0) == np.array_equal(a, b)
    assert 0 <= pixels.pceps(a, b) <= pixels.peps(a, b) <= 1
    assert 0 <= pixels.age(a, b) <= 255
    similarity, legacy = structure.ssim(a, b), structure.mssim_legacy(a, b)
    assert math.isnan(similarity) if min(a.shape[:2]) < 11 else -1 <= similarity <= 1 + 1e-9
    assert math.isnan(legacy) or 0 <= legacy <= 1 + 1e-9


# structure


def test_ssim_equals_scikit_image():
    a, b = (pixels.luma(p) for p in PAIR)
    theirs = structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
    assert structure.ssim(*PAIR) == pytest.approx(theirs, abs=1e-12)


def test_ms_ssim_is_close_to_torchmetrics():  # which mirrors borders at the last scale
    x, y = (torch.from_numpy(pixels.luma(p))[None, None] for p in PAIR)
    theirs = multiscale_structural_similarity_index_measure(x, y, data_range=1.0)
    assert structure.ms_ssim(*PAIR) == pytest.approx(float(theirs), abs=1e-3)


@pytest.mark.parametrize("size", [(176, 192), (191, 201)], ids=["even", "odd"])
def test_ms_ssim_equals_its_definition(size):
    truth = scene(*size)
    output = blurred(truth, 3)
    x, y = pixels.luma(output), pixels.luma(truth)
    expected = 1.0
    for scale, exponent in enumerate(structure.SCALES):
        pair = [torch.from_numpy(np.ascontiguousarray(p))[None, None] for p in (x, y)]
        _, contrast = structural_similarity_index_measure(*pair, data_range=1.0, return_contrast_sensitivity=True)
        _, similarity = structural_similarity_index_measure(*pair, data_range=1.0, return_full_image=True)
        expected *= float(similarity[..., 5:-5, 5:-5].mean() if scale == 4 else contrast) ** exponent
        x, y = (convolve(p, np.full((2, 2), 1 / 4), mode="reflect")[::2, ::2] for p in (x, y))
    assert structure.ms_ssim(output, truth) == pytest.approx(expected, abs=1e-12)


def test_mssim_legacy_is_one_scale_and_differs_from_ms_ssim():
    output, truth = PAIR[1], PAIR[0]
    similarity, contrast = structure.ssim_maps(output, truth)
    legacy = structure.mssim_legacy(output, truth)
    assert legacy == pytest.approx(contrast.mean() ** 0.8668 * similarity.mean() ** 0.1333)
    assert structure.ms_ssim(output, truth) - legacy > 0.05  # coarse scales do not see the blur


@pytest.mark.parametrize(("side", "defined"), [(161, True), (160, False), (11, False), (1, False)])
def test_ms_ssim_needs_161_pixels(side, defined):
    assert math.isfinite(structure.ms_ssim(scene(side, 170), scene(side, 170))) == defined


def test_small_pictures_have_no_ssim_but_pixels():
    row = erasing.whole_row(noise(1, 4000, 3), noise(1, 4000, 3, name=2))
    assert {name for name, value in row.items() if math.isnan(value)} == {"ssim", "mssim_legacy", "ms_ssim"}


def test_opposite_structure_is_not_nan():
    a = noise(20, 20)
    assert structure.ssim(a, 255 - a) < 0
    assert structure.mssim_legacy(a, 255 - a) == 0


def test_ssim_in_the_mask_sees_the_mask_only():
    mask = mask_of(192, 200, slice(20, 60), slice(20, 60))
    output = PAIR[0].copy()
    output[100:150, 100:150] = 0
    assert structure.ssim_m(output, PAIR[0], mask) == pytest.approx(1)
    output[20:60, 20:60] = PAIR[1][20:60, 20:60]
    assert structure.ssim_m(output, PAIR[0], mask) < 0.95
    assert structure.ssim_m(output, PAIR[0], np.ones((192, 200), bool)) == pytest.approx(
        structure.ssim(output, PAIR[0])
    )
    assert math.isnan(structure.ssim_m(output, PAIR[0], mask_of(192, 200, slice(0, 5), slice(None))))


# regions


def test_region_psnr_splits_the_error():
    mask = mask_of(40, 50, slice(10, 20), slice(10, 20))
    assert erasing.psnr_m(with_error(15, 15), GREY, mask) == pytest.approx(10 * math.log10(100 * 255**2 / 21**2))
    assert erasing.psnr_bg(with_error(15, 15), GREY, mask) == pixels.CAP
    assert erasing.psnr_m(with_error(30, 30), GREY, mask) == pixels.CAP
    assert erasing.psnr_bg(with_error(30, 30), GREY, mask) == pytest.approx(10 * math.log10(1900 * 255**2 / 21**2))


@given(PICTURES, st.data())
def test_region_errors_add_up_to_the_whole(a, data):
    b = data.draw(arrays(np.uint8, a.shape))
    mask = data.draw(arrays(bool, a.shape[:2]))
    parts = ((mask, erasing.psnr_m), (~mask, erasing.psnr_bg))
    defined = [(m.sum(), measure(a, b, mask)) for m, measure in parts if m.any()]
    total = sum(n * (0 if psnr == pixels.CAP else 10 ** (-psnr / 10)) for n, psnr in defined)
    assert total / mask.size == pytest.approx(pixels.mse(a, b))


@pytest.mark.parametrize(("fill", "undefined"), [(False, {"psnr_m", "ssim_m"}), (True, {"psnr_bg"})])
def test_empty_and_full_masks_leave_measures_undefined(fill, undefined):
    row = erasing.region_row(*PAIR, np.full((192, 200), fill))
    assert {name for name, value in row.items() if math.isnan(value)} == undefined
    assert math.isnan(erasing.rim(*PAIR, np.full((192, 200), fill)))


def test_masks_grow_as_disks():
    grown = erasing.grow_mask(mask_of(21, 21, slice(10, 11), slice(10, 11)), 5)
    y, x = np.mgrid[-10:11, -10:11]
    assert np.array_equal(grown, x**2 + y**2 <= 25)


def test_rim_is_two_pixels_inside_the_mask():
    mask = mask_of(40, 50, slice(10, 20), slice(0, 10))  # touches the left border, which is no rim
    ring = mask & ~mask_of(40, 50, slice(12, 18), slice(0, 8))
    inner = np.where((mask & ~ring)[:, :, None], 0, GREY)
    assert erasing.rim(inner, GREY, mask) == 0
    assert erasing.rim(np.where(ring[:, :, None], GREY + 51, GREY), GREY, mask) == pytest.approx(0.2)
    assert erasing.rim(np.where(mask[:, :, None], GREY, 0), GREY, mask) == 0


def test_rim_warns_of_a_mask_that_cuts_through_text():
    source = np.full((60, 60, 3), 220, np.uint8)
    source[20:40, 20:40] = 20
    erased = np.full_like(source, 220)
    ample, tight = (mask_of(60, 60, slice(s, 60 - s), slice(s, 60 - s)) for s in (15, 23))
    assert erasing.rim(erased, source, ample) == 0
    assert erasing.rim(np.where(tight[:, :, None], erased, source), source, tight) > 0.5


def test_composited_means_bit_equal_outside():
    mask = mask_of(40, 50, slice(10, 20), slice(10, 20))
    assert erasing.is_composited(with_error(15, 15), GREY, mask)
    assert not erasing.is_composited(with_error(30, 30, 1), GREY, mask)


@pytest.mark.parametrize("mask", [mask_of(5, 6, slice(1, 3), slice(2, 4))])
@pytest.mark.parametrize("scale", [np.uint8(255), np.uint8(128), np.uint16(40000), 0.5], ids=str)
def test_masks_come_in_every_depth(mask, scale):
    assert np.array_equal(pixels.binary_mask(mask * scale), mask)
    assert np.array_equal(pixels.binary_mask(mask), mask)


def test_masks_of_zeros_and_ones_in_8_bits_are_refused():
    assert not pixels.binary_mask(np.zeros((3, 3), np.uint8)).any()
    with pytest.raises(MaskError, match="half"):
        pixels.binary_mask(np.eye(3, dtype=np.uint8))


# legacy


def test_legacy_divides_by_a_constant_area():
    output = with_error(slice(5, 8), slice(5, 8))
    assert pixels.peps(output, GREY, area=512 * 512) == 9 / 512**2
    assert pixels.pceps(output, GREY, area=512 * 512) == 1 / 512**2


def test_legacy_resizes_to_512_and_takes_any_two_sizes():
    row = erasing.legacy_row(scene(256, 256), scene(256, 256)[::2, ::2])
    assert set(row) == {"psnr", "mse", "mssim_legacy", "age", "peps", "pceps"}
    assert math.isfinite(row["psnr"])
    assert pixels.legacy_resize(noise(9, 7, dtype=np.uint16)).shape == (512, 512, 3)
    kept = noise(512, 512, 3)
    assert np.array_equal(pixels.legacy_resize(kept), kept)


def test_legacy_equals_correct_forms_at_512():
    a, b = scene(512, 512), blurred(scene(512, 512))
    correct = erasing.whole_row(b, a)
    assert erasing.legacy_row(b, a) == {name: correct[name] for name in erasing.legacy_row(b, a)}


# residue


@pytest.mark.parametrize(
    ("texts", "found", "icdar15", "deteval"),
    [
        ([], [], 0, 0),
        ([box(0, 0, 10, 10)], [], 0, 0),
        ([], [box(0, 0, 10, 10)], 0, 0),
        ([box(0, 0, 10, 10)], [box(0, 0, 10, 10)], 1, 1),
        ([box(0, 0, 10, 10)], [box(0, 0, 10, 5)], 1, 0),
        ([box(0, 0, 10, 10)], [box(0, 0, 10, 4)], 0, 0),
        ([box(0, 0, 10, 10)], [box(0, 0, 20, 10)], 1, 1),
        ([box(0, 0, 10, 10)], [box(0, 0, 30, 10)], 0, 0),
        ([box(0, 0, 10, 10)], [box(0, 0, 5, 10), box(5, 0, 5, 10)], 1, 0.8),
        ([box(0, 0, 9, 10)], [box(0, 0, 4, 10), box(5, 0, 4, 10)], 0, 0.8),
        ([box(0, 0, 10, 10), box(11, 0, 10, 10)], [box(0, 0, 21, 10)], 0, 2),
        ([box(0, 0, 10, 10)], [box(0, 0, 10, 10), box(0, 0, 10, 9)], 1, 1),
        ([box(0, 0, 10, 10)], [box(0, 0, 0, 10)], 0, 0),
        ([box(0, 0, 10, 10)[::-1]], [box(0, 0, 10, 10)], 1, 1),
    ],
    ids=[
        "nothing at all",
        "all erased",
        "false alarm",
        "equal",
        "half",
        "less than half",
        "double",
        "triple",
        "split in halves",
        "split with a gap",
        "merged",
        "found twice",
        "no area",
        "other orientation",
    ],
)
def test_texts_are_matched(texts, found, icdar15, deteval):
    assert residue.one_to_one(texts, found) == icdar15
    assert residue.deteval(texts, found) == pytest.approx(deteval)


BOXES = st.lists(st.builds(box, *[st.integers(0, 12)] * 2, *[st.integers(1, 12)] * 2), max_size=5)


@given(BOXES, BOXES, st.randoms(use_true_random=False))
def test_matching_depends_on_no_order_and_is_the_largest(texts, found, random):
    count, credit = residue.one_to_one(texts, found), residue.deteval(texts, found)
    assert 0 <= count <= min(len(texts), len(found))
    assert 0 <= credit <= len(texts)
    random.shuffle(texts)
    random.shuffle(found)
    assert (residue.one_to_one(texts, found), residue.deteval(texts, found)) == (count, pytest.approx(credit))
    hits = np.array([[residue.one_to_one([a], [b]) for b in found] for a in texts]).reshape(len(texts), len(found))
    assert count == hits[linear_sum_assignment(-hits)].sum()


def test_residue_pools_over_pictures():
    a, b = box(0, 0, 10, 10), box(20, 0, 10, 10)
    first = residue.residue([a, b], output=[a], source=[a, b], truth=[], match=residue.one_to_one)
    second = residue.residue([a, b], output=[], source=[a, b], truth=[b], match=residue.one_to_one)
    both = first + second
    assert (both.texts, both.r_out, both.r_in, both.r_truth) == (4, 0.25, 1, 0.25)
    assert (first.erased, second.erased, both.erased) == (0.5, 2, 1)


def test_residue_without_truth_or_texts_is_undefined():
    a = box(0, 0, 10, 10)
    no_truth = residue.residue([a], output=[a], source=[a], match=residue.one_to_one)
    assert (no_truth.r_out, math.isnan(no_truth.r_truth), math.isnan(no_truth.erased)) == (1, True, True)
    no_text = residue.residue([], output=[a], source=[], truth=[], match=residue.one_to_one)
    assert math.isnan(no_text.r_out)
    assert math.isnan(no_text.erased)


def test_detectors_are_shown_rgb_in_8_bits():
    shown = []
    residue.found_polygons(noise(4, 5, dtype=np.uint16), lambda p: shown.append(p) or [])
    assert (shown[0].shape, shown[0].dtype) == ((4, 5, 3), np.uint8)


def test_the_house_detector_finds_text_and_misses_it_once_erased():
    page = np.full((80, 320, 3), 255, np.uint8)
    assert residue.found_polygons(page) == []
    written = cv2.putText(page.copy(), "efface 2024", (20, 55), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 0, 0), 3)
    texts = residue.found_polygons(written)
    assert len(texts) >= 1
    found = residue.residue(texts, output=residue.found_polygons(page), source=texts, truth=[], match=residue.deteval)
    assert (found.r_out, found.erased) == (0, 1)


def test_texts_are_split_by_the_mask():
    selected, partly, outside = box(10, 10, 40, 10), box(10, 40, 40, 10), box(10, 60, 40, 10)
    mask = mask_of(100, 100, slice(8, 22), slice(8, 52)) | mask_of(100, 100, slice(40, 50), slice(10, 20))
    assert [len(side) for side in erasing.split_texts([selected, partly, outside], mask)] == [1, 2]
    assert erasing.share_selected(selected, mask) == 1
    assert erasing.share_selected(box(-90, -90, 5, 5), mask) == 0


def test_a_mask_of_strokes_selects_its_text():
    strokes = np.zeros((40, 120), np.uint8)
    cv2.putText(strokes, "strokes", (10, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (1,), 1)
    x, y, w, h = cv2.boundingRect(strokes)
    assert strokes[y : y + h, x : x + w].mean() < 0.4
    assert erasing.share_selected(box(x, y, w, h), strokes.astype(bool)) > 0.8


def test_keep_error_looks_at_kept_texts_only():
    kept = box(5, 5, 20, 8)
    mask = mask_of(40, 50, slice(30, 38), slice(5, 30))
    region = erasing.kept_region([kept], mask)
    assert erasing.keep_err(with_error(slice(30, 38), slice(5, 30)), GREY, region) == 0
    assert erasing.keep_err(with_error(slice(0, 20), slice(0, 40), 51), GREY, region) == pytest.approx(0.2)
    assert math.isnan(erasing.keep_err(GREY, GREY, erasing.kept_region([], mask)))


# features


def test_mmd_equals_torchmetrics_and_is_unbiased():
    x, y = (numpy_generator(0, name).normal(size=(40, 8)) for name in "xy")
    theirs = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y), gamma=1 / 8))
    assert features.mmd(x, y) == pytest.approx(theirs, abs=1e-12)
    draws = [numpy_generator(1, i).normal(size=(2, 6, 4)) for i in range(300)]
    values = np.array([features.mmd(*pair) for pair in draws])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert values.min() < 0


def test_feat_kid_tells_blurred_sets_from_sharp_ones():
    sharp, others = ([scene(64, 64, name=(kind, i)) for i in range(6)] for kind in "ab")
    same = features.feat_kid(others, sharp)
    worse = features.feat_kid([blurred(p, 3) for p in others], sharp)
    assert worse > abs(same)
    assert features.feat_kid(others, sharp) == same
    with pytest.raises(DataError, match="too small"):
        features.feat_kid(sharp[:1], sharp)


def test_feature_nets_are_pluggable():
    @dataclass
    class Mean:
        seen: int = 0

        def __call__(self, picture: np.ndarray) -> np.ndarray:
            self.seen += 1
            return picture.mean(axis=(0, 1))

    net = Mean()
    assert features.feat_kid([GREY, GREY], [GREY, GREY], features=net) == pytest.approx(0, abs=1e-6)
    assert net.seen == 4


def test_random_features_depend_on_their_seed_only():
    assert features.random_features(GREY).shape == (448,)
    assert np.array_equal(features.random_features(GREY), features.random_features(GREY.copy()))
    assert not np.allclose(features.random_features(GREY), features.random_features(GREY, seed=1))
