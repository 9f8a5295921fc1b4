"""Multiply the weights of many layers by one map of what goes into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from efface.core.ops.op import ANOTHER, Op, Row, Undo, norm, tensor_at
from efface.errors import PlanError
from efface.io.weights import finite


@dataclass(frozen=True, eq=False, repr=False)
class Map(Op):
    """Let ``layers`` of the module ``target`` see (I + up @ down) c where they saw c: W becomes W (I + up @ down).

    ``layers`` are names of linear layers inside ``target``, all of the input width d; ``up`` is (d, r) and ``down``
    (r, d). Biases stay. What undoes it holds the weights as they were.
    """

    kind = "map"
    layers: tuple[str, ...]
    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for name in ("up", "down"):
            tensor = getattr(self, name).detach().to("cpu", copy=True)
            object.__setattr__(self, name, tensor)
            if tensor.ndim != 2 or not tensor.is_floating_point() or not finite(tensor):
                raise PlanError(f"{name} of the map is no matrix of finite numbers", where=self.target)
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise PlanError("the map names no layer, or one twice", where=self.target)
        if self.up.shape != self.down.shape[::-1]:
            what = f"up is {tuple(self.up.shape)} and down {tuple(self.down.shape)}, which is no map"
            raise PlanError(what, where=self.target)

    @property
    def touches(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(f"{self.target}.{layer}.weight" for layer in self.layers)

    @property
    def matrix(self) -> Tensor:
        """The map I + up @ down, (d, d), in float64."""
        return torch.eye(len(self.up), dtype=torch.float64) + self.up.double() @ self.down.double()

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless all layers are there, and take vectors of the map's width."""
        for name in self.touches:
            weight, width = tensor_at(model, name), len(self.up)
            if weight.ndim != 2 or weight.shape[1] != width or not weight.is_floating_point():
                what = f"the map is of vectors of width {width}, and the weight is {weight.dtype} {tuple(weight.shape)}"
                raise PlanError(what, where=name, fix=ANOTHER)

    def row(self, model: nn.Module) -> Row:
        """Measure how far all weights would move together."""
        weights = [tensor_at(model, name).detach() for name in self.touches]
        away = norm(self._becomes(weight).float() - weight.float() for weight in weights)
        count = sum(weight.numel() for weight in weights)
        name = f"{self.target}: {len(weights)} layers"
        return Row(name, f"{self.kind} of rank {self.up.shape[1]}", tuple(self.up.shape), count, count, away)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Undo:
        """Multiply the weights in place."""
        before = {name: tensor_at(model, name).detach().clone() for name in self.touches}
        after = {name: self._becomes(weight) for name, weight in before.items()}
        for name, weight in after.items():
            tensor_at(model, name).copy_(weight)

        @torch.no_grad()
        def undo(model: nn.Module) -> None:
            for name, weight in before.items():
                tensor_at(model, name).copy_(weight)

        return undo

    def scaled(self, strength: float) -> Self:
        """Return the map I + strength * up @ down."""
        return dataclasses.replace(self, up=self.up * strength)

    def values(self) -> dict[str, Any]:
        """Return the names of the layers."""
        return {"layers": list(self.layers)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the two factors."""
        return {"up": self.up, "down": self.down}

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the map of its stored form."""
        return cls(target, tuple(map(str, values["layers"])), tensors["up"], tensors["down"])

    @torch.no_grad()
    def _becomes(self, weight: Tensor) -> Tensor:
        wide = torch.promote_types(torch.promote_types(weight.dtype, self.up.dtype), torch.float32)
        up, down = (factor.to(weight.device, wide) for factor in (self.up, self.down))
        return (weight.to(wide) + weight.to(wide) @ up @ down).to(weight.dtype)
