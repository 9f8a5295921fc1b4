"""Keep the weights with the largest scores: exactly as many as asked, among equals those that come first.

A sample brackets the threshold; one pass counts what lies above the bracket and gathers the few scores within, which
hold it exactly. That takes linear time, and hardly any memory beyond the masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from efface.errors import UnknownNameError, UsageError, WeightsError
from efface.parts.sparsity.masks import MaskSet

CHUNK = 1 << 19
"""Scores worked on at a time: many enough to be worth a round of all threads, few enough to take no memory."""
STRIDE = 251
"""One of so many scores is in the sample; a prime, so that no shape of a layer falls into step with it."""

Key = Callable[[Tensor], Tensor]


def keep_global(
    scores: Mapping[str, Tensor], keep: int, *, min_keep: int | Mapping[str, int] = 0, key: Key | None = None
) -> MaskSet:
    """Keep the ``keep`` largest of all ``scores`` together, but at least ``min_keep`` of each layer.

    A layer smaller than its minimum stays whole. Minima move the common threshold up so that the total is the same:
    each layer keeps the larger of its minimum and of what lies above the threshold (Global MP, arXiv:2209.14624,
    solved exactly). The masks, at 1 byte a weight, are nearly all the memory that this takes. ``key`` turns a chunk of
    a layer into scores where they are used, as ``torch.abs`` does for weights, which saves the memory of a copy.
    Comparisons are made in float32, or float64 if any scores are.

    Raises
    ------
    UsageError
        If ``keep`` is less than 0 or than the minima ask for, or more than there are.
    UnknownNameError
        If ``min_keep`` names a layer that has no scores.
    WeightsError
        If scores hold NaN; the layer is named.
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    total = sum(sizes.values())
    if not 0 <= keep <= total:
        raise UsageError(f"{keep} weights are to be kept of {total}", fix=f"Keep from 0 to {total}")
    floors = _floors(sizes, keep, min_keep)
    held: dict[str, Tensor] = {}
    while True:  # a layer below its minimum is held there; the threshold of the others goes up, so it stays below
        free = {name: score for name, score in scores.items() if name not in held}
        masks = _largest(free, keep - sum(floors[name] for name in held), key)
        low = [name for name, mask in masks.items() if int(mask.count_nonzero()) < floors[name]]
        if not low:
            return MaskSet({name: held[name] if name in held else masks[name] for name in scores})
        masks.clear()
        held |= {name: _largest({name: scores[name]}, floors[name], key)[name] for name in low}


def keep_layerwise(scores: Mapping[str, Tensor], counts: Mapping[str, int], *, key: Key | None = None) -> MaskSet:
    """Keep the ``counts`` largest scores of each layer; see :func:`keep_global` for the rest.

    Raises
    ------
    UsageError
        If a layer has no count, or one below 0 or above its size.
    UnknownNameError
        If ``counts`` names a layer that has no scores.
    WeightsError
        If scores hold NaN; the layer is named.
    """
    _refuse_unknown(counts, scores)
    for name, score in scores.items():
        if not 0 <= counts.get(name, -1) <= score.numel():
            what = f"{counts[name]} weights are to be kept" if name in counts else "no count is given"
            raise UsageError(what, where=name, fix=f"Keep from 0 to {score.numel()}")
    return MaskSet({name: _largest({name: score}, counts[name], key)[name] for name, score in scores.items()})


def feasible_floor(sizes: Mapping[str, int], keep: int) -> int:
    """Return the largest minimum per layer that ``keep`` weights allow, where smaller layers stay whole."""
    left = keep
    for i, size in enumerate(sorted(sizes.values())):
        if left < size * (len(sizes) - i):
            return left // (len(sizes) - i)
        left -= size
    return max(sizes.values(), default=0)


def _floors(sizes: Mapping[str, int], keep: int, min_keep: int | Mapping[str, int]) -> dict[str, int]:
    if isinstance(min_keep, Mapping):
        _refuse_unknown(min_keep, sizes)
        floors = {name: min(size, min_keep.get(name, 0)) for name, size in sizes.items()}
    else:
        floors = {name: min(size, min_keep) for name, size in sizes.items()}
    needed = sum(floors.values())
    if needed > keep:
        fix = f"Keep at least {needed}, or lower the minimum to {feasible_floor(sizes, keep)} a layer"
        raise UsageError(f"the minima of the layers add up to {needed} weights, and {keep} are to be kept", fix=fix)
    return floors


