"""Say what every edit of a model can do, and find the places that edits name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from efface.errors import PlanError, UnknownNameError

Undo = Callable[[nn.Module], None]
"""Puts back, bit by bit, what an edit took from the model."""
ANOTHER = "Take the model that the plan was made for"
CHUNK = 1 << 22
"""Values that are measured at once."""


@dataclass(frozen=True)
class Row:
    """What one edit would do, as a line of a table."""

    target: str
    op: str
    shape: tuple[int, ...]
    """Shape of the tensor, empty where the target is a module."""
    weights: int
    kept: int
    """Weights that are there afterwards and not held at zero."""
    norm: float
    """L2 norm of what would go: of the difference between the tensor before and after, or of a whole module."""

    @property
    def removed(self) -> int:
        """Number of weights that would go."""
        return self.weights - self.kept

    @property
    def share(self) -> float:
        """Share of the weights that would go."""
        return self.removed / self.weights if self.weights else 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Op(ABC):
    """One edit of a model. A plan calls ``check`` and ``row`` before ``apply``, on the model as it then is.

    Tensors of an edit lie on the CPU and belong to it: whoever makes one does not change them afterwards.
    """

    kind: ClassVar[str]
    """Name of the kind of edit in ``plan.json``."""
    relative: ClassVar[bool] = False
    """Whether it means something only on the very weights that it was made for."""
    target: str
    """Qualified name of a parameter, buffer or module."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target})"

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless the edit fits ``model``; read only."""

    @abstractmethod
    def row(self, model: nn.Module) -> Row:
        """Say what the edit would do to ``model``; read only."""

    @abstractmethod
    def apply(self, model: nn.Module) -> Undo:
        """Edit ``model`` in place, whole or not at all, and return what undoes it. It must not refer to ``model``."""

    @property
    def touches(self) -> tuple[str, ...]:
        """Names of the tensors and modules that the edit changes."""
        return (self.target,)

    def scaled(self, strength: float) -> Self:
        """Return the edit at ``strength``: 1 is the whole of it and 0 none; raise :class:`PlanError` if it has none."""
        fix = "Only edits that add to weights, mix them or set them come in strengths"
        raise PlanError(f"the edit {self.kind} is made or not made, and has no strength", where=self.target, fix=fix)

    def alive(self, before: Tensor | None) -> Tensor | None:
        """Return which weights of the target may be other than zero afterwards, given which were; None means all."""
        return None

    def follow(self, name: str, mask: Tensor) -> Tensor:
        """Return the mask of the tensor ``name`` as it is after the edit, in which it may have lost indices."""
        return mask

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return what ``plan.json`` holds of the edit beside its kind and target."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what ``plan.safetensors`` holds of the edit."""

    @classmethod
    @abstractmethod
    def read(cls, target: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Make the edit from its stored form, which may be damaged: anything but an edit that can be raises."""


@dataclass(frozen=True, eq=False, repr=False)
class TensorOp(Op):
    """An edit of the values of one parameter or buffer."""

    @property
    def label(self) -> str:
        """The edit in one or two words."""
        return self.kind

    @abstractmethod
    def becomes(self, tensor: Tensor) -> Tensor:
        """Return the values that the target has after the edit, given those before, which stay."""

    def row(self, model: nn.Module) -> Row:
        """Count the weights that may live, and measure how far the tensor would move."""
        tensor, alive = tensor_at(model, self.target).detach(), self.alive(None)
        kept = tensor.numel() if alive is None else int(alive.count_nonzero())
        parts = zip(_parts(tensor), _parts(self.becomes(tensor)), strict=True)
        away = norm(new - old for old, new in parts)
        return Row(self.target, self.label, tuple(tensor.shape), tensor.numel(), kept, away)


def tensor_at(model: nn.Module, target: str) -> Tensor:
    """Return the parameter or buffer called ``target``, or raise :class:`PlanError` with a suggestion."""
    path, _, name = target.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = nn.Module()
    found: Tensor | None = module._parameters.get(name)
    found = module._buffers.get(name) if found is None else found
    if found is None:
        names = (name for pairs in (model.named_parameters(), model.named_buffers()) for name, _ in pairs)
        raise _unknown("parameter or buffer", target, names)
    return found


def module_at(model: nn.Module, target: str) -> nn.Module:
    """Return the module called ``target``, not ``model`` itself, or raise :class:`PlanError` with a suggestion."""
    names = dict(model.named_modules(remove_duplicate=False))
    if target not in names or target == "":
        raise _unknown("module", target, names.keys() - {""})
    return names[target]


def swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in every place of ``model`` where ``old`` is."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent.register_module(name, new)


def check_shape(target: str, given: Iterable[int], tensor: Tensor) -> None:
    """Raise :class:`PlanError` unless ``tensor``, which is called ``target``, has the shape ``given``."""
    if tuple(given) != tuple(tensor.shape):
        what = f"the edit has the shape {tuple(given)} and the model {tuple(tensor.shape)}"
        raise PlanError(what, where=target, fix=ANOTHER)


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the L2 norm over all ``tensors``, NaN where they have no content (device ``meta``)."""
    parts = (part for tensor in tensors for part in _parts(tensor.detach()))
    squares = [torch.linalg.vector_norm(part, dtype=torch.float64).square() for part in parts]
    return float("nan") if any(s.is_meta for s in squares) else float(sum(map(float, squares)) ** 0.5)


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield ``tensor`` in parts that are small, and in float32 at least, which torch can reckon with."""
    exact = tensor.dtype == torch.float64 or tensor.dtype.is_complex
    for part in tensor.reshape(-1).split(CHUNK):
        yield part if exact else part.float()


def _unknown(kind: str, target: str, known: Iterable[str]) -> PlanError:
    error = UnknownNameError(kind, target, known)
    return PlanError(error.what, where=target, fix=error.fix)
