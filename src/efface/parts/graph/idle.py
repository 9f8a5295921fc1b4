"""Find the channels that masks leave without inputs or without readers, so that they can be removed for good."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from efface.parts.graph.groups import ChannelGraph, Group
from efface.parts.sparsity.masks import MaskSet


def idle(graph: ChannelGraph, masks: MaskSet) -> tuple[dict[str, NDArray[np.bool_]], MaskSet]:
    """Return which classes stay of each group that loses some, and ``masks`` without any weight of the others.

    A channel stays if some kept weight makes it and some kept weight reads it; tensors without a mask count as kept.
    One without inputs is a constant, so its readers go with it; then those that it alone fed are idle, and so on. Of
    each group one channel stays in any case. Removing what does not stay is exact under the masks returned.
    """
    left = MaskSet({name: mask.clone() for name, mask in masks.items()}, masks.aliases)
    stay = {name: np.ones(group.size, bool) for name, group in graph.groups.items()}
    before = -1
    while before != left.kept:
        before = left.kept
        for name, group in graph.groups.items():
            stay[name] &= _at_work(graph, group, left)
            stay[name][0] |= not stay[name].any()
            _clear(group, stay[name], left)
    return {name: keep for name, keep in stay.items() if not keep.all()}, left


def _at_work(graph: ChannelGraph, group: Group, masks: MaskSet) -> NDArray[np.bool_]:
    """Return which classes some kept weight makes (dimension 0) and some kept weight reads (dimension 1)."""
    sides = []
    for dim in (0, 1):
        members = [m for m in group.members if m.name in masks and m.dim == dim]
        used = np.zeros(group.size, bool)
        for m in members:
            mask = masks[m.name].movedim(dim, 0).flatten(1).any(1).cpu().numpy()
            used[m.classes[mask & (m.classes >= 0)]] = True
        matrices = [m for m in group.members if m.dim == dim and len(graph.trace.tensors[m.name]) > 1]
        others = any(m.name not in masks for m in matrices)
        sides.append(used | (others or not matrices))
    return sides[0] & sides[1]


def _clear(group: Group, stay: NDArray[np.bool_], masks: MaskSet) -> None:
    for m in group.members:
        if m.name in masks:
            out = np.flatnonzero((m.classes >= 0) & ~stay[m.classes])
            masks[m.name].movedim(m.dim, 0)[out] = False
