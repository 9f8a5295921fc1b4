from __future__ import annotations

import csv
import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from efface.errors import DataError, EffaceError, InputError, MaskError, OutputError, PictureError, UsageError
from efface.parts.metrics import erasing, pixels
from efface.parts.metrics.features import feat_kid, random_features
from efface.seeds import numpy_generator
from efface.verbs.score import score

NAMES = ("bridge", "clock", "dog")
INK = 10


def truth(i: int) -> np.ndarray:
    grid = numpy_generator(0, "score", i).integers(60, 255, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(grid, (80, 60), interpolation=cv2.INTER_CUBIC).clip(INK + 1)


def written(picture: np.ndarray, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Return the picture with bars of ink for text."""
    picture = picture.copy()
    for x, y, w, h in boxes:
        picture[y : y + h, x : x + w] = INK
    return picture


def mask_around(x: int, y: int, w: int, h: int, margin: int = 3) -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    mask[y - margin : y + h + margin, x - margin : x + w + margin] = 255
    return mask


@dataclass(frozen=True)
class Bar:
    polygon: np.ndarray


def find_ink(picture: np.ndarray) -> list[Bar]:
    """Find the bars of ink, in place of a text detector."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((picture == INK).all(axis=2).astype(np.uint8))
    return [
        Bar(np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], np.float32))
        for x, y, w, h, _ in stats[1:].tolist()
    ]


