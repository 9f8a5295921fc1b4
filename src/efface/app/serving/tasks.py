"""The tasks of the worker processes: all that opens a stranger's file or computes for long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface.app.serving.choosing import Means, reasons, resolve
from efface.app.serving.rendering import Rendition, grey_png, render
from efface.app.serving.schemas import Residual, Rules, Words
from efface.io.images import Picture, read_picture, write_picture
from efface.parts import masks
from efface.parts.metrics.residue import deteval
from efface.parts.text.detect import TextBox, find_text
from efface.verbs import clean, marking

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Admitted:
    """What is known of a picture once it was read."""

    rendition: Rendition
    format: str
    depth: str
    notes: list[str]


@dataclass(frozen=True)
class Admit:
    """Read an upload, and write its rendition."""

    source: Path
    view: Path
    max_pixels: int

    def run(self, tell: Tell) -> Admitted:
        """Return what was read."""
        picture = read_picture(self.source, max_pixels=self.max_pixels)
        rendition = render(picture, self.view)
        return Admitted(rendition, picture.origin.format or "", picture.pixels.dtype.name, picture.notes)


@dataclass(frozen=True)
class AdmitMask:
    """Read an uploaded mask, and write it as PNG."""

    source: Path
    target: Path
    size: tuple[int, int]

    def run(self, tell: Tell) -> float:
        """Return the share that is masked."""
        mask = marking.read_mask(self.source, self.size)
        self.target.write_bytes(grey_png(_levels(mask)))
        return float(mask.mean())


@dataclass(frozen=True)
class FindTexts:
    """Find and read the text of a picture."""

    source: Path

    def run(self, tell: Tell) -> list[TextBox]:
        """Return all of it, whatever the confidence."""
        found, _ = marking.find(read_picture(self.source), clean.Rules(), tell)
        return [item.box for item in found]


@dataclass(frozen=True)
class Choose:
    """Choose among words by patterns, which may take for ever: who asks, bounds the time."""

    wanted: Words

    def run(self, tell: Tell) -> list[str]:
        """Return why each of the words stays; an empty reason means that it goes."""
        return reasons(self.wanted)


@dataclass(frozen=True)
class Preview:
    """Draw what rules would take away."""

    wanted: Rules
    texts: Sequence[TextBox]
    means: Means
    height: int
    width: int
    size: int | None

    def run(self, tell: Tell) -> bytes:
        """Return the weight as PNG."""
        rules = resolve(self.wanted, self.texts, self.means)
        blank = Picture(np.broadcast_to(np.uint8(0), (self.height, self.width, 1)))
        _, mask = marking.find(blank, rules)
        weight = masks.feather(mask, rules.feather)
        weight[rules.kept(mask.shape)] = 0
        return grey_png(np.rint(weight * 255).astype(np.uint8), self.size)


@dataclass(frozen=True)
class Made:
    """What cleaning made, beside the files."""

    texts: list[TextBox]
    cleaned: dict[str, Any]
    residual: Residual
    iterations: int


@dataclass(frozen=True)
class Clean:
    """Clean a picture into ``folder``: ``result`` and ``view``, ``mask.png``, and the iterates in folders of theirs."""

    source: Path
    folder: Path
    suffix: str
    wanted: Rules
    texts: Sequence[TextBox] | None
    means: Means
    iterates: bool

    def run(self, tell: Tell) -> Made:
        """Clean it, and look for text that is left."""
        texts = FindTexts(self.source).run(tell) if self.texts is None else [*self.texts]
        rules = resolve(self.wanted, texts, self.means)
        cleaned = clean.apply(
            self.source, rules, progress=lambda done, what: tell(0.1 + 0.7 * done, what), iterates=self.iterates
        )
        tell(0.8, "looking for text that is left")
        residual = _residual(cleaned, texts, self.wanted.min_confidence)
        tell(0.9, "writing")
        (self.folder / "mask.png").write_bytes(grey_png(_levels(cleaned.mask)))
        cleaned.save(self.folder / f"result{self.suffix}")
        render(cleaned.picture, self.folder / "view")
        for number, iterate in enumerate(cleaned.iterates, 1):
            self._write(iterate, self.folder / str(number))
        return Made(texts, cleaned.as_dict(), residual, len(cleaned.iterates))

    def _write(self, picture: Picture, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        write_picture(picture, folder / f"result{self.suffix}", root=folder)
        render(picture, folder / "view")


def _residual(cleaned: clean.Cleaned, texts: Sequence[TextBox], min_confidence: float) -> Residual:
    """Look for the masked texts once more, with the same finder."""
    before = [text.polygon for text in texts if _centre_in(cleaned.mask, text.polygon)]
    after = (
        [text.polygon for text in find_text(cleaned.picture.levels, min_confidence=min_confidence)] if before else []
    )
    left = [polygon for polygon in after if _centre_in(cleaned.mask, polygon)]
    return Residual(
        before=len(before),
        recall=deteval(before, after) / len(before) if before else None,
        left=[[(float(x), float(y)) for x, y in polygon] for polygon in left],
    )


def _centre_in(mask: np.ndarray, polygon: np.ndarray) -> bool:
    x, y = polygon.mean(0).astype(int)
    return bool(mask[min(y, mask.shape[0] - 1), min(x, mask.shape[1] - 1)])


def _levels(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) * 255
