"""Prove a removal: it must give what setting the same channels to zero gives, at two batch sizes, and export again.

The reference is the graph of the network, computed with every weight of the removed channels at zero. Norms that take a
mean and variance over channels are told to leave those out, so the proof covers them as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_flatten, tree_map

from efface.errors import EffaceError
from efface.parts.graph.atoms import Label
from efface.parts.graph.groups import ChannelGraph
from efface.parts.graph.planning import Keep, gone, removals
from efface.parts.graph.remove import Removal, Undo, remove, tensor_of
from efface.parts.graph.trace import export, first_line, named, quiet

TOLERANCE = 1e-4
"""Largest difference of outputs, as a share of the largest output."""


def verified(graph: ChannelGraph, keep: Keep, *, reexport: bool = True) -> list[Removal]:
    """Return the removals of all groups whose removal holds; those that fail are frozen in ``graph``, with the reason.

    The network stays as it is. ``reexport`` also exports what it becomes, which takes longer than the analysis. Raises
    :class:`InputError` if that fails with the network as it is as well.
    """
    removals(graph, keep)  # raises before anything is touched
    sound = _sound(graph, {name: np.asarray(mask, dtype=bool) for name, mask in keep.items()})
    made = removals(graph, sound)
    if made and reexport:
        try:
            with removed(graph.model, made):
                export(graph.model, graph.args, graph.kwargs)
        except EffaceError as error:
            export(graph.model, graph.args, graph.kwargs)  # raises by itself if the whole network does not export
            for name in sound:
                graph.refuse(name, f"the network does not export without it: {error.what}")
            return []
    return made


def _sound(graph: ChannelGraph, keep: dict[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.bool_]]:
    """Return the part of ``keep`` that holds, found by halving."""
    if not keep or (why := _failure(graph, keep)) is None:
        return keep
    if len(keep) == 1:
        graph.refuse(next(iter(keep)), why)
        return {}
    names = list(keep)
    half = len(names) // 2
    left = _sound(graph, {name: keep[name] for name in names[:half]})
    right = _sound(graph, {name: keep[name] for name in names[half:]})
    if left and right and (why := _failure(graph, left | right)) is not None:
        for name in right:
            graph.refuse(name, f"fails together with others: {why}")
        return left
    return left | right


def _failure(graph: ChannelGraph, keep: Keep) -> str | None:
    """Say why the removals cannot be made, None where they can."""
    out = np.zeros(graph.trace.atoms.count, bool)
    for name, mask in keep.items():
        out[graph.groups[name].atoms[~np.asarray(mask)]] = True
    twice = _twice(graph.args, graph.kwargs)
    with quiet(graph.model):
        wanted, wanted_twice = _Zeroed(graph, out).outputs(), _outputs(graph.model, twice)
        with removed(graph.model, removals(graph, keep)):
            found, found_twice = _outputs(graph.model, (graph.args, graph.kwargs)), _outputs(graph.model, twice)
    if isinstance(found, str):
        return f"the network does not run without it: {found}"
    if (away := distance(found, wanted)) > TOLERANCE:
        return f"removal differs from zeroing by {away:.1e} of the largest output"
    if isinstance(wanted_twice, str):  # then the batch size is part of the network
        return None
    if isinstance(found_twice, str) or [t.shape for t in found_twice] != [t.shape for t in wanted_twice]:
        return "the network does not run without it at another batch size"
    return None


@contextlib.contextmanager
def removed(model: nn.Module, made: Iterable[Removal]) -> Iterator[None]:
    """Carry removals out for the length of a block."""
    undos: list[Undo] = []
    try:
        for removal in made:
            undos.append(remove(model, removal))
        yield
    finally:
        for undo in reversed(undos):
            undo(model)


class _Zeroed(Interpreter):
    """Computes the graph of the network with removed channels at zero, norms leaving them out."""

    def __init__(self, graph: ChannelGraph, removed: NDArray[np.bool_]) -> None:
        super().__init__(graph.program.root, graph=graph.program.graph)
        self._graph, self._removed = graph, removed

    def outputs(self) -> list[Tensor]:
        """Return the outputs that are floating-point tensors."""
        leaves = tree_flatten((self._graph.args, self._graph.kwargs))[0]
        values = []
        for source in self._graph.program.sources.values():
            values.append(self._zeroed(source) if isinstance(source, str) else source)
            values[-1] = leaves[source] if isinstance(source, int) else values[-1]
        return floats(self.run(*values))

    def run_node(self, n: Node) -> Any:
        """Compute a norm over the channels that stay; all else as it is."""
        label = self._graph.trace.norms.get(n.name)
        stay = None if label is None else self._indices(label, stay=True)
        if stay is None:
            return super().run_node(n)
        given = named(n, *self.fetch_args_kwargs_from_env(n))
        x, dim, op = given["input"], 1 if "num_groups" in given else -1, n.target
        stay = stay.to(x.device)
        given["input"] = x.index_select(dim, stay)
        given |= {name: given[name][stay] for name in ("weight", "bias") if given.get(name) is not None}
        given |= {"normalized_shape": [len(stay)]} if "normalized_shape" in given else {}
        return torch.zeros_like(x).index_copy_(dim, stay, op(**given))  # type: ignore[operator]

    def _zeroed(self, name: str) -> Tensor:
        tensor = tensor_of(self._graph.model, name).detach()
        for dim, label in enumerate(self._graph.trace.tensors[name]):
            if label is not None and (out := self._indices(label, stay=False)) is not None:
                tensor = tensor.index_fill(dim, out.to(tensor.device), 0)
        return tensor

    def _indices(self, label: Label, *, stay: bool) -> Tensor | None:
        """Return the indices that stay, or go; None where all stay."""
        out = gone(self._graph.trace.atoms.settled(label), self._removed)
        return torch.from_numpy(np.flatnonzero(out != stay)) if out.any() else None


def _twice(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the example with every tensor that has its batch size doubled."""
    tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor) and v.ndim]
    batch = len(tensors[0]) if tensors else 0

    def double(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.ndim and len(value) == batch
        return torch.cat([value, value]) if batched else value

    return tree_map(double, (args, dict(kwargs)))  # type: ignore[no-any-return]


def _outputs(model: nn.Module, given: tuple[tuple[Any, ...], Mapping[str, Any]]) -> list[Tensor] | str:
    """Return the floating-point outputs, or what the model raises."""
    try:
        return floats(model(*given[0], **given[1]))
    except Exception as error:  # the model is the user's, and may raise anything
        return first_line(error)


def floats(outputs: Any) -> list[Tensor]:
    """Return the tensors of floating point among ``outputs``."""
    return [t for t in tree_flatten(outputs)[0] if isinstance(t, Tensor) and t.is_floating_point()]


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference as a share of the largest value, infinity where shapes differ."""
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return float("inf")
    scale = max((float(t.abs().max()) for t in wanted if t.numel()), default=0.0)
    away = max((float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True) if a.numel()), default=0.0)
    return away / scale if scale else away
