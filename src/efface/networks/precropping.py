"""Make the channels of an untrained network as many as a budget allows, before it is trained.

What is taken away are whole channels. A rule of pruning at initialisation says which share of its weights each layer
should keep; which weights these are does not matter, only how many (the paper's observation), so the shares are turned
into widths, and a smaller dense network with new first weights is what gets trained: memory and time are saved in
training and afterwards, on any hardware. PreCrop only takes channels away. PreConfig (``allow_grow`` above 1) crops the
network that is so many times as wide, and what it gives may be wider in places than the one it was given.

Cai et al., Structured Pruning is All You Need for Pruning CNNs at Initialization (arXiv:2203.02549), and the convex
proxy of its later version (rule ``proxy``): the expected synaptic flow of a randomly masked chain is the product of the
densities, so the sum of log p is maximal under the budgets. Widths are found by weighted least squares on the
logarithms (:mod:`efface.parts.graph.widths`), where the paper has a rule for residual networks.

Left out: the proxy's form for residual blocks, which is not concave.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.ops import Delta, Op, Replace
from efface.core.ops.op import swap
from efface.core.removal import plan_removal
from efface.errors import UsageError
from efface.parts.counting import count_flops
from efface.parts.graph import ChannelGraph, channel_graph
from efface.parts.graph.growing import growable, owners, widened
from efface.parts.graph.widths import Budget, Fit, check_budgets, fit_widths, sizes_of
from efface.parts.nn.fresh import redraw
from efface.parts.sparsity.densities import densities
from efface.parts.sparsity.prunable import prunable, tied
from efface.parts.sparsity.scores import grasp, snip, synflow
from efface.parts.sparsity.topk import keep_global
from efface.seeds import numpy_generator, seeded

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task

Floats = NDArray[np.float64]
PER_CLASS = 25
"""Pictures of each class that GraSP scores weights on."""
FROZEN = 0.9
"""Share of the parameters without channels that can go, above which there is nothing to crop."""


@dataclass(frozen=True, kw_only=True)
class Precropping(Editor):
    """Hyper-parameters of PreCrop and PreConfig."""

    parameters: float = param(0.25, "share of the parameters that the new network may have", low=1e-6, high=1.0)
    flops: float = param(1.0, "share of the FLOPs that it may take", low=1e-6, high=1.0)
    rule: str = param(
        "synflow",
        "what says how dense each layer should be: synaptic flow, scores on data (snip, grasp), shapes (erk), or the "
        "optimum of the expected flow under both budgets (proxy)",
        choices=("synflow", "snip", "grasp", "erk", "proxy"),
    )
    multiple_of: int = param(8, "channels of each layer are a multiple of this; others run slower", low=1)
    allow_grow: float = param(1.0, "times as wide as it was that a layer may get (PreConfig)", low=1.0, high=16.0)
    rounds: int = param(100, "rounds of synflow", low=1)
    draws: int = param(3, "first weights that densities by snip and grasp are the mean over", low=1)
    batch: int = param(128, "pictures that snip scores on", low=1)
    inherit: bool = param(
        False, "keep the weights of the channels of largest norm, for a trained network; this is not the paper's method"
    )

    card = Card(
        title="Structured Pruning is All You Need for Pruning CNNs at Initialization",
        paper="arXiv:2203.02549",
        year=2022,
        task="channels from networks",
        inputs=("model", "task"),
        good_at="Smaller and faster to train from the first step on: a dense network with the widths that a budget "
        "allows. Its weights are new and have to be trained.",
        left_out="the proxy for residual blocks, which is not concave",
    )
    stays = "parameters"
    small: ClassVar[dict[str, Any]] = {"parameters": 0.5, "multiple_of": 1, "rounds": 5}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the edits that make ``model`` narrower, and give it new first weights.

        Raises
        ------
        UsageError
            If the inputs of the model are not known, no network is small enough, hardly any channel can go, or the rule
            scores weights on data and there is none.
        InputError
            If the model cannot be exported.
        """
        if self.inherit and self.allow_grow > 1:
            what = "there are no weights for channels that a layer did not have"
            raise UsageError(what, where="inherit", fix="Leave allow_grow at 1")
        if not work.example:
            what = "channels are followed through a call of the model, and its input is not known"
            raise UsageError(what, fix="Give the shape of one, --input 1x3x224x224, or data")
        graph = channel_graph(model, work.example)
        while True:  # until no group is left whose removal fails
            fit = self.fit(graph, data, work)
            stay = {name: self._chosen(graph, name, width, work.seed) for name, width in fit.narrower.items()}
            drops: list[Op] = [*plan_removal(graph, stay)]
            if stay.keys() <= graph.groups.keys():
                break
        made, notes = ([], []) if self.inherit else _first_weights(model, drops, fit, work.seed)
        facts = {**fit.as_dict(), "notes": [fit.bottleneck(), *notes]}
        return self.made(model, [*drops, *made], work, **facts)

    def fit(self, graph: ChannelGraph, data: Task | None, work: Work) -> Fit:
        """Return the widths of all groups of ``graph`` that can lose channels, by the rule and within the budgets."""
        model, sizes, weights = graph.model, sizes_of(graph), prunable(graph.model)
        grow = dict.fromkeys(growable(graph) if self.allow_grow > 1 else (), self.allow_grow)
        slopes = {name: found for name in weights if (found := sizes.slopes(name, {})[1])}
        wider = {name: math.prod(grow.get(g, 1.0) ** s for g, s in found.items()) for name, found in slopes.items()}
        costs = {name: float(p.numel()) for name, p in model.named_parameters()}
        _refuse_frozen(graph, sum(costs[name] for name in wider) / sum(costs.values()))
        budgets = [Budget("parameters", costs, self.parameters * sum(costs.values()))]
        if self.flops < 1 or self.allow_grow > 1:
            flops = count_flops(model, *work.example)
            costs = {name: float(count) for name, count in flops.by_weight.items()}
            budgets.append(Budget("FLOPs", costs, self.flops * flops.total - flops.other))
        check_budgets(sizes, budgets, self.multiple_of)  # before the scores, which can take minutes
        shares = [_left(budget, wider) for budget in budgets]
        if self.rule == "proxy":
            found = proxy([{name: budget.costs.get(name, 0.0) for name in wider} for budget in budgets], shares)
        else:
            found = self._densities(model, {name: weights[name] for name in wider}, min(shares), data, work)
        asked = {name: density * wider[name] for name, density in found.items()}
        return fit_widths(sizes, asked, budgets, multiple_of=self.multiple_of, grow=grow)

    def _densities(
        self, model: nn.Module, weights: Mapping[str, Tensor], density: float, data: Task | None, work: Work
    ) -> dict[str, float]:
        """Return the density of each of ``weights``, by the rule."""
        if self.rule == "erk":
            return densities("erk", {name: tuple(weight.shape) for name, weight in weights.items()}, density)
        net = copy.deepcopy(model).to(work.device)
        weights = {name: net.get_parameter(name) for name in weights}
        if self.rule == "synflow":
            example = tuple(x.to(work.device) if isinstance(x, Tensor) else x for x in work.example)
            return _shares(synflow(net, weights, example, density=density, rounds=self.rounds), density)
        if data is None:
            raise UsageError(f"the rule {self.rule} scores weights on data", where="rule", fix="Give data")
        score, count = (snip, self.batch) if self.rule == "snip" else (grasp, PER_CLASS * len(data.classes))
        found = []
        for draw in range(self.draws):
            with seeded(work.seed, "draw", draw):
                redraw(net)
            batch = data.train.batch(work.seed, draw, min(count, len(data.train)))
            batch = {key: value.to(work.device) for key, value in batch.items()}
            found.append(_shares(score(net, weights, data.loss, [batch]), density))
        return {name: sum(one[name] for one in found) / len(found) for name in weights}

    def _chosen(self, graph: ChannelGraph, name: str, width: int, seed: int) -> NDArray[np.bool_]:
        """Return which classes of a group stay: random ones, unless they keep their weights."""
        group = graph.groups[name]
        order = numpy_generator(seed, "channels", name).permutation(group.size)
        if self.inherit:
            order = np.argsort(-_norms(graph, name), kind="stable")
        stay = np.zeros(group.size, bool)
        stay[order[:width]] = True
        return stay


