"""Turn the choice of what stays of each group into removals, in the order in which they are carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from efface.errors import PlanError
from efface.parts.graph.atoms import Label
from efface.parts.graph.groups import ChannelGraph, Group
from efface.parts.graph.remove import Cut, Removal, Resize

Keep = Mapping[str, ArrayLike]
"""For each named group, which of its classes stay (bool)."""


def keep_best(group: Group, scores: ArrayLike, share: float, *, multiple_of: int = 8) -> NDArray[np.bool_]:
    """Return the mask that keeps ``share`` (0, 1] of the classes, those of the highest scores; ties by place.

    The number of channels kept is rounded up to a multiple, since kernels are slow with others.
    """
    step = group.step(multiple_of)
    count = -(-int(np.ceil(round(share * group.size, 6))) // step) * step
    keep = np.zeros(group.size, bool)
    keep[np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[: max(step, count)]] = True
    return keep


def removals(graph: ChannelGraph, keep: Keep) -> list[Removal]:
    """Return what removing all classes but those in ``keep`` does, group by group.

    Raises
    ------
    UnknownNameError
        If there is no such group, or it is frozen.
    PlanError
        If a mask has another size than its group, or leaves nothing of it.
    """
    masks = {name: _mask(graph.group(name), mask) for name, mask in keep.items()}
    alive = {(m.name, m.dim): np.ones(len(m.classes), bool) for g in graph.groups.values() for m in g.members}
    removed = np.zeros(graph.trace.atoms.count, bool)
    sizes = _Sizes(graph)
    made = []
    for name, mask in masks.items():
        group = graph.groups[name]
        if mask.all():
            continue
        removed[group.atoms[~mask]] = True
        cuts = []
        for m in group.members:
            living, out = alive[m.name, m.dim], (m.classes >= 0) & ~mask[m.classes]
            if len(indices := np.flatnonzero(out[living])):
                cuts.append(Cut(m.name, m.dim, int(living.sum()), indices))
            alive[m.name, m.dim] = living & ~out
        made.append(Removal(name, tuple(cuts), tuple(sizes.after(group, removed))))
    return made


def gone(label: Label, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which indices of a settled ``label`` go with the atoms that are ``removed`` (True, by number)."""
    indices: NDArray[np.bool_] = np.any(removed[label] & (label >= 0), axis=0)
    return indices


class _Sizes:
    """The attributes that hold sizes, and how many indices of theirs are left as removals go on."""

    def __init__(self, graph: ChannelGraph) -> None:
        settled: dict[int, Label] = {}
        atoms, trace = graph.trace.atoms, graph.trace

        def settle(label: Label) -> Label:
            return settled.setdefault(id(label), atoms.settled(label))

        self._labels = {(module, name): [settle(label)] for module, name, label in trace.sized}
        for place, labels in trace.perhaps.items():
            if place not in self._labels:
                unique = {id(label): label for label in labels}
                self._labels[place] = [settle(label) for label in unique.values()]
        self._now = {place: labels[0].shape[1] for place, labels in self._labels.items()}

    def after(self, group: Group, removed: NDArray[np.bool_]) -> Iterator[Resize]:
        """Yield the attributes that change with what was just removed of ``group``."""
        mine = np.zeros(len(removed), bool)
        mine[group.atoms] = True
        for (module, name), labels in self._labels.items():
            touched = [label for label in labels if gone(label, mine).any()]
            counts = {int((~gone(label, removed)).sum()) for label in touched} - {self._now[module, name]}
            if len(counts) == 1:  # if they differ, nothing tells which of them is meant, and verification will
                new = counts.pop()
                yield Resize(module, name, self._now[module, name], new)
                self._now[module, name] = new


def _mask(group: Group, mask: Any) -> NDArray[np.bool_]:
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != (group.size,):
        raise PlanError(f"the mask has {mask.size} entries and the group {group.size} classes", where=group.name)
    if not mask.any():
        raise PlanError("nothing of the group would be left", where=group.name, fix="Keep at least one of its channels")
    return mask
