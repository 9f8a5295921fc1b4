"""Reconcile the gradients of two losses of the same weights, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def project_conflicting(
    first: Sequence[Tensor], second: Sequence[Tensor], strength: float = 1.0, official_scale: bool = False
) -> list[Tensor]:
    """Return the gradients ``first`` without what would make the second loss rise.

    A tensor g with <g, h> < 0, where h is that of ``second``, becomes g - strength <g, h> / |h|^2 h; the others stay
    bit for bit (Wu et al., arXiv:2405.15304; Yu et al., arXiv:2001.06782). The first one's official code takes away
    cos(g, h) h / |h|, which lacks the factor |g|; ``official_scale`` does the same.
    """
    reconciled = []
    for g, h in zip(first, second, strict=True):
        product, square = (g * h).sum(), h.square().sum()
        if product >= 0 or not square:
            reconciled.append(g)
            continue
        share = product / square
        reconciled.append(g - (strength * share / g.norm() if official_scale else strength * share) * h)
    return reconciled


def clipped(gradients: Sequence[Tensor], norm: float = 1.0) -> list[Tensor]:
    """Return ``gradients`` scaled down together to the length ``norm``, if they are longer."""
    length = torch.nn.utils.get_total_norm(list(gradients))
    return [g * (norm / length).clamp(max=1) for g in gradients]


def cosines(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the cosine of each pair of tensors (n,); 0 where one of them is 0."""
    return torch.stack(
        [torch.cosine_similarity(g.flatten(), h.flatten(), dim=0) for g, h in zip(first, second, strict=True)]
    )


def linear_loss(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a loss of which ``gradients`` are the gradients of ``weights``: how made ones reach an optimiser."""
    return torch.stack([(w * g.detach()).sum() for w, g in zip(weights, gradients, strict=True)]).sum()
