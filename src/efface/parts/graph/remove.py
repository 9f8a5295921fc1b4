"""Take channels out of the tensors of a network, and set the attributes that hold their number."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from efface.parts.graph.atoms import Ints

Undo = Callable[[nn.Module], None]
CONFIG = "config."
"""Beginning of the name of an attribute that is a setting of the module's configuration."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Indices (int64, ascending) that a dimension of ``size`` of the tensor ``name`` loses."""

    name: str
    dim: int
    size: int
    indices: Ints


@dataclass(frozen=True)
class Resize:
    """An attribute of a module that holds a size, an int or the one of a tuple; or a setting of its configuration."""

    module: str
    name: str
    old: int | None
    """None for a setting that stands for what others give."""
    new: int


@dataclass(frozen=True, eq=False)
class Removal:
    """All that goes with channels of one group, on the network as the removals before it leave it."""

    group: str
    cuts: tuple[Cut, ...]
    sizes: tuple[Resize, ...]


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer called ``name``; raise AttributeError if there is none."""
    path, _, leaf = name.rpartition(".")
    found = getattr(model.get_submodule(path), leaf)
    if not isinstance(found, Tensor):
        raise AttributeError(f"{name} is no tensor")
    return found


def size_of(model: nn.Module, resize: Resize) -> int | None:
    """Return what the attribute holds now, None where it is not there or holds no size."""
    module, name = model.get_submodule(resize.module), resize.name
    holder = getattr(module, "config", None) if name.startswith(CONFIG) else module
    value = getattr(holder, name.removeprefix(CONFIG), None)
    value = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
    return value if isinstance(value, int) else None


@torch.no_grad()
def remove(model: nn.Module, removal: Removal, optimizers: Sequence[torch.optim.Optimizer] = ()) -> Undo:
    """Carry ``removal`` out in place, gradients and the state of ``optimizers`` with it, and return what undoes it.

    Parameters stay the same objects, so that optimizers and tied names go on to refer to them. What undoes it holds
    the numbers that went, and gives the optimizers back theirs.
    """
    taken = []
    for cut in removal.cuts:
        tensor = tensor_of(model, cut.name)
        taken.append([cut, *_cut(tensor, cut, optimizers)])
    config = getattr(model, "config", None)
    for size in removal.sizes:
        _resize(model, size, size.new)

    @torch.no_grad()
    def undo(model: nn.Module) -> None:
        for size in reversed(removal.sizes):
            if not size.name.startswith(CONFIG):
                _resize(model, size, size.old)
        if config is not None:
            _reconfigure(model, config)
        for cut, went, grad, states in reversed(taken):
            tensor = tensor_of(model, cut.name)
            kept_grad, tensor.grad = tensor.grad, None
            tensor.data = _joined(tensor.data, went, cut)
            tensor.grad = None if kept_grad is None or grad is None else _joined(kept_grad, grad, cut)
            for state, key, gone in states:
                state[key] = _joined(state[key], gone, cut)

    return undo


def _cut(tensor: Tensor, cut: Cut, optimizers: Iterable[torch.optim.Optimizer]) -> tuple[Any, ...]:
    """Take the indices out of a tensor, its gradient and its state, and return what went from each."""
    shape, grad = tensor.shape, tensor.grad
    states = []
    for optimizer in optimizers:
        state = optimizer.state.get(tensor, {})  # type: ignore[call-overload]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == shape:
                states.append((state, key, _went(value, cut)))
                state[key] = _rest(value, cut)
    tensor.grad = None
    went = _went(tensor.data, cut)
    tensor.data = _rest(tensor.data, cut)
    gone = None
    if grad is not None:
        gone, tensor.grad = _went(grad, cut), _rest(grad, cut)
    return went, gone, states


def _went(tensor: Tensor, cut: Cut) -> Tensor:
    return tensor.index_select(cut.dim, torch.from_numpy(cut.indices).to(tensor.device))


def _rest(tensor: Tensor, cut: Cut) -> Tensor:
    rest = torch.from_numpy(staying(cut)).to(tensor.device)
    return _laid_out(tensor.index_select(cut.dim, rest), tensor)


def _joined(rest: Tensor, went: Tensor, cut: Cut) -> Tensor:
    order = np.argsort(np.concatenate([staying(cut), cut.indices]))
    both = torch.cat([rest, went], dim=cut.dim)
    return _laid_out(both.index_select(cut.dim, torch.from_numpy(order).to(rest.device)), rest)


def staying(cut: Cut) -> Ints:
    """Return the indices of the dimension that stay."""
    return np.delete(np.arange(cut.size), cut.indices)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Give ``tensor`` the memory format of ``like``: kernels of channels-last networks stay quick."""
    last = like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor.contiguous()


def _resize(model: nn.Module, resize: Resize, value: int | None) -> None:
    module = model.get_submodule(resize.module)
    if resize.name.startswith(CONFIG):
        config = copy.copy(module.config)  # other models may have been built with this one
        setattr(config, resize.name.removeprefix(CONFIG), value)
        _reconfigure(module, config)
        return
    old = getattr(module, resize.name)
    setattr(module, resize.name, type(old)([value]) if isinstance(old, (tuple, list)) else value)


def _reconfigure(model: nn.Module, config: Any) -> None:
    """Put ``config`` in the place of the configuration of ``model`` wherever its modules hold it."""
    old = model.config
    for module in model.modules() if config is not old else ():
        if vars(module).get("config") is old:
            module.config = config
