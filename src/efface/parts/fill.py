"""Fill holes without a learned network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate


def pull_push(x: Tensor, known: Tensor) -> Tensor:
    """Fill what is not known by a smooth interpolation of what is, through a pyramid of normalised averages.

    ``x`` is (b, c, h, w) of any range and any size; ``known`` is (b, 1, h, w) in [0, 1]. Where ``known`` is 1 the
    result is exactly ``x``, where it is 0 ``x`` has no influence. A picture of which nothing is known becomes 0.5.
    Differentiable in both; computed in float32 and returned in the type of ``x``.

    Gortler et al., The Lumigraph, SIGGRAPH 1996, section 3.4, with 2x2 averages down and bilinear interpolation up.
    """
    values, weights = [x.float()], [known.float()]
    while max(values[-1].shape[-2:]) > 1:
        summed = avg_pool2d(values[-1] * weights[-1], 2, ceil_mode=True)
        weight = avg_pool2d(weights[-1], 2, ceil_mode=True)
        values.append(summed / weight.clamp_min(1e-20))
        weights.append((4 * weight).clamp_max(1))  # one known pixel among the four makes the average fully known
    filled = torch.lerp(torch.full_like(values[-1], 0.5), values[-1], weights[-1])
    for value, weight in zip(values[-2::-1], weights[-2::-1], strict=True):
        up = interpolate(filled, scale_factor=2, mode="bilinear", align_corners=False)
        filled = torch.lerp(up[..., : value.shape[-2], : value.shape[-1]], value, weight)
    return filled.to(x.dtype)
