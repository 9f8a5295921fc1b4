"""Set weights to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from efface.core.ops.op import TensorOp, Undo, check_shape, tensor_at
from efface.errors import PlanError
from efface.parts.sparsity.bits import pack, unpack


@dataclass(frozen=True, eq=False, repr=False)
class Mask(TensorOp):
    """Set the weights of a tensor that are not kept to zero. ``keep`` is bool, of the tensor's shape, true = stays.

    It takes 1 byte a weight in memory and 1 bit on disk; what undoes it holds the removed weights only.
    """

    kind = "mask"
    keep: Tensor

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool:
            raise PlanError(f"the mask holds {self.keep.dtype} instead of bool", where=self.target)
        object.__setattr__(self, "keep", self.keep.detach().cpu())

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless there is such a tensor, of the mask's shape."""
        check_shape(self.target, self.keep.shape, tensor_at(model, self.target))

    @torch.no_grad()
    def becomes(self, tensor: Tensor) -> Tensor:
        """Return the tensor with zeros for what is not kept."""
        return _bits(tensor).masked_fill(~self.keep.to(tensor.device), 0).view(tensor.dtype)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Undo:
        """Zero what is not kept."""
        tensor = tensor_at(model, self.target)
        if tensor.is_meta:
            return lambda model: None
        gone = ~self.keep.to(tensor.device)
        removed = _bits(tensor).masked_select(gone)
        _bits(tensor).masked_fill_(gone, 0)

        @torch.no_grad()
        def undo(model: nn.Module) -> None:
            tensor = tensor_at(model, self.target)
            _bits(tensor).masked_scatter_(~self.keep.to(tensor.device), removed.to(tensor.device))

        return undo

    def alive(self, before: Tensor | None) -> Tensor | None:
        """Keep what was alive and is kept."""
        return self.keep if before is None else self.keep & before

    def values(self) -> dict[str, Any]:
        """Return the shape and the number of weights kept."""
        return {"shape": list(self.keep.shape), "kept": int(self.keep.count_nonzero())}

    def tensors(self) -> dict[str, Tensor]:
        """Return the mask, 8 weights a byte."""
        return {"keep": pack(self.keep)}

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the mask from its bits, and count them."""
        keep = unpack(tensors["keep"], values["shape"])
        if int(keep.count_nonzero()) != values["kept"]:
            raise ValueError("the mask keeps another number of weights than it says")
        return cls(target, keep)


def _bits(tensor: Tensor) -> Tensor:
    """Return ``tensor``, float8 as bytes, since torch masks no float8; byte 0 is the number 0."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
