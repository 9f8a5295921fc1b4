from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pickle

import pytest
import torch

from efface.errors import OutputError, WeightsError
from efface.io.weights import CARD, WEIGHTS, convert_checkpoint, is_pickle, load_card, load_weights, save_weights

ANY = "."


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=generator),
        "a.half": torch.randn(2, generator=generator).half(),
        "b.bfloat": torch.ones(2, 2, dtype=torch.bfloat16),
        "c.count": torch.tensor(7),
        "d.empty": torch.zeros(0, 3),
        "e.flag": torch.tensor([True, False]),
    }


@pytest.fixture
def folder(tmp_path, tensors):
    save_weights(tmp_path / "weights", tensors, {"method": "strokefill", "note": "ü"})
    return tmp_path / "weights"


def refused(match, read, *args, **kwargs):
    with pytest.raises(WeightsError, match=match) as caught:
        read(*args, **kwargs)
    assert caught.value.where
    assert caught.value.fix
    return str(caught.value)


def test_weights_come_back_bit_equal_with_their_card(folder, tensors):
    loaded, card = load_weights(folder, {name: tuple(t.shape) for name, t in tensors.items()})
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[n], tensors[n]) and loaded[n].dtype == tensors[n].dtype for n in tensors)
    assert (card["method"], card["note"]) == ("strokefill", "ü")
    assert card["files"][WEIGHTS]["bytes"] == (folder / WEIGHTS).stat().st_size
    assert load_card(folder) == card
    assert sorted(os.listdir(folder)) == [CARD, WEIGHTS]


def test_the_same_weights_give_the_same_bytes(folder, tmp_path, tensors):
    save_weights(tmp_path / "again", tensors, {})
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_tied_and_transposed_tensors_are_saved_each_on_its_own(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    shared = {
        "whole": whole,
        "same": whole,
        "turned": whole.t(),
        "part": whole[1],
        "grad": whole.clone().requires_grad_(),
    }
    save_weights(tmp_path / "w", shared, {})
    loaded, _ = load_weights(tmp_path / "w")
    assert all(torch.equal(loaded[name], shared[name]) for name in shared)


def test_existing_weights_are_kept_unless_overwritten(folder, tensors):
    with pytest.raises(OutputError, match="exists already"):
        save_weights(folder, {"x": torch.zeros(1)}, {})
    assert load_weights(folder)[0].keys() == tensors.keys()
    save_weights(folder, {"x": torch.zeros(1)}, {}, overwrite=True)
    assert load_weights(folder)[0].keys() == {"x"}


class Killed(BaseException):
    """Stand for the end of the process: nothing behind it runs."""


def test_a_kill_at_any_step_leaves_no_mixture(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    contents = [({"x": torch.full((9,), float(value))}, {"value": value}) for value in (1, 2)]
    readable = []
    for step in range(20):
        save_weights(folder, *contents[0], overwrite=True)
        calls = itertools.count()

        def step_or_die(call, *args, **kwargs):
            if next(calls) >= step:  # noqa: B023
                raise Killed
            return call(*args, **kwargs)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for module, name in [(os, "open"), (os, "fsync"), (os, "replace"), (os, "unlink")]:
                patch.setattr(module, name, functools.partial(step_or_die, getattr(module, name)))
            save_weights(folder, *contents[1], overwrite=True)
        try:
            tensors, card = load_weights(folder)
        except WeightsError:
            readable.append(None)
        else:
            assert (tensors["x"] == card["value"]).all()
            readable.append(card["value"])
    assert readable[0] == 1
    assert readable[-1] == 2
    assert readable == sorted(readable, key=[1, None, 2].index)


def test_old_weights_with_a_new_card_are_refused(folder, tmp_path, tensors):
    save_weights(tmp_path / "other", {name: t.clone().fill_(1) for name, t in tensors.items()}, {})
    (folder / CARD).write_bytes((tmp_path / "other" / CARD).read_bytes())
    refused("not the one its card describes", load_weights, folder)


@pytest.mark.parametrize("position", [0, 8, 100, -1])
def test_a_flipped_bit_is_refused(folder, position):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[position] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    refused("not the one its card describes", load_weights, folder)


@pytest.mark.parametrize("size", [0, 4, 100])
def test_truncated_weights_are_refused(folder, size):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    refused("not the one its card describes", load_weights, folder)


def test_wrong_safetensors_with_a_fitting_card_are_refused(folder):
    import hashlib

    (folder / WEIGHTS).write_bytes(b"\xff" * 64)
    files = {WEIGHTS: {"sha256": hashlib.sha256(b"\xff" * 64).hexdigest(), "bytes": 64}}
    (folder / CARD).write_text(json.dumps({"files": files}))
    refused("safetensors", load_weights, folder)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda folder: (folder / CARD).unlink(), "incomplete"),
        (lambda folder: (folder / WEIGHTS).unlink(), "weights are missing"),
        (lambda folder: (folder / CARD).write_text("{"), "not a weights card"),
        (lambda folder: (folder / CARD).write_text("[]"), "not a weights card"),
        (lambda folder: (folder / CARD).write_text('{"files": {"weights.safetensors": 3}}'), "not a weights card"),
        (lambda folder: (folder / CARD).write_bytes(b"\xff\xfe"), "not a weights card"),
        (lambda folder: (folder / CARD).write_text('{"files": {}}'), "weights are missing"),
    ],
)
def test_incomplete_folders_are_refused(folder, spoil, match):
    spoil(folder)
    refused(match, load_weights, folder)


