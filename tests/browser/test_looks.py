"""Look at the page: bad files, names, dark and narrow, the catalogue. EFFACE_SCREENSHOTS=FOLDER keeps pictures."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from drawn import draw, drop, encode
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = pytest.importorskip("playwright.sync_api").expect

ROOT = Path(__file__).parents[2]
NAMES = """() => [...document.querySelectorAll("button, a, input, select, [role=slider], canvas[tabindex]")]
  .filter((node) => node.checkVisibility())
  .filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.length))
  .map((node) => node.outerHTML)"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("EFFACE_SCREENSHOTS"):
        page.wait_for_selector("#stage:not([aria-busy=true])", state="attached")
        with Image.open(io.BytesIO(page.screenshot())) as image:
            image.convert("RGB").quantize(256).save(Path(folder) / f"{name}.png", optimize=True)


def add_examples(page: Page) -> None:
    drop(page, {name: (ROOT / "examples" / name).read_bytes() for name in ("rocket.jpg", "coffee.jpg", "board.png")})
    expect(page.locator("#pictures li")).to_have_count(3)
    expect(page.locator("#pictures li[data-state=finding]")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.png", b"no picture at all"),
        ("empty.png", b""),
        ("torn.png", encode(draw())[:5000]),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
    ],
)
def test_bad_files_are_refused_and_the_page_lives(page: Page, name: str, content: bytes) -> None:
    drop(page, {name: content, "good.png": encode(draw())})
    expect(page.locator(".toast.wrong")).to_contain_text(name)
    expect(page.locator("#texts-count")).to_have_text("3 found, 3 to erase")
    expect(page.locator("#pictures li")).to_have_count(1)


def test_words_are_shown_as_they_are(page: Page) -> None:
    words = "<img src=x onerror=document.title=1>"
    text = {"index": 0, "words": words, "confidence": 0.9, "polygon": [[9, 9], [99, 9], [99, 40], [9, 40]]}
    page.route("**/texts", lambda route: route.fulfill(json=[text]))
    drop(page, {"a.png": encode(draw())})
    expect(page.locator("#texts .words")).to_have_text(words)
    assert page.locator("#texts img").count() == 0
    assert page.title() == "efface"


def test_everything_has_a_name(page: Page) -> None:
    assert page.evaluate(NAMES) == []
    add_examples(page)
    assert page.evaluate(NAMES) == []
    page.goto(f"{page.url.partition('#')[0]}#catalogue")
    assert page.evaluate(NAMES) == []


def test_light(page: Page) -> None:
    keep(page, "welcome")
    add_examples(page)
    page.locator("#texts input").last.uncheck()
    keep(page, "erase")
    page.locator("#take-all").click()
    page.locator("#start").click()
    expect(page.locator("#result-title")).to_be_visible()
    keep(page, "compare")


class TestDark:
    @pytest.fixture
    def options(self) -> dict:
        return {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"}

    def test_follows_the_system_and_the_switch(self, page: Page) -> None:
        add_examples(page)
        background = "() => getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(background)
        keep(page, "dark")
        page.locator("#theme").click()
        light = page.evaluate(background)
        assert sum(map(int, dark[4:-1].split(", "))) < 150
        assert sum(map(int, light[4:-1].split(", "))) > 600
        page.reload()
        assert page.evaluate(background) == light


class TestNarrow:
    @pytest.fixture
    def options(self) -> dict:
        return {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

    def test_fits_and_works(self, page: Page) -> None:
        assert page.evaluate(OVERFLOW) <= 0
        add_examples(page)
        assert page.evaluate(OVERFLOW) <= 0
        keep(page, "narrow")
        page.locator("#start").tap()
        expect(page.locator("#result-title")).to_be_attached()
        assert page.evaluate(OVERFLOW) <= 0


def test_catalogue_is_searched_and_filtered(page: Page) -> None:
    page.locator("#nav-catalogue").click()
    cards = page.locator("#cards li")
    everything = cards.count()
    keep(page, "catalogue")
    page.fill("#find", "deep iterative")
    expect(cards).to_have_count(1)
    page.locator("#by-year").select_option("2022")
    expect(page.locator("#catalogue-count")).to_have_text("No method is like that.")
    page.fill("#find", "")
    page.locator("#by-year").select_option("")
    expect(cards).to_have_count(everything)
    task = "text from pictures"
    page.locator("#by-task").select_option(task)
    expect(page.locator("#cards h2")).to_have_text([re.compile(task)])
    page.locator("#by-size").select_option("1e7")
    for card in cards.all():
        expect(card).to_contain_text(re.compile("[kM]B"))
    page.locator("#by-usable").check()
    page.locator("#cards .card", has_text="deeperaser").click()
    expect(page.locator("#method-page")).to_contain_text("iterations")
    keep(page, "method")
    page.reload()  # a method has an address
    expect(page.locator("#method-page")).to_contain_text("Evidence")
    expect(page.locator("#method-page .plot")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#method-page")).to_be_hidden()
    expect(page).to_have_url(re.compile("#catalogue$"))
