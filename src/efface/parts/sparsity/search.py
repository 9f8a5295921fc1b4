"""Search a mask over frozen weights, by gradients on scores that decide which weights stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from efface.parts.sparsity.masks import Attached, MaskSet, unwrapped
from efface.parts.sparsity.topk import keep_layerwise

LIVE, DEAD = 1.0, 0.99
"""First scores of weights that stay and that go: so near that one small step can swap them."""


class MaskSearch(nn.Module):
    """Run a frozen network with a mask on its weights, and train a score for each masked weight.

    Weights and affine parameters never change; running statistics of batch normalisation do, in training mode.
    ``masks`` is what the search has found so far; :meth:`attach` keeps it in step with the scores.
    """

    def __init__(self, net: nn.Module, masks: MaskSet) -> None:
        super().__init__()
        self.net, self.masks = net.requires_grad_(False), masks
        self.names = list(masks)
        self.scores = nn.ParameterList(torch.where(masks[name], LIVE, DEAD) for name in self.names)

    def forward(self, x: Tensor) -> Any:
        """Return what the masked network makes of ``x``."""
        weights = dict(self.net.named_parameters())
        masked = {
            name: _Straight.apply(weights[name], self.masks[name], score)
            for name, score in zip(self.names, self.scores, strict=True)
        }
        return functional_call(self.net, masked, (x,))

    def attach(
        self, _model: nn.Module, optimizer: Any, *, restriction: Callable[[int], float] | None = None
    ) -> Attached:
        """Update the masks after every step of ``optimizer``; undo with ``.remove()``.

        The weights with the largest scores of each layer stay, as many as before. ``restriction`` gives, for the number
        of steps taken before, the share of the swaps that is made; None makes all of them.
        """
        optimizer = unwrapped(optimizer)
        devices = {name: score.device for name, score in zip(self.names, self.scores, strict=True)}
        self.masks = MaskSet({name: mask.to(devices[name]) for name, mask in self.masks.items()})
        step = 0

        def update(*_: object) -> None:
            nonlocal step
            self.update(1.0 if restriction is None else restriction(step))
            step += 1

        return Attached([optimizer.register_step_post_hook(update)])

    @torch.no_grad()
    def update(self, share: float = 1.0) -> int:
        """Swap dead weights whose scores have risen for live ones that they passed; return the number of swaps.

        Of the P pairs of a layer the first ceil(``share`` P) are swapped: the largest scores that come in for the
        smallest that go out. Equal scores stand in the order of their places, so there are always as many of both.
        """
        scores = dict(zip(self.names, self.scores, strict=True))
        counts = {name: kept for name, (kept, _) in self.masks.per_layer().items()}
        wanted, swaps = keep_layerwise(scores, counts), 0
        for name, mask in self.masks.items():
            flat, best = mask.view(-1), wanted[name].to(mask.device).view(-1)
            enter, leave = (best & ~flat).nonzero()[:, 0], (flat & ~best).nonzero()[:, 0]
            pairs = math.ceil(share * len(enter))
            if pairs < len(enter):
                order = scores[name].view(-1)
                enter = enter[order[enter].argsort(descending=True, stable=True)]
                leave = leave[order[leave].argsort(stable=True)]
            flat[enter[:pairs]], flat[leave[:pairs]] = True, False
            swaps += pairs
        return swaps


class _Straight(torch.autograd.Function):
    """Mask a weight, and give its score the gradient as if the score stood in the mask's place."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, score: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        (weight,) = ctx.saved_tensors
        return None, None, grads[0] * weight
