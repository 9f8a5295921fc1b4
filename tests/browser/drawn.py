"""Draw pictures with text, and hand files to a page as a user does."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from playwright.sync_api import Page

WORDS = ("SPRING SALE", "Monday 9 to 18", "ask inside")
DROP = """async ([target, files]) => {
  const transfer = new DataTransfer();
  for (const [name, type, text] of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type}));
  }
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.querySelector(target).dispatchEvent(
      new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
  }
}"""


def draw(width: int = 640, height: int = 420, words: tuple[str, ...] = WORDS, seed: int = 0) -> Image.Image:
    """Draw ``words`` below each other on a soft, slightly noisy background."""
    y, x = np.mgrid[:height, :width]
    soft = 150 + 45 * np.sin(x / 130 + seed) + 35 * np.cos(y / 90)
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 1))
    colours = np.stack([soft, soft * 0.85 + 15, soft * 0.6 + 50], -1) + noise
    image = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    pen, size = ImageDraw.Draw(image), height / 9
    for i, line in enumerate(words):
        place = width * 0.1, height * (0.14 + 0.27 * i)
        pen.text(place, line, fill=(26, 22, 60), font=ImageFont.load_default(size))
    return image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def drop(page: Page, files: dict[str, bytes]) -> None:
    """Drop files onto the page; the names are what the user calls them."""
    given = [(name, "image/png", base64.b64encode(content).decode()) for name, content in files.items()]
    page.evaluate(DROP, ["body", given])


def drop_paths(page: Page, paths: list[Path]) -> None:
    """Drop what lies at ``paths``, folders too, as the system does."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})


def pixels(source: Path | bytes) -> np.ndarray:
    with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
        return np.asarray(image)


def on_stage(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the shown picture lies on the screen."""
    scale, left, top = page.evaluate(
        """async () => {
          const {viewport} = await import("/assets/js/stage.js");
          return [viewport.scale, viewport.x, viewport.y];
        }"""
    )
    box = page.locator("#mask-layer").bounding_box()
    assert box is not None
    return box["x"] + left + x * scale, box["y"] + top + y * scale
