"""Look for an erased concept in what the denoiser makes of pictures of it, rather than of words.

An edit that only cuts the way from the text leaves these open (Lu et al., arXiv:2505.17013).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.parts.concepts.case import Case
from efface.parts.diffusion.adapters import levels
from efface.parts.diffusion.inversion import encoded
from efface.parts.diffusion.latents import decode
from efface.parts.diffusion.pipelines import first_noise, prompted
from efface.parts.diffusion.samplers import Denoise, ddim
from efface.seeds import derive

BATCH = 64


@dataclass(frozen=True)
class HalfNoised:
    """Begin with the original's picture of the target under noise, rather than with noise alone."""

    share: float = 0.5
    """Share of the steps that is left to the attacked model; 1 begins with almost pure noise."""
    name: ClassVar[str] = "half-noised"

    def observe(self, m0: Any, case: Case) -> Tensor:
        """Return the latents of the original's pictures."""
        return _latents(m0, case)

    @torch.no_grad()
    def strike(self, m: Any, found: Tensor, case: Case) -> Tensor:
        """Draw on from the noised latents, under the prompts that ask for the target."""
        steps = case.drawing.steps
        sigmas = levels(m.scheduler, steps)[steps - max(1, round(self.share * steps)) :]
        noise = first_noise(m, [derive(seed, self.name) for seed in case.seeds])
        return _draw(m, case, found + sigmas[0].item() * noise, sigmas)


@dataclass(frozen=True)
class Inpainting:
    """Give the left half of the original's picture of the target, and let the model draw the right one."""

    name: ClassVar[str] = "inpainting"

    def observe(self, m0: Any, case: Case) -> Tensor:
        """Return the latents of the original's pictures."""
        return _latents(m0, case)

    @torch.no_grad()
    def strike(self, m: Any, found: Tensor, case: Case) -> Tensor:
        """Draw under the prompts that ask for the target; the left half of every estimate is the given one."""
        sigmas = levels(m.scheduler, case.drawing.steps)
        return _draw(m, case, first_noise(m, case.seeds) * sigmas[0].item(), sigmas, known=found)


def _latents(pipe: Any, case: Case) -> Tensor:
    return encoded(pipe, case.pictures)


def _draw(pipe: Any, case: Case, start: Tensor, sigmas: Tensor, known: Tensor | None = None) -> Tensor:
    made, drawing = [], case.drawing
    for first in range(0, len(start), BATCH):
        part = slice(first, first + BATCH)
        denoise = prompted(pipe, case.prompts[part], drawing.guidance, drawing.negative)
        if known is not None:
            denoise = _holding(denoise, known[part])
        made.append(decode(pipe.vae, ddim(denoise, start[part], sigmas)).cpu())
    return torch.cat(made)


def _holding(denoise: Denoise, known: Tensor) -> Denoise:
    middle = known.shape[-1] // 2
    return lambda x, sigma: torch.cat([known[..., :middle], denoise(x, sigma)[..., middle:]], dim=-1)
