"""Add to a tensor, or set its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from efface.core.ops.op import ANOTHER, TensorOp, Undo, check_shape, tensor_at
from efface.errors import PlanError
from efface.io.weights import finite
from efface.parts.sparsity.bits import pack, unpack

FORMS = {"add": ("dense",), "low-rank": ("up", "down"), "set": ("values",), "set-kept": ("keep", "values")}
"""Forms of a delta, and the tensors that each has; but for low rank, the first has the shape of the target."""


@dataclass(frozen=True, eq=False, repr=False)
class Delta(TensorOp):
    """Change the values of a parameter or buffer; made by :meth:`add`, :meth:`low_rank` or :meth:`set`.

    What undoes it holds the tensor as it was, since no addition in floating point can be taken back bit by bit.
    """

    kind = "delta"
    form: str
    given: Mapping[str, Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.given.keys() != set(FORMS.get(self.form, ())):
            raise PlanError(f"there is no delta {self.form!r} of {', '.join(self.given)}", where=self.target)
        for name, tensor in self.given.items():
            if not finite(tensor):
                raise PlanError(f"{name} of the delta holds NaN or infinity", where=self.target)

    @classmethod
    def add(cls, target: str, dense: Tensor) -> Self:
        """Add ``dense``, of the tensor's shape."""
        return cls(target, "add", {"dense": _own(dense)})

    @classmethod
    def low_rank(cls, target: str, up: Tensor, down: Tensor, scale: float = 1.0) -> Self:
        """Add ``scale * up @ down``, (out, r) and (r, in ...), reshaped to the tensor; 1x1 kernels may trail."""
        return cls(target, "low-rank", {"up": _own(up), "down": _own(down)}, float(scale))

    @classmethod
    def set(cls, target: str, values: Tensor, keep: Tensor | None = None) -> Self:
        """Set ``values``, bit by bit; with the bool mask ``keep`` store only those kept, and set the others to zero."""
        if keep is None:
            return cls(target, "set", {"values": _own(values)})
        return cls(target, "set-kept", {"values": values.detach().cpu()[keep.cpu()], "keep": keep.detach().cpu()})

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """Whether it adds to what is there, or mixes with it."""
        return self.form in ("add", "low-rank") or self.scale != 1

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless the tensor is there, with the shape, and for ``set`` the number format."""
        tensor = tensor_at(model, self.target)
        if self.form == "low-rank":
            up, down = (self.given[name].flatten(1) for name in ("up", "down"))
            if up.shape[1] != down.shape[0]:
                raise PlanError(f"the ranks {up.shape[1]} and {down.shape[0]} differ", where=self.target)
            check_shape(self.target, (up.shape[0], down.shape[1]), tensor.flatten(1) if tensor.ndim > 1 else tensor)
        else:
            check_shape(self.target, self.given[FORMS[self.form][0]].shape, tensor)
        values = self.given.get("values", tensor)
        if values.dtype != tensor.dtype or (self.relative and not tensor.is_floating_point()):
            what = f"the edit holds {values.dtype} and the model {tensor.dtype}"
            raise PlanError(what, where=self.target, fix=ANOTHER)

    @property
    def label(self) -> str:
        """The edit and its form."""
        return f"{self.kind} {self.form}"

    @torch.no_grad()
    def becomes(self, tensor: Tensor) -> Tensor:
        """Return the values afterwards. Additions are computed in at least float32 and then rounded."""
        given = {name: value.to(tensor.device) for name, value in self.given.items()}
        wide = torch.promote_types(tensor.dtype, torch.float32)
        match self.form:
            case "add":
                return (tensor.to(wide) + self.scale * given["dense"].to(wide)).to(tensor.dtype)
            case "low-rank":
                change = given["up"].flatten(1).to(wide) @ given["down"].flatten(1).to(wide)
                return (tensor.to(wide) + self.scale * change.view(tensor.shape)).to(tensor.dtype)
            case "set-kept":
                return torch.zeros_like(tensor).masked_scatter(given["keep"], given["values"])
            case _ if self.scale == 1:
                return given["values"]
            case _:
                return torch.lerp(tensor.to(wide), given["values"].to(wide), self.scale).to(tensor.dtype)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Undo:
        """Change the values in place."""
        tensor = tensor_at(model, self.target)
        before = tensor.detach().clone()
        tensor.copy_(self.becomes(before))

        @torch.no_grad()
        def undo(model: nn.Module) -> None:
            tensor_at(model, self.target).copy_(before)

        return undo

    def scaled(self, strength: float) -> Self:
        """Return the edit at ``strength``; values are then set that far from those there to those given."""
        values = self.given.get("values")
        if self.form == "set-kept" or (values is not None and not values.is_floating_point()):
            return super().scaled(strength)
        return dataclasses.replace(self, scale=self.scale * strength)

    def alive(self, before: Tensor | None) -> Tensor | None:
        """Keep what is stored; an addition brings all to life."""
        return self.given.get("keep")

    def values(self) -> dict[str, Any]:
        """Return the form, with the scale where it has one and the shape of a mask."""
        values: dict[str, Any] = {"form": self.form}
        if self.form == "low-rank" or self.scale != 1:
            values["scale"] = self.scale
        if "keep" in self.given:
            values["shape"] = list(self.given["keep"].shape)
        return values

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, a mask as bits."""
        return {name: pack(tensor) if name == "keep" else tensor for name, tensor in self.given.items()}

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the delta, having counted the values of a mask."""
        given = dict(tensors)
        if "keep" in given:
            given["keep"] = unpack(given["keep"], values["shape"])
            if given["values"].shape != (int(given["keep"].count_nonzero()),):
                raise ValueError("the mask keeps another number of values than there are")
        return cls(target, values["form"], given, float(values.get("scale", 1.0)))


def _own(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, since the tensor given may be one that training goes on to change."""
    return tensor.detach().to("cpu", copy=True)
