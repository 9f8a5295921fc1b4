"""Tasks: where they come from, in which order their examples come, how a network is scored on them."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from efface.errors import DataError, EffaceError, MissingExtraError, UsageError
from efface.parts.data import labelled
from efface.parts.data.labelled import balanced
from efface.parts.data.tasks import Examples, Task, task

pytest.importorskip("pyarrow")


def numbered(count, side=8, channels=1):
    """Return pictures of which each can be told by its values, and labels of three classes."""
    pictures = np.random.default_rng(count).integers(0, 256, (count, channels, side, side)).astype(np.uint8)
    return pictures, np.arange(count) % 3


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def small():
    return Task.from_arrays(numbered(200), numbered(50))


# Order


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 20), st.integers(0, 3))
def test_each_time_round_sees_every_example_once(size, count, step, seed):
    examples = Examples(np.zeros((size, 1, 2, 2), np.uint8), np.arange(size))
    walk = np.concatenate([examples.batch(seed, i, count)["label"] for i in range(step + 1)])
    for start in range(0, len(walk) - size + 1, size):
        assert sorted(walk[start : start + size]) == list(range(size))
    assert len(set(walk[len(walk) // size * size :].tolist())) == len(walk) % size
    again = Examples(examples.pictures, examples.labels).batch(seed, step, count)["label"]
    assert again.tolist() == walk[step * count :].tolist()  # asked for by itself, a batch is the same


def test_seeds_and_rounds_differ_in_order(small):
    orders = [small.train.order(seed, start, 180).tolist() for seed in (0, 1) for start in (0, 180)]
    assert len({tuple(order) for order in orders}) == 4


def test_batches_are_standardised_by_the_training_pictures(small):
    everything = small.train.take(np.arange(len(small.train)))["picture"]
    assert everything.dtype == torch.float32
    assert everything.mean().item() == pytest.approx(0, abs=1e-4)
    assert everything.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert small.val.mean is small.test.mean is small.train.mean
    stored = small.test.pictures[:1] / 255
    shown = small.test.take(np.arange(1))["picture"] * small.train.std[0] + small.train.mean[0]
    np.testing.assert_allclose(shown, stored, atol=1e-6)


def test_floats_and_bytes_of_the_same_pictures_give_the_same_batches():
    pictures, labels = numbered(30)
    stored, floats = Examples(pictures, labels), Examples((pictures / 255).astype(np.float32), labels)
    torch.testing.assert_close(stored.batch(0, 0, 8), floats.batch(0, 0, 8), atol=1e-5, rtol=0)


def test_constant_pictures_do_not_divide_by_zero():
    assert Examples(np.full((5, 1, 2, 2), 7, np.uint8), np.zeros(5, int)).batch(0, 0, 5)["picture"].isfinite().all()


def test_augmentation_moves_and_mirrors_within_an_eighth():
    pictures, labels = numbered(6, side=16)
    plain, moved = (Examples(pictures, labels, augment=augment) for augment in (False, True))
    seen = set()
    for step in range(12):
        x, y = (e.batch(5, step, 6) for e in (plain, moved))
        assert torch.equal(x["label"], y["label"])
        padded = F.pad(x["picture"], (2, 2, 2, 2), mode="reflect")
        for i in range(6):
            windows = {
                (down, right, turned): (w.flip(2) if turned else w)
                for down in range(5)
                for right in range(5)
                for turned in (False, True)
                for w in [padded[i, :, down : down + 16, right : right + 16]]
            }
            seen.add(next(key for key, window in windows.items() if torch.equal(window, y["picture"][i])))
    assert len(seen) > 25  # of 50 ways
    assert same(moved.batch(5, 3, 6), moved.batch(5, 3, 6))
    assert same(plain.take(np.arange(3)), moved.take(np.arange(3)))


# Parts


def test_parts_are_disjoint_and_whole(small):
    given = {x.tobytes() for x in numbered(200)[0]}
    train, val = ({x.tobytes() for x in part.pictures} for part in (small.train, small.val))
    assert (len(train), len(val), len(small.test)) == (180, 20, 50)
    assert train | val == given
    assert small.shape == (1, 8, 8)
    assert small.classes == ("0", "1", "2")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 3))
def test_every_prefix_is_spread_evenly_over_the_classes(labels, seed):
    labels = np.asarray(labels)
    order = balanced(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    for n in range(1, len(labels) + 1):
        counts = np.bincount(labels[order[:n]], minlength=5)
        spent = counts == np.bincount(labels, minlength=5)
        assert counts.max() <= counts[~spent].min(initial=counts.max()) + 1


@pytest.mark.parametrize(
    ("train", "test", "options", "says"),
    [
        ((np.zeros((4, 8)), np.zeros(4, int)), numbered(9), {}, "do not fit"),
        ((np.zeros((4, 1, 8, 8)), np.zeros(3, int)), numbered(9), {}, "do not fit"),
        ((np.full((4, 8, 8), 2.0), np.zeros(4, int)), numbered(9), {}, r"outside \[0, 1\]"),
        ((np.full((4, 8, 8), np.nan), np.zeros(4, int)), numbered(9), {}, r"outside \[0, 1\]"),
        ((np.zeros((4, 8, 8)), np.zeros(4)), numbered(9), {}, "whole numbers"),
        ((np.zeros((4, 8, 8)), np.asarray([0, 1, 2, -1])), numbered(9), {}, "no label"),
        (numbered(20), numbered(9, side=4), {}, "shape of their pictures"),
        (numbered(20), numbered(9), {"classes": ["one", "two"]}, "labels up to 2"),
        (numbered(1), numbered(9), {}, "too few"),
    ],
)
def test_arrays_that_do_not_fit(train, test, options, says):
    with pytest.raises(DataError, match=says):
        Task.from_arrays(train, test, **options)


# Score


class Odd(nn.Module):
    """Dropout and batch statistics, a frozen layer, and outputs wrapped as transformers does."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.linear = nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Linear(64, 4)

    def forward(self, x):
        return SimpleNamespace(logits=self.linear(self.drop(self.norm(x).flatten(1))))


