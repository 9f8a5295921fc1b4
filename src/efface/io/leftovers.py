"""Know the files that a run leaves beside its results: they are never inputs, and later runs replace them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from efface.io.atomic import atomic_write

MANIFEST, PAGE, SHEET = "efface-manifest.jsonl", "efface-report.html", "efface-before-after.jpg"
_MAKER = "efface --dry-run"
_MARK = f"tEXtSoftware\0{_MAKER}".encode()


def save_preview(image: Image.Image, path: Path, *, overwrite: bool) -> None:
    """Write ``image`` as a PNG that :func:`is_preview` knows again."""
    maker = PngInfo()
    maker.add_text("Software", _MAKER)
    with atomic_write(path, overwrite=overwrite) as temporary:
        image.save(temporary, "PNG", pnginfo=maker)


def is_preview(path: Path) -> bool:
    """Return whether ``path`` is a preview that a run has written."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return _MARK in file.read(128)  # the mark stands right behind the size
    return False


def is_left(path: Path) -> bool:
    """Return whether ``path`` is a record, a report or a preview of a run."""
    return path.name in (MANIFEST, PAGE, SHEET) or (path.suffix == ".png" and is_preview(path))
