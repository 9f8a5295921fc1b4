"""Show what a run did: a sheet of pictures before and after, and a page with what was taken from each."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from efface.io.atomic import atomic_write, write_text
from efface.io.images import read_picture
from efface.io.leftovers import PAGE, SHEET
from efface.verbs.batch import Item, Summary

SIDE, GAP, LINE = 560, 16, 28
"""Longest side of a picture, space between pictures, and height of a line of text, in pixels."""
MOST_ON_SHEET, MOST_ON_PAGE = 12, 100
"""Pictures that are shown; the page has the words of all of them."""
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-weight: 600; margin-bottom: 0 } figure { margin: 2.5rem 0 }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; align-items: start }
img { max-width: 100%; border-radius: 4px; display: block; margin: auto }
figcaption { margin-top: .5rem; overflow-wrap: anywhere } .quiet { opacity: .65 } .failed { color: #d33 }
"""


class Row(NamedTuple):
    """Small copies of a picture before and after."""

    item: Item
    before: Image.Image
    after: Image.Image


def write_report(summary: Summary) -> Path:
    """Write a page and a sheet into the folder of the run, in place of earlier ones, and return the path of the sheet.

    The page holds small copies of the pictures, so that it can be moved and shows formats that browsers do not. Where
    nothing was done there is no sheet, and the page's path is returned.
    """
    folder = summary.folder.resolve()
    shown = [item for item in summary.items if item.status != "failed"][:MOST_ON_PAGE]
    rows = [Row(item, _small(item.source), _small(item.output)) for item in shown]
    write_text(folder / PAGE, _page(summary, rows), overwrite=True)
    if not rows:
        return folder / PAGE
    with atomic_write(folder / SHEET, overwrite=True) as temporary:
        draw_sheet(rows[:MOST_ON_SHEET], _heads(summary)).save(temporary, "JPEG", quality=90, subsampling=0)
    return folder / SHEET


def draw_sheet(rows: list[Row], heads: tuple[str, str]) -> Image.Image:
    """Draw the pictures of each row beside each other below its name, and ``heads`` above the columns."""
    heights = [max(row.before.height, row.after.height) + LINE + GAP for row in rows]
    sheet = Image.new("RGB", (2 * SIDE + 3 * GAP, LINE + GAP + sum(heights) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    columns = GAP, SIDE + 2 * GAP
    for x, head in zip(columns, heads, strict=True):
        pen.text((x, GAP), head, "black", font)
    top = LINE + GAP
    for row, height in zip(rows, heights, strict=True):
        pen.text((GAP, top), Path(row.item.source).name, "grey", font)
        for x, image in zip(columns, (row.before, row.after), strict=True):
            sheet.paste(image, (x, top + LINE))
        top += height
    return sheet


def _small(path: str) -> Image.Image:
    """Return a copy that fits into a square of :data:`SIDE`, on white where it is clear."""
    image = read_picture(path).image
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    if image.mode in ("LA", "RGBA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _heads(summary: Summary) -> tuple[str, str]:
    return "before", "what would go" if summary.dry_run else "after"


def _page(summary: Summary, rows: list[Row]) -> str:
    counts = ", ".join(f"{summary.count(status)} {status}" for status in ("done", "failed", "skipped"))
    shown = {row.item.source: row for row in rows}
    figures = "\n".join(_figure(item, shown.get(item.source), _heads(summary)) for item in summary.items)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>efface: {counts}</title><style>{STYLE}</style>\n"
        f'<h1>{counts}</h1><p class="quiet">{summary.seconds:.1f} s</p>\n{figures}\n</html>\n'
    )


def _figure(item: Item, row: Row | None, heads: tuple[str, str]) -> str:
    name = html.escape(Path(item.source).name)
    if item.status == "failed":
        return f'<figure><figcaption class="failed">{html.escape(item.reason)}</figcaption></figure>'
    pair = ""
    if row is not None:
        images = zip((row.before, row.after), heads, strict=True)
        pair = "".join(f'<img src="{_embedded(image)}" alt="{name}, {head}">' for image, head in images)
    told = [f"<b>{name}</b>", f"{item.seconds:.1f} s" if item.status == "done" else html.escape(item.reason)]
    texts = item.details.get("texts", [])
    for verb, taken in (("taken", True), ("kept", False)):
        if words := [_words(text) for text in texts if text["taken"] == taken]:
            told.append(f"{verb}: {', '.join(words)}")
    told += map(html.escape, item.details.get("notes", []))
    return f'<figure><div class="pair">{pair}</div><figcaption>{". ".join(told)}</figcaption></figure>'


def _words(text: dict[str, str]) -> str:
    return html.escape((text["words"] or "unread text") + (f" ({text['stays']})" if text["stays"] else ""))


def _embedded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
