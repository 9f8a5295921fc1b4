"""Take channels out, so that what is left is a smaller dense network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from efface.core.ops.op import ANOTHER, Op, Row, Undo, norm, tensor_at
from efface.errors import PlanError
from efface.parts.graph.remove import Cut, Removal, Resize, remove, size_of, staying

_CARRIED: ContextVar[tuple[torch.optim.Optimizer, ...]] = ContextVar("optimizers", default=())


@dataclass(frozen=True, eq=False, repr=False)
class Drop(Op):
    """Take indices out of dimensions of several tensors, and set the attributes of modules that hold their number.

    The tensors lose together what a group of channels, heads or neurons has in them; see :mod:`efface.parts.graph`.
    Parameters stay the same objects; gradients shrink with them, and so does the state of the optimizers that
    :func:`carrying` names. What undoes it holds the numbers that went.
    """

    kind = "drop"
    removal: Removal

    @classmethod
    def of(cls, removal: Removal) -> Self:
        """Make the edit that carries ``removal`` out."""
        return cls(removal.cuts[0].name, removal)

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless tensors and attributes are there and have the sizes that are to change."""
        for cut in self.removal.cuts:
            shape = tensor_at(model, cut.name).shape
            if cut.dim >= len(shape) or shape[cut.dim] != cut.size:
                what = f"the edit is for {cut.size} indices of dimension {cut.dim}, and the shape is {tuple(shape)}"
                raise PlanError(what, where=cut.name, fix=ANOTHER)
        for size in self.removal.sizes:
            try:
                found = size_of(model, size)
            except AttributeError:
                found = None
            if found != size.old:
                what = f"the edit is for {size.name} = {size.old}, and the module has {found}"
                raise PlanError(what, where=size.module, fix=ANOTHER)

    def row(self, model: nn.Module) -> Row:
        """Count the numbers of all parameters that are cut, before and after, and measure those that would go."""
        kept: dict[str, Tensor] = {}
        for cut in self.removal.cuts:
            tensor = tensor_at(model, cut.name)
            if isinstance(tensor, nn.Parameter):
                old = kept.get(cut.name, tensor.detach())
                kept[cut.name] = old.index_select(cut.dim, torch.from_numpy(staying(cut)).to(old.device))
        before = [tensor_at(model, name) for name in kept]
        gone = math.sqrt(max(0.0, norm(before) ** 2 - norm(kept.values()) ** 2)) if before else 0.0
        weights = sum(tensor.numel() for tensor in before)
        return Row(self.target, self.kind, (), weights, sum(tensor.numel() for tensor in kept.values()), gone)

    def apply(self, model: nn.Module) -> Undo:
        """Cut the tensors."""
        return remove(model, self.removal, _CARRIED.get())

    def alive(self, before: Tensor | None) -> Tensor | None:
        """Keep what was alive; what goes is gone with :meth:`follow`."""
        return before

    def follow(self, name: str, mask: Tensor) -> Tensor:
        """Take the indices that the tensor loses out of its mask."""
        for cut in self.removal.cuts:
            if cut.name == name:
                mask = mask.index_select(cut.dim, torch.from_numpy(staying(cut)))
        return mask

    def values(self) -> dict[str, Any]:
        """Return the group, which dimensions lose how many of how many indices, and the attributes."""
        cuts = [[cut.name, cut.dim, cut.size, len(cut.indices)] for cut in self.removal.cuts]
        sizes = [[size.module, size.name, size.old, size.new] for size in self.removal.sizes]
        return {"group": self.removal.group, "cuts": cuts, "sizes": sizes}

    def tensors(self) -> dict[str, Tensor]:
        """Return the indices of all cuts, one behind the other."""
        return {"indices": torch.from_numpy(np.concatenate([cut.indices for cut in self.removal.cuts]))}

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the edit, having made sure that the indices are in their dimensions and ascend."""
        stored, start = tensors["indices"].numpy(), 0
        cuts = []
        for name, dim, size, count in values["cuts"]:
            indices = stored[start : start + count]
            start += count
            inside = (
                len(indices) == count > 0 and indices[0] >= 0 and indices[-1] < size and (np.diff(indices) > 0).all()
            )
            if not (isinstance(dim, int) and dim >= 0 and inside and count < size):
                raise ValueError(f"the indices of {name} do not fit its size")
            cuts.append(Cut(str(name), dim, int(size), indices.astype(np.int64)))
        if not cuts or start != len(stored):
            raise ValueError("the edit holds another number of indices than it says")
        sizes = tuple(
            Resize(str(m), str(n), None if old is None else int(old), int(new)) for m, n, old, new in values["sizes"]
        )
        if any(size.new < 1 for size in sizes):
            raise ValueError("the edit leaves a module without channels")
        return cls(target, Removal(str(values["group"]), tuple(cuts), sizes))


@contextlib.contextmanager
def carrying(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Let the state of ``optimizers`` (momentum, moments) shrink with the parameters in plans applied in this block."""
    token = _CARRIED.set(optimizers)
    try:
        yield
    finally:
        _CARRIED.reset(token)
