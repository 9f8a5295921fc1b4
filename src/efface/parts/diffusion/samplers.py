"""Go from noise to a sample: each sampler is a function of a denoiser, a start and the noise levels.

``x`` (b, ...) is the start, ``sigmas[0]`` times standard noise; the state at level sigma is x0 + sigma * noise. With
d = (x - denoise(x, sigma)) / sigma, the sample follows dx / dsigma = d (Karras et al., arXiv:2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""Estimates x0 of the state ``x`` at the level ``sigma``."""
Noise = Callable[[Tensor], Tensor]
"""Draws standard noise of the form of its argument."""


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Take Euler's steps."""
    for now, then in _steps(sigmas):
        clean = denoise(x, now)
        x = clean + (then / now) * (x - clean)
    return x


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 0.0, noise: Noise = torch.randn_like) -> Tensor:
    """Take DDIM's steps (Song et al., arXiv:2010.02502, eq. 12 and 16).

    In this convention they are Euler's, and with the noise of an ``eta`` above 0 ancestral ones.
    """
    return ancestral(denoise, x, sigmas, eta=eta, noise=noise)


def ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, eta: float = 1.0, noise: Noise = torch.randn_like
) -> Tensor:
    """Go below each level by Euler's step and add noise up to it; the share added grows with ``eta``."""
    for now, then in _steps(sigmas):
        up = min(then, eta * then * (1 - (then / now) ** 2) ** 0.5)
        down = (then**2 - up**2) ** 0.5
        clean = denoise(x, now)
        x = clean + (down / now) * (x - clean)
        x = x + up * noise(x) if up else x
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Take Heun's steps: the slope is the mean of those at both ends. Every step but the last asks twice."""
    for now, then in _steps(sigmas):
        slope = (x - denoise(x, now)) / now
        guess = x + (then - now) * slope
        if then:
            slope = (slope + (guess - denoise(guess, then)) / then) / 2
        x = x + (then - now) * slope
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Take the steps of DPM-Solver++(2M) (Lu et al., arXiv:2211.01095): x0 is extrapolated from the step before.

    With h the step in -log sigma and r its ratio to the one before, D = (1 + 1 / 2r) x0 - 1 / 2r of the x0 before.
    """
    before: Tensor | None = None
    last = 0.0
    for now, then in _steps(sigmas):
        clean = aim = denoise(x, now)
        if before is not None and then:
            step = math.log(now / then)
            aim = clean + (step / (2 * last)) * (clean - before)
        x = aim + (then / now) * (x - aim)
        last = math.log(now / then) if then else 0.0
        before = clean
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpmpp-2m": dpmpp_2m,
    "ancestral": ancestral,
}
"""The samplers by their names."""


def _steps(sigmas: Tensor) -> list[tuple[float, float]]:
    return list(pairwise(sigmas.tolist()))
