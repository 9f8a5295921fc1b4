"""Take a residual branch out of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from efface.core.ops.op import Op, Row, Undo, module_at, norm
from efface.errors import PlanError
from efface.parts.language.silence import silence
from efface.parts.nn.passing import arguments_of


@dataclass(frozen=True, eq=False, repr=False)
class Silence(Op):
    """Take out an attention or a feed-forward layer of a decoder of transformers, whose output is added to its input.

    Zeros are added instead, and the slots of the other attentions in the cache of keys and values close up.
    """

    kind = "silence"

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless the module is there, in a model of transformers."""
        if not arguments_of(module_at(model, self.target)) or not hasattr(model, "config"):
            fix = "Give a model of transformers"
            raise PlanError("is no residual branch of a decoder", where=self.target, fix=fix)

    def row(self, model: nn.Module) -> Row:
        """Count and measure all the parameters of the branch."""
        parameters = list(module_at(model, self.target).parameters())
        return Row(self.target, self.kind, (), sum(p.numel() for p in parameters), 0, norm(parameters))

    def apply(self, model: nn.Module) -> Undo:
        """Put a silent module in its place."""
        return silence(model, self.target)

    def values(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the edit."""
        return cls(target)
