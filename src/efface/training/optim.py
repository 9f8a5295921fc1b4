"""Move weights: optimisers, the course of their learning rate, and the running average of what they reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efface.training.recipe import Train


def lr_factor(schedule: str, step: int, steps: int, warmup: float = 0.0, drops: Sequence[float] = ()) -> float:
    """Return what the highest learning rate is multiplied by at ``step`` of ``steps``, counted from 0.

    ``warmup`` is the share of the steps over which the rate rises: along a half cosine from 1/25 for ``onecycle``
    (Smith and Topin, arXiv:1708.07120), in a line for the others. ``cosine`` then falls to 0 after the last step,
    ``onecycle`` to 1/250000 at the last step, ``steps`` to a tenth after each of the shares ``drops`` of the steps.
    """
    rise = round(warmup * steps)
    if schedule == "onecycle":
        if step < rise:
            return _half_cosine(1 / 25, 1.0, step / rise)
        return _half_cosine(1.0, 1 / 250_000, (step - rise) / max(1, steps - 1 - rise))
    if step < rise:
        return (step + 1) / (rise + 1)
    if schedule == "steps":
        return 0.1 ** sum(step >= round(share * steps) for share in drops)
    return 1.0 if schedule == "constant" else _half_cosine(1.0, 0.0, (step - rise) / max(1, steps - rise))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def optimizer(parameters: Sequence[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """Return the optimiser that ``train`` asks for. Weight decay leaves biases and scales (fewer than 2 axes) alone."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.betas[0], nesterov=train.nesterov)
    kind = Muon if train.optimizer == "muon" else torch.optim.AdamW
    return kind(groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), fused=True)


class Muon(torch.optim.AdamW):
    """Move matrices and kernels by momentum made orthogonal (Jordan et al., 2024), the rest by AdamW.

    An orthogonal step moves along all directions of a matrix alike, so rare ones are learned as soon as common ones:
    a tiny denoiser follows words for shapes several times sooner. ``lr`` is the root mean square of a matrix's steps.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; the gradients of matrices are gone afterwards."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2 or p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"], state["exp_avg"] = torch.zeros((), device=p.device), torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - self.MOMENTUM)
                ahead = p.grad.lerp(state["exp_avg"], self.MOMENTUM).flatten(1)  # Nesterov's look
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonal(ahead).view_as(p), alpha=-group["lr"] * max(ahead.shape) ** 0.5)
                p.grad = None  # AdamW leaves it alone
        return super().step(closure)


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Return about the nearest matrix whose singular values are all 1, by the Newton-Schulz iteration of Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest at zero; singular values end between 0.7 and 1.2
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Ema:
    """Running average of a network's state; what is not a floating number is copied as it is.

    Early on the decay is held at (1 + t) / (10 + t) after t updates, so that the untrained weights are soon forgotten.
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor], t: int) -> None:
        """Move the average towards ``state``, ``t`` updates having been made before."""
        weight = 1 - min(self.decay, (1 + t) / (10 + t))
        floating = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in floating], [state[name] for name in floating], weight)
        for name in self.state.keys() - set(floating):
            self.state[name].copy_(state[name])