def test_score_is_that_of_evaluation_and_leaves_the_network_alone(small):
    net = Odd().train()
    net.norm.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    score = small.score(net)
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert same(before, net.state_dict())
    batch = small.test.take(np.arange(50))
    found = net.eval()(batch["picture"]).logits
    assert score.accuracy == pytest.approx((found.argmax(1) == batch["label"]).float().mean().item())
    assert score.loss == pytest.approx(F.cross_entropy(found, batch["label"]).item(), rel=1e-5)
    assert small.score(net, "val") != score
    assert small.score(net, limit=10) == small.score(net, limit=10) != score
    assert small.score(net, limit=1000).loss == pytest.approx(score.loss)


def test_smoothing_is_in_the_training_loss_alone():
    plain, smooth = (Task.from_arrays(numbered(30), numbered(9), smoothing=s) for s in (0.0, 0.1))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    batch = plain.train.batch(0, 0, 8)
    found = net(batch["picture"]).log_softmax(1)
    wanted = -(0.9 * found[range(8), batch["label"]] + 0.1 * found.mean(1)).mean()
    torch.testing.assert_close(smooth.loss(net, batch), wanted)
    assert plain.score(net) == smooth.score(net)


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), nn.Conv2d(1, 3, 3)])
def test_a_network_for_something_else_is_refused(small, net):
    with pytest.raises(DataError, match="3 classes"):
        small.score(net)


# Where tasks come from


def test_shapes_are_made_the_same_every_time():
    made, again, other = (task.__wrapped__("shapes", side=8, limit=200, seed=seed) for seed in (0, 0, 1))
    assert same(made.train.batch(0, 0, 64), again.train.batch(0, 0, 64))
    assert not np.array_equal(made.train.pictures, other.train.pictures)
    assert not np.array_equal(made.train.pictures[:20], made.val.pictures)
    assert made.shape == (3, 8, 8)
    assert np.bincount(made.train.labels).tolist() == [20] * len(made.classes)
    assert task(side=8, grey=True, limit=200).shape == (1, 8, 8)


def test_digits_of_scikit_learn():
    pytest.importorskip("sklearn")
    digits = task("digits")
    assert (len(digits.train) + len(digits.val) + len(digits.test), digits.shape) == (1797, (1, 8, 8))
    assert not digits.train.augment  # a mirrored digit is none
    assert task("digits", side=16, limit=100).shape == (1, 16, 16)


