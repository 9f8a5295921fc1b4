"""Find groups of channels that can grow, and build layers of torch anew with more channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from efface.parts.graph.groups import ChannelGraph, Group
from efface.parts.graph.planning import removals

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the parameters of a layer, by their names in it."""


def growable(graph: ChannelGraph) -> list[str]:
    """Return the groups whose channels are made and read by layers alone that :func:`widened` can build.

    Groups that the code of other modules knows the number of (heads), or that have bare parameters, are not among them.
    """
    return [name for name, group in graph.groups.items() if _can_grow(graph, group)]


def owners(group: Group) -> set[str]:
    """Return the modules whose tensors have channels of ``group``."""
    return {member.name.rpartition(".")[0] for member in group.members}


def can_widen(module: nn.Module) -> bool:
    """Say whether :func:`widened` knows the layer: one of torch.nn itself, not of a class derived from it."""
    if getattr(nn, type(module).__name__, None) is not type(module):
        return False
    if isinstance(module, _ConvNd):
        whole = module.groups == 1 or module.groups == module.in_channels == module.out_channels
        return whole and not isinstance(module, nn.modules.lazy.LazyModuleMixin)
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    return isinstance(module, (nn.Linear, nn.PReLU)) or (isinstance(module, _BatchNorm) and module.affine)


def widened(module: nn.Module, shapes: Shapes) -> tuple[nn.Module, dict[str, Any]]:
    """Return a layer like ``module`` whose parameters have the given ``shapes``, and the arguments that build it.

    The weights are new, drawn from torch's current generator; the layer has the device, number format and mode of
    ``module``. Raises ValueError for a layer that :func:`can_widen` refuses.
    """
    if not can_widen(module):
        raise ValueError(f"{type(module).__name__} cannot be built with other numbers of channels")
    args = _arguments(module, shapes["weight"])
    new = type(module)(**args).train(module.training)
    like = next(module.parameters())
    return new.to(like.device, like.dtype), args


def _arguments(module: nn.Module, weight: tuple[int, ...]) -> dict[str, Any]:
    """Return the keyword arguments of the layer whose weight has this shape, as JSON values."""
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Linear):
        return {"in_features": weight[1], "out_features": weight[0], "bias": bias}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight[0]}
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": [weight[0]], "eps": module.eps, "bias": bias}
    if isinstance(module, _BatchNorm):
        kept = {"eps": module.eps, "momentum": module.momentum, "track_running_stats": module.track_running_stats}
        return {"num_features": weight[0], **kept}
    assert isinstance(module, _ConvNd)
    inputs, outputs = (weight[0], weight[1]) if isinstance(module, _ConvTransposeNd) else (weight[1], weight[0])
    groups = 1 if module.groups == 1 else weight[0]
    args = {"in_channels": groups if groups > 1 else inputs, "out_channels": groups if groups > 1 else outputs}
    args |= {name: _plain(getattr(module, name)) for name in ("kernel_size", "stride", "padding", "dilation")}
    if isinstance(module, _ConvTransposeNd):
        args["output_padding"] = _plain(module.output_padding)
    return args | {"groups": groups, "bias": bias, "padding_mode": module.padding_mode}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _can_grow(graph: ChannelGraph, group: Group) -> bool:
    layers = owners(group)
    if not all(can_widen(graph.model.get_submodule(layer)) for layer in layers):
        return False
    made = removals(graph, {group.name: np.arange(group.size) > 0})
    return {size.module for removal in made for size in removal.sizes} <= layers
