"""Say which channels of a network can go, together with what, which cannot and why, and what each group costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from efface.parts.graph import ChannelGraph, Group


@dataclass(frozen=True)
class Row:
    """A group of channels."""

    name: str
    channels: int
    """Numbers of classes: channels, or heads."""
    width: int
    """Indices that each class takes in the narrowest dimension: 1 for channels, the head size for heads."""
    layers: tuple[str, ...]
    """Tensors that lose numbers with the group."""
    parameters: int
    """Parameters that belong to its channels, both where these are made and where they are read."""
    flops: int
    """FLOPs that these parameters take part in."""
    invariant: bool
    """Whether removing equals zeroing; else a norm takes its mean and variance over what is left."""
    frozen: str | None
    """Why nothing of it can be removed, None where it can."""


@dataclass(frozen=True)
class Inspection:
    """What was found out about the channels of a model."""

    model: str
    groups: tuple[Row, ...]
    """Those that can lose channels, in the order of the network, then those that cannot."""
    unknown: tuple[str, ...]
    """Operations that are not known, with their places; all that goes into them is frozen."""
    parameters: int
    flops: int
    seconds: float
    """Time of the analysis."""
    graph: ChannelGraph

    @property
    def free(self) -> list[Row]:
        """Groups that can lose channels."""
        return [row for row in self.groups if row.frozen is None]

    @property
    def frozen(self) -> list[Row]:
        """Groups that cannot."""
        return [row for row in self.groups if row.frozen is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return all but the graph as JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "graph"}
        return {**values, "groups": [dataclasses.asdict(row) for row in self.groups]}

    def plot(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Draw which groups each layer writes and reads, as .png, .svg or .pdf. Needs the extra `plots`."""
        from efface.verbs.graph_plot import plot

        plot(self, path, overwrite=overwrite)


def inspect(
    model: nn.Module | str | Path,
    *,
    weights: str | Path | None = None,
    example: tuple[Any, ...] = (),
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Inspection:
    """Find the groups of channels of ``model``, which stays as it is.

    ``example`` are its positional inputs, or ``shape`` is that of the first; without either they are what the model's
    folder tells.

    Raises
    ------
    UsageError
        If no inputs are known, or the model does not take them.
    InputError
        If the model cannot be exported; the message has the operation and the line.
    """
    from efface.parts.counting import count_flops, count_parameters
    from efface.parts.graph import channel_graph
    from efface.verbs.subject import subject

    given = subject(model, weights=weights, example=example, shape=shape, seed=seed, device="cpu")
    start = time.perf_counter()
    graph = channel_graph(given.net, given.example)
    seconds = time.perf_counter() - start
    flops = count_flops(given.net, *given.example)
    rows = [_row(group, flops.by_weight) for group in (*graph.groups.values(), *graph.frozen.values())]
    total = count_parameters(given.net).total
    return Inspection(given.opened.name, tuple(rows), tuple(graph.unknown), total, flops.total, seconds, graph)


def _row(group: Group, flops: dict[str, int]) -> Row:
    names = tuple(dict.fromkeys(member.name for member in group.members))
    taken = round(sum(flops.get(name, 0) * share for name, share in group.shares().items()))
    return Row(group.name, group.size, group.width, names, group.parameters, taken, group.invariant, group.frozen)
