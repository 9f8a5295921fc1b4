"""Rules of operations that combine numbers in their places, or move them: elementwise, views, cuts, joins."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from efface.parts.graph.atoms import Dims, factors, join, merge, pieces
from efface.parts.graph.trace import Call


def made(call: Call) -> Dims:
    """Make a tensor of a size that is written in the code."""
    return [None] * len(call.shape())


def elementwise(call: Call) -> Dims:
    """Tie the dimensions that meet; those of size 1 are repeated and say nothing."""
    return meet(call, [(call.shape(node), call.dims(node)) for node in call.inputs])


def view(call: Call) -> Dims:
    """Cut dimensions into the axes that both shapes are made of, and flatten those anew."""
    source, old, new = call.dims("self"), call.shape("self"), call.shape()
    axes = factors(old, new)
    if axes is None:
        call.freeze(source, f"makes {new} of {old}, which cuts through rows")
        return [None] * len(new)
    labels: Dims = []
    for label, sizes in zip(source, pieces(old, axes), strict=True):
        labels += call.atoms.split(label, sizes) if len(sizes) > 1 else [label] * len(sizes)
    result: Dims = []
    for sizes in pieces(new, axes):
        mine = labels[: len(sizes)]
        labels = labels[len(sizes) :]
        result.append(merge(mine, sizes) if len(sizes) > 1 else mine[0] if mine else None)
    return result


def squeeze(call: Call) -> Dims:
    """Leave out or put in dimensions of size 1; the others stay in their order."""
    old, new = call.shape("self"), call.shape()
    rest = [label for label, size in zip(call.dims("self"), old, strict=True) if size != 1]
    return [None if size == 1 else rest.pop(0) for size in new]


def permute(call: Call) -> Dims:
    """Move labels as the dimensions move."""
    labels, ndim = call.dims("self"), len(call.shape())
    places = np.arange(ndim)
    if call.op == "permute":
        places = np.array(call["dims"]) % ndim
    elif call.op in ("movedim", "moveaxis"):
        source, target = (np.atleast_1d(call[name]) % ndim for name in ("source", "destination"))
        rest = iter(i for i in range(ndim) if i not in source)
        moved = dict(zip(target.tolist(), source.tolist(), strict=True))
        places = np.array([moved[i] if i in moved else next(rest) for i in range(ndim)])
    else:
        first = next((call[name] for name in ("dim0", "axis0") if call[name] is not None), -2)
        second = next((call[name] for name in ("dim1", "axis1") if call[name] is not None), -1)
        if ndim > 1:
            places[[first, second]] = places[[second, first]]
    return [labels[i] for i in places]


def expand(call: Call) -> Dims:
    """Repeat dimensions of size 1, which makes them fixed."""
    labels, old, new = call.dims("self"), call.shape("self"), call.shape()
    more = len(new) - len(old)
    return [*[None] * more, *(label if n == m else None for label, n, m in zip(labels, old, new[more:], strict=True))]


def repeat(call: Call) -> Dims:
    """Repeat whole dimensions."""
    old, new = call.shape("self"), call.shape()
    labels = [*[None] * (len(new) - len(old)), *call.dims("self")]
    old = [*[1] * (len(new) - len(old)), *old]
    return [None if label is None or n == 1 else np.tile(label, m // n)
            for label, n, m in zip(labels, old, new, strict=True)]  # fmt: skip


def repeat_interleave(call: Call) -> Dims:
    """Repeat each index of a dimension, as grouped-query attention does with its keys."""
    labels, dim, new = list(call.dims("self")), call["dim"], call.shape()
    if dim is None or len(new) != len(labels):
        call.freeze(labels, "repeats its elements")
        return [None] * len(new)
    old = call.shape("self")[dim]
    if (label := labels[dim]) is not None:
        labels[dim] = np.repeat(label, new[dim] // old, axis=1)
    return labels


def cat(call: Call) -> Dims:
    """Put labels one behind the other along one dimension, and tie the others."""
    nodes: list[Node] = [node for node in call["tensors"] if math.prod(call.shape(node))]
    dim = (call["dim"] or 0) % len(call.shape())
    result = list(call.dims(nodes[0]))
    for node in nodes[1:]:
        for i, label in enumerate(call.dims(node)):
            if i != dim:
                call.tie(result[i], label)
    result[dim] = join([call.dims(node)[dim] for node in nodes], [call.shape(node)[dim] for node in nodes])
    return result


def stack(call: Call) -> Dims:
    """Tie all dimensions; the new one is fixed."""
    nodes = call["tensors"]
    if call.op != "stack":
        return _all_frozen(call, "stacks tensors")
    for node in nodes[1:]:
        for a, b in zip(call.dims(nodes[0]), call.dims(node), strict=True):
            call.tie(a, b)
    dim = call["dim"] % len(call.shape())
    return [*call.dims(nodes[0])[:dim], None, *call.dims(nodes[0])[dim:]]


def split(call: Call) -> list[Dims]:
    """Cut a dimension; parts of one size stay of one size."""
    labels, dim = call.dims("self"), (call["dim"] or 0) % len(call.shape("self"))
    sizes = [int(part.shape[dim]) for part in call.node.meta["val"]]
    if (label := labels[dim]) is None:
        return [list(labels) for _ in sizes]
    parts = np.split(label, np.cumsum(sizes)[:-1], axis=1)
    if len(set(sizes)) == 1:
        for part in parts[1:]:
            call.tie(parts[0], part)
    return [[*labels[:dim], part, *labels[dim + 1 :]] for part in parts]


def unbind(call: Call) -> list[Dims]:
    """Take every index of a dimension, which fixes it."""
    labels, dim = list(call.dims("self")), (call["dim"] or 0) % len(call.shape("self"))
    call.freeze([labels.pop(dim)], "takes every index of it by itself")
    return [list(labels) for _ in call.node.meta["val"]]


def select(call: Call) -> Dims:
    """Take one index of a dimension, which fixes it."""
    labels = list(call.dims("self"))
    call.freeze([labels.pop(call["dim"])], "takes one index of it")
    return labels


def cut(call: Call) -> Dims:
    """Take a range of a dimension; a half or third of it keeps its share, so all such parts are tied."""
    labels, dim = list(call.dims("self")), call["dim"] or 0
    if (label := labels[dim]) is None:
        return labels
    start, step = call["start"] or 0, call["step"] or 1
    if call.op == "narrow":
        labels[dim] = label[:, start : start + call["length"]]
    else:
        labels[dim] = label[:, slice(start, call["end"], step)]
    whole, part = label.shape[1], label[:, :: 1 if call.op == "narrow" else step].shape[1]
    size = labels[dim].shape[1]  # type: ignore[union-attr]
    if step != 1:
        call.freeze([label], f"takes every {step}th index of it")
    elif size and size < part == whole and whole % size == 0 and start % size == 0:
        parts = np.split(label, whole // size, axis=1)
        for other in parts[1:]:
            call.tie(parts[0], other)
    return labels


def index_select(call: Call) -> Dims:
    """Take indices of a dimension, which fixes it."""
    labels, dim = list(call.dims("self")), call["dim"]
    call.freeze([labels[dim], *call.dims("index")], "takes indices of it")
    labels[dim] = None
    return labels


def index(call: Call) -> Dims:
    """Take indices of leading dimensions; where tensors of indices stand side by side, the others keep their labels."""
    labels, given = call.dims("self"), call["indices"]
    taken = [i for i, tensor in enumerate(given) if tensor is not None]
    for i in taken:
        call.freeze([labels[i], *call.dims(given[i])], "takes indices of it")
    new = len(call.shape()) - (len(labels) - len(taken))
    if taken != list(range(taken[0], taken[0] + len(taken))):
        return _all_frozen(call, "takes indices of it")
    return [*labels[: taken[0]], *[None] * new, *labels[taken[-1] + 1 :]]


def gather(call: Call) -> Dims:
    """Take elements one by one, which fixes all dimensions."""
    return _all_frozen(call, "gathers elements of it")


def pad(call: Call) -> Dims:
    """Put fixed indices around a dimension."""
    labels, amounts = list(call.dims("self")), call["pad"]
    for back in range(len(amounts) // 2):
        before, after = amounts[2 * back : 2 * back + 2]
        label, place = labels[-1 - back], len(labels) - 1 - back
        if label is not None and (before or after):
            if min(before, after) < 0 or call["mode"] not in (None, "constant"):
                call.freeze([label], "pads it")
                labels[place] = None
            else:
                labels[place] = join([None, label, None], [before, label.shape[1], after])
    return labels


def pixels(call: Call) -> Dims:
    """Turn r x r channels into r x r pixels, or back."""
    labels, old, new = call.dims("self"), call.shape("self"), call.shape()
    spread = max(old[-3] // new[-3], new[-3] // old[-3])
    call.freeze(labels[-2:], "moves pixels")
    if call.op == "pixel_shuffle":
        channels, offsets = call.atoms.split(labels[-3], (new[-3], spread))
        call.freeze([offsets], "turns it into pixels")
    else:
        channels = None if labels[-3] is None else np.repeat(labels[-3], spread, axis=1)
    return [*labels[:-3], channels, None, None]


def channel_shuffle(call: Call) -> Dims:
    """Exchange groups and places in groups."""
    labels, groups = list(call.dims("self")), call["groups"]
    sizes = (groups, call.shape()[1] // groups)
    rows, columns = call.atoms.split(labels[1], sizes)
    labels[1] = merge([columns, rows], sizes[::-1])
    return labels


def glu(call: Call) -> Dims:
    """Gate the first half of a dimension by the second."""
    labels, dim = list(call.dims("self")), call["dim"]
    if (label := labels[dim]) is not None:
        labels[dim], gate = np.split(label, 2, axis=1)
        call.tie(labels[dim], gate)
    return labels


def _all_frozen(call: Call, why: str) -> Dims:
    for node in call.inputs:
        call.freeze(call.dims(node), why)
    return [None] * len(call.shape())


def meet(call: Call, given: list[tuple[list[int], Dims]]) -> Dims:
    """Tie the dimensions of shapes that are broadcast, and return the labels of the result."""
    ndim = max(len(shape) for shape, _ in given)
    size = [max(shape[-back] for shape, _ in given if len(shape) >= back) for back in range(ndim, 0, -1)]
    result: Dims = [None] * ndim
    met = [False] * ndim
    for shape, labels in given:
        for back in range(1, len(shape) + 1):
            if shape[-back] != size[-back] or size[-back] == 1:
                continue
            if met[-back]:
                call.tie(result[-back], labels[-back])
            result[-back] = labels[-back] if result[-back] is None else result[-back]
            met[-back] = True
    return result
