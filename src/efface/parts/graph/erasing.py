"""Choose operations that are erased from a network, and carry that out with proof that it does no more than zeros."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from efface.errors import UsageError
from efface.parts.counting import count_flops
from efface.parts.graph.groups import ChannelGraph, Group
from efface.parts.graph.planning import gone as indices_gone
from efface.parts.graph.remove import Cut, Removal, Resize, remove
from efface.parts.graph.segments import Operators, hierarchical, kind, settle
from efface.parts.graph.selection import Budget, makers, outputs_of, perturbed
from efface.parts.graph.verify import TOLERANCE, distance
from efface.parts.nn.cells import Erased, Join
from efface.parts.nn.passing import PassThrough
from efface.parts.sparsity.groups import GroupViews, View


@dataclass(frozen=True, eq=False)
class Erasure:
    """What erasing comes to: modules that give nothing, modules that are passed through, channels that go."""

    erased: dict[str, Join]
    passed: tuple[str, ...]
    removal: Removal | None


class Erasing:
    """The segments of a network that can go, and the choice of those that do (H2SPG); a :class:`.group_sparse.Choice`.

    ``target`` is the share that goes of these segments, of the parameters or of the FLOPs of the network, as ``budget``
    says; ``allowed`` says by its name which may. ``groups`` are the segments with parameters that can go, alone or with
    others; ``reachable`` is the largest target that was found. Every erasure is tried on a copy of the network, beside
    one with zeros.

    Raises :class:`UsageError` if the target is out of reach; the message says what is not.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        target: float,
        budget: Budget = "groups",
        allowed: Callable[[str], bool] = lambda name: True,
        seed: int = 0,
    ) -> None:
        self.graph, self.budget, self.operators = graph, budget, Operators(graph)
        self.segments, self.outputs = self.operators.segments, self.operators.outputs
        self._made, self._probe = makers(graph), perturbed(graph.model, seed)
        self._tried: dict[frozenset[int], bool] = {}
        self._before = settle(self.segments, self.outputs, set()) or set()  # what nobody reads as it is
        numbers = {name: p.numel() for name, p in graph.model.named_parameters()}
        flops = count_flops(graph.model, *graph.args) if budget == "flops" else None
        costs = numbers if flops is None else flops.by_weight
        self._total = sum(numbers.values()) if flops is None else flops.total
        self._costs = [sum(costs.get(name, 0) for name in s.parameters) for s in self.segments]
        first = [number for number, s in enumerate(self.segments) if s.removable and allowed(s.name)]
        single = [settle(self.segments, self.outputs, {number}) for number in first]
        able = set[int]().union(*(gone for gone in single if gone is not None and self.legal(gone)))
        self.groups = [n for n in sorted(able - self._before) if self.segments[n].parameters]
        order = sorted(self.groups, key=lambda n: (self._costs[n] if budget != "groups" else 1, n), reverse=True)
        self.reachable = self._share(self._walk(order, float("inf")))
        if not self.groups or target > self.reachable + 1e-9:
            what = f"{target:.1%} of the {budget} cannot be erased: {self.reachable:.1%} can"
            fix = "Lower the target; only operations that run beside others can go"
            raise UsageError(what, where="target", fix=fix)
        self.target = round(target * len(self.groups)) / len(self.groups) if budget == "groups" else target

    @property
    def count(self) -> int:
        """Number of the groups."""
        return len(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups: the module that each begins with."""
        return tuple(self.segments[number].name for number in self.groups)

    def views(self) -> list[View]:
        """Return what belongs to each group: all parameters, and its part of norms behind a concatenation."""
        return [view for place, number in enumerate(self.groups) for view in self._views(number, place)]

    def choose(self, importance: Tensor, part: float = 1.0, spare: float = 0.0) -> Tensor:
        """Return the groups (bool) that go, the least important first, as far as the rest is legal; none to spare."""
        order = [self.groups[place] for place in torch.argsort(importance, stable=True).tolist()]
        return self._marked(self._walk(order, part * self.target))

    def enough(self, zero: Tensor) -> bool:
        """Say whether the groups ``zero`` can go by themselves, and reach the target."""
        gone = self.gone(zero)
        return torch.equal(self._marked(gone), zero.cpu()) and self._share(gone) >= self.target - 1e-9

    def gone(self, zero: Tensor) -> set[int]:
        """Return the segments that go with the groups ``zero``; none beyond what is idle if that leaves no network."""
        erased = {number for number, dead in zip(self.groups, zero.tolist(), strict=True) if dead}
        return settle(self.segments, self.outputs, erased) or self._before

    def legal(self, gone: set[int]) -> bool:
        """Say whether the network without the segments ``gone`` runs, and gives what it gives with them at zero."""
        key = frozenset(gone)
        if key not in self._tried:
            erasure = self.erasure(gone)
            self._tried[key] = erasure is not None and self._holds(erasure, gone)
        return self._tried[key]

    def erasure(self, gone: set[int]) -> Erasure | None:
        """Return what erasing the segments ``gone`` comes to, None where it cannot be done."""
        gone = gone - self._before
        nodes = {node for number in gone for node in self.segments[number].nodes}
        units = self.operators.units(nodes)
        covered = set[Node]().union(*units.values())
        erased: dict[str, Join] = {}
        groups: dict[str, Group] = {}
        for path, mine in units.items():
            joins = self._reached(mine, nodes - covered, nodes)
            kinds = {kind(node) for node in joins}
            if "" in kinds or len(kinds) > 1:
                return None
            if kinds:
                erased[path] = "concat" if "concat" in kinds else "add"
            if kinds == {"concat"}:
                found = self._concatenated({self.operators.place[node] for node in mine} & gone)
                if not found:
                    return None
                groups |= {group.name: group for group in found}
        removal = self._removal(list(groups.values()), list(units)) if groups else None
        return Erasure(erased, tuple(path for path in units if path not in erased), removal)

    def _reached(self, start: set[Node], through: set[Node], gone: set[Node]) -> set[Node]:
        """Return the operations that stay and read what ``start`` gives, directly or by way of ``through``."""
        queue, seen, found = list(start), set(start), set[Node]()
        while queue:
            for reader in self.operators.readers(queue.pop()):
                if reader in through and reader not in seen:
                    seen.add(reader)
                    queue.append(reader)
                elif reader not in gone:
                    found.add(reader)
        return found

    def _concatenated(self, numbers: set[int]) -> list[Group]:
        """Return the groups of channels that the segments alone make, and others read; none if others make them too.

        Norms and depthwise convolutions make no channels: they scale them one by one, and lose theirs.
        """
        mine = {name for number in numbers for name in self.segments[number].parameters}
        weights = {name for name, p in self.graph.model.named_parameters() if p.ndim > 1 and p.shape[1] > 1}
        found = []
        for group in self.graph.groups.values():
            makes = {m.name for m in group.members if (m.name, m.dim) in self._made and m.name in weights}
            if makes & mine and {m.name for m in group.members} - mine:
                if not (makes <= mine and group.invariant):
                    return []
                found.append(group)
        return found

    def _removal(self, groups: Sequence[Group], units: Sequence[str]) -> Removal:
        """Return the removal of all channels of ``groups`` from the tensors outside of ``units``."""
        trace, inside = self.graph.trace, tuple(f"{path}." for path in units)
        removed = np.zeros(trace.atoms.count, bool)
        lost: dict[tuple[str, int], np.ndarray] = {}
        for group in groups:
            removed[group.atoms] = True
            for m in (m for m in group.members if not m.name.startswith(inside)):
                lost[m.name, m.dim] = lost.get((m.name, m.dim), np.zeros(len(m.classes), bool)) | (m.classes >= 0)
        cuts = [Cut(name, dim, len(out), np.flatnonzero(out)) for (name, dim), out in lost.items()]
        sizes: dict[tuple[str, str], Resize] = {}
        for module, name, label in trace.sized:
            out = indices_gone(trace.atoms.settled(label), removed)
            if out.any() and not f"{module}.".startswith(inside):
                sizes[module, name] = Resize(module, name, len(out), int((~out).sum()))
        return Removal(groups[0].name, tuple(cuts), tuple(sizes.values()))

    @torch.no_grad()
    def _holds(self, erasure: Erasure, gone: set[int]) -> bool:
        zeroed = GroupViews(self._probe, [view for number in gone for view in self._views(number, 0)], 1)
        before = {name: value.clone() for name, value in zeroed.values().items()}
        try:
            zeroed.zero_(zeroed.values(), torch.ones(1, dtype=torch.bool))
            wanted = outputs_of(self.graph, self._probe)
            with without(self._probe, erasure):
                found = outputs_of(self.graph, self._probe)
        except Exception:  # the network is the user's, and may raise anything where a part of it gives nothing
            return False
        finally:
            for name, value in before.items():
                zeroed.parameters[name].copy_(value)
        return distance(found, wanted) <= TOLERANCE

    def _views(self, number: int, place: int) -> list[View]:
        mine = self.segments[number].parameters
        sizes = {name: self.graph.model.get_parameter(name).shape for name in mine}
        views = [View(name, 0, torch.full(shape[:1] or (1,), place)) for name, shape in sizes.items()]
        ends = {kind(node) for node in self.operators.readers(self.segments[number].nodes[-1])}
        for group in self._concatenated({number}) if ends == {"concat"} else ():
            for m in group.members:
                if (m.name, m.dim) in self._made and m.name not in mine:
                    views.append(View(m.name, m.dim, torch.from_numpy(np.where(m.classes < 0, -1, place))))
        return views

    def _walk(self, order: Sequence[int], share: float) -> set[int]:
        def enough(gone: set[int]) -> bool:
            return self._share(gone) >= share - 1e-9

        return hierarchical(self.segments, self.outputs, order, enough, self.legal)

    def _share(self, gone: set[int]) -> float:
        if self.budget == "groups":
            return len(gone & set(self.groups)) / max(1, len(self.groups))
        return sum(self._costs[number] for number in gone - self._before) / max(1, self._total)

    def _marked(self, gone: set[int]) -> Tensor:
        return torch.tensor([number in gone for number in self.groups], dtype=torch.bool)


@contextlib.contextmanager
def without(model: nn.Module, erasure: Erasure) -> Iterator[None]:
    """Carry ``erasure`` out on ``model`` for the length of a block."""
    new: dict[str, nn.Module] = {path: Erased(join) for path, join in erasure.erased.items()}
    new |= {path: PassThrough.of(model.get_submodule(path)) for path in erasure.passed}
    old = {path: model.get_submodule(path) for path in new}
    undo = remove(model, erasure.removal) if erasure.removal else None
    try:
        for path, module in new.items():
            _put(model, path, module)
        yield
    finally:
        for path, module in old.items():
            _put(model, path, module)
        if undo is not None:
            undo(model)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).register_module(name, module)
