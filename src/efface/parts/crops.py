"""Run a network on crops around a mask instead of the whole picture, within a bound of memory.

Every pixel to change is written by exactly one crop, the one in which it lies deepest, and no crop is written before
all that overlap it have been read. So the order of the crops means nothing, and a network whose receptive radius plus
the feather is at most the context gives the very result that it gives on the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from efface.errors import UsageError
from efface.parts.masks import Box, components, feather, grow

Network = Callable[[Tensor, Tensor], Tensor]
Read = Callable[[Box], np.ndarray]
Paste = Callable[[Box, np.ndarray, np.ndarray], None]


def pixels_for(memory: int, *, bytes_per_pixel: int, fixed: int) -> int:
    """Return how many pixels fit at once into ``memory`` bytes of which ``fixed`` are taken whatever the size."""
    if memory < fixed + bytes_per_pixel * 64 * 64:
        need = math.ceil((fixed + bytes_per_pixel * 64 * 64) / 1e6)
        raise UsageError(f"{memory / 1e6:.0f} MB of memory are not enough", fix=f"Allow at least {need} MB")
    return (memory - fixed) // bytes_per_pixel


def crops_around(
    mask: np.ndarray, *, context: int, multiple: int = 1, smallest: int = 1, largest_pixels: int = 1 << 20
) -> list[Box]:
    """Return boxes that cover each island of a bool ``mask`` (h, w) with at least ``context`` pixels around it.

    The margin is also at least half the island's height. Boxes start at multiples of ``multiple`` and end there or at
    the picture's edge; they are at least ``smallest`` wide and high where the picture is; two are merged where that
    costs no more pixels. A box of more than ``largest_pixels`` is cut into tiles that overlap by twice the context.
    """
    near = context // 2  # islands so near are one, which keeps their number low in speckled masks
    boxes = set()
    for box in components(grow(mask, near)):
        margin = max(context, math.ceil(box.h / 2)) - near
        x, w = _span(box.x - margin, box.x + box.w + margin, mask.shape[1], multiple, smallest)
        y, h = _span(box.y - margin, box.y + box.h + margin, mask.shape[0], multiple, smallest)
        boxes.add(Box(x, y, w, h))
    merged = _merged(sorted(boxes), largest_pixels)
    tiles = {tile for box in merged for tile in _tiles(box, context, multiple, largest_pixels)}
    return sorted(tile for tile in tiles if mask[tile.slices].any())


def _span(start: int, end: int, length: int, multiple: int, smallest: int) -> tuple[int, int]:
    """Widen ``start`` to ``end`` to ``smallest`` and to multiples, inside 0 to ``length``: its start and its size.

    Sizes are rounded up by at most an eighth, so that islands of about one size make crops of one size.
    """
    size = max(end - start, smallest) + multiple - 1  # whatever it takes to start at a multiple
    size = _round_up(size, multiple << max(0, (size // multiple).bit_length() - 4))
    spare = size - (end - start) - (multiple - 1)
    start = max(0, min((start - spare // 2) // multiple * multiple, _round_up(length - size, multiple)))
    return start, min(size, length - start)


def _merged(boxes: list[Box], largest_pixels: int) -> list[Box]:
    """Merge boxes, greedily by what is saved, while the union costs no more than its parts and is not too large."""
    rest, i = np.array(boxes, np.int64).reshape(-1, 4), 0
    while i < len(rest):
        start = np.minimum(rest[i, :2], rest[:, :2])
        size = np.maximum(rest[i, :2] + rest[i, 2:], rest[:, :2] + rest[:, 2:]) - start
        area, union = rest[:, 2:].prod(1), size.prod(1)
        saved = np.where(union <= max(largest_pixels, area[i]), area[i] + area - union, -1)
        saved[i] = -1
        best = int(saved.argmax())
        if saved[best] < 0:
            i += 1
        else:
            new = np.concatenate([start[best], size[best]])
            rest = np.vstack([np.delete(rest, [i, best], 0), new])
            i -= best < i
    return [Box(*map(int, box)) for box in rest]


def _tiles(box: Box, context: int, multiple: int, largest_pixels: int) -> Iterator[Box]:
    if box.area <= largest_pixels:
        yield box
        return
    side = math.isqrt(largest_pixels)
    h = min(box.h, max(side, largest_pixels // box.w) // multiple * multiple)
    w = min(box.w, largest_pixels // max(1, h) // multiple * multiple)
    for y, tile_h in _cuts(box.h, h, context, multiple):
        for x, tile_w in _cuts(box.w, w, context, multiple):
            yield Box(box.x + x, box.y + y, tile_w, tile_h)


def _cuts(length: int, size: int, context: int, multiple: int) -> list[tuple[int, int]]:
    """Return starts and sizes of pieces of at most ``size`` that overlap by at least twice the context."""
    if size >= length:
        return [(0, length)]
    step = (size - 2 * context) // multiple * multiple
    if step < 1:
        raise UsageError(
            f"tiles of {size} pixels are too small for a network that needs {context} pixels of context on each side",
            fix="Allow more memory",
        )
    last = _round_up(length - size, multiple)
    starts = [*range(0, last, step), last]
    return [(start, min(size, length - start)) for start in starts]


@torch.inference_mode()
def apply(
    network: Network,
    read: Read,
    paste: Paste,
    mask: np.ndarray,
    boxes: Sequence[Box],
    *,
    multiple: int = 1,
    smallest: int = 1,
    feather_px: float = 0,
    keep: np.ndarray | None = None,
    batch_pixels: int = 1 << 20,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Replace what a bool ``mask`` (h, w) covers in ``boxes`` by what ``network`` makes of them.

    ``network`` takes pictures (b, 3, h, w) in [0, 1] and masks (b, 1, h, w), 1 = take away, with sizes that are
    multiples of ``multiple`` and at least ``smallest`` (mirrored beyond the edges), and returns pictures in [0, 1].
    ``read(box)`` returns (3, h, w) float32; ``paste(box, values, weight)`` blends them in with a weight (h, w), 1 in
    the mask, falling to 0 over ``feather_px`` outside of it, 0 in the bool mask ``keep``. Crops of one size run in
    batches of up to ``batch_pixels``. ``progress(done, total)`` is told of crops after each, and cancels by raising.
    """
    boxes = sorted(set(boxes))
    unread, done = set(boxes), 0
    waiting: list[tuple[Box, np.ndarray]] = []
    for batch in _batches(boxes, multiple, smallest, batch_pixels):
        pictures = np.stack([_padded(read(box), multiple, smallest) for box in batch])
        masks = np.stack([_padded(mask[box.slices][None].astype(np.float32), multiple, smallest) for box in batch])
        made = network(torch.from_numpy(pictures), torch.from_numpy(masks)).float().cpu().numpy()
        waiting += [(box, values[:, : box.h, : box.w]) for box, values in zip(batch, made, strict=True)]
        unread -= set(batch)
        blocked = {box for box, _ in waiting if any(_overlap(box, other) for other in unread)}
        for box, values in waiting:
            if box not in blocked:
                paste(box, values, _weight(box, boxes, mask, feather_px, keep))
        waiting = [(box, values) for box, values in waiting if box in blocked]
        done += len(batch)
        progress(done, len(boxes))


