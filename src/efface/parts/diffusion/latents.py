"""Go from pictures to the scaled latents of an autoencoder of diffusers, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode(vae: Any, pictures: Tensor) -> Tensor:
    """Return the scaled latents (b, c, h / n, w / n) of ``pictures`` (b, 3, h, w) in [0, 1]: their means."""
    return vae.encode(2 * pictures - 1).latent_dist.mean * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return the pictures (b, 3, h, w) in [0, 1] of scaled ``latents``; gradients go through."""
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
