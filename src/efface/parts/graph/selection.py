"""Choose channels of a whole network that come to zero and go, for a target in groups, parameters or FLOPs.

A class of channels is a *zero-invariant* group by all that makes the channel: rows of weights, biases, scales and
shifts of norms, also those of a norm behind a concatenation. What only reads the channel is not part of it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from efface.errors import UsageError
from efface.parts.counting import count_flops
from efface.parts.graph.groups import ChannelGraph, Member
from efface.parts.graph.trace import named, quiet
from efface.parts.graph.verify import TOLERANCE, distance, floats
from efface.parts.graph.widths import sizes_of
from efface.parts.sparsity.groups import GroupViews, View
from efface.seeds import torch_generator

Budget = Literal["groups", "params", "flops"]
NORMED = "a norm takes its mean and variance over these channels, so zeros are not as good as none"
WAKING = "zeros do not stay zero on the way to what reads these channels"
_SUMMED = {
    "linear": (("weight", -1),),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (("weight", 1),)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (("weight", 0),)),
    **dict.fromkeys(("mm", "bmm"), (("self", -1), ("mat2", -2))),
    "matmul": (("self", -1), ("other", -2)),
    "addmm": (("mat1", -1), ("mat2", -2)),
    "baddbmm": (("batch1", -1), ("batch2", -2)),
}
"""Dimensions of arguments that an operation sums over: by those a weight reads channels and makes none."""


class Channels:
    """The classes of some groups, numbered through, and the choice of those that go; a :class:`.group_sparse.Choice`.

    ``target`` is the share that goes of all classes, of the parameters or of the FLOPs of the network, as ``budget``
    says. Groups keep multiples of ``multiple_of`` channels, and at least one such. ``reachable`` is the largest target.

    Raises :class:`UsageError` if the target is out of reach; the message says what is not.
    """

    def __init__(
        self, graph: ChannelGraph, names: Sequence[str], target: float, budget: Budget = "groups", multiple_of: int = 1
    ) -> None:
        self.graph, self.names, self.budget = graph, tuple(names), budget
        groups = [graph.group(name) for name in names]
        self._counts = np.array([group.size for group in groups], np.int64)
        self._steps = np.array([min(group.step(multiple_of), group.size) for group in groups], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self.count = int(self._starts[-1])
        self._sizes = sizes_of(graph)
        flops = count_flops(graph.model, *graph.args) if budget == "flops" else None
        numbers = {name: p.numel() for name, p in graph.model.named_parameters()}
        self._costs = numbers if flops is None else flops.by_weight
        self._total = sum(numbers.values()) if flops is None else flops.total
        self.reachable = self._share(self._legal(self._counts - 1))
        if not names or target > self.reachable + 1e-9:
            what = f"{target:.1%} of the {budget} is out of reach: {self.reachable:.1%} can go"
            fix = "Lower the target or multiple_of, or let more go; `efface inspect` tells what is frozen and why"
            raise UsageError(what, where="target", fix=fix)
        self.target = round(target * self.count) / self.count if budget == "groups" else target

    def views(self, made: set[tuple[str, int]] | None = None) -> list[View]:
        """Return what makes each class; ``made`` is what :func:`makers` found."""
        made = makers(self.graph) if made is None else made
        views = []
        for start, name in zip(self._starts, self.names, strict=False):
            for m in self.graph.groups[name].members:
                if (m.name, m.dim) in made:
                    views.append(_view(m, int(start)))
        return views

    def choose(self, importance: Tensor, part: float = 1.0, spare: float = 0.0) -> Tensor:
        """Return the classes (bool) that go: in each group the least important, in blocks that leave a multiple.

        Blocks compete over the whole network by the mean importance of their classes.
        """
        scores = importance.double().numpy()
        blocks = [(owner, block) for owner in range(len(self.names)) for block in self._blocks(owner, scores)]
        blocks.sort(key=lambda block: float(scores[block[1]].mean()))
        owners = np.array([owner for owner, _ in blocks], np.int64)
        sizes = np.array([len(block) for _, block in blocks], np.int64)
        wanted = min(part * self.target + spare, self.reachable)
        low, high = -1, len(blocks)
        while high - low > 1:  # the fewest blocks that are enough
            middle = (low + high) // 2
            removed = np.bincount(owners[:middle], sizes[:middle], len(self.names)).astype(np.int64)
            low, high = (low, middle) if self._share(removed) >= wanted - 1e-9 else (middle, high)
        chosen = torch.zeros(self.count, dtype=torch.bool)
        for _, block in blocks[:high]:
            chosen[torch.from_numpy(block)] = True
        return chosen

    def enough(self, zero: Tensor) -> bool:
        """Say whether the target is reached by those of the classes ``zero`` that can go in whole multiples."""
        return self._share(self._removable(zero)) >= self.target - 1e-9

    def keep(self, zero: Tensor) -> dict[str, NDArray[np.bool_]]:
        """Return which classes of each group stay, where those of ``zero`` go that leave a multiple."""
        masks = {}
        for name, count, (start, end) in zip(self.names, self._removable(zero), self._spans, strict=True):
            mask = np.ones(end - start, bool)
            mask[np.flatnonzero(zero.cpu().numpy()[start:end])[:count]] = False
            if count:
                masks[name] = mask
        return masks

    def _blocks(self, owner: int, scores: NDArray[np.float64]) -> list[NDArray[np.int64]]:
        """Return the classes of a group, the least important first, in blocks that each leave a multiple."""
        (start, end), step = self._spans[owner], int(self._steps[owner])
        order = start + np.argsort(scores[start:end], kind="stable")
        return np.split(order, range((end - start) % step or step, end - start, step))[:-1]

    @property
    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True))

    def _removable(self, zero: Tensor) -> NDArray[np.int64]:
        found = zero.cpu().numpy()
        return self._legal(np.array([np.count_nonzero(found[start:end]) for start, end in self._spans], np.int64))

    def _legal(self, removed: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest numbers up to ``removed`` that leave a multiple, one multiple at least."""
        left = -(-(self._counts - removed) // self._steps) * self._steps
        return self._counts - np.minimum(np.maximum(left, self._steps), self._counts)

    def _share(self, removed: NDArray[np.int64]) -> float:
        """Return the share of the budget that goes with so many classes of each group."""
        if self.budget == "groups":
            return float(removed.sum()) / max(1, self.count)
        widths = dict(zip(self.names, (self._counts - removed).tolist(), strict=True))
        saved = sum(c * (1 - self._sizes.numel(n, widths) / self._sizes.numel(n, {})) for n, c in self._costs.items())
        return saved / max(1, self._total)


def makers(graph: ChannelGraph) -> set[tuple[str, int]]:
    """Return the dimensions (parameter, dimension) by which channels are made or scaled, and not only read."""
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    found: set[tuple[int, int]] = set()
    for node, source in graph.program.sources.items():
        if isinstance(source, str) and source in parameters:
            parameter = parameters[source]
            for user in node.users:
                found |= {(id(parameter), dim) for dim in set(range(parameter.ndim)) - _summed(user, node)}
    return {(name, dim) for name, p in graph.model.named_parameters() for dim in range(p.ndim) if (id(p), dim) in found}


def invariant(graph: ChannelGraph, names: Sequence[str], made: set[tuple[str, int]], seed: int = 0) -> list[str]:
    """Return those of the groups ``names`` whose channels do nothing once all that makes them is zero.

    The others are frozen in ``graph`` with the reason. A copy of the network is tried, its weights somewhat changed, so
    that none of them hides what training would bring to light.
    """
    for name in names:
        if not graph.groups[name].invariant:
            graph.refuse(name, NORMED)
    probe = perturbed(graph.model, seed)
    return _asleep(graph, probe, [name for name in names if name in graph.groups], made)


def perturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of ``model`` in which no parameter is zero or constant."""
    probe, draw = copy.deepcopy(model), torch_generator(seed, "perturbed")
    with torch.no_grad():
        for parameter in probe.parameters():
            noise = torch.randn(parameter.shape, generator=draw).to(parameter)
            parameter.add_(noise * (0.1 * parameter.square().mean().sqrt() + 0.01))
    return probe


def difference(model: nn.Module, other: nn.Module, graph: ChannelGraph) -> float:
    """Return the largest difference of outputs on the example of ``graph``, as a share of the largest output."""
    return distance(outputs_of(graph, other), outputs_of(graph, model))


def outputs_of(graph: ChannelGraph, model: nn.Module) -> list[Tensor]:
    """Return what ``model`` makes of the example of ``graph``, tensors of floating point alone."""
    with quiet(model):
        return floats(model(*graph.args, **graph.kwargs))


def _asleep(graph: ChannelGraph, probe: nn.Module, names: list[str], made: set[tuple[str, int]]) -> list[str]:
    """Return the groups that stay zero, found by halving."""
    if not names or not _wakes(graph, probe, names, made):
        return names
    if len(names) == 1:
        graph.refuse(names[0], WAKING)
        return []
    half = len(names) // 2
    return _asleep(graph, probe, names[:half], made) + _asleep(graph, probe, names[half:], made)


@torch.no_grad()
def _wakes(graph: ChannelGraph, probe: nn.Module, names: Sequence[str], made: set[tuple[str, int]]) -> bool:
    """Say whether it makes a difference to also zero what reads every other class of ``names``."""
    weights = {name for name, _ in probe.named_parameters()}
    members = [m for name in names for m in graph.groups[name].members if m.name in weights]
    every = GroupViews(probe, [_view(m, 0) for m in members], max(graph.groups[name].size for name in names))
    makes = GroupViews(probe, [_view(m, 0) for m in members if (m.name, m.dim) in made], every.count)
    before = {name: value.clone() for name, value in every.values().items()}
    half, found = torch.arange(every.count) % 2 == 0, []
    try:
        for views in (makes, every):
            views.zero_(views.values(), half)
            found.append(outputs_of(graph, probe))
    finally:
        for name, value in every.values().items():
            value.copy_(before[name])
    return not distance(found[0], found[1]) <= TOLERANCE


def _view(member: Member, start: int) -> View:
    return View(member.name, member.dim, torch.from_numpy(np.where(member.classes < 0, -1, member.classes + start)))


def _summed(user: Node, weight: Node) -> set[int]:
    """Return the dimensions of ``weight`` that ``user`` sums over; none where that is not known."""
    op = str(getattr(user.target, "_overloadpacket", "")).removeprefix("aten.")
    if op == "output":
        return set()
    if op == "einsum":
        words, _, right = str(user.args[0]).replace(" ", "").partition("->")
        places = zip(words.split(","), user.args[1], strict=False)  # type: ignore[arg-type]
        return {i for word, given in places if given is weight for i, letter in enumerate(word) if letter not in right}
    ndim = weight.meta["val"].ndim
    given = named(user, user.args, user.kwargs) if op in _SUMMED else {}
    return {dim % ndim for name, dim in _SUMMED.get(op, ()) if given.get(name) is weight}