def _batches(boxes: list[Box], multiple: int, smallest: int, batch_pixels: int) -> Iterator[list[Box]]:
    """Yield boxes that have the same size once padded, from the top, as many at once as ``batch_pixels`` allow."""

    def size(box: Box) -> tuple[int, int]:
        return _round_up(box.h, multiple, smallest), _round_up(box.w, multiple, smallest)

    for (h, w), group in groupby(sorted(boxes, key=lambda box: (size(box), box.y, box.x)), key=size):
        same, count = list(group), max(1, batch_pixels // (h * w))
        for i in range(0, len(same), count):
            yield same[i : i + count]


def _round_up(length: int, multiple: int, smallest: int = 1) -> int:
    return -(-max(length, smallest) // multiple) * multiple


def _padded(values: np.ndarray, multiple: int, smallest: int) -> np.ndarray:
    """Mirror (c, h, w) beyond the lower and right edges, again and again where the picture is very small."""
    _, h, w = values.shape
    pad = [(0, 0), (0, _round_up(h, multiple, smallest) - h), (0, _round_up(w, multiple, smallest) - w)]
    return np.pad(values, pad, mode="reflect")


def _weight(box: Box, boxes: list[Box], mask: np.ndarray, feather_px: float, keep: np.ndarray | None) -> np.ndarray:
    """Return the feathered mask in ``box`` where no other box owns it."""
    near = box.around(math.ceil(feather_px), mask.shape)
    weight = feather(mask[near.slices], feather_px)[box.y - near.y :, box.x - near.x :][: box.h, : box.w].copy()
    depth = _depth(box, mask.shape)
    for other in boxes:
        if other != box and _overlap(box, other):
            x, y = max(box.x, other.x), max(box.y, other.y)
            shared = Box(x, y, min(box.x + box.w, other.x + other.w) - x, min(box.y + box.h, other.y + other.h) - y)
            here = Box(x - box.x, y - box.y, shared.w, shared.h).slices
            there = Box(x - other.x, y - other.y, shared.w, shared.h).slices
            deeper = _depth(other, mask.shape)[there]
            weight[here][(deeper > depth[here]) | ((deeper == depth[here]) & (other < box))] = 0
    if keep is not None:
        weight[keep[box.slices]] = 0
    return weight


def _depth(box: Box, size: tuple[int, ...]) -> np.ndarray:
    """Return how far each pixel of ``box`` is from where the box, but not the picture of ``size``, ends."""
    return np.minimum.outer(_depths(box.y, box.h, size[0]), _depths(box.x, box.w, size[1]))


def _depths(start: int, length: int, whole: int) -> np.ndarray:
    depths = np.full(length, whole)
    if start > 0:
        depths = np.minimum(depths, np.arange(length))
    if start + length < whole:
        depths = np.minimum(depths, np.arange(length)[::-1])
    return depths


def _overlap(a: Box, b: Box) -> bool:
    return a.x < b.x + b.w and b.x < a.x + a.w and a.y < b.y + b.h and b.y < a.y + a.h
