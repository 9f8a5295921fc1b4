"""Measure what each block of a decoder does to the states that pass through it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.parts.language.passes import block_by_block, hidden


def angular(x: Tensor, y: Tensor) -> Tensor:
    """Return the angle between states (n, d) before and after, over pi: 0 to 1."""
    return F.cosine_similarity(x, y, dim=-1).clamp(-1, 1).acos() / math.pi


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 minus the cosine, the block influence of ShortGPT (Men et al., arXiv:2403.03853)."""
    return 1 - F.cosine_similarity(x, y, dim=-1)


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared difference."""
    return (x - y).square().mean(-1)


def mae(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return (x - y).abs().mean(-1)


INFLUENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "angular": angular,
    "cosine": cosine,
    "mse": mse,
    "mae": mae,
}
"""Influences of a block on a token, by name."""


def block_influence(model: nn.Module, rows: Sequence[Tensor], metric: str = "angular") -> list[float]:
    """Return the influence of each block of ``model``, the mean over all tokens of ``rows`` of (b, t) tokens."""
    found: list[float] = []

    @contextlib.contextmanager
    def watch(number: int, block: nn.Module) -> Iterator[None]:
        with influence_of(block, metric) as sums:
            yield
        found.append(math.fsum(sums) / sum(ids.numel() for ids in rows))

    block_by_block(model, rows, watch)
    return found


@contextlib.contextmanager
def influence_of(block: nn.Module, metric: str) -> Iterator[list[float]]:
    """Give the list to which the influence on all tokens of every call of ``block`` is added, as a sum."""
    sums: list[float] = []

    def add(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: object) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        with torch.no_grad():
            sums.append(float(INFLUENCES[metric](before.float(), hidden(output).float()).double().sum()))

    hook = block.register_forward_hook(add, with_kwargs=True)
    try:
        yield sums
    finally:
        hook.remove()