def proxy(costs: Sequence[Mapping[str, float]], shares: Sequence[float]) -> dict[str, float]:
    """Return the densities p in (0, 1] of layers with the largest sum of log p, within its share of each of the costs.

    The optimum is p = 1 / (lambda n + mu f), at most 1, for layers that cost n and f: under a single budget all layers
    that are not whole keep equally much. The multiplier of a budget that is not used up is 0.
    """
    names = list(costs[0])
    table = [np.array([cost[name] for name in names]) for cost in costs]

    def solved(number: int, outer: Floats) -> Floats:
        """Return p with the least multipliers of the first budgets that keep them, given the sum of the others'."""
        if number == 0:
            return 1 / np.maximum(1.0, outer)
        cost, most = table[number - 1], shares[number - 1] * table[number - 1].sum()
        low, high = 0.0, len(names) / most
        if cost @ solved(number - 1, outer) <= most:
            return solved(number - 1, outer)
        for _ in range(60):  # down to the precision of a float
            middle = (low + high) / 2
            over = cost @ solved(number - 1, outer + middle * cost) > most
            low, high = (middle, high) if over else (low, middle)
        return solved(number - 1, outer + high * cost)

    return dict(zip(names, solved(len(table), np.zeros(len(names))).tolist(), strict=True))


