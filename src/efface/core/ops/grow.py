"""Append rows to an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from efface.core.ops.op import ANOTHER, Row, TensorOp, Undo, norm, tensor_at
from efface.errors import PlanError
from efface.io.weights import finite


@dataclass(frozen=True, eq=False, repr=False)
class Grow(TensorOp):
    """Give a table of ``start`` rows more ``rows`` (n, width), for words that a tokenizer is taught.

    The parameter stays the same object; the sizes that its module and the configurations around it hold grow along.
    """

    kind = "grow"
    start: int
    rows: Tensor

    @classmethod
    def of(cls, target: str, start: int, rows: Tensor) -> Self:
        """Make the edit, with a copy of ``rows``."""
        return cls(target, start, rows.detach().to("cpu", copy=True))

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not finite(self.rows):
            raise PlanError("the rows are no matrix, or hold NaN or infinity", where=self.target)

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless the table is there and has the rows, width and number format."""
        table = tensor_at(model, self.target)
        wanted = (self.start, *self.rows.shape[1:])
        if tuple(table.shape) != wanted or table.dtype != self.rows.dtype:
            ours, found = f"{wanted} of {self.rows.dtype}", f"{tuple(table.shape)} of {table.dtype}"
            raise PlanError(f"the rows are for a table {ours}, and it is {found}", where=self.target, fix=ANOTHER)

    def becomes(self, tensor: Tensor) -> Tensor:
        """Return the longer table."""
        return torch.cat([tensor.detach(), self.rows.to(tensor.device)])

    def row(self, model: nn.Module) -> Row:
        """Count all weights of the longer table, and measure the rows that come."""
        shape = (self.start + len(self.rows), self.rows.shape[1])
        return Row(self.target, self.kind, shape, shape[0] * shape[1], shape[0] * shape[1], norm([self.rows]))

    def apply(self, model: nn.Module) -> Undo:
        """Append the rows."""
        table = tensor_at(model, self.target)
        before = table.data
        table.data = self.becomes(before)
        _resize(model, self.target, self.start, len(table))

        def undo(model: nn.Module) -> None:
            grown = tensor_at(model, self.target)
            _resize(model, self.target, len(grown), self.start)
            grown.data = before

        return undo

    def scaled(self, strength: float) -> Self:
        """Return the edit itself: prompts without the new words never see the rows."""
        return self

    def values(self) -> dict[str, Any]:
        """Return the number of rows before."""
        return {"start": self.start}

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows."""
        return {"rows": self.rows}

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the edit."""
        (rows,) = tensors.values()
        return cls(target, int(values["start"]), rows)


def _resize(model: nn.Module, target: str, old: int, new: int) -> None:
    """Set the sizes of the table ``target`` in its module, and in the configurations of all modules around it."""
    path = target.rpartition(".")[0].split(".")
    around = [model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path) + 1)]
    if isinstance(around[-1], nn.Embedding):
        around[-1].num_embeddings = new
    for config in (getattr(module, "config", None) for module in around):
        if getattr(config, "vocab_size", None) == old:
            config.vocab_size = new  # type: ignore[union-attr]
