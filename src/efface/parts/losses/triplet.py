"""Reward a refined result for being nearer to the truth than it is to what was refined."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

LEAST = 1e-7
"""Keeps the ratio at 0 where all three pictures are the same."""


def triplet_erasure(refined: Tensor, truth: Tensor, coarse: Tensor, *, push: float = 50.0) -> Tensor:
    """Return ``d(refined, truth) / (d(refined, truth) + push * d(refined, coarse)²)``, in [0, 1).

    The triplet erasure loss of STE (arXiv:2204.12743) pulls ``refined`` to ``truth`` and off ``coarse``, which gets
    no gradient. d is the mean absolute difference. Where all three are the same the loss is 0.
    """
    pull = F.l1_loss(refined, truth)
    away = F.l1_loss(refined, coarse.detach())
    return pull / (LEAST + pull + push * away.square())
