"""Gather the channels of a network into groups: what can be removed, together with what, and what is frozen and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from efface.errors import UnknownNameError
from efface.parts.graph.atoms import Atoms, Ints
from efface.parts.graph.record import Program
from efface.parts.graph.trace import Trace, follow, program_of
from efface.seeds import numpy_generator

SINGLE = "a single channel: nothing would be left"
BUFFERS = "in buffers alone: it has no weights"


@dataclass(frozen=True, eq=False)
class Member:
    """A dimension of a parameter or buffer that loses indices with a group."""

    name: str
    dim: int
    classes: Ints
    """Class of each index, -1 where another group removes it or none."""


@dataclass(eq=False)
class Group:
    """Classes of channels that play the same part; each is the smallest set of weights that goes as one."""

    name: str
    """First weight that makes these channels."""
    size: int
    """Number of classes."""
    members: tuple[Member, ...]
    atoms: Ints
    """Atom of each class."""
    invariant: bool
    """Whether removing channels gives the same as setting them to zero: no norm takes a mean over them."""
    parameters: int
    """Numbers in the members that belong to a class of the group."""
    frozen: str | None
    """Why nothing can be removed, None where it can."""

    @property
    def width(self) -> int:
        """Indices that a class takes where it takes fewest: 1 for channels, the head size for heads."""
        return min(int((m.classes >= 0).sum()) // self.size for m in self.members)

    def shares(self) -> dict[str, float]:
        """Return the share of each tensor that belongs to classes of the group."""
        rest: dict[str, float] = {}
        for member in self.members:
            rest[member.name] = rest.get(member.name, 1.0) * float((member.classes < 0).mean())
        return {name: 1 - share for name, share in rest.items()}

    def step(self, multiple_of: int) -> int:
        """Return the number of classes that makes a multiple of so many indices."""
        return multiple_of // int(np.gcd(multiple_of, self.width))


@dataclass(eq=False)
class ChannelGraph:
    """The channels of a network in groups, for one example input; made by :func:`channel_graph`."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    trace: Trace
    groups: dict[str, Group]
    """Groups that can lose channels, by name."""
    frozen: dict[str, Group]
    """Groups that cannot, by name."""

    @property
    def unknown(self) -> list[str]:
        """Operations without a rule, each with its place; all that goes into them is frozen."""
        return self.trace.unknown

    @property
    def program(self) -> Program:
        """The network as a graph of operations."""
        return self.trace.program

    def group(self, name: str) -> Group:
        """Return a group that can lose channels, or raise :class:`UnknownNameError`."""
        if name not in self.groups:
            raise UnknownNameError("group", name, self.groups)
        return self.groups[name]

    def refuse(self, name: str, reason: str) -> None:
        """Freeze a group whose removal failed."""
        group = self.groups.pop(name)
        group.frozen = reason
        self.frozen[name] = group


def channel_graph(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> ChannelGraph:
    """Find the groups of channels of ``model``, called with ``args`` and ``kwargs``; the model stays as it is.

    Raises
    ------
    UsageError
        If the model does not take the inputs.
    InputError
        If it cannot be exported.
    """
    args, kwargs = tuple(args), dict(kwargs or {})
    trace = follow(model, program_of(model, args, kwargs))
    groups = _gather(trace)
    free = {group.name: group for group in groups if group.frozen is None}
    return ChannelGraph(model, args, kwargs, trace, free, {g.name: g for g in groups if g.frozen is not None})


def _gather(trace: Trace) -> list[Group]:
    """Put atoms together that lie in the same layers of the same dimensions, and as often, and are frozen alike."""
    atoms, first = trace.atoms, {id(dims): name for name, dims in reversed(trace.tensors.items())}
    named = [(n, d, label) for n, dims in trace.tensors.items() if first[id(dims)] == n for d, label in enumerate(dims)]
    dims = [(n, d, atoms.settled(label)) for n, d, label in named if label is not None]
    layers = [layer for _, _, label in dims for layer in label]
    if not layers:
        return []
    owner, place, reason = _classes(atoms, layers)
    found: dict[int, list[Member]] = {}
    for name, dim, label in dims:
        owners = owner[label]
        for one in np.unique(owners[owners >= 0]).tolist():
            classes = np.where(owners == one, place[label], -1).max(0)
            found.setdefault(one, []).append(Member(name, dim, classes))
    normed = np.concatenate([[-1], *(atoms.settled(label).ravel() for label in trace.norms.values())])
    numbers = {name: p.numel() for name, p in trace.module.named_parameters(remove_duplicate=False)}
    taken: set[str] = set()
    groups = []
    for one in sorted(found, key=lambda one: reason[one] >= 0):  # those that are free take the plain names
        members = found[one]
        if all(member.dim > 1 for member in members):
            continue  # the sides of kernels
        mine = np.flatnonzero(owner[:-1] == one)
        frozen = SINGLE if len(mine) == 1 else None
        if all(member.name not in numbers for member in members):
            frozen = BUFFERS
        if reason[one] >= 0:
            frozen = atoms.reasons[reason[one]]
        invariant = not bool(np.isin(mine, normed).any())
        group = Group(_name(members, taken), len(mine), tuple(members), mine, invariant, 0, frozen)
        group.parameters = round(sum(numbers.get(name, 0) * share for name, share in group.shares().items()))
        groups.append(group)
    return groups


def _classes(atoms: Atoms, layers: list[Ints]) -> tuple[Ints, Ints, Ints]:
    """Return the group and the class of each atom (an entry of -1 for no atom last), and why each group is frozen.

    Atoms are of one group where they occur equally often in each layer: the sums of a random number of each layer are
    then equal.
    """
    draws = numpy_generator(0, "graph").integers(1 << 62, size=len(layers), dtype=np.int64)
    every = np.concatenate(layers)
    valid = every >= 0
    signature = np.zeros(1 + int(every.max()), np.int64)
    np.add.at(signature, every[valid], np.repeat(draws, [len(layer) for layer in layers])[valid])
    present = np.unique(every[valid])
    keys = np.stack([signature[present], atoms.why(present)])
    kinds, number = np.unique(keys, axis=1, return_inverse=True)
    owner, place = np.full(len(signature) + 1, -1), np.full(len(signature) + 1, -1)
    owner[present] = number
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(kinds.shape[1]))
    place[present[order]] = np.arange(len(order)) - starts[number[order]]
    return owner, place, kinds[1]


def _name(members: list[Member], named: set[str]) -> str:
    """Return the first name of a weight's first dimension, with a number where it is taken."""
    first = next((m.name for m in members if m.dim == 0 and m.name.endswith("weight")), members[0].name)
    name, number = first.removesuffix(".weight"), 2
    while name in named:
        name, number = f"{first.removesuffix('.weight')}#{number}", number + 1
    named.add(name)
    return name
