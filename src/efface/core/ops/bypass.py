"""Skip a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from efface.core.ops.op import Op, Row, Undo, module_at, norm, swap
from efface.errors import PlanError
from efface.parts.nn.passing import PassThrough, arguments_of


@dataclass(frozen=True, eq=False, repr=False)
class Bypass(Op):
    """Take a module out and hand its first argument through, wherever the module is in the model.

    A layer that returns a tuple needs ``result``: names of its arguments in the places where it returns their
    successors, None where it returns something else. Its parameters leave the ``state_dict``.
    """

    kind = "bypass"
    result: Sequence[str | None] | None = None

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless the module is there and takes what is to be handed through."""
        arguments = arguments_of(module_at(model, self.target))
        if not arguments:
            raise PlanError("takes no argument that could be handed through", where=self.target)
        for name in self.result or ():
            if name is not None and name not in arguments:
                raise PlanError(f"takes no argument {name!r} (it takes {', '.join(arguments)})", where=self.target)

    def row(self, model: nn.Module) -> Row:
        """Count and measure all the parameters of the module."""
        parameters = list(module_at(model, self.target).parameters())
        return Row(self.target, self.kind, (), sum(p.numel() for p in parameters), 0, norm(parameters))

    def apply(self, model: nn.Module) -> Undo:
        """Put a module in its place that returns what it is given."""
        old = module_at(model, self.target)
        new = PassThrough.of(old, self.result)
        swap(model, old, new)
        return lambda model: swap(model, new, old)

    def values(self) -> dict[str, Any]:
        """Return what is handed through, where that is not the first argument."""
        return {} if self.result is None else {"result": list(self.result)}

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the bypass."""
        result = values.get("result")
        if result is not None and not all(name is None or isinstance(name, str) for name in result):
            raise TypeError("the result of a bypass is not made of names")
        return cls(target, result)
