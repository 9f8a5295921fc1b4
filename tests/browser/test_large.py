"""Pictures of 20 megapixels: sharp where they are seen, and worked on while their text is still looked for.

How smoothly that went is printed (`pytest -rP`), not asserted: it depends on the machine.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from drawn import encode, on_stage, pixels
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

expect = pytest.importorskip("playwright.sync_api").expect

WIDTH, HEIGHT = 5472, 3648
WATCH = """() => {
  window.frames_ = [];
  window.longTasks = [];
  let last = performance.now();
  const tick = (now) => {
    frames_.push(now - last);
    last = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({type: "longtask"});
}"""
TAKE = "() => [frames_.splice(0), longTasks.splice(0)]"
CONTRAST = """() => {
  const canvas = document.getElementById("picture-layer");
  const {data} = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 2, 1);
  return Math.abs(data[0] - data[4]) === 255;
}"""


def report(page: Page, what: str) -> None:
    frames, tasks = page.evaluate(TAKE)
    late = sorted(frames)[int(0.95 * len(frames))] if frames else 0
    median = statistics.median(frames) if frames else 0
    print(
        f"{what}: {len(frames)} frames, median {median:.0f} ms, 95 % within {late:.0f} ms; "
        f"{len(tasks)} tasks above 50 ms, the longest {max(tasks, default=0):.0f} ms"
    )


def large(kind: str) -> bytes:
    soft = np.random.default_rng(0).integers(60, 200, (57, 86, 3), dtype=np.uint8)
    return encode(Image.fromarray(soft).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), kind)


def test_large_pictures_are_worked_on_while_text_is_looked_for(page: Page, tmp_path: Path) -> None:
    held: list[Route] = []
    page.route("**/texts", lambda route: held.append(route))  # answered when all is painted
    page.evaluate(WATCH)
    (tmp_path / "large.jpg").write_bytes(large("JPEG"))
    page.set_input_files("#files", tmp_path / "large.jpg")
    expect(page.locator("#pictures li[data-state=finding]")).to_have_count(1)
    report(page, "load")

    page.keyboard.press("b")
    page.mouse.move(*on_stage(page, 1000, 2700))
    page.mouse.down()
    for x in range(1000, 3000, 40):
        page.mouse.move(*on_stage(page, x, 2700))
    page.mouse.up()
    report(page, "brush")
    page.mouse.move(*on_stage(page, 2000, 1500))
    for _ in range(10):
        page.mouse.wheel(0, -120)
    report(page, "zoom")
    page.keyboard.press("1")
    page.keyboard.press("h")
    page.mouse.down()
    for step in range(30):
        page.mouse.move(400 + 10 * step, 300 + 5 * step)
    page.mouse.up()
    report(page, "pan at 1:1")
    page.keyboard.press("0")
    page.keyboard.press("r")
    page.mouse.move(*on_stage(page, 4000, 1000))
    page.mouse.down()
    page.mouse.move(*on_stage(page, 4400, 1300))
    page.mouse.up()

    held[0].fulfill(json=[])
    expect(page.locator("#texts-count")).to_have_text("none found")
    for key in ("Home", "ArrowRight"):
        page.locator("#grow").press(key)
    report(page, "grow")
    page.locator("#start").click()
    expect(page.locator("#result-title")).to_be_visible()
    with page.expect_download() as waiting:
        page.locator("#download-mask").click()
    waiting.value.save_as(tmp_path / "mask.png")
    mask = pixels(tmp_path / "mask.png") > 127
    assert mask.shape == (HEIGHT, WIDTH)
    assert not mask[:900].any()
    assert mask[2700, 1000:2960].all()
    rows, columns = np.nonzero(mask[:2000])
    assert (
        np.abs(np.array([columns.min(), columns.max(), rows.min(), rows.max()]) - (4000, 4400, 1000, 1300)).max() <= 8
    )
    page.locator("#split").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    report(page, "compare")


def test_large_pictures_are_sharp_at_one_to_one(page: Page) -> None:
    rows = np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255  # a checkerboard of single pixels: grey unless 1:1
    page.route("**/texts", lambda route: route.fulfill(json=[]))
    content = encode(Image.fromarray(rows.astype(np.uint8)), compress_level=1)
    page.set_input_files("#files", {"name": "large.png", "mimeType": "image/png", "buffer": content})
    expect(page.locator("#pictures li")).to_have_count(1)
    page.locator("#zoom-one").click()
    expect(page.locator("#zoom-level")).to_have_text("100 %")
    page.wait_for_function(CONTRAST)
