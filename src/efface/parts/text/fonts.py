"""Find fonts that can write Latin text, and keep families apart between training and testing."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from efface.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?-'()&/%+"
"""What a face must draw, each with visible ink of its own, to count as a text font."""

_NOT_TEXT = re.compile(r"symbol|emoji|icon|math|initials|keyboard", re.IGNORECASE)
_TYPICAL = "AEGKMRSWaegkmrsw24578"
_LEAST_LIKENESS = 0.12  # measured: dingbats 0.08, the least legible handwriting 0.16
_VARIANT = re.compile(
    r"\b(condensed|narrow|display|thin|light|medium|semibold|bold|black|heavy|extra|caption|looped|unjoined)\b",
    re.IGNORECASE,
)
_MISSING = "\U0010fffe"  # a code point that no font may hold: drawn as the face's own "not defined" box


def find_fonts(folders: Iterable[Path] | None = None) -> list[Path]:
    """Return the files under ``folders`` (default: the system's) that hold Latin text faces, sorted.

    Symbols, emoji and dingbats are left out, and of faces that draw Latin alike only the first is kept. The list is
    empty where there is none; :func:`load_font` then draws with the built-in face. Looked up once per process.
    """
    return list(_find(tuple(map(Path, _system_folders() if folders is None else folders))))


@lru_cache(maxsize=16)
def _find(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    files = {p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf")}
    faces: dict[bytes, Path] = {}
    for path in sorted(files):
        look = _look(path)
        if look is not None:
            faces.setdefault(look, path)
    return tuple(sorted(faces.values()))


def _system_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path("C:/Windows/Fonts"), home / "AppData/Local/Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]


def _look(path: Path) -> bytes | None:
    """Return a digest of how the face draws :data:`LETTERS`, or None where it is not a text face."""
    try:
        font = ImageFont.truetype(path, 16, layout_engine=ImageFont.Layout.BASIC)
        if _NOT_TEXT.search(font.getname()[0] or ""):
            return None
        missing, digest = bytes(font.getmask(_MISSING)), hashlib.blake2b(digest_size=16)
        for letter in LETTERS:
            glyph = bytes(font.getmask(letter))
            if glyph == missing or max(glyph, default=0) < 64:
                return None
            digest.update(glyph)
        if _likeness(font) < _LEAST_LIKENESS:
            return None
    except (OSError, ValueError):  # FreeType refuses the file or a glyph
        return None
    return digest.digest()


def _likeness(font: ImageFont.FreeTypeFont) -> float:
    """Return the mean correlation of the face's letters with those of the built-in face."""
    return float(np.mean(np.sum(_shapes(font) * _shapes(load_font(None, 16)), axis=1)))


def _shapes(font: ImageFont.FreeTypeFont) -> NDArray[np.float32]:
    """Return the letters stretched to one size, (letters, pixels), each of mean 0 and norm 1."""
    masks = [font.getmask(letter) for letter in _TYPICAL]
    glyphs = [cv2.resize(np.frombuffer(bytes(m), np.uint8).reshape(m.size[::-1]), (12, 12)) for m in masks]
    shapes = np.asarray(glyphs, np.float32).reshape(len(glyphs), -1)
    shapes -= shapes.mean(axis=1, keepdims=True)
    return shapes / np.maximum(np.linalg.norm(shapes, axis=1, keepdims=True), 1e-6)


@lru_cache(maxsize=4096)
def family(path: Path) -> str:
    """Return the family of a font file without its width, weight and optical size: ``Noto Sans``, ``Inter``."""
    name = load_font(path, 16).getname()[0] or path.stem
    return " ".join(_VARIANT.sub(" ", name).split()) or name


def families(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the files of each family, families in alphabetical order."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(family(path), []).append(path)
    return dict(sorted(found.items()))


def split_fonts(paths: Sequence[Path], holdout: float = 0.2) -> tuple[list[Path], list[Path]]:
    """Return ``(train, test)``: a family is tested where the hash of its name falls below ``holdout``.

    A family is on the same side on every machine, whatever else is installed.
    """
    held = {name for name in families(paths) if hash_unit(name) < holdout}
    return [p for p in paths if family(p) not in held], [p for p in paths if family(p) in held]


def hash_unit(text: str) -> float:
    """Return a number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


@lru_cache(maxsize=256)
def load_font(path: Path | None, size: float) -> ImageFont.FreeTypeFont:
    """Return the face at ``size`` pixels per em; ``None`` is the built-in face. Raises :class:`DataError`."""
    if path is not None:
        try:
            return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise DataError(f"cannot be read as a font: {error}", where=path, fix="Name a .ttf or .otf file") from error
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font
