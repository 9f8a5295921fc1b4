"""Whatever is wrong with what a user gives: a line that says what, where and what to do, the right code, no file."""

import errno
import io
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import efface
from efface.app import cli
from efface.errors import InputError, MaskError, OutputError, PictureError, UnknownNameError, WeightsError
from efface.io.weights import WEIGHTS, save_weights

BOX = "8,8,20,10"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Clean by the command line; return its code and its one line, having seen that no file came or went."""
    monkeypatch.chdir(tmp_path)

    def clean(*words):
        before = listing()
        code = cli.run(["clean", *map(str, words)])
        out, err = capsys.readouterr()
        assert listing() == before
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        return code, err

    return clean


def listing():
    return {str(p): p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}


def picture(mode="RGB", size=(60, 40)):
    """Return a picture that is not flat, so that a network is needed."""
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def saved(form, image=None, **options):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, form, **options)
    return buffer.getvalue()


def frames(form, **options):
    return saved(form, save_all=True, append_images=[picture().rotate(90)], **options)


def bomb():
    """Return a PNG that says it has 4 gigapixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 1 << 16, 1 << 16, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, b"IDAT", b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def floats(value):
    return Image.fromarray(np.full((40, 60), value, np.float32))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: b"", "the file is empty"),
        (lambda: b"Dear Sir or Madam", "not a picture"),
        (lambda: b"%PDF-1.7 and more", "not a picture"),
        (lambda: saved("ICO"), "not a picture"),
        *[(lambda form=form: saved(form)[:-400], "damaged") for form in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")],
        (lambda: bomb(), "65536 x 65536 pixels, more than the limit"),
        (lambda: frames("GIF"), "animated: 2 frames"),
        (lambda: frames("PNG"), "animated: 2 frames"),
        (lambda: frames("WEBP"), "animated: 2 frames"),
        (lambda: frames("TIFF"), "pages"),
        (lambda: saved("JPEG", picture("CMYK")), "CMYK"),
        (lambda: saved("TIFF", picture("CMYK")), "CMYK"),
        (lambda: saved("TIFF", picture("LAB")), ""),
        (lambda: saved("TIFF", picture("I")), ""),
        (lambda: saved("TIFF", floats(2.0)), "outside"),
        (lambda: saved("TIFF", floats(np.nan)), "NaN"),
    ],
)
def test_pictures_that_are_none_or_cannot_be_kept(run, content, says):
    Path("bad.png").write_bytes(content())
    code, err = run("bad.png", "--box", BOX)
    assert code == PictureError.exit_code == 3
    assert "bad.png: " in err
    assert says in err
    assert err.rstrip()[-1] != ":"
    with pytest.raises(PictureError) as caught:
        efface.clean("bad.png", boxes=[BOX])
    assert caught.value.where == "bad.png"
    assert caught.value.fix
    code, err = run("bad.png", "--dry-run", "--box", BOX)
    assert code == 3


@pytest.mark.parametrize("name", ["none.png", "folder.png"])
def test_names_of_no_file(run, name):
    Path("folder.png").mkdir()
    code, err = run(name, "--box", BOX)
    assert code == (2 if name == "folder.png" else 3)
    assert name in err


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (lambda: saved("PNG", picture("L", (40, 60))), MaskError, "40 x 60"),
        (lambda: saved("PNG", Image.new("L", (60, 40), 1)), MaskError, "only 0 and 1"),
        (lambda: b"", PictureError, "empty"),
        (lambda: frames("GIF"), PictureError, "animated"),
        (lambda: saved("TIFF", floats(255.0)), PictureError, "outside"),
    ],
)
def test_masks_that_do_not_fit(run, mask, error, says):
    picture().save("a.png")
    Path("mask.png").write_bytes(mask())
    code, err = run("a.png", "--mask", "mask.png")
    assert code == error.exit_code == 3
    assert "mask.png: " in err
    assert says in err


def test_boxes_outside_of_the_picture_name_both(run):
    picture().save("a.png")
    code, err = run("a.png", "--box", "50,8,20,10")
    assert code == MaskError.exit_code
    assert "a.png: box " in err
    assert "60 x 40" in err


