"""Go from a picture back to its latents, and to the noise that draws it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from efface.parts.diffusion.adapters import levels
from efface.parts.diffusion.latents import decode, encode
from efface.parts.diffusion.pipelines import prompted
from efface.parts.diffusion.samplers import Denoise, ddim


def ddim_inverse(denoise: Denoise, x: Tensor, sigmas: Tensor, *, rounds: int = 1) -> Tensor:
    """Return the state at the level ``sigmas[0]`` from which :func:`~efface.parts.diffusion.samplers.ddim` makes ``x``.

    ``sigmas`` fall to 0, as for sampling. A step up takes the slope of where it begins (Song et al., arXiv:2010.02502,
    section 4.3), but sampling takes that of where it ends. So each of ``rounds`` corrects it by the slope there, a
    fixed-point iteration that draws near the true inverse; 0 is the usual form.
    """
    for now, then in pairwise(sigmas.flip(0).tolist()):
        level = now or then  # no model knows the slope at level 0
        end = x + (then - now) * (x - denoise(x, level)) / level
        for _ in range(rounds):
            end = x + (then - now) * (end - denoise(end, then)) / then
        x = end
    return x


@torch.no_grad()
def encoded(pipe: Any, pictures: Tensor, *, batch: int = 16) -> Tensor:
    """Return the latents (b, c, h', w') of ``pictures`` (b, 3, h, w) in [0, 1]: the means, scaled."""
    net = pipe.unet
    return torch.cat([encode(pipe.vae, part.to(net.device, net.dtype)) for part in pictures.split(batch)])


@torch.no_grad()
def inverted(pipe: Any, pictures: Tensor, prompts: Sequence[str], *, steps: int = 50, rounds: int = 1) -> Tensor:
    """Return the noisy latents from which ``pipe`` draws ``pictures`` (b, 3, h, w) in [0, 1] under their prompts.

    Guidance is 1, since a guided step up is not undone by one down.
    """
    sigmas = levels(pipe.scheduler, steps)
    return ddim_inverse(prompted(pipe, prompts, 1.0), encoded(pipe, pictures), sigmas, rounds=rounds)


@torch.no_grad()
def redrawn(pipe: Any, noisy: Tensor, prompts: Sequence[str], *, steps: int = 50, guidance: float = 1.0) -> Tensor:
    """Return the pictures (b, 3, h, w) in [0, 1] that ``pipe`` draws from what :func:`inverted` gave, on the CPU."""
    made = ddim(prompted(pipe, prompts, guidance), noisy, levels(pipe.scheduler, steps))
    return decode(pipe.vae, made).cpu()
