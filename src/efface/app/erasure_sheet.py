"""Lay out what several models draw of the same prompts and seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from efface.core.erasure_report import Report

if TYPE_CHECKING:
    from PIL.Image import Image

GAP, LINE = 4, 16  # pixels between tiles, and for a line of text
LEAST = 96
"""Width of a tile that small pictures are enlarged to."""


def erasure_sheet(report: Report) -> Image:
    """Return the pictures that ``report`` keeps: a column for each model, rows for the target and each kept concept."""
    import numpy as np
    from PIL import Image, ImageDraw

    rows = [(concept, i) for concept in (report.target, *report.keep) for i in range(_count(report, concept))]
    height, width = next(iter(report.models.values())).pictures[report.target].shape[-2:]
    scale = max(1, -(-LEAST // width))
    across, down = scale * width + GAP, scale * height + GAP
    sheet = Image.new("RGB", (len(report.models) * across, LINE + len(rows) * (down + LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (name, scored) in enumerate(report.models.items()):
        pen.text((column * across, 0), name, fill="black")
        for row, (concept, i) in enumerate(rows):
            top = LINE + row * (down + LINE)
            if not column:
                pen.text((0, top), concept, fill="black")
            tile = Image.fromarray(np.moveaxis(scored.pictures[concept][i], 0, -1))
            tile = tile.resize((scale * width, scale * height), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * across, top + LINE))
    return sheet


def _count(report: Report, concept: str) -> int:
    """Return how many pictures are shown of ``concept``: more of the target than of what is kept."""
    return min(4 if concept == report.target else 1, len(next(iter(report.models.values())).pictures[concept]))
