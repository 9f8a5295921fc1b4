"""Exchange live weights of a layer for dead ones: the same number goes and comes.

A layer is given as its weight, its boolean mask (True where a weight lives) and scores of the same shape. Counts are
exact, ties go to the lower index, and nothing is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from efface.parts.sparsity.topk import keep_layerwise


def exchangeable(mask: Tensor, share: float) -> int:
    """Return how many weights to exchange: ``share`` of the live ones, rounded up, but no more than are dead.

    A dense layer has nowhere to grow, so it exchanges nothing.
    """
    live = int(mask.count_nonzero())
    return min(math.ceil(share * live), mask.numel() - live)


def drop_smallest(weight: Tensor, mask: Tensor, count: int, fresh: Tensor | None = None) -> Tensor:
    """Return ``mask`` without the ``count`` live weights of smallest magnitude; those in ``fresh`` go last."""
    return mask & ~_largest(-protected(weight, fresh), mask, count)


def grow_largest(score: Tensor, mask: Tensor, count: int, fired: Tensor | None = None) -> Tensor:
    """Return ``mask`` with the ``count`` dead positions of highest ``score`` >= 0 added.

    With ``fired``, where weights have ever lived, positions that never lived come first (Liu et al., In-Time
    Over-Parameterization, arXiv:2102.02887).
    """
    score = score.detach().float()
    if fired is not None:
        first = _largest(score, ~(mask | fired), count)
        mask, count = mask | first, count - int(first.count_nonzero())
    return mask | _largest(score, ~mask, count)


def protected(weight: Tensor, fresh: Tensor | None) -> Tensor:
    """Return |w| in float32, with the largest number for weights in ``fresh``, which had no time to grow."""
    size = weight.detach().float().abs()
    return size if fresh is None else size.masked_fill(fresh, torch.finfo(torch.float32).max)


def momentum(state: Mapping[str, Any]) -> Tensor | None:
    """Return how steadily the optimiser wants each weight to move, or None where its ``state`` does not tell.

    That is |buffer| for SGD (Dettmers and Zettlemoyer, arXiv:1907.04840) and |m| / (sqrt(v) + eps) for Adam.
    """
    if (buffer := state.get("momentum_buffer")) is not None:
        return buffer.float().abs()
    if "exp_avg" in state and "exp_avg_sq" in state:
        return state["exp_avg"].float().abs() / (state["exp_avg_sq"].float().sqrt() + 1e-8)
    return None


def _largest(score: Tensor, among: Tensor, count: int) -> Tensor:
    """Return where the ``count`` highest scores are, of those where ``among`` is true."""
    count = min(count, int(among.count_nonzero()))
    return keep_layerwise({"layer": score.masked_fill(~among, -torch.inf)}, {"layer": count})["layer"]
