"""Training pairs teach exactly what the mask asks for, and are the same for the same seed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from efface.errors import DataError, UnknownNameError, UsageError
from efface.parts.data import source
from efface.parts.data.erase_text import EraseText, evaluation_set
from efface.parts.data.photos import MADE_UP, made_up, photographs
from efface.seeds import numpy_generator

GROUND = (90, 120, 60)
FLAT = [np.full((150, 200, 3), GROUND, np.uint8)]
NOISE = [numpy_generator(i, "photo").integers(0, 256, (120, 90 + 60 * i, 3)).astype(np.uint8) for i in range(2)]


def samples(count=24, **options):
    data = EraseText(**{"photos": NOISE, "size": 96, "jpeg": 0.0, **options})
    return [data.sample(numpy_generator(7, i)) for i in range(count)]


@pytest.mark.parametrize("size", [64, 97])
def test_a_batch_has_the_form_that_training_takes(size):
    batch = EraseText(photos=NOISE, size=size).batch(seed=0, step=3, count=4)
    channels = {"picture": 3, "target": 3, "mask": 1, "alpha": 1}
    assert {name: tuple(x.shape) for name, x in batch.items()} == {n: (4, c, size, size) for n, c in channels.items()}
    for x in batch.values():
        assert x.dtype == torch.float32
        assert 0 <= x.min() <= x.max() <= 1
    assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}


def test_a_batch_depends_on_seed_and_step_alone():
    data = EraseText(photos=NOISE, size=48)
    first = data.batch(1, 2, 3)
    data.batch(9, 9, 2)
    for other in (data, pickle.loads(pickle.dumps(data))):
        assert all(torch.equal(first[name], x) for name, x in other.batch(1, 2, 3).items())
    assert torch.equal(first["picture"][:2], data.batch(1, 2, 2)["picture"])
    for seed, step in ((1, 3), (2, 2)):
        assert not torch.equal(first["picture"], data.batch(seed, step, 3)["picture"])


@pytest.mark.parametrize("jpeg", [0.0, 1.0])
def test_outside_the_mask_target_and_picture_are_bit_equal(jpeg):
    for s in samples(jpeg=jpeg):
        outside = np.broadcast_to(s["mask"] == 0, s["picture"].shape)
        np.testing.assert_array_equal(s["target"][outside], s["picture"][outside])


def test_inside_the_mask_the_target_has_no_text():
    for s in samples(photos=FLAT):
        inside = s["target"][:, s["mask"][0] > 0]
        assert np.ptp(inside, axis=1).max() == 0


def test_all_text_goes_unless_only_some_is_chosen():
    def left(**options):
        made = samples(60, photos=FLAT, size=192, words=(2, 3), **options)
        return np.asarray([np.mean(np.ptp(s["target"].reshape(3, -1), axis=1) > 0.05) for s in made])

    assert np.mean(left(subset=0.0)) < 0.1  # faint ends of soft shadows
    assert 0.4 < np.mean(left(subset=1.0)) < 0.9


def test_alpha_says_where_there_is_text_in_the_mask():
    for s in samples(60):
        assert (s["alpha"][s["mask"] == 0] == 0).all()
        changed = np.abs(s["picture"] - s["target"]).max(axis=0)
        if (changed[s["alpha"][0] == 0] > 1.5 / 255).any():
            assert (changed > 0).mean() > (s["alpha"][0] > 0).mean()  # Poisson blending reaches beyond the letters
        assert (s["picture"] != s["target"]).any()
        assert s["alpha"].max() > 0.05


def test_values_are_those_of_8_bit_pictures():
    for s in samples(4):
        for name in ("picture", "target"):
            np.testing.assert_allclose(s[name] * 255, np.round(s[name] * 255), atol=1e-4)


def test_masks_come_in_several_forms():
    shares = [s["mask"].mean() for s in samples(60)]
    assert min(shares) > 0
    assert max(shares) < 1
    assert np.std(shares) > 0.05


def test_jpeg_leaves_its_marks_on_the_colours_it_should():
    plain, stored = (samples(6, photos=FLAT, jpeg=j) for j in (0.0, 1.0))
    for a, b in zip(plain, stored, strict=True):
        assert 0 < np.abs(a["picture"] - b["picture"]).mean() < 0.03
        assert np.abs(a["picture"] - b["picture"]).mean() < np.abs(a["picture"] - b["picture"][::-1]).mean()


def test_rare_looks_come_as_often_as_asked():
    usual, rare = (samples(6, rare=share) for share in (0.0, 1.0))
    assert not any(np.array_equal(a["picture"], b["picture"]) for a, b in zip(usual, rare, strict=True))


@pytest.mark.parametrize("shape", [(20, 300), (300, 20), (16, 16)])
def test_photographs_smaller_than_the_crop_are_enlarged(shape):
    (made,) = samples(1, photos=[np.full((*shape, 3), 77, np.uint8)])
    assert made["picture"].shape == (3, 96, 96)


def test_a_picture_too_small_for_text_is_refused():
    with pytest.raises(DataError, match="no text can be drawn"):
        samples(1, size=2)


def test_the_evaluation_set_knows_all_about_its_text():
    photos = [*NOISE, made_up("test", 0)]
    made = evaluation_set(photos, (), seed=5, count=4)
    assert [m["clean"].shape for m in made] == [photos[i % 3].shape for i in range(4)]
    for m in made:
        height, width = m["clean"].shape[:2]
        assert m["picture"].dtype == m["clean"].dtype == np.uint8
        assert m["mask"].dtype == m["strokes"].dtype == bool
        assert m["boxes"].shape[1:] == (4, 2)
        assert 1 <= len(m["boxes"]) <= 6
        np.testing.assert_array_equal(m["strokes"], (m["picture"] != m["clean"]).any(axis=2))
        assert m["mask"].shape == m["strokes"].shape == (height, width)
        assert (m["strokes"] & ~m["mask"]).sum() <= 0.1 * m["strokes"].sum()
    again, other = (evaluation_set(photos, (), seed=s, count=4) for s in (5, 6))
    assert all(np.array_equal(m[k], a[k]) for m, a in zip(made, again, strict=True) for k in m)
    assert not any(np.array_equal(m["picture"], o["picture"]) for m, o in zip(made, other, strict=True))


def put(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 6), (colour, 0, 0)).save(path)


def test_a_folder_with_splits_is_taken_as_it_is(tmp_path):
    for i, name in enumerate(["train/b.png", "train/a.jpg", "val/c.png", "test/d.bmp"]):
        put(tmp_path / name, 60 * i)
    (tmp_path / "train" / "notes.txt").write_text("no picture")
    counts = {split: len(photographs(tmp_path, split)) for split in ("train", "val", "test", "train+val")}
    assert counts == {"train": 2, "val": 1, "test": 1, "train+val": 3}
    photos = photographs(tmp_path, "train+val")
    assert photos[0].shape == (6, 9, 3)
    assert photos[-1][0, 0].tolist() == [120, 0, 0]
    assert photos[1] is photos[1:][0] or np.array_equal(photos[1], photos[1:][0])
    with pytest.raises(IndexError):
        photos[3]


def test_a_flat_folder_is_split_by_name(tmp_path):
    for i in range(60):
        put(tmp_path / f"{i}.png", i)
    splits = {s: {int(p[0, 0, 0]) for p in photographs(tmp_path, s)} for s in ("train", "val", "test")}
    assert sorted(i for s in splits.values() for i in s) == list(range(60))
    assert len(splits["train"]) > 30
    (tmp_path / "0.png").unlink()
    assert {int(p[0, 0, 0]) for p in photographs(tmp_path, "train")} == splits["train"] - {0}


def test_photographs_stand_upright_and_in_colour(tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.new("L", (9, 6)).save(tmp_path / "turned.jpg", exif=tag)
    (photo,) = photographs(tmp_path, "train+val+test")
    assert photo.shape == (9, 6, 3)


def test_bad_folders_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="BSDS500"):
        photographs(tmp_path / "missing", "train")
    with pytest.raises(DataError, match="no picture"):
        photographs(tmp_path, "train")
    with pytest.raises(UsageError, match="split"):
        photographs(None, "training")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        photographs(tmp_path, "train+val+test")[0]


def test_made_up_photographs_are_like_photographs():
    first = made_up("train", 0)
    np.testing.assert_array_equal(first, made_up("train", 0))
    others = [made_up("train", 1), made_up("test", 0)]
    assert all(not np.array_equal(first, o) for o in others)
    for photo in (first, *others):
        grey = photo.astype(float).mean(axis=2)
        assert grey.std() > 10
        assert np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1] > 0.9  # neighbours are alike
    assert {s: len(photographs(None, s)) for s in MADE_UP} == MADE_UP


def test_a_source_is_found_by_name(tmp_path):
    for split in ("train", "test"):
        data = source("erase-text", split=split, size=32, fonts=[], words=[1, 2])
        assert (data.size, data.words, data.split, data.fonts) == (32, (1, 2), split, ())
        assert data.batch(0, 0, 2)["picture"].shape == (2, 3, 32, 32)
    put(tmp_path / "train" / "a.png")
    assert len(source("erase-text", folder=str(tmp_path), fonts=[]).photos) == 1


def test_given_fonts_must_be_there(tmp_path):
    with pytest.raises(DataError, match="no font"):
        source("erase-text", fonts=str(tmp_path))
    (tmp_path / "torn.ttf").write_bytes(b"no font")
    for file in ("torn.ttf", "missing.ttf"):
        with pytest.raises(DataError, match=file):
            source("erase-text", fonts=[tmp_path / file])


def test_a_wrong_source_is_a_usage_error():
    with pytest.raises(UnknownNameError, match="erase-text"):
        source("erase-txt")
    with pytest.raises(UsageError, match="colour"):
        source("erase-text", colour=1)
    with pytest.raises(UsageError, match="val"):
        source("erase-text", split="val")
