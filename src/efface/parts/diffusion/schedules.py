"""Choose the noise levels at which a sampler stops: sigmas that fall to zero.

Every schedule is a float64 vector (steps + 1,), from the highest level to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sigmas_of(alphas_cumprod: Tensor) -> Tensor:
    """Return sigma = sqrt((1 - a) / a) of each step of a variance-preserving process; inf where no signal is left."""
    kept = alphas_cumprod.double()
    return ((1 - kept) / kept).sqrt()


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """Return levels evenly spaced in sigma^(1 / rho) (Karras et al., arXiv:2206.00364, eq. 5), then 0."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _ended((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho)


def exponential(steps: int, low: float, high: float) -> Tensor:
    """Return levels evenly spaced in log sigma, then 0."""
    return _ended(torch.linspace(0, 1, steps, dtype=torch.float64).mul(torch.tensor(low / high).log()).exp() * high)


def trailing(alphas_cumprod: Tensor, steps: int) -> Tensor:
    """Return the levels of ``steps`` evenly spaced steps of a process, its last one included, then 0.

    Beginning at the last step matters: a sampler that skips it starts from more noise than its model was told.
    """
    total = len(alphas_cumprod)
    places = torch.arange(total, 0, -total / steps, dtype=torch.float64).round().long()[:steps] - 1
    return _ended(sigmas_of(alphas_cumprod)[places])


def flow(steps: int, shift: float = 1.0, total: int = 1000) -> Tensor:
    """Return the levels of a rectified flow, x = (1 - s) x0 + s noise, at even times s, then 0.

    ``shift`` spends more steps on noise, as large pictures ask for (Esser et al., arXiv:2403.03206, eq. 23). The first
    time is 1, where no signal is left, and stands for ``1 - 1 / (2 * total)``, since sigma has to be finite.
    """
    s = torch.linspace(1, 1 / total, steps, dtype=torch.float64)
    s = (shift * s / (1 + (shift - 1) * s)).clamp(max=1 - 0.5 / total)
    return _ended(s / (1 - s))


def _ended(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
