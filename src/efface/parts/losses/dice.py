"""Compare masks by their overlap."""

from __future__ import annotations

from torch import Tensor


def dice(mask: Tensor, target: Tensor, smooth: float = 1e-3) -> Tensor:
    """Return ``1 - 2 mask·target / (mask² + target²)`` of each pair (b,), in [0, 1].

    ``mask`` and ``target`` are (b, ...) in [0, 1]. ``smooth`` is added to both squares (Milletari et al. 2016, V-Net).
    """
    mask, target = mask.flatten(1).float(), target.flatten(1).float()
    squares = mask.square().sum(1) + target.square().sum(1) + 2 * smooth
    return 1 - 2 * (mask * target).sum(1) / squares
