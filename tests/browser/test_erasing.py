"""Go the whole way in a real browser: drop, choose texts, erase, compare, download; by mouse and by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import numpy as np
import pytest
from drawn import WORDS, draw, drop, drop_paths, encode, on_stage, pixels
from PIL import Image

from efface.parts.masks import grow

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

expect = pytest.importorskip("playwright.sync_api").expect


def count(page: Page) -> Locator:
    return page.locator("#texts-count")


def add(page: Page, name: str = "board.png", content: bytes | None = None) -> bytes:
    content = content or encode(draw())
    drop(page, {name: content})
    expect(count(page)).to_contain_text("found")
    return content


def erase(page: Page) -> None:
    page.locator("#start").click()
    expect(page.locator("#result-title")).to_be_visible()


def download(page: Page, selector: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(selector).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def drag(page: Page, *points: tuple[float, float]) -> None:
    page.mouse.move(*on_stage(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*on_stage(page, *point), steps=4)
    page.mouse.up()


def test_from_drop_to_download(page: Page, tmp_path: Path) -> None:
    before = pixels(add(page))
    expect(count(page)).to_have_text("3 found, 3 to erase")
    expect(page.locator("#texts .words").first).to_have_text(WORDS[0])

    page.mouse.click(*on_stage(page, 150, 85))  # the first text stays
    expect(count(page)).to_have_text("3 found, 2 to erase")
    expect(page.locator("#texts input").first).not_to_be_checked()

    erase(page)
    expect(page.locator("#modes input[value=compare]")).to_be_checked()
    split = page.locator("#split")
    split.focus()
    page.keyboard.press("Home")
    expect(split).to_have_attribute("aria-valuenow", "0")

    after = pixels(download(page, "#download", tmp_path))
    mask = pixels(download(page, "#download-mask", tmp_path))
    assert (tmp_path / "board_clean.png").exists()
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert set(np.unique(mask)) == {0, 255}
    assert not mask[40:110].any()  # the text that stays
    outside = ~grow(mask > 127, 3)
    np.testing.assert_array_equal(after[outside], before[outside])
    assert (after[mask > 127] != before[mask > 127]).any()


def test_keeps_the_format_and_what_the_file_says(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a board"
    add(page, "photo.jpg", encode(draw(), "JPEG", quality=92, exif=exif))
    erase(page)
    with Image.open(download(page, "#download", tmp_path)) as after:
        assert (after.format, after.size, after.getexif()[0x010E]) == ("JPEG", (640, 420), "a board")
    assert (tmp_path / "photo_clean.jpg").exists()


def test_copies_as_command_and_as_python(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    add(page)
    page.fill("#keep", "SALE")
    expect(count(page)).to_have_text("3 found, 2 to erase")
    erase(page)
    for button, start in (("#copy-command", "efface clean"), ("#copy-python", "import efface")):
        page.locator(button).click()
        expect(page.locator(".toast").last).to_contain_text("copied")
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied.startswith(start)
        assert "SALE" in copied


def test_rules_choose_texts(page: Page) -> None:
    add(page)
    page.fill("#only", "(?i)monday|INSIDE")
    expect(count(page)).to_have_text("3 found, 2 to erase")
    page.fill("#only", "(")
    expect(page.locator("#pattern-wrong")).to_contain_text("not a regular expression")
    page.fill("#only", "")
    page.locator("#confidence").press("End")
    expect(page.locator("#confidence-out")).to_have_text("≥ 100 %")
    expect(count(page)).to_have_text("3 found, 0 to erase")
    expect(page.locator("#start")).to_be_disabled()
    page.locator("#take-all").click()
    expect(count(page)).to_have_text("3 found, 3 to erase")


def test_marks_are_made_undone_and_done_again(page: Page, tmp_path: Path) -> None:
    add(page)
    page.locator("#keep-all").click()
    undo, redo = page.locator("#do-undo"), page.locator("#do-redo")
    page.keyboard.press("r")
    drag(page, (400, 300), (500, 380))
    page.keyboard.press("b")
    drag(page, (60, 390), (200, 390))
    page.keyboard.press("l")
    drag(page, (520, 40), (600, 40), (560, 110))
    page.keyboard.press("e")
    drag(page, (450, 290), (450, 390))
    for _ in range(5):
        undo.click()
    expect(undo).to_be_disabled()
    expect(count(page)).to_have_text("3 found, 3 to erase")
    for _ in range(5):
        page.keyboard.press("Control+Shift+Z")
    expect(redo).to_be_disabled()
    page.locator("#grow").press("Home")
    page.locator("#grow").press("ArrowRight")
    erase(page)
    mask = pixels(download(page, "#download-mask", tmp_path)) > 127
    for x, y in ((410, 340), (490, 340), (130, 390), (560, 60)):
        assert mask[y, x], f"{x},{y} was marked"
    for x, y in ((450, 340), (130, 80), (300, 340)):
        assert not mask[y, x], f"{x},{y} was rubbed out or never marked"


def test_mask_from_a_file(page: Page, tmp_path: Path) -> None:
    add(page)
    page.locator("#keep-all").click()
    page.set_input_files("#mask-file", {"name": "m.png", "mimeType": "image/png", "buffer": encode(draw(64, 64))})
    expect(page.locator(".toast.wrong")).to_contain_text("64 x 64")
    given = np.zeros((420, 640), np.uint8)
    given[300:360, 100:300] = 255
    stencil = Image.fromarray(np.stack([given * 0, given], -1))  # alpha alone says what goes, in a format of no browser
    page.set_input_files("#mask-file", {"name": "m.tif", "mimeType": "image/tiff", "buffer": encode(stencil, "TIFF")})
    expect(page.locator("#start")).to_have_text("Erase the mask")
    page.locator("#grow").press("Home")
    page.locator("#grow").press("ArrowRight")
    erase(page)
    np.testing.assert_array_equal(pixels(download(page, "#download-mask", tmp_path)), given)


def test_folders_come_in_whole_and_archives_do_not(page: Page, tmp_path: Path) -> None:
    inner = tmp_path / "holidays" / "second day"
    inner.mkdir(parents=True)
    (inner.parent / "notes.txt").write_text("no picture")
    (inner.parent / "a.png").write_bytes(encode(draw()))
    (inner / "b.JPG").write_bytes(encode(draw(seed=1), "JPEG"))
    (tmp_path / "all.zip").write_bytes(b"PK")
    drop_paths(page, [inner.parent, tmp_path / "all.zip"])
    expect(page.locator(".toast.wrong")).to_contain_text("all.zip: is an archive")
    expect(page.locator(".toast:not(.wrong)")).to_contain_text("1 other file")
    expect(page.locator("#pictures .name")).to_have_text(["a.png", "b.JPG"])


def test_by_keyboard_alone(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#choose").focus()
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "k.png", "mimeType": "image/png", "buffer": encode(draw())})
    expect(count(page)).to_have_text("3 found, 3 to erase")
    page.locator("#texts input").first.focus()
    page.keyboard.press("Space")
    expect(count(page)).to_have_text("3 found, 2 to erase")
    page.locator("#mask-layer").focus()
    page.keyboard.press("b")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(page.locator("#start")).to_have_text("Erase the mask")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#result-title")).to_be_visible()
    with page.expect_download() as waiting:
        page.keyboard.press("d")
    assert waiting.value.suggested_filename == "k_clean.png"
    page.keyboard.press("?")
    expect(page.locator("#help")).to_contain_text("Redo")
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_iterates_can_be_looked_at(page: Page) -> None:
    add(page)
    erase(page)
    page.locator("#iterate").press("Home")
    expect(page.locator("#iterate + output")).to_have_text("1 of 2")
    assert str(page.locator("#download").get_attribute("href")).endswith("iteration=1")


def test_a_batch_follows_the_same_rules(page: Page, tmp_path: Path) -> None:
    drop(page, {f"p{i}.png": encode(draw(seed=i)) for i in range(3)})
    expect(page.locator("#pictures li")).to_have_count(3)
    expect(page.locator("#pictures li[data-state=finding]")).to_have_count(0)
    page.fill("#only", "SALE")
    page.locator("#start-all").click()
    expect(page.locator("#pictures li[data-state=done]")).to_have_count(3)
    with ZipFile(download(page, "#download-all", tmp_path)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"p{i}_clean.png" for i in range(3)]
    page.keyboard.press("PageDown")
    page.locator("#mask-layer").focus()
    page.keyboard.press("PageDown")
    expect(page.locator("#result")).to_contain_text("Erased area")


def test_a_job_is_cancelled(page: Page, address: str) -> None:
    drop(page, {f"p{i}.png": encode(draw(seed=i)) for i in range(2)})
    expect(page.locator("#pictures li[data-state=finding]")).to_have_count(0)
    page.locator("#start-all").click()
    page.locator("#cancel").click()
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#start")).to_be_enabled()
    erase(page)  # nothing hangs
    states = [job["state"] for job in page.request.get(f"{address}/api/jobs").json()]
    assert not {"waiting", "running"} & set(states)


def test_a_reload_loses_no_picture(page: Page) -> None:
    add(page)
    page.reload()
    expect(count(page)).to_have_text("3 found, 3 to erase")
    page.locator("#pictures .drop-one").click()
    expect(page.locator("#choose")).to_be_visible()