def test_what_is_no_folder_is_refused(tmp_path):
    refused("not a weights folder", load_weights, tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    refused("not a weights folder", load_weights, tmp_path / "file")


def test_weights_behind_a_link_out_of_the_folder_are_refused(folder, tmp_path):
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    refused("link out of its folder", load_weights, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_refused_by_name(tmp_path, value, dtype):
    from safetensors.torch import save_file

    bad = {"fine": torch.zeros(2), "bad.one": torch.tensor([0.0, value], dtype=dtype)}
    refused("bad.one holds NaN or infinity", save_weights, tmp_path / "w", bad, {})
    assert not (tmp_path / "w").exists()
    save_file(bad, tmp_path / "bad.safetensors")
    refused("bad.one holds NaN or infinity", convert_checkpoint, tmp_path / "bad.safetensors")


def test_eight_bit_floats_are_checked_too(tmp_path):
    weights = {"x": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn)}
    save_weights(tmp_path / "w", weights, {})
    assert load_weights(tmp_path / "w")[0]["x"].dtype == torch.float8_e4m3fn
    weights["x"][0] = float("nan")
    refused("NaN", save_weights, tmp_path / "v", weights, {})


def test_another_architecture_is_refused_with_the_first_differences(folder, tensors):
    expect = {name: tuple(t.shape) for name, t in tensors.items()}
    expect["a.weight"] = (3, 5)
    del expect["c.count"]
    expect |= {f"new.{i}": (1,) for i in range(5)}
    message = refused("another architecture", load_weights, folder, expect)
    assert "5 missing: new.0, new.1, new.2" in message
    assert "1 unexpected: c.count" in message
    assert "a.weight (3, 4) instead of (3, 5)" in message
    assert "new.3" not in message


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", WEIGHTS])
def test_pickles_are_refused_by_content_and_shown_the_way(tmp_path, form, name):
    path = tmp_path / name
    if form == "pickle":
        path.write_bytes(pickle.dumps({"x": 1}))
    else:
        torch.save({"x": torch.zeros(2)}, path, _use_new_zipfile_serialization=form == "zip")
    assert is_pickle(path)
    assert "efface convert" in refused("pickled", load_weights, path)
    assert "efface convert" in refused("pickled", load_weights, tmp_path)


def test_a_safetensors_file_that_begins_like_a_pickle_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    header = json.dumps({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).ljust(0x0280).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\5")
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert not is_pickle(path)
    assert convert_checkpoint(path)["x"].item() == 5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": t, "optimizer": {"lr": 0.1}},
        lambda t: {"params": {"other": torch.zeros(1)}, "params_ema": t},
        lambda t: {"model": {"state_dict": {f"module.{name}": value for name, value in t.items()}}},
        lambda t: {f"module.module.{name}": value for name, value in t.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_others_are_unwrapped(tmp_path, tensors, wrap, zipped):
    torch.save(wrap(tensors), tmp_path / "x", _use_new_zipfile_serialization=zipped)
    converted = convert_checkpoint(tmp_path / "x")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensors[name]) for name in tensors)


class Evil:
    """Would make a folder if it were ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_never_runs(tmp_path, zipped):
    torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    refused("could run code", convert_checkpoint, tmp_path / "x.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    refused(ANY, convert_checkpoint, tmp_path / "plain.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [{}, [torch.zeros(1)], {"x": 3}, {1: torch.zeros(1)}, torch.zeros(2), {"model": "x"}]
)
def test_checkpoints_without_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    refused("named tensor", convert_checkpoint, tmp_path / "x.pt")


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04junk", b"GGUF" * 10, b"\xff" * 100],
    ids=["empty", "zip", "pickle", "junk", "other", "bytes"],
)
def test_damaged_checkpoints_are_refused(tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    refused(ANY, convert_checkpoint, tmp_path / "x.pt")


def test_every_truncation_of_a_checkpoint_is_refused(tmp_path, tensors):
    torch.save(tensors, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        refused(ANY, convert_checkpoint, tmp_path / "cut.pt")
    refused("no such file", convert_checkpoint, tmp_path / "missing.pt")