TRUTHS = [truth(i) for i in range(3)]
WORD, OTHER = (20, 10, 30, 8), (20, 40, 30, 8)
INPUTS = [written(t, WORD, OTHER) for t in TRUTHS]
MASKS = [mask_around(*WORD)] * 3
CLEANED = [written(t, OTHER) for t in TRUTHS]
NOISY = [
    np.clip(t.astype(int) + numpy_generator(1, i).integers(-9, 9, t.shape), 0, 255).astype(np.uint8)
    for i, t in enumerate(TRUTHS)
]


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes pictures into a new folder under the given file names."""

    def write(folder: str, names: list[str] | tuple[str, ...], pictures: list[np.ndarray]) -> Path:
        for name, picture in zip(names, pictures, strict=True):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture if picture.ndim == 2 else picture[:, :, ::-1])
        return tmp_path / folder

    return write


def png(*names: str, suffix: str = "") -> list[str]:
    return [f"{name}{suffix}.png" for name in names]


def means(scores) -> dict[str, float]:
    return {name: s.mean for name, s in scores.summary.items()}


# what is scored


def test_rows_hold_the_measures_of_each_picture():
    scores = score(NOISY, truth=TRUTHS)
    assert [row.name for row in scores.rows] == ["0", "1", "2"]
    for row, output, clean in zip(scores.rows, NOISY, TRUTHS, strict=True):
        assert row.values == pytest.approx(erasing.whole_row(output, clean), nan_ok=True)
    values = [pixels.psnr(*pair) for pair in zip(NOISY, TRUTHS, strict=True)]
    assert scores.summary["psnr"].mean == pytest.approx(np.mean(values))
    assert scores.summary["psnr"].std == pytest.approx(np.std(values, ddof=1))
    assert scores.summary["psnr"].n == 3
    assert (scores.summary["ms_ssim"].n, math.isnan(scores.summary["ms_ssim"].mean)) == (0, True)


def test_masks_and_inputs_add_their_measures():
    plain = {"psnr", "mse", "ssim", "mssim_legacy", "ms_ssim", "age", "peps", "pceps"}
    assert set(score(CLEANED, truth=TRUTHS, inputs=INPUTS).summary) == plain
    masked = score(CLEANED, truth=TRUTHS, masks=MASKS)
    assert set(masked.summary) == plain | {"psnr_m", "psnr_bg", "ssim_m"}
    assert masked.summary["psnr_m"].mean == pixels.CAP
    assert masked.summary["psnr_bg"].mean < 30  # the other bar is still there
    both = score(CLEANED, truth=TRUTHS, masks=MASKS, inputs=INPUTS)
    assert set(both.summary) == set(masked.summary) | {"rim"}


def test_capped_values_are_flagged():
    scores = score([TRUTHS[0], NOISY[1]], truth=TRUTHS[:2])
    assert [row.capped for row in scores.rows] == [["psnr"], []]
    assert (scores.summary["psnr"].capped, scores.summary["ssim"].capped) == (1, 0)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [(CLEANED, "3 of 3"), (NOISY, "0 of 3"), ([CLEANED[0], *NOISY[1:]], "1 of 3")],
    ids=["all", "none", "some"],
)
def test_whether_composited_is_said(outputs, words):
    assert words in score(outputs, truth=TRUTHS, masks=MASKS, inputs=INPUTS).forms["composited"]
    assert "not known" in score(outputs, truth=TRUTHS, masks=MASKS).forms["composited"]


def test_floats_are_rounded_to_8_bits_and_16_bits_kept():
    clean = [np.full((20, 20, 3), 100, np.uint8)]
    assert score([clean[0] / 255 + 0.4 / 255], truth=clean).summary["mse"].mean == 0
    assert score([clean[0] / 255 + 0.6 / 255], truth=clean).summary["age"].mean == 1
    deep = clean[0].astype(np.uint16) * 257
    assert 0 < score([deep + np.uint16(1)], truth=clean).summary["mse"].mean < 1e-9


def test_order_makes_no_difference():
    order = list(range(3))
    first = score(NOISY, truth=TRUTHS, masks=MASKS, inputs=INPUTS, residue=True, detector=find_ink)
    for seed in range(4):
        random.Random(seed).shuffle(order)
        outputs, truths, inputs = ([side[i] for i in order] for side in (NOISY, TRUTHS, INPUTS))
        again = score(outputs, truth=truths, masks=MASKS, inputs=inputs, residue=True, detector=find_ink)
        assert {k: repr(s) for k, s in again.summary.items()} == {k: repr(s) for k, s in first.summary.items()}
        assert again.whole_set == first.whole_set


def test_progress_is_told():
    told: list[tuple[float, str]] = []
    score(NOISY[:2], truth=TRUTHS[:2], progress=lambda *what: told.append(what))
    assert told == [(0.5, "0"), (1.0, "1")]


# legacy


def test_legacy_leaves_perfect_pictures_out_of_its_own_means():
    outputs = [TRUTHS[0], *NOISY[1:]]
    scores = score(outputs, truth=TRUTHS, masks=MASKS, legacy=True)
    assert [row.skipped for row in scores.rows] == [True, False, False]
    counts = {name.startswith("legacy_"): s.n for name, s in scores.summary.items() if s.n}
    assert counts == {True: 2, False: 3}
    assert scores.summary["legacy_psnr"].mean == np.mean([row.values["legacy_psnr"] for row in scores.rows[1:]])


def test_legacy_adds_the_forms_of_published_tables():
    plain, scores = score(NOISY, truth=TRUTHS), score(NOISY, truth=TRUTHS, legacy=True)
    added = {name: value for name, value in scores.rows[0].values.items() if name.startswith("legacy_")}
    assert list(added) == ["legacy_psnr", "legacy_mse", "legacy_mssim", "legacy_age", "legacy_peps", "legacy_pceps"]
    assert list(added.values()) == list(erasing.legacy_row(NOISY[0], TRUTHS[0]).values())
    assert {name: repr(s) for name, s in scores.summary.items() if name not in added} == {
        name: repr(s) for name, s in plain.summary.items()
    }
    assert (scores.forms["whole picture"], "legacy" in plain.forms) == ("correct", False)


def test_legacy_alone_takes_other_sizes_and_only_for_the_whole_picture():
    small = [cv2.resize(NOISY[0], (40, 30))]
    summary = score(small, truth=TRUTHS[:1], legacy=True).summary
    assert summary["legacy_psnr"].n == 1
    assert "psnr" not in summary
    with pytest.raises(PictureError, match="40x30 and 80x60"):
        score(small, truth=TRUTHS[:1])
    with pytest.raises(PictureError, match="differ in size"):
        score(small, truth=TRUTHS[:1], masks=MASKS[:1], legacy=True)
    with pytest.raises(PictureError, match="differ in size"):
        score(small, truth=TRUTHS[:1], inputs=small, residue=True, detector=find_ink, legacy=True)


# text residue


@pytest.mark.parametrize(
    ("outputs", "r_out", "erased"),
    [(CLEANED, 0, 1), (INPUTS, 1, 0), ([INPUTS[0], *CLEANED[1:]], 1 / 3, 2 / 3), (TRUTHS, 0, 1)],
    ids=["cleaned", "untouched", "one left", "truth"],
)
def test_residue_counts_selected_texts_only(outputs, r_out, erased):
    scores = score(outputs, truth=TRUTHS, masks=MASKS, inputs=INPUTS, residue=True, detector=find_ink)
    for protocol in ("icdar15", "deteval"):
        found = {k: scores.whole_set[f"{k}_{protocol}"] for k in ("r_out", "r_in", "r_truth", "erased")}
        assert found == pytest.approx({"r_out": r_out, "r_in": 1, "r_truth": 0, "erased": erased})
    assert scores.whole_set["texts"] == 3
    assert scores.summary["r_det"].mean == pytest.approx(r_out)
    assert (scores.summary["keep_err"].mean > 0.1) == (outputs is TRUTHS)  # there the other bar is gone as well


def test_residue_without_masks_counts_every_text():
    scores = score(CLEANED, truth=TRUTHS, inputs=INPUTS, residue=True, detector=find_ink)
    assert (scores.whole_set["texts"], scores.whole_set["r_out_icdar15"]) == (6, 0.5)
    assert "keep_err" not in scores.summary


def test_pictures_without_text_have_no_recall():
    scores = score(TRUTHS, truth=TRUTHS, inputs=[INPUTS[0], *TRUTHS[1:]], residue=True, detector=find_ink)
    assert (scores.summary["r_det"].n, scores.whole_set["texts"]) == (1, 2)


def test_without_truth_residue_and_rim_are_scored():
    scores = score(CLEANED, inputs=INPUTS, masks=MASKS, detector=find_ink)
    assert set(scores.summary) == {"keep_err", "rim", "r_det"}
    assert scores.whole_set["r_out_icdar15"] == 0
    assert math.isnan(scores.whole_set["r_truth_icdar15"])
    assert "whole picture" not in scores.forms


def test_feature_distance_is_added_on_request():
    scores = score(NOISY, truth=TRUTHS, features=random_features)
    assert scores.whole_set["feat_kid"] == pytest.approx(feat_kid(NOISY, TRUTHS))
    with pytest.raises(DataError, match="too small"):
        score(NOISY[:1], truth=TRUTHS[:1], features=random_features)


# files


@pytest.mark.parametrize("suffix", ["", "_clean"])
def test_folders_are_matched_by_name(folders, suffix):
    out = folders("out", png(*NAMES, suffix=suffix), NOISY)
    (out / "manifest.jsonl").write_text("{}\n")
    sources = {
        "truth": folders("truth", [f"{name}.bmp" for name in NAMES], TRUTHS),
        "masks": folders("masks", png(*NAMES), MASKS),
        "inputs": folders("in", png(*NAMES), INPUTS),
    }
    scores = score(out, **sources)
    assert [row.name for row in scores.rows] == [name + suffix for name in NAMES]
    assert means(scores) == pytest.approx(means(score(NOISY, truth=TRUTHS, masks=MASKS, inputs=INPUTS)), nan_ok=True)


def test_names_of_subfolders_count(folders):
    names = ["a/one.png", "b/one.png"]
    scores = score(str(folders("out", names, NOISY[:2])), truth=str(folders("truth", names, TRUTHS[:2])))
    assert [row.name for row in scores.rows] == ["a/one", "b/one"]
    assert means(scores) == pytest.approx(means(score(NOISY[:2], truth=TRUTHS[:2])), nan_ok=True)


def test_an_exact_name_goes_before_a_shortened_one(folders):
    out = folders("out", png("dog", "dog_clean"), NOISY[:2])
    scores = score(out, truth=folders("truth", png("dog", "dog_clean"), TRUTHS[:2]))
    assert means(scores) == pytest.approx(means(score(NOISY[:2], truth=TRUTHS[:2])), nan_ok=True)


def test_single_files_belong_together_whatever_their_names(folders):
    out, clean = folders("out", png("a"), NOISY[:1]), folders("truth", png("b", "a"), [TRUTHS[0], TRUTHS[1]])
    expected = pixels.psnr(NOISY[0], TRUTHS[0])
    assert score(out / "a.png", truth=clean / "b.png").summary["psnr"].mean == pytest.approx(expected)
    one = score(out / "a.png", truth=clean)  # out of a folder, the one of its name
    assert one.summary["psnr"].mean == pytest.approx(pixels.psnr(NOISY[0], TRUTHS[1]))


@pytest.mark.parametrize(
    ("outputs", "truths", "said"),
    [
        (("a", "b", "c"), ("a",), "outputs without truth: b, c"),
        (("a",), ("a", "b", "c"), "truth without output: b, c"),
        (("a", "b"), ("a", "c"), "outputs without truth: b; truth without output: c"),
        (("a", "a_clean"), ("a",), "truth of several outputs: a"),
        (tuple(f"n{i:02}" for i in range(25)), ("a",), "n19 and 5 more"),
    ],
)
def test_files_without_partner_are_listed(folders, outputs, truths, said):
    out = folders("out", png(*outputs), NOISY[:1] * len(outputs))
    with pytest.raises(InputError) as caught:
        score(out, truth=folders("truth", png(*truths), TRUTHS[:1] * len(truths)))
    assert said in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("role", ["masks", "inputs"])
def test_masks_and_inputs_must_match_too(folders, role):
    out, clean = folders("out", png(*NAMES), NOISY), folders("truth", png(*NAMES), TRUTHS)
    with pytest.raises(InputError, match=f"outputs without {role}: dog"):
        score(out, truth=clean, **{role: folders(role, png(*NAMES[:2]), MASKS[:2])})


def test_two_files_of_one_name_are_refused(folders):
    out = folders("out", ["a.png", "a.bmp"], NOISY[:2])
    with pytest.raises(InputError, match="several files have one name: a"):
        score(out, truth=out)


def test_empty_and_missing_sources_are_refused(tmp_path):
    for source in (tmp_path, tmp_path / "missing", []):
        with pytest.raises(InputError, match=r"holds no picture|no such file"):
            score(source, truth=TRUTHS)
    with pytest.raises(InputError, match="outputs without truth: 1, 2"):
        score(NOISY, truth=TRUTHS[:1])


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, UsageError),
        ({"masks": MASKS}, UsageError),
        ({"inputs": INPUTS, "legacy": True}, UsageError),
        ({"inputs": INPUTS, "features": random_features}, UsageError),
        ({"truth": TRUTHS, "residue": True}, UsageError),
        ({"truth": TRUTHS[0]}, UsageError),
        ({"truth": [TRUTHS[0], TRUTHS[1][1:], TRUTHS[2]]}, PictureError),
        ({"truth": TRUTHS, "masks": [MASKS[0], MASKS[1][1:], MASKS[2]]}, PictureError),
        ({"truth": TRUTHS, "masks": [MASKS[0], MASKS[1] // 255, MASKS[2]]}, MaskError),
        ({"inputs": [INPUTS[0], INPUTS[1][1:], INPUTS[2]], "detector": find_ink}, PictureError),
        ({"truth": [TRUTHS[0], TRUTHS[1] * math.nan, TRUTHS[2]]}, PictureError),
    ],
)
def test_wrong_calls_and_pictures_are_refused(given, kind):
    with pytest.raises(EffaceError) as caught:
        score(NOISY, **given)
    assert type(caught.value) is kind
    assert caught.value.fix
    assert kind is UsageError or caught.value.where == "1"


# how scores are shown


@pytest.fixture(scope="module")
def scores():
    outputs = [TRUTHS[0], *NOISY[1:]]
    return score(outputs, truth=TRUTHS, masks=MASKS, inputs=INPUTS, residue=True, detector=find_ink)


def test_json_holds_everything(scores):
    content = json.loads(scores.to_json())
    assert set(content) == {"forms", "summary", "set", "pictures"}
    assert content["summary"]["psnr"] == {**vars(scores.summary["psnr"])}
    assert content["summary"]["ms_ssim"] == {"mean": None, "std": None, "n": 0, "capped": 0}
    first = content["pictures"][0]
    assert first["values"]["ms_ssim"] is None
    assert (first["name"], first["capped"][0], first["composited"], first["skipped"]) == ("0", "psnr", False, False)


def test_csv_has_a_line_per_picture(scores):
    lines = list(csv.DictReader(io.StringIO(scores.to_csv())))
    assert [line["name"] for line in lines] == ["0", "1", "2"]
    assert [float(line["psnr"]) for line in lines] == [row.values["psnr"] for row in scores.rows]
    assert (lines[0]["ms_ssim"], lines[0]["capped"].split()[0]) == ("", "psnr")


def test_table_names_forms_and_marks_caps(scores):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(scores.table())
    shown = console.export_text()
    for words in (
        "3 pictures",
        "psnr_bg",
        "erased_icdar15",
        "whole picture: correct",
        "composited",
        "capped at 100 dB",
    ):
        assert words in shown
    legacy = score([TRUTHS[0], NOISY[1]], truth=TRUTHS[:2], legacy=True)
    console.print(legacy.table())
    assert "2 pictures, 1 skipped" in console.export_text()


def test_scores_are_saved_by_the_ending_of_the_name(scores, tmp_path):
    scores.save(tmp_path / "s.json")
    scores.save(tmp_path / "s.csv")
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(scores.to_json())
    assert (tmp_path / "s.csv").read_text() == scores.to_csv()
    with pytest.raises(OutputError, match="exists already"):
        scores.save(tmp_path / "s.csv")
    scores.save(tmp_path / "s.csv", overwrite=True)
    with pytest.raises(UsageError, match="saved as"):
        scores.save(tmp_path / "s.xlsx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "s.json"]


def test_scoring_imports_no_torch():
    code = "import sys, efface.verbs.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
