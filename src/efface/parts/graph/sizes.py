"""Tell in which sizes a network differs from what its constructor builds, and give a new one those sizes.

A configuration has one number for all blocks, and after a removal each may have its own. So the configuration stays
that of the constructor, and beside it stands, for each tensor and attribute that differs, what it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import UsageError, WeightsError
from efface.parts.graph.remove import tensor_of

SIZES = "kept_sizes"
"""Key of a ``config.json``: ``tensors`` with their shapes, and ``attributes`` of modules with their values."""
DAMAGED = "Save the folder again"


def differences(model: nn.Module, built: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the shapes and attributes of ``model`` that are others in ``built``, empty where there are none.

    ``built`` may lie on the device ``meta``. Raises :class:`UsageError` if a tensor differs that is never saved.
    """
    fresh, saved = dict(_tensors(built)), model.state_dict().keys()
    shapes = {n: list(t.shape) for n, t in _tensors(model) if n in fresh and t.shape != fresh[n].shape}
    if lost := sorted(shapes.keys() - saved):
        what = "lost channels, and a checkpoint does not hold it"
        raise UsageError(
            what, where=lost[0], fix="Leave its group whole, or keep the plan and apply it to the original"
        )
    modules = dict(built.named_modules())
    attributes = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if _is_size(value) and path in modules and _differs(value, vars(modules[path]).get(name))
    }
    found = {"tensors": shapes, "attributes": attributes}
    return found if shapes else {}


def attributes(model: nn.Module) -> dict[str, int]:
    """Return every attribute of a module that holds a size, by name."""
    return {
        f"{path}.{name}": value[0] if isinstance(value, (tuple, list)) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if _is_size(value)
    }


def sized(kind: type[Any], sizes: Mapping[str, Any] | None) -> type[Any]:
    """Return a subclass of a model class that builds itself with ``sizes``, the class itself where there are none."""
    if not sizes:
        return kind

    @functools.wraps(kind.__init__)  # whose arguments diffusers reads
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        take(self, sizes)

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})


@torch.no_grad()
def take(model: nn.Module, sizes: Mapping[str, Any]) -> None:
    """Give a new ``model`` the sizes that :func:`differences` told; its values there are undefined.

    Raises :class:`WeightsError` if they do not fit it.
    """
    try:
        for name, shape in sizes["tensors"].items():
            tensor = tensor_of(model, name)
            if len(shape) != tensor.ndim or not all(0 < n <= m for n, m in zip(shape, tensor.shape, strict=True)):
                raise ValueError(f"{name} cannot be {tuple(shape)}")
            tensor.data = tensor.data.new_empty(shape)
        for name, value in sizes["attributes"].items():
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            if not _is_size(old := vars(module).get(leaf)) or isinstance(old, int) != isinstance(value, int):
                raise ValueError(f"{name} is no size")
            setattr(module, leaf, tuple(value) if isinstance(old, tuple) else value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{SIZES} does not fit the network ({error})", where="config.json", fix=DAMAGED) from error


def _tensors(model: nn.Module) -> chain[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _is_size(value: Any) -> bool:
    one = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value
    return type(one) is int


def _differs(value: Any, other: Any) -> bool:
    return _is_size(other) and value != other
