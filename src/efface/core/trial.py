"""Make edits of a model for good or for a moment, all of them or none; look at one alone where that is enough."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from efface.core.fingerprint import saved_tensors
from efface.core.ops import Op, TensorOp, Undo, tensor_at
from efface.errors import EffaceError, PlanError
from efface.parts.sparsity.prunable import tied


def edited(ops: Iterable[Op], model: nn.Module, before: Callable[[Op], Any] = lambda op: None) -> Iterator[Undo]:
    """Apply each of ``ops`` to ``model`` when the next is asked for, and yield what undoes it."""
    for op in ops:
        with told(op):
            op.check(model)
            before(op)
            undo = op.apply(model)
        yield undo


def perform(ops: Iterable[Op], model: nn.Module, before: Callable[[Op], Any] = lambda op: None) -> list[Undo]:
    """Apply ``ops`` to ``model``, or none of them if one fails; return what undoes them."""
    undos: list[Undo] = []
    try:
        undos.extend(edited(ops, model, before))
    except BaseException:
        take_back(undos, model)
        raise
    return undos


def take_back(undos: Sequence[Undo], model: nn.Module) -> None:
    """Undo edits, the last one first."""
    for undo in reversed(undos):
        undo(model)


@contextlib.contextmanager
def trial(ops: Iterable[Op], model: nn.Module, before: Callable[[Op], Any] = lambda op: None) -> Iterator[None]:
    """Apply ``ops`` for the length of a block, calling ``before`` with each; the model is then as it was."""
    undos = perform(ops, model, before)
    try:
        yield
    finally:
        take_back(undos, model)


def apart(ops: Sequence[Op], model: nn.Module) -> dict[str, TensorOp] | None:
    """Return the edits by the tensor that each is of, if each is of a tensor alone, and of one of its own; else None.

    What such edits do can be known tensor by tensor, which takes the memory of one of them. A tied parameter goes by
    its first name. Raises :class:`PlanError` if one does not fit.
    """
    first, alone = tied(model), dict[str, TensorOp]()
    users = Counter(tensor.untyped_storage()._cdata for name, tensor in saved_tensors(model) if name not in first)
    for op in ops:
        name = first.get(op.target, op.target)
        if not isinstance(op, TensorOp) or name in alone:
            return None
        with told(op):
            op.check(model)
        if users[tensor_at(model, name).untyped_storage()._cdata] > 1:
            return None
        alone[name] = op
    return alone


@contextlib.contextmanager
def told(op: Op) -> Iterator[None]:
    """Turn whatever ``op`` raises into a :class:`PlanError` that names it."""
    try:
        yield
    except EffaceError:
        raise
    except Exception as error:  # of torch, or of a constructor that a file gives arguments to
        raise PlanError(f"the edit {op.kind} failed ({error})", where=op.target) from error
