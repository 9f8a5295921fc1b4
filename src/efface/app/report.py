"""Show what a run did: a sheet of pictures before and after, and a page with what was taken from each."""

from __future__ import annotations

import html
import os
from pathlib import Path

from PIL import Image, ImageOps

from efface.io.atomic import atomic_write, write_text
from efface.verbs.batch import Item, Summary

WIDTH, GAP, MOST = 560, 12, 12
"""Width of a picture on the sheet and space between pictures in pixels; pictures on the sheet at most."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
figure { margin: 0 0 2.5rem } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
img { width: 100%; border-radius: 4px } figcaption { color: #555 } .failed { color: #a00 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } figcaption { color: #aaa } }
"""


def write_report(summary: Summary) -> Path:
    """Write ``report.html`` and ``before-after.jpg`` beside the results, and return the path of the sheet.

    Where nothing was done there is no sheet, and the page's path is returned.
    """
    done = [item for item in summary.items if item.status != "failed"]
    folder = Path(os.path.commonpath([Path(item.output).resolve().parent for item in summary.items]))
    page, sheet = folder / "report.html", folder / "before-after.jpg"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(page, _page(summary, folder), overwrite=True)
    if not done:
        return page
    with atomic_write(sheet, overwrite=True) as temporary:
        draw_sheet([(Path(item.source), Path(item.output)) for item in done[:MOST]]).save(temporary, "JPEG", quality=90)
    return sheet


def draw_sheet(pairs: list[tuple[Path, Path]]) -> Image.Image:
    """Draw one row for each pair of files: before on the left, after on the right."""
    rows = [[_thumbnail(path) for path in pair] for pair in pairs]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (2 * WIDTH + 3 * GAP, sum(heights) + GAP * (len(rows) + 1)), "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image, (GAP + column * (WIDTH + GAP), top))
        top += height + GAP
    return sheet


def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.draft("RGB", (WIDTH, WIDTH))  # decodes a large JPEG small
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return upright.resize((WIDTH, max(1, round(upright.height * WIDTH / upright.width))), Image.Resampling.LANCZOS)


def _page(summary: Summary, folder: Path) -> str:
    counts = ", ".join(f"{summary.count(status)} {status}" for status in ("done", "failed", "skipped"))
    figures = "\n".join(_figure(item, folder) for item in summary.items)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>efface: {counts}</title><style>{STYLE}</style>\n'
        f"<h1>{counts}</h1><p>{summary.seconds:.1f} s</p>\n{figures}\n</html>\n"
    )


def _figure(item: Item, folder: Path) -> str:
    name = html.escape(Path(item.source).name)
    if item.status == "failed":
        return f'<figure><figcaption class="failed">{name}: {html.escape(item.reason)}</figcaption></figure>'
    before, after = (html.escape(os.path.relpath(path, folder), quote=True) for path in (item.source, item.output))
    texts = item.details.get("texts", [])
    taken = [html.escape(t["words"] or "unread text") for t in texts if t["taken"]]
    kept = [f"{html.escape(t['words'])} ({html.escape(t['stays'])})" for t in texts if not t["taken"]]
    told = [f"<b>{name}</b>", f"{item.seconds:.1f} s"]
    told += [f"taken: {', '.join(taken)}"] if taken else []
    told += [f"kept: {', '.join(kept)}"] if kept else []
    pair = f'<img src="{before}" alt="{name} before"><img src="{after}" alt="{name} after">'
    return f'<figure><div class="pair">{pair}</div><figcaption>{". ".join(told)}</figcaption></figure>'