def _first_weights(model: nn.Module, drops: Sequence[Op], fit: Fit, seed: int) -> tuple[list[Op], list[str]]:
    """Return the edits that give what ``drops`` leave of ``model`` wider layers and new first weights, and notes."""
    net = copy.deepcopy(model).cpu()
    for drop in drops:
        drop.apply(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    args: dict[str, dict[str, Any]] = {}
    with seeded(seed, "first weights"):
        for layer in sorted({layer for name in fit.wider for layer in owners(fit.sizes.groups[name])}):
            old = net.get_submodule(layer)
            names = [name for name, _ in old.named_parameters()]
            shapes = {name: fit.sizes.shape(f"{layer}.{name}".lstrip("."), fit.widths) for name in names}
            new, args[layer] = widened(old, shapes)
            swap(net, old, new)
        kept = redraw(net)
    ops: list[Op] = [Replace.by(layer, net.get_submodule(layer), given) for layer, given in args.items()]
    others = tied(net)
    for name, tensor in net.state_dict().items():
        if name.rpartition(".")[0] not in args and name not in others and not torch.equal(tensor, before[name]):
            ops.append(Delta.set(name, tensor))
    notes = ["The first weights are new: train the network from scratch, by the recipe of the one given"]
    if kept:
        named = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
        notes.append(f"Kept as they are, since their modules do not tell how they are drawn: {named}")
    return ops, notes


def _shares(scores: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """Return the share of each layer among the best ``density`` of all scores, one weight of each at least."""
    keep = max(len(scores), round(density * sum(score.numel() for score in scores.values())))
    return {name: kept / total for name, (kept, total) in keep_global(scores, keep, min_keep=1).per_layer().items()}


def _left(budget: Budget, wider: Mapping[str, float]) -> float:
    """Return the share of the layers in ``wider``, so many times as large, that the others leave of the budget."""
    others = sum(cost for name, cost in budget.costs.items() if name not in wider)
    whole = sum(budget.costs.get(name, 0.0) * times for name, times in wider.items())
    return min(1.0, max(1e-6, (budget.most - others) / whole))


def _norms(graph: ChannelGraph, name: str) -> Floats:
    """Return the sum of squares of all the weights of each class of a group."""
    group = graph.groups[name]
    norms = np.zeros(group.size)
    weights = dict(graph.model.named_parameters())
    for member in (member for member in group.members if member.name in weights):
        tensor = weights[member.name]
        squares = (
            tensor.detach()
            .double()
            .square()
            .movedim(member.dim, 0)
            .reshape(len(member.classes), -1)
            .sum(1)
            .cpu()
            .numpy()
        )
        inside = member.classes >= 0
        np.add.at(norms, member.classes[inside], squares[inside])
    return norms


def _refuse_frozen(graph: ChannelGraph, free: float) -> None:
    """Raise :class:`UsageError` if ``free``, the share of parameters in layers with free channels, is hardly any."""
    if free < 1 - FROZEN:
        largest = max(graph.frozen.values(), key=lambda group: group.parameters, default=None)
        why = f"; {largest.name} is frozen: {largest.frozen}" if largest else ""
        what = f"only {free:.0%} of the parameters are in layers whose channels can go{why}"
        raise UsageError(what, where=type(graph.model).__name__, fix="See all groups with: efface inspect")
