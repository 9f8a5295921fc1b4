"""Name the channels of a network by atoms, and find out which atoms go together.

A *label* says of one dimension of a tensor what removes each of its indices: an int64 array (k, n) of atoms, where
index i goes as soon as one of the atoms ``label[:, i]`` goes; -1 fills up. None is the label of a dimension that stays
whole: batch, time, space. Where a dimension of n = rows x columns is seen as a grid (attention heads, groups of a
convolution), its n atoms are replaced by pairs of a row and a column, so whole rows or whole columns go.

Equal atoms are joined in a union-find whose every step works on whole arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Label = Ints
Dims = list[Label | None]
"""A label for each dimension of a tensor."""

FIXED = "tied to a dimension of fixed size: batch, time, space, a constant"
TANGLED = "seen as grids that do not fit one another"


class Atoms:
    """All atoms of a network: which are equal, which stand for a pair, which are frozen and why."""

    def __init__(self) -> None:
        self._count = 0
        self._parent = np.empty(1024, np.int64)
        self._pair = np.full((2, 1024), -1, np.int64)
        self._why = np.full(1024, -1, np.int64)
        self.reasons: list[str] = []

    @property
    def count(self) -> int:
        """Number of atoms so far."""
        return self._count

    def fresh(self, n: int) -> Label:
        """Return a label (1, n) of new atoms."""
        if self._count + n > len(self._parent):
            more = max(n, len(self._parent))
            self._parent = np.concatenate([self._parent, np.empty(more, np.int64)])
            self._pair = np.concatenate([self._pair, np.full((2, more), -1)], axis=1)
            self._why = np.concatenate([self._why, np.full(more, -1)])
        new = np.arange(self._count, self._count + n)
        self._parent[new] = new
        self._count += n
        return new[None]

    def settled(self, label: Label) -> Label:
        """Return ``label`` in atoms that stand for their kind and for no pair; -1 last in each column."""
        label = self._roots(label)
        while True:
            left, right = self._pair[:, label]
            pairs = (label >= 0) & (left >= 0)
            if not pairs.any():
                break
            both = np.stack([np.where(pairs, left, label), np.where(pairs, right, -1)], axis=1)
            label = self._roots(both.reshape(-1, label.shape[1]))
        if len(label) > 1:
            label = np.take_along_axis(label, np.argsort(label < 0, axis=0, kind="stable"), axis=0)
            label = label[: max(1, int((label >= 0).sum(0).max(initial=0)))]
        return label

    def why(self, label: Label) -> Ints:
        """Return the number of the reason why each settled atom is frozen, -1 for those that are free."""
        return np.where(label >= 0, self._why[label], -1)

    def freeze(self, label: Label | None, reason: str) -> None:
        """Never remove an index of a dimension with ``label``; the first reason stays."""
        if label is None:
            return
        atoms = self.settled(label).ravel()
        atoms = atoms[atoms >= 0]
        atoms = atoms[self._why[atoms] < 0]
        if len(atoms):
            self.reasons.append(reason)
            self._why[atoms] = len(self.reasons) - 1

    def tie(self, a: Label | None, b: Label | None, reason: str = FIXED) -> None:
        """Let index i of one dimension go if and only if index i of the other goes."""
        if a is None or b is None:
            self.freeze(a, reason)
            self.freeze(b, reason)
            return
        a, b = self._aligned(a, b)
        has_a, has_b = (a >= 0).sum(0), (b >= 0).sum(0)
        self.freeze(np.where(has_b == 0, a, -1), reason)
        self.freeze(np.where(has_a == 0, b, -1), reason)
        same = has_a == has_b
        self._merge(a[:, same].ravel(), b[:, same].ravel())
        for one, many, places in ((a, b, (has_a == 1) & (has_b > 1)), (b, a, (has_b == 1) & (has_a > 1))):
            if places.any():
                self._substitute(self.settled(one[:, places]), self.settled(many[:, places]))
        odd = ~same & (has_a > 1) & (has_b > 1)
        if odd.any():
            self.freeze(a[:, odd], TANGLED)
            self.freeze(b[:, odd], TANGLED)

    def split(self, label: Label | None, sizes: Sequence[int]) -> Dims:
        """Return the labels of the axes of a dimension that is seen as a grid of ``sizes``."""
        if label is None:
            return [None] * len(sizes)
        axes: list[list[Ints]] = [[] for _ in sizes]
        rest = []
        for layer in self.settled(label):
            axis, line = _axis(layer.reshape(sizes))
            if axis is None:
                rest.append(layer)
            else:
                axes[axis].append(line)
        if rest:
            new = [self.fresh(size) if size > 1 else None for size in sizes]
            self.tie(np.stack(rest), merge(new, sizes))
            for lines, made in zip(axes, new, strict=True):
                lines += [] if made is None else [made[0]]
        return [np.stack(lines) if lines else None for lines in axes]

    def _aligned(self, a: Label, b: Label) -> tuple[Label, Label]:
        """Settle both with as many layers; if their numbers differ, layers that are frozen throughout are left out."""
        a, b = self.settled(a), self.settled(b)
        if len(a) != len(b) and min(len(a), len(b)) > 1:
            a, b = self._thawed(a), self._thawed(b)
        layers = max(len(a), len(b))
        return _padded(a, layers), _padded(b, layers)

    def _thawed(self, label: Label) -> Label:
        free = ((label < 0) | (self.why(label) < 0)).any(1)
        return label[free] if free.any() else label

    def _roots(self, label: Label) -> Label:
        if not label.size:
            return label
        label = np.where(label >= 0, self._parent[label], -1)
        while True:
            up = np.where(label >= 0, self._parent[label], -1)
            if np.array_equal(up, label):
                return label
            label = up

    def _merge(self, a: Ints, b: Ints) -> None:
        valid = a >= 0
        a, b = a[valid], b[valid]
        every = np.concatenate([a, b])
        while True:
            a, b = self._roots(a), self._roots(b)
            differ = a != b
            if not differ.any():
                break
            a, b = a[differ], b[differ]
            self._parent[np.maximum(a, b)] = np.minimum(a, b)
        np.maximum.at(self._why, self._roots(every), self._why[every])

    def _substitute(self, atoms: Ints, cells: Ints) -> None:
        """Let each of ``atoms`` (1, n) stand for the atoms of its column in ``cells`` (k, n)."""
        whole = atoms
        atoms, first, inverse = np.unique(atoms[0], return_index=True, return_inverse=True)
        for layer in cells:  # an atom in several places has the same cells in all of them
            self._merge(layer, np.where(layer >= 0, layer[first][inverse], -1))
        cells = self._roots(cells[:, first])
        if len(whole) > 1 or np.isin(cells, atoms).any():
            self.freeze(whole, TANGLED)
            self.freeze(cells, TANGLED)
            return
        frozen = self._why[atoms] >= 0
        if frozen.any():
            self.freeze(cells[:, frozen], self.reasons[self._why[atoms[frozen][0]]])
        last = cells[-1]
        for layer in cells[-2:0:-1]:
            joint = self.fresh(len(atoms))[0]
            self._pair[:, joint] = layer, last
            last = np.where(last >= 0, joint, layer)
        self._pair[:, atoms] = cells[0], last


def merge(labels: Sequence[Label | None], sizes: Sequence[int]) -> Label | None:
    """Return the label of the dimension that axes of ``sizes`` form when they are flattened."""
    layers = []
    for axis, label in enumerate(labels):
        for line in () if label is None else label:
            shape = [len(line) if i == axis else 1 for i in range(len(sizes))]
            layers.append(np.broadcast_to(line.reshape(shape), sizes).ravel())
    return np.stack(layers) if layers else None


def join(labels: Sequence[Label | None], sizes: Sequence[int]) -> Label | None:
    """Return the label of dimensions of ``sizes`` one behind the other."""
    if all(label is None for label in labels):
        return None
    layers = max(len(label) for label in labels if label is not None)
    whole = [np.full((1, n), -1) if label is None else label for label, n in zip(labels, sizes, strict=True)]
    return np.concatenate([_padded(label, layers) for label in whole], axis=1)


def factors(old: Sequence[int], new: Sequence[int]) -> list[int] | None:
    """Return the sizes of axes of which both shapes are made by flattening neighbours, or None."""
    cuts = sorted({int(np.prod(shape[i:])) for shape in (old, new) for i in range(len(shape) + 1)}, reverse=True)
    if cuts[-1] == 0 or any(high % low for high, low in pairwise(cuts)):
        return None
    return [high // low for high, low in pairwise(cuts)]


def pieces(shape: Sequence[int], axes: Sequence[int]) -> list[list[int]]:
    """Return for each dimension of ``shape`` the sizes of those of ``axes`` that it is made of."""
    rest, found = list(axes), []
    for size in shape:
        mine: list[int] = []
        while int(np.prod(mine)) < size:
            mine.append(rest.pop(0))
        found.append(mine)
    return found


def _axis(cube: Ints) -> tuple[int | None, Ints]:
    """Return the one axis along which ``cube`` changes, and how; None where there are several."""
    for axis in sorted(range(cube.ndim), key=lambda i: -(cube.shape[i] > 1)):
        line = cube[tuple(slice(None) if i == axis else slice(0, 1) for i in range(cube.ndim))]
        if (cube == line).all():
            return axis, line.ravel()
    return None, cube


def _padded(label: Label, layers: int) -> Label:
    return np.concatenate([label, np.full((layers - len(label), label.shape[1]), -1)]) if len(label) < layers else label