def nan(folder):
    """Put a number that is none into the weights, and a card that fits."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    tensors[min(tensors)].view(-1)[0] = torch.nan
    save_file(tensors, folder / WEIGHTS)
    sign(folder)


def sign(folder):
    """Make the card fit whatever the weights are."""
    import hashlib

    data, card = (folder / WEIGHTS).read_bytes(), json.loads((folder / "card.json").read_text())
    card["files"] = {WEIGHTS: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    (folder / "card.json").write_text(json.dumps(card))


def flip(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def cut_and_sign(folder):
    cut(folder)
    sign(folder)


def pickled(folder):
    torch.save({"x": torch.zeros(1)}, folder / WEIGHTS)
    sign(folder)


def bare_pickle(folder):
    shutil.rmtree(folder)
    torch.save({"x": torch.zeros(1)}, folder)


def edit(folder, **values):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | values))


def other_network(folder):
    shutil.rmtree(folder)
    card = {"method": "strokefill", "params": {"find_widths": [4, 8], "fill_widths": [4, 8]}}
    save_weights(folder, {"find.x": torch.zeros(2)}, card)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (nan, "NaN"),
        (flip, "not the one its card describes"),
        (cut, "not the one its card describes"),
        (cut_and_sign, "not a whole safetensors file"),
        (pickled, "efface convert"),
        (bare_pickle, "efface convert"),
        (other_network, "another architecture"),
        (lambda folder: (folder / "card.json").unlink(), "incomplete"),
        (lambda folder: (folder / "card.json").write_text("{"), "not a weights card"),
        (lambda folder: (folder / WEIGHTS).unlink(), "missing"),
        (shutil.rmtree, "not a weights folder"),
    ],
)
def test_weights_that_are_not_as_they_should_be(run, weights, harm, says):
    picture().save("a.png")
    shutil.copytree(weights / "strokefill", "w")
    harm(Path("w"))
    code, err = run("a.png", "--box", BOX, "--weights", "w")
    assert code == WeightsError.exit_code == 3
    assert says in err
    assert " w" in err


@pytest.mark.parametrize(
    ("words", "values", "code", "says"),
    [
        (["--method", "deeperaser"], {}, 3, "'strokefill', not of 'deeperaser'"),
        ([], {"method": "strokefil"}, 3, "'strokefil'"),
        ([], {"method": None}, 3, "no network that is known"),
        ([], {"method": "lth"}, 3, "no network that is known"),
        ([], {"params": {"find_width": 4}}, 2, "Did you mean find_widths"),
        ([], {"params": {"find_widths": [1, 2]}}, 2, "outside"),
    ],
)
def test_weights_of_something_else(run, weights, words, values, code, says):
    picture().save("a.png")
    shutil.copytree(weights / "strokefill", "w")
    edit(Path("w"), **values)
    got, err = run("a.png", "--box", BOX, "--weights", "w", *words)
    assert got == code
    assert says in err


def test_an_unknown_method_is_suggested_a_known_one(run):
    picture().save("a.png")
    code, err = run("a.png", "--method", "strokefil")
    assert code == UnknownNameError.exit_code == 2
    assert "Did you mean strokefill" in err


def test_weights_of_a_run_are_in_its_own_folder(run, weights):
    picture().save("a.png")
    shutil.copytree(weights / "strokefill", "run/weights")
    code, err = run("a.png", "--box", BOX, "--weights", "run")
    assert (code, "Did you mean run/weights?" in err) == (3, True)


def test_a_device_that_is_not_there_is_refused(run, weights):
    picture().save("a.png")
    code, err = run("a.png", "--box", BOX, "--weights", weights / "strokefill", "--device", "tpu")
    assert code == 2
    assert "--device cpu" in err


def link_to_file():
    Path("elsewhere.png").write_bytes(b"mine")
    Path("out/a_clean.png").symlink_to("../elsewhere.png")


def link_to_nothing():
    Path("out/a_clean.png").symlink_to("../nothing.png")


def link_to_folder():
    Path("elsewhere").mkdir()
    Path("out/sub").symlink_to("../elsewhere")


def folder_in_the_way():
    Path("out/a_clean.png").mkdir()


@pytest.mark.parametrize("harm", [link_to_file, link_to_nothing, link_to_folder, folder_in_the_way])
@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_links_and_folders_in_the_output_folder_are_not_written_through(run, harm, words):
    Path("in/sub").mkdir(parents=True)
    picture().save("in/sub/a.png" if harm is link_to_folder else "in/a.png")
    Path("out").mkdir()
    harm()
    code, err = run("in", "-o", "out", "--box", BOX, *words)
    assert code == OutputError.exit_code == 1
    assert "a_clean.png" in err


def flat():
    Image.new("RGB", (60, 40), "grey").save("a.png")


def test_two_pictures_never_become_one_file(run):
    Path("x").mkdir()
    Path("y").mkdir()
    picture().save("x/a.png")
    picture().save("y/a.png")
    code, err = run("x/a.png", "y/a.png", "-o", "out", "--box", BOX)
    assert code == 2
    assert "x/a.png and y/a.png" in err


def test_a_name_that_is_too_long_is_told_with_advice(run):
    flat()
    code, err = run("a.png", "-o", "a" * 300 + ".png", "--box", BOX)
    assert (code, "Choose a shorter name" in err) == (OutputError.exit_code, True)


def test_a_format_that_cannot_hold_the_result_is_refused_before_the_work(run, monkeypatch):
    monkeypatch.setattr("efface.verbs.clean.find", lambda *given: pytest.fail("the work began"))
    Image.new("RGBA", (60, 40), "grey").save("a.png")
    code, err = run("a.png", "-o", "a.jpg", "--box", BOX)
    assert code == OutputError.exit_code
    assert "holds no alpha" in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("when", ["open", "fsync"])
def test_a_disk_that_is_full_or_cannot_be_written(run, monkeypatch, number, when):
    flat()

    def fail(*_args, **_given):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"efface.io.atomic.os.{when}", fail)
        code, err = run("a.png", "--box", BOX)
    assert code == OutputError.exit_code
    assert "a_clean.png: " in err
    assert {errno.ENOSPC: "full", errno.EROFS: "read-only", errno.EACCES: "permission"}[number] in err


def test_a_disk_that_fills_up_in_the_middle_of_a_file_leaves_nothing(run):
    image = picture(size=(300, 200))
    image.paste("grey", (0, 0, 60, 40))
    image.save("a.png")
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, err = run("a.png", "--box", BOX)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert code == OutputError.exit_code
    assert "a_clean.png: " in err


def test_in_a_folder_each_refusal_names_its_picture_and_the_code_is_1(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    flat()
    shutil.copy("a.png", "in/good.png")
    Path("in/empty.png").touch()
    picture("CMYK").save("in/ink.jpg")
    Image.new("RGB", (10, 10)).save("in/small.png")
    code = cli.run(["clean", "in", "-o", "out", "--box", BOX])
    out, err = capsys.readouterr()
    assert code == 1
    assert "1 done, 3 failed, 0 skipped" in out
    assert [line.split(": ")[1] for line in err.splitlines()] == ["in/empty.png", "in/ink.jpg", "in/small.png"]
    assert sorted(p.name for p in Path("out").iterdir()) == ["efface-manifest.jsonl", "good_clean.png"]


def test_faults_of_ours_are_told_as_such_and_want_of_memory_as_what_it_is(run, monkeypatch):
    flat()
    for error, says in ((ValueError("odd"), "unexpected ValueError: odd"), (MemoryError(), "--memory")):

        def fail(*_args, error=error, **_given):
            raise error

        monkeypatch.setattr("efface.verbs.batch.apply", fail)
        code, err = run("a.png", "--box", BOX)
        assert code == 1
        assert "a.png: " in err
        assert says in err


@pytest.mark.slow
def test_the_process_says_no_more_than_that():
    script = "from efface.app.cli import main; main()"
    child = subprocess.run([sys.executable, "-c", script, "clean", "none.png"], capture_output=True, text=True)
    assert child.returncode == InputError.exit_code
    assert child.stdout == ""
    assert child.stderr == "error: none.png: there is no such file. Check the path\n"
