"""Say what a shrinking took from a model: from which layers, from which weights, and what the rest costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from efface.core.cost import Cost
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Score

BINS, REACH = 81, 4.0
"""Bins of the histograms of weights, and how many times their root mean square they reach to either side."""


@dataclass(frozen=True)
class Layer:
    """One weight that could lose some of its entries."""

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int

    @property
    def density(self) -> float:
        """Share of its entries that stay."""
        return self.kept / self.weights


@dataclass(frozen=True)
class Report:
    """What a shrinking took, and what it cost."""

    model: str
    method: str
    params: dict[str, Any]
    seed: int
    layers: tuple[Layer, ...]
    cost: Cost
    edges: tuple[float, ...]
    """Edges of the bins of :attr:`before` and :attr:`after`, which count the weights of all layers but the zeros."""
    before: tuple[int, ...]
    after: tuple[int, ...]
    data: str | None
    score_before: Score | None
    score_after: Score | None
    notes: tuple[str, ...]
    seconds: float
    versions: dict[str, str]

    @property
    def sparsity(self) -> float:
        """Share of the weights of all layers that went."""
        return 1 - sum(layer.kept for layer in self.layers) / sum(layer.weights for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**dataclasses.asdict(self), "sparsity": self.sparsity}


def layers_after(plan: Plan, net: nn.Module) -> tuple[Layer, ...]:
    """Return what ``plan`` leaves of each weight of ``net``."""
    from efface.parts.sparsity.prunable import prunable

    masks, weights = plan.masks(), prunable(net)
    kept = {name: int(masks[name].count_nonzero()) if name in masks else w.numel() for name, w in weights.items()}
    return tuple(Layer(name, tuple(w.shape), w.numel(), kept[name]) for name, w in weights.items())


def weights_after(plan: Plan, net: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of ``net`` as ``plan`` leaves them, one at a time where its edits allow that."""
    from efface.core.trial import apart, trial
    from efface.parts.sparsity.prunable import prunable

    if (alone := apart(plan.ops, net)) is None:
        with trial(plan.ops, net):
            yield from prunable(net).values()
    else:
        for name, weight in prunable(net).items():
            yield alone[name].becomes(weight) if name in alone else weight


def histogram_edges(net: nn.Module) -> tuple[float, ...]:
    """Return the edges of the bins: :data:`REACH` times the root mean square of the weights of ``net`` each way."""
    import torch

    from efface.core.ops import norm
    from efface.parts.sparsity.prunable import prunable

    weights = prunable(net).values()
    reach = REACH * norm(weights) / sum(w.numel() for w in weights) ** 0.5 or 1.0
    return tuple(torch.linspace(-reach, reach, BINS + 1).tolist())


def histogram(weights: Iterable[Tensor], edges: tuple[float, ...]) -> tuple[int, ...]:
    """Count the ``weights`` that are not zero in each bin; what lies beyond falls in the outermost."""
    import torch

    counts: Tensor = torch.zeros(BINS, dtype=torch.float64)
    for weight in weights:
        for part in weight.detach().reshape(-1).split(1 << 22):
            values = part.float().cpu()
            counts += torch.histc(values[values != 0].clamp(edges[0], edges[-1]), BINS, edges[0], edges[-1])
    return tuple(map(int, counts.tolist()))
