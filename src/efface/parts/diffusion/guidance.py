"""Steer a denoiser by its condition, and take gradients through sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from efface.parts.diffusion.samplers import Denoise

Condition = Any
"""What a model is told of each of b samples: a tensor (b, ...), or a tuple of such."""
Conditional = Callable[[Tensor, float, Condition], Tensor]
"""Estimates x0 from (x, sigma, condition)."""


def guided(model: Conditional, condition: Condition, empty: Condition, scale: float) -> Denoise:
    """Return the denoiser u + scale * (c - u) of classifier-free guidance (Ho and Salimans, arXiv:2207.12598).

    ``condition`` and ``empty``, such as embeddings (b, slots, width), go through the model in one batch. A ``scale`` of
    1 asks for the condition alone, and 0 for none. Estimates of x0, noise, v and flow are linear in each other, so it
    does not matter which of them is guided.
    """
    if scale in (0.0, 1.0):
        return lambda x, sigma: model(x, sigma, condition if scale else empty)

    several = isinstance(condition, tuple)
    both = tuple(map(torch.cat, zip(empty, condition, strict=True))) if several else torch.cat([empty, condition])

    def denoise(x: Tensor, sigma: float) -> Tensor:
        without, given = model(torch.cat([x, x]), sigma, both).chunk(2)
        return torch.lerp(without, given, scale)

    return denoise


def checkpointed(denoise: Denoise, below: float = float("inf")) -> Denoise:
    """Return ``denoise`` for sampling with gradients: its activations are computed again when they are needed.

    So memory holds one state per step instead of one network. Steps at a level of ``below`` or more run without
    gradients, and what they give is a constant (as in DRaFT-K, Clark et al., arXiv:2309.17400).
    """

    def stepped(x: Tensor, sigma: float) -> Tensor:
        if sigma >= below:
            with torch.no_grad():
                return denoise(x, sigma)
        return checkpoint(denoise, x, sigma, use_reentrant=False)  # type: ignore[no-any-return]

    return stepped