def _largest(scores: Mapping[str, Tensor], keep: int, key: Key | None) -> dict[str, Tensor]:
    """Return masks of the ``keep`` largest scores."""
    dtype = torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32
    masks = {name: torch.empty(score.shape, dtype=torch.bool, device=score.device) for name, score in scores.items()}

    def values(name: str, parts: Iterable[slice]) -> Iterator[Tensor]:
        flat = scores[name].detach().reshape(-1)
        for part in parts:
            numbers = flat[part].to(dtype)
            yield numbers if key is None else key(numbers)

    def chunks() -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, mask in masks.items():
            parts = [slice(start, start + CHUNK) for start in range(0, mask.numel(), CHUNK)]
            for part, numbers in zip(parts, values(name, parts), strict=True):
                yield name, numbers, mask.view(-1)[part]

    for name, numbers, _ in chunks():
        if numbers.max().isnan():  # which it is if any is
            raise WeightsError("the scores hold NaN", where=name, fix="Take weights and data without NaN")
    total = sum(score.numel() for score in scores.values())
    every = slice(None, None, STRIDE if total > CHUNK else 1)
    sample = torch.cat([torch.empty(0, dtype=dtype), *(x.cpu() for name in scores for x in values(name, [every]))])
    threshold, ties, all_ties = _threshold(lambda: (numbers for _, numbers, _ in chunks()), keep, total, sample)
    for _, numbers, mask in chunks():
        (torch.ge if all_ties else torch.gt)(numbers, threshold, out=mask)
        if ties and not all_ties:
            equal = (numbers == threshold).nonzero()[:ties, 0]
            mask[equal] = True
            ties -= len(equal)
    return masks


def _threshold(
    chunks: Callable[[], Iterable[Tensor]], keep: int, total: int, sample: Tensor
) -> tuple[float, int, bool]:
    """Return the ``keep``-th largest number, how many equal to it to keep, and whether these are all there are."""
    width = 0 if len(sample) == total else 4
    while keep:
        low, high = _bracket(sample, keep / total, width)
        above, at_high, at_low = 0, 0, 0
        found = bytearray()  # grows in one piece; many small ones would break up the memory for the chunks
        for numbers in chunks():
            over = numbers > high
            inside = numbers[((numbers >= low) ^ over).nonzero()[:, 0]]  # quicker than by a mask
            above += int(torch.count_nonzero(over))
            at_high += int(torch.count_nonzero(inside == high))
            at_low += int(torch.count_nonzero(inside == low))
            found += inside[(inside > low) & (inside < high)].cpu().numpy().tobytes()
        between, rest = torch.from_numpy(np.frombuffer(found, sample.numpy().dtype)), keep - above
        if 0 < rest <= at_high:
            return high, rest, rest == at_high
        rest -= at_high
        if 0 < rest <= len(between):
            value = _nth_largest(between, rest)
            rest -= int(torch.count_nonzero(between > value))
            return value, rest, rest == int(torch.count_nonzero(between == value))
        rest -= len(between)
        if 0 < rest <= at_low and low < high:
            return low, rest, rest == at_low
        width *= 4  # the sample misled; at last the bracket holds everything
    return torch.inf, 0, False


def _bracket(sample: Tensor, share: float, width: float) -> tuple[float, float]:
    """Return numbers that the one with ``share`` of all above it lies between, up to ``width`` standard deviations."""
    count = len(sample)
    margin = width * (width + math.sqrt(count * share * (1 - share)))
    low, high = math.ceil(share * count + margin), math.floor(share * count - margin)
    return (
        _nth_largest(sample, low) if low <= count else -torch.inf,
        _nth_largest(sample, high) if high >= 1 else torch.inf,
    )


def _nth_largest(numbers: Tensor, rank: int) -> float:
    """Return the number of a ``rank`` from 1 on; the order of ``numbers`` changes, which spares a copy."""
    array, place = numbers.numpy(), len(numbers) - rank
    array.partition(place)
    return float(array[place])


def _refuse_unknown(names: Mapping[str, int], scores: Mapping[str, object]) -> None:
    for name in names:
        if name not in scores:
            raise UnknownNameError("layer", name, scores)
