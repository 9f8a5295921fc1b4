"""Put another module in the place of one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from efface.core.ops.op import Op, Row, Undo, module_at, norm, swap
from efface.errors import EffaceError, PlanError
from efface.io.weights import finite

PARTS = "efface.parts."


@dataclass(frozen=True, eq=False, repr=False)
class Replace(Op):
    """Build a module and put it wherever ``target`` is in the model.

    ``cls`` is ``torch.nn.NAME`` or ``efface.parts.MODULE.NAME``: nothing else is ever imported. ``args`` are its
    keyword arguments, as JSON, and ``state`` its ``state_dict``, whose tensors decide the number formats.
    """

    kind = "replace"
    cls: str
    args: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @classmethod
    def by(cls, target: str, new: nn.Module, args: Mapping[str, Any]) -> Self:
        """Replace ``target`` by a module like ``new``, which was made with the keyword arguments ``args``."""
        kind = type(new)
        path = f"torch.nn.{kind.__name__}" if getattr(nn, kind.__name__, None) is kind else None
        state = {name: t.detach().to("cpu", copy=True) for name, t in new.state_dict().items()}
        return cls(target, path or f"{kind.__module__}.{kind.__name__}", args, state)

    def __post_init__(self) -> None:
        try:
            same = json.loads(json.dumps(self.args)) == self.args
        except (TypeError, ValueError):
            same = False
        if not same:
            raise PlanError(f"the arguments of {self.cls} do not survive JSON", where=self.target)
        if not all(map(finite, self.state.values())):
            raise PlanError(f"a tensor of {self.cls} holds NaN or infinity", where=self.target)

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless the target is there and the module can be built with its tensors."""
        module_at(model, self.target)
        ghost = self._made("meta")
        wanted = {name: tuple(tensor.shape) for name, tensor in ghost.state_dict().items()}
        if wanted != {name: tuple(tensor.shape) for name, tensor in self.state.items()}:
            raise PlanError(f"the tensors of {self.cls} do not fit its arguments", where=self.target)

    def row(self, model: nn.Module) -> Row:
        """Count the parameters before and after, and measure all of those before."""
        before = list(module_at(model, self.target).parameters())
        kept = sum(p.numel() for p in self._made("meta").parameters())
        name = f"{self.kind} by {self.cls.rpartition('.')[2]}"
        return Row(self.target, name, (), sum(p.numel() for p in before), kept, norm(before))

    def apply(self, model: nn.Module) -> Undo:
        """Build the module like the one it replaces: on its device, in its mode, trained or frozen as it was."""
        old = module_at(model, self.target)
        ghost = self._made("meta")
        not_saved = {name for name, _ in ghost.named_buffers()} - ghost.state_dict().keys()
        new = self._made("cpu") if not_saved else ghost
        new.load_state_dict({name: tensor.clone() for name, tensor in self.state.items()}, assign=True)
        if (like := next(old.parameters(), None)) is not None:
            new.to(like.device).requires_grad_(any(p.requires_grad for p in old.parameters()))
        new.train(old.training)
        swap(model, old, new)
        return lambda model: swap(model, new, old)

    def values(self) -> dict[str, Any]:
        """Return the class and its arguments."""
        return {"class": self.cls, "args": dict(self.args)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the ``state_dict``."""
        return dict(self.state)

    @classmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the replacement; its class is looked up now, its module built when it is needed."""
        allowed(values["class"])
        return cls(target, values["class"], dict(values["args"]), tensors)

    def _made(self, device: str) -> nn.Module:
        kind = allowed(self.cls)
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                return kind(**self.args)
        except EffaceError:
            raise
        except Exception as error:  # arguments from a file can make a constructor raise anything
            raise PlanError(f"{self.cls} cannot be built ({error})", where=self.target) from error


def allowed(path: str) -> type[nn.Module]:
    """Return the module class at ``path`` in torch.nn or efface.parts; raise :class:`PlanError` for any other path."""
    module, _, name = path.rpartition(".")
    found: Any = None
    if module == "torch.nn":
        found = getattr(nn, name, None)
    elif module.startswith(PARTS) and all(part.isidentifier() for part in module.split(".")):
        found = getattr(_part(module), name, None)
    if not (
        isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith((PARTS, "torch."))
    ):
        fix = "Only classes of torch.nn and efface.parts are built from a file"
        raise PlanError(f"{path!r} is no module that a plan may build", fix=fix)
    return found


def _part(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None
