"""Say by words where in a picture a thing lies: a word for each cell of a grid, and which cells boxes touch.

Boxes are arrays (n, 4) of left, top, right and bottom, as shares of the picture's width and height; right and bottom
are no longer inside, so a box that ends on the border of a cell does not touch the next. What lies outside of the
picture is cut off, and a box of no area touches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from efface.errors import UsageError

Boxes = NDArray[np.float64]
Cell = tuple[int, int]
"""Row and column, from 0 at the top left."""
Detection = tuple[float, Sequence[float]]
"""Score of a detector, and left, top, right and bottom in pixels."""
TOUCH = 1e-9


@dataclass(frozen=True)
class Grid:
    """``rows`` x ``columns`` cells of pictures in which the concept ``name`` may lie.

    ``fresh`` gives the concept a new word as well, for names that mean too much already, or nothing.
    """

    rows: int = 8
    columns: int = 8
    name: str = "watermark"
    fresh: bool = False

    @property
    def called(self) -> str:
        """What prompts call the concept."""
        return f"<{self._stem}>" if self.fresh else self.name

    @property
    def words(self) -> tuple[str, ...]:
        """All new words, in the order in which they get their tokens: of the concept, then of the cells by rows."""
        cells = [self.word((row, column)) for row in range(self.rows) for column in range(self.columns)]
        return (self.called, *cells) if self.fresh else tuple(cells)

    def word(self, cell: Cell) -> str:
        """Return the word of a cell."""
        return f"<{self._stem}-{cell[0]}-{cell[1]}>"

    def cells(self, boxes: ArrayLike) -> list[Cell]:
        """Return the cells that boxes touch, those of the largest shared area first."""
        shared = np.zeros((self.rows, self.columns))
        for left, top, right, bottom in np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0, 1):
            shared = np.maximum(shared, _overlap(top, bottom, self.rows)[:, None] * _overlap(left, right, self.columns))
        touched = [(int(row), int(column)) for row, column in np.argwhere(shared > 0)]
        return sorted(touched, key=lambda cell: -round(float(shared[cell]), 9))

    def weights(self, boxes: ArrayLike, shape: tuple[int, int], alpha: float) -> NDArray[np.float32]:
        """Return how much each place of a latent of ``shape`` (h, w) counts; the sum is h * w.

        Places in touched cells count T / (K + alpha (T - K)), and others alpha times as much, where K of the T places
        lie in touched cells. If all or none do, every place counts 1.
        """
        if alpha <= 0:
            raise UsageError(
                f"{alpha} is no weight", where="alpha", fix="Give more than 1, so that the concept counts less"
            )
        height, width = shape
        inside = np.zeros(shape, bool)
        for row, column in self.cells(boxes):
            down = slice(row * height // self.rows, -(-(row + 1) * height // self.rows))
            inside[down, column * width // self.columns : -(-(column + 1) * width // self.columns)] = True
        total, within = inside.size, int(inside.sum())
        weight = np.where(inside, 1.0, alpha) * total / (within + alpha * (total - within))
        return weight.astype(np.float32)

    def negative(
        self, counts: Mapping[Cell, int], room: int, cells: Literal["frequent", "all"] | Sequence[Cell] = "frequent"
    ) -> str:
        """Return the prompt to steer away from: the concept, and words of at most ``room`` cells.

        ``frequent`` takes the cells of ``counts``, most frequent first; ``all`` those of the grid by rows.
        """
        if isinstance(cells, str):
            every = [(row, column) for row in range(self.rows) for column in range(self.columns)]
            cells = sorted(counts, key=lambda cell: (-counts[cell], cell)) if cells == "frequent" else every
        return " ".join([self.called, *map(self.word, cells[: max(0, room)])])

    @property
    def _stem(self) -> str:
        return re.sub(r"\W+", "-", self.name.casefold()).strip("-") or "concept"


def tokens(
    tokenizer: Any, grid: Grid, caption: str, cells: Sequence[Cell], generator: Generator
) -> tuple[list[int], int]:
    """Return the tokens of ``caption`` with the concept and its ``cells`` behind it, and how many cells had no room.

    Where too many cells are touched, a draw decides which are told, so that each is in its turn; at least one is, if it
    takes the end of the caption. Without cells it is the caption alone. ``tokenizer`` knows the words of the grid.
    """
    slots = tokenizer.model_max_length
    words, named = (list(_ids(tokenizer, text)) for text in (caption, grid.called if cells else ""))
    room = max(1, slots - 2 - len(words) - len(named))
    told = sorted(generator.permutation(len(cells))[:room].tolist())
    behind = [*named, *tokenizer.convert_tokens_to_ids([grid.word(cells[i]) for i in told])]
    body = [*words[: max(0, slots - 2 - len(behind))], *behind][: slots - 2]
    padding = [tokenizer.pad_token_id] * (slots - 2 - len(body))
    return [tokenizer.bos_token_id, *body, tokenizer.eos_token_id, *padding], len(cells) - len(told)


def shares(boxes: ArrayLike, size: tuple[int, int]) -> Boxes:
    """Return ``boxes`` in pixels of a picture of ``size`` (height, width) as shares of it, cut off at its borders."""
    height, width = size
    return np.clip(np.asarray(boxes, np.float64).reshape(-1, 4) / (width, height, width, height), 0, 1)


def mirrored(boxes: Boxes) -> Boxes:
    """Return boxes as they are in the picture mirrored left to right."""
    left, top, right, bottom = boxes.T
    return np.stack([1 - right, top, 1 - left, bottom], axis=1)


def accepted(found: Iterable[Detection | float], size: tuple[int, int], least: float) -> NDArray[np.int64]:
    """Return the boxes (n, 4) in pixels of what a detector ``found`` with a score of at least ``least``.

    ``size`` is the picture's (height, width), at which boxes are cut off. A bare score is that of a classifier, which
    knows no place: its box is the whole picture.
    """
    height, width = size
    pairs = [one if isinstance(one, tuple) else (one, (0, 0, width, height)) for one in found]
    boxes = np.array([box for score, box in pairs if score >= least], np.float64).reshape(-1, 4)
    return np.clip(np.round(boxes), 0, (width, height, width, height)).astype(np.int64)


def recall(found: Sequence[ArrayLike], true: Sequence[ArrayLike], least: float = 0.5) -> float:
    """Return the share of ``true`` boxes that one ``found`` in the same picture meets with an IoU of ``least``.

    What a detector misses is learned as clean; loose boxes do little harm. 1 if there is nothing to find.
    """
    pairs = [
        (box, np.asarray(seen, np.float64).reshape(-1, 4))
        for seen, boxes in zip(found, true, strict=True)
        for box in np.asarray(boxes, np.float64).reshape(-1, 4)
    ]
    hits = [any(iou(box, other) >= least for other in seen) for box, seen in pairs]
    return float(np.mean(hits)) if hits else 1.0


def iou(one: ArrayLike, other: ArrayLike) -> float:
    """Return what two boxes share, over what they cover together."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    together = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared
    return float(shared / together) if together > 0 else 0.0


def _overlap(begin: float, end: float, count: int) -> Boxes:
    """Return the length that an interval shares with each of ``count`` equal parts of [0, 1]."""
    borders = np.arange(count + 1) / count
    shared = np.minimum(end, borders[1:]) - np.maximum(begin, borders[:-1])
    return np.where(shared > TOUCH, shared, 0.0)


def _ids(tokenizer: Any, text: str) -> Sequence[int]:
    found: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text else ()
    return found
