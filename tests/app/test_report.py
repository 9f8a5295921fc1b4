"""What `--report` shows: a sheet and a page that hold up whatever the pictures are like."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efface.app import cli
from efface.app.report import GAP, LINE, SIDE, Row, draw_sheet, write_report
from efface.io.leftovers import PAGE, SHEET
from efface.verbs.batch import Item, Summary, clean_files
from efface.verbs.rules import Rules

BOX = (8, 8, 20, 10)


class Page(HTMLParser):
    """Collect what a page shows."""

    def __init__(self, text):
        super().__init__()
        self.images, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.images += [dict(attrs)] if tag == "img" else []

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def sign(tmp_path, monkeypatch):
    """Write flat pictures with a bar into a folder `in`."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()

    def write(name, mode="RGB", size=(60, 40), **given):
        image = Image.new("RGB", size, (200, 210, 220))
        image.paste((0, 0, 0), (10, 10, 26, 16))
        image.convert(mode).save(Path("in", name), **given)

    return write


def report(**given):
    summary = clean_files(["in"], Rules(boxes=[BOX]), out="out", **given)
    return write_report(summary), Page(Path("out", PAGE).read_text())


def test_the_sheet_shows_before_and_after_side_by_side(sign):
    sign("a.png")
    sign("b.tif", size=(1200, 300))
    path, _ = report()
    assert path.name == SHEET
    sheet = np.asarray(Image.open(path)).astype(int)
    assert sheet.shape == (LINE + GAP + (40 + LINE + GAP) + (140 + LINE + GAP) + GAP, 2 * SIDE + 3 * GAP, 3)
    top = LINE + GAP + LINE
    before, after = (sheet[top : top + 40, x : x + 60] for x in (GAP, SIDE + 2 * GAP))
    assert before[12, 15].max() < 40
    assert np.abs(after - (200, 210, 220)).max() < 12


def test_the_page_stands_alone_and_tells_everything(sign):
    sign("a & <b>.png")
    sign("wide.tif", "I;16")
    Path("in/bad.png").write_bytes(b"")
    _, page = report()
    assert [image["alt"] for image in page.images] == [
        f"{name}, {when}" for name in ("a & <b>.png", "wide.tif") for when in ("before", "after")
    ]
    assert all(re.match(r"data:image/jpeg;base64,[\w+/=]{100,}$", image["src"]) for image in page.images)
    assert "2 done, 1 failed, 0 skipped" in page.text
    assert "in/bad.png: the file is empty" in page.text
    _, page = report(resume=True)
    assert len(page.images) == 4
    assert page.text.count("done before") == 2


def test_words_are_told_as_words(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    texts = [
        {"words": "<script>", "taken": True, "stays": ""},
        {"words": "", "taken": True, "stays": ""},
        {"words": "Exit", "taken": False, "stays": "words to keep"},
    ]
    path = str(tmp_path / "a.png")
    write_report(Summary([Item(path, path, "done", details={"texts": texts, "notes": ["a note"]})], 1.0, tmp_path))
    text = Page((tmp_path / PAGE).read_text()).text
    assert "taken: <script>, unread text. kept: Exit (words to keep). a note" in text


@pytest.mark.parametrize(
    ("mode", "size", "given"),
    [
        ("RGB", (1, 1), {}),
        ("RGB", (1, 4000), {}),
        ("RGB", (4000, 1), {}),
        ("1", (60, 40), {}),
        ("P", (60, 40), {"transparency": 0}),
        ("LA", (60, 40), {}),
        ("RGBA", (60, 40), {}),
        ("I;16", (60, 40), {}),
    ],
)
def test_pictures_of_any_kind_fit(sign, mode, size, given):
    sign("a.png", mode, size, **given)
    path = str(Path("in/a.png").absolute())
    with Image.open(write_report(Summary([Item(path, path, "done")], 1.0, Path("in")))) as sheet:
        assert sheet.height <= SIDE + 2 * LINE + 3 * GAP


def test_a_run_that_failed_has_a_page_alone(sign):
    Path("in/bad.png").write_bytes(b"")
    path, page = report()
    assert path.name == PAGE
    assert not Path("out", SHEET).exists()
    assert page.images == []


def test_a_dry_run_shows_what_would_go(sign):
    sign("a.png")
    _, page = report(dry_run=True)
    assert page.images[1]["alt"] == "a.png, what would go"


def test_many_pictures_are_told_and_some_are_shown(sign, monkeypatch):
    monkeypatch.setattr("efface.app.report.MOST_ON_PAGE", 2)
    for number in range(4):
        sign(f"{number}.png")
    _, page = report()
    assert len(page.images) == 4
    assert all(f"{number}.png" in page.text for number in range(4))


def test_a_sheet_of_nothing_has_its_heads():
    assert draw_sheet([], ("a", "b")).height == LINE + 2 * GAP
    row = Row(Item("x", "y", "done"), Image.new("RGB", (3, 9)), Image.new("RGB", (3, 5)))
    assert draw_sheet([row], ("a", "b")).height == LINE + 2 * GAP + 9 + LINE + GAP


def test_the_command_says_where_the_sheet_is(sign, capsys):
    sign("a.png")
    assert cli.run(["clean", "in", "-o", "out", "--box", "8,8,20,10", "--report"]) == 0
    assert f"Before and after: {Path('out', SHEET).absolute()}" in capsys.readouterr().out
