"""Say what a shrinking took from a model: from which layers, from which weights, and what the rest costs."""

from __future__ import annotations

import copy
import dataclasses
import math
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
TIMED_FLOPS, TIMED_BYTES = 2 * 10**10, 10**9
"""Largest networks that are timed."""


@dataclass(frozen=True)
class Layer:
    """One weight that could lose some of its entries."""

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    shape_after: tuple[int, ...] | None
    """None where the layer went as a whole."""

    @property
    def density(self) -> float:
        """Share of its entries that stay."""
        return self.kept / self.weights


@dataclass(frozen=True)
class Channels:
    """Channels, heads or neurons that go together, and how many of them there were and are."""

    group: str
    before: int
    after: int


@dataclass(frozen=True)
class Latency:
    """Seconds that a call takes, the median of some that were timed in turns."""

    before: float
    after: float
    batch: int

    @property
    def speedup(self) -> float:
        """How many times as quick it is afterwards."""
        return self.before / self.after


@dataclass(frozen=True)
class Report:
    """What a shrinking took, and what it cost."""

    model: str
    method: str
    params: dict[str, Any]
    seed: int
    layers: tuple[Layer, ...]
    channels: tuple[Channels, ...]
    """Empty where only single weights went."""
    cost: Cost
    latency: Latency | None
    """None where the network kept its form, so that it takes as long as before, or is too large to try it."""
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
    from efface.core.ops import TensorOp
    from efface.core.trial import trial
    from efface.parts.sparsity.prunable import prunable

    masks, before = plan.masks(), {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    with trial([op for op in plan.ops if not isinstance(op, TensorOp)], net):  # values have no part in the shapes
        after = {name: tuple(weight.shape) for name, weight in net.named_parameters(remove_duplicate=False)}

    def kept(name: str) -> int:
        return int(masks[name].count_nonzero()) if name in masks else math.prod(after[name]) if name in after else 0

    return tuple(Layer(name, shape, math.prod(shape), kept(name), after.get(name)) for name, shape in before.items())


def channels_after(plan: Plan) -> tuple[Channels, ...]:
    """Return how many channels ``plan`` leaves of each group that it takes some of."""
    from efface.core.ops import Drop

    found: dict[str, Channels] = {}
    for op in plan.ops:
        if isinstance(op, Drop):
            name, cut = op.removal.group, op.removal.cuts[0]
            before = found[name].before if name in found else cut.size
            found[name] = Channels(name, before, cut.size - len(cut.indices))
    return tuple(found.values())


def latency(plan: Plan, net: nn.Module, example: tuple[Any, ...], cost: Cost) -> Latency | None:
    """Time ``net`` before and after ``plan``, if that changes its form and both together are small enough to try."""
    import torch

    from efface.core.ops import TensorOp
    from efface.core.trial import perform
    from efface.parts.nn.modes import mode
    from efface.parts.timing import interleave

    form = [op for op in plan.ops if not isinstance(op, TensorOp)]
    if not form or cost.flops is None or cost.flops > TIMED_FLOPS or cost.dense > TIMED_BYTES:
        return None
    after = copy.deepcopy(net)
    perform(form, after)
    with torch.no_grad(), mode(net, training=False), mode(after, training=False):
        times = interleave({"before": lambda: net(*example), "after": lambda: after(*example)}, seconds=0.5)
    batch = next((len(value) for value in example if isinstance(value, torch.Tensor) and value.ndim), 1)
    return Latency(times["before"].seconds, times["after"].seconds, batch)


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
