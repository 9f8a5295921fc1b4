"""`efface clean` from the outside: files in, files and words out. Flat pictures need no network and no text finder."""

import json

import numpy as np
import pytest
from PIL import Image

from efface.app import cli
from efface.parts.units import parse_bytes

BOX = "8,8,20,10"


@pytest.fixture
def efface(capsys, monkeypatch, tmp_path):
    """Run `efface clean` in a folder of its own; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = cli.run(["clean", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def sign(tmp_path):
    """Return a function that writes a grey picture with a black bar where BOX is."""

    def write(name):
        pixels = np.full((40, 60, 3), 200, np.uint8)
        pixels[10:16, 10:26] = 0
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_is_cleaned_beside_itself_and_stays(efface, sign, tmp_path):
    path = sign("sign.png")
    before = path.read_bytes()
    code, out, err = efface(path, "--box", BOX)
    assert (code, err) == (0, "")
    assert "sign_clean.png" in out
    assert path.read_bytes() == before
    assert (pixels(tmp_path / "sign_clean.png") == 200).all()


def test_json_is_all_that_is_on_standard_output(efface, sign):
    code, out, err = efface(sign("sign.png"), "--box", BOX, "--json")
    summary = json.loads(out)
    assert (code, err, summary["done"], summary["failed"]) == (0, "", 1, 0)
    assert summary["items"][0]["output"].endswith("sign_clean.png")


def test_nothing_is_overwritten_unless_told(efface, sign, tmp_path):
    path = sign("sign.png")
    (tmp_path / "sign_clean.png").write_bytes(b"mine")
    code, _, err = efface(path, "--box", BOX)
    assert code == 1
    assert "--overwrite" in err
    assert (tmp_path / "sign_clean.png").read_bytes() == b"mine"
    assert efface(path, "--box", BOX, "--overwrite")[0] == 0
    assert (pixels(tmp_path / "sign_clean.png") == 200).all()


def test_one_bad_file_does_not_stop_a_folder(efface, sign, tmp_path):
    sign("in/a.png")
    sign("in/c.png")
    (tmp_path / "in/b.png").write_bytes(b"no picture")
    code, out, err = efface("in", "-o", "out", "--box", BOX)
    assert code == 1
    assert "2 done, 1 failed, 0 skipped" in out
    assert err.count("error: ") == err.count("\n") == 1
    assert "b.png" in err
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a_clean.png", "c_clean.png"]

    sign("in/b.png")
    code, out, _ = efface("in", "-o", "out", "--box", BOX, "--resume")
    assert code == 0
    assert "1 done, 0 failed, 2 skipped" in out


@pytest.mark.parametrize("content", [b"", b"no picture"], ids=["empty", "text"])
def test_a_refused_picture_is_exit_code_3(efface, tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    code, out, err = efface("bad.png", "--box", BOX)
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert "bad.png" in err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--keep", "("], "regular expression"),
        (["--feather", "-1"], "feather"),
        (["--confidence", "2"], "0 to 1"),
        (["--memory", "much"], "2GB"),
        (["--memory", "1.5.2GB"], "2GB"),
        (["--method", "strokefil"], "strokefill"),
        (["--workers", "0"], "1 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_rules_are_a_usage_error(efface, sign, tmp_path, words, says):
    sign("sign.png")
    code, out, err = efface("sign.png", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert [p.name for p in tmp_path.iterdir()] == ["sign.png"]


@pytest.mark.parametrize(
    ("text", "amount"),
    [("2GB", 2 * 10**9), ("800 mb", 8 * 10**8), ("1.5GiB", 3 * 2**29), ("4096", 4096), ("10k", 10**4)],
)
def test_memory_is_read_with_its_unit(text, amount):
    assert parse_bytes(text) == amount


def test_what_was_done_is_told_even_if_the_report_fails(efface, sign, tmp_path):
    path = sign("sign.png")
    (tmp_path / "efface-report.html").mkdir()
    code, out, err = efface(path, "--box", BOX, "--report")
    assert "sign_clean.png" in out
    assert (code, err.count("error: ")) == (1, 1)
    code, out, _ = efface(path, "--box", BOX, "--report", "--json", "--overwrite")
    assert (code, json.loads(out)["done"], json.loads(out)["report"]) == (1, 1, None)


def test_a_run_with_nothing_to_do_says_so(efface, sign, tmp_path):
    path = sign("in/sign.png")
    (tmp_path / "in/notes.txt").touch()
    Image.new("L", (60, 40)).save(tmp_path / "black.png")
    assert "nothing would be taken away" in efface(path, "--mask", "black.png", "--dry-run")[1]
    for says in ("sign_clean.png  (nothing was taken away", "sign_clean.png  (done before)"):
        code, out, _ = efface("in", "--mask", "black.png", "--resume")
        assert (code, says in out) == (0, True)
        assert "1 not of a known kind" in out.partition("left out: ")[2]