def encoded(picture, kind):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def hugging(
    folder, names=("cat", "dog"), columns=("img", "label"), label=lambda i: i % 2, kind="PNG", parts=("train", "test")
):
    """Write a data set in Hugging Face's form; picture i of a part is of colour (10 i, 0, 200)."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}} if names else {}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    for part, count in zip(parts, (20, 6), strict=False):
        pictures = [np.full((8, 8, 3), (10 * i, 0, 200), np.uint8) for i in range(count)]
        images = [{"bytes": encoded(picture, kind), "path": None} for picture in pictures]
        table = pyarrow.table({columns[0]: images, columns[1]: [label(i) for i in range(count)]})
        parquet.write_table(table.replace_schema_metadata(told), folder / f"{part}-00000-of-00001.parquet")


def classes(folder, suffix="png", side=8):
    """Write a folder of pictures for each class."""
    for part, count in (("train", 10), ("test", 3)):
        for name, blue in (("cat", 0), ("dog", 200)):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(np.full((side, side, 3), (10 * i, 0, blue), np.uint8))
                picture.save(folder / part / name / f"{i}.{suffix}")


@pytest.mark.parametrize("make", [hugging, classes])
def test_folders_are_read(tmp_path, make):
    make(tmp_path)
    found = task(tmp_path, augment=False)
    assert (found.classes, found.shape) == (("cat", "dog"), (3, 8, 8))
    assert (len(found.train), len(found.val), len(found.test)) == (18, 2, 6)
    assert {tuple(x) for x in found.test.pictures[:, 1:, 0, 0].tolist()} <= {(0, 0), (0, 200)}  # RGB, not BGR
    assert task(tmp_path, side=4, grey=True).shape == (1, 4, 4)
    assert np.bincount(task(tmp_path, limit=8).train.labels).tolist() == [4, 4]


@pytest.mark.parametrize(
    "form",
    [
        {"columns": ("image", "fine_label")},
        {"kind": "JPEG"},
        {"names": ()},
        {"parts": ("cifar10-train", "cifar10-test")},
        {"parts": ("train", "validation")},
    ],
)
def test_forms_of_parquet_files(tmp_path, form):
    hugging(tmp_path / "data", **form)
    assert task(tmp_path).classes == (form.get("names", ("cat", "dog")) or ("0", "1"))


def test_pictures_too_many_for_the_memory_stay_encoded(tmp_path, monkeypatch):
    hugging(tmp_path)
    decoded = task.__wrapped__(tmp_path)
    monkeypatch.setattr(labelled, "IN_MEMORY", 0)
    kept = task.__wrapped__(tmp_path)
    assert isinstance(kept.train.pictures, labelled.Encoded)
    assert same(decoded.train.batch(1, 2, 7), kept.train.batch(1, 2, 7))


def spoil(folder, how):
    match how:
        case "is missing":
            return folder / "not"
        case "is empty":
            pass
        case "has no test part":
            hugging(folder, parts=("train",))
        case "has other columns":
            hugging(folder, columns=("x", "y"))
        case "has no labels":
            hugging(folder, label=lambda i: -1)
        case "is no parquet":
            (folder / "train.parquet").write_bytes(b"PAR1")
        case "differs in classes":
            hugging(folder, parts=("train",))
            hugging(folder, parts=("test",), names=("cat", "cow"))
        case "holds a damaged picture":
            classes(folder)
            (folder / "train/cat/3.png").write_bytes(b"\x89PNG")
        case "holds an empty picture":
            classes(folder)
            (folder / "test/dog/0.png").write_bytes(b"")
        case "holds an empty class":
            classes(folder)
            (folder / "train/cow").mkdir()
        case "differs in size":
            classes(folder)
            Image.new("RGB", (9, 8)).save(folder / "train/cat/3.png")
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("is missing", "no such folder.*CIFAR-10.*train/CLASS"),
        ("is empty", "no parquet file and no folder train"),
        ("has no test part", "both train and test"),
        ("has other columns", "no columns of pictures and labels"),
        ("has no labels", "no label"),
        ("is no parquet", "no columns of pictures"),
        ("differs in classes", "differ in their classes"),
        ("holds a damaged picture", "3.png: cannot be decoded"),
        ("holds an empty picture", "0.png: cannot be decoded"),
        ("holds an empty class", "an empty one"),
        ("differs in size", "differ in size. Give the side"),
    ],
)
def test_folders_that_do_not_do(tmp_path, how, says):
    with pytest.raises(DataError, match=says) as error:
        task(spoil(tmp_path, how))
    assert tmp_path.name in str(error.value)


def test_sizes_that_differ_are_brought_to_one(tmp_path):
    assert task(spoil(tmp_path, "differs in size"), side=6).shape == (3, 6, 6)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"limit": -1}])
def test_sizes_must_be_positive(wrong):
    with pytest.raises(UsageError, match="not positive"):
        task(**wrong)


@pytest.mark.parametrize(("module", "where"), [("pyarrow", "folder"), ("sklearn", "digits")])
def test_missing_libraries_name_their_extra(tmp_path, monkeypatch, module, where):
    hugging(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"efface\[data\]"):
        task.__wrapped__(tmp_path if where == "folder" else where)
    assert issubclass(MissingExtraError, EffaceError)
