"""Take hidden nodes (neurons, channels) out of a chain of layers, by masks or for good."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from efface.errors import UsageError
from efface.parts.nn.chain import NORMS, WEIGHTED, chain
from efface.parts.nn.modes import mode

Alive = Mapping[str, Tensor]
"""Name of a hidden layer -> bool (nodes,), or for several configurations (count, nodes)."""


@dataclass(frozen=True)
class Hidden:
    """A layer whose outputs, its nodes, are read by one other layer alone."""

    name: str
    nodes: int
    norm: str
    """Name of the batch norm behind it; empty where there is none."""
    reader: str
    places: int
    """Inputs of the reader for each node: more than one behind a flattened map."""


def hidden_layers(model: nn.Module) -> list[Hidden]:
    """Return the hidden layers of a chain from input to output; other networks raise :class:`UsageError`."""
    layers = chain(model)
    if layers is None:
        what = "the network is no chain of layers, so one layer's nodes cannot be told from another's"
        raise UsageError(what, fix="Give a nn.Sequential of linear layers and ungrouped convolutions")
    found: list[Hidden] = []
    maker, norm = "", ""
    for name, layer in layers:
        if isinstance(layer, NORMS):
            norm = name
        elif isinstance(layer, WEIGHTED):
            if maker:
                nodes, inputs = len(model.get_submodule(maker).get_parameter("weight")), layer.weight.shape[1]
                if inputs % nodes:
                    raise UsageError(f"reads {inputs} values, not a multiple of the {nodes} of {maker}", where=name)
                found.append(Hidden(maker, nodes, norm, name, inputs // nodes))
            maker, norm = name, ""
    if not found:
        raise UsageError("the network has no hidden layer", fix="Give one with two layers or more")
    return found


def score_configurations(
    model: nn.Module, hidden: Sequence[Hidden], alive: Alive, x: Tensor, *, rescale: bool = False, chunk: int = 64
) -> Tensor:
    """Return what ``model`` makes of ``x`` in evaluation, with the nodes of each configuration alone: (count, b, ...).

    ``alive`` is (count, nodes) for each hidden layer. A dead node is not read, whatever its bias and norm make of it.
    ``rescale`` is that of :func:`without_nodes`. ``chunk`` configurations run at once, as one product over all of them.
    """
    readers = {layer.name: model.get_submodule(layer.reader).get_parameter("weight").detach() for layer in hidden}

    def run(kept: dict[str, Tensor]) -> Tensor:
        weights = {
            f"{layer.reader}.weight": readers[layer.name] * _columns(kept[layer.name], layer, readers[layer.name])
            for layer in hidden
        }
        return functional_call(model, weights, (x,))

    given = {layer.name: alive[layer.name].to(x) for layer in hidden}
    if rescale:
        given = {name: kept / kept.mean(1, keepdim=True).sqrt() for name, kept in given.items()}
    with torch.no_grad(), mode(model, training=False):
        return vmap(run, chunk_size=chunk, randomness="same")(given)


def without_nodes(
    model: nn.Module, hidden: Sequence[Hidden], alive: Alive, *, rescale: bool = False
) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Return by name the smaller layers that hold what of ``model`` is alive, each with its keyword arguments.

    In evaluation the network with these layers gives what the network with the dead nodes masked gives. ``rescale``
    multiplies the weights of a reader by the root of its loss of inputs, which keeps the variance of its sums.
    """
    taken: dict[str, dict[int, Tensor]] = {}
    norms: dict[str, Tensor] = {}
    for layer in hidden:
        places = alive[layer.name].nonzero()[:, 0]
        taken.setdefault(layer.name, {})[0] = places
        inputs = (places[:, None] * layer.places + torch.arange(layer.places)).flatten()
        taken.setdefault(layer.reader, {})[1] = inputs
        if layer.norm:
            norms[layer.norm] = places
    small = {name: _smaller(model.get_submodule(name), axes, rescale) for name, axes in taken.items()}
    return small | {name: _smaller_norm(model.get_submodule(name), places) for name, places in norms.items()}


def _columns(kept: Tensor, layer: Hidden, weight: Tensor) -> Tensor:
    """Return what each column of the reader's ``weight`` is multiplied by."""
    columns = kept.repeat_interleave(layer.places, output_size=layer.nodes * layer.places)
    return columns.view(1, -1, *(1,) * (weight.ndim - 2))


def _smaller(layer: nn.Module, axes: Mapping[int, Tensor], rescale: bool) -> tuple[nn.Module, dict[str, Any]]:
    weight = layer.get_parameter("weight").detach().cpu()
    before = weight.shape[1]
    for axis, places in axes.items():
        weight = weight.index_select(axis, places)
    if rescale:
        weight = weight * (before / weight.shape[1]) ** 0.5
    state = {"weight": weight}
    if (bias := getattr(layer, "bias", None)) is not None:
        state["bias"] = bias.detach().cpu()[axes[0]] if 0 in axes else bias.detach().cpu()
    if isinstance(layer, nn.Linear):
        args: dict[str, Any] = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    else:
        args = {"in_channels": weight.shape[1], "out_channels": weight.shape[0]}
        for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
            value = getattr(layer, name)
            args[name] = list(value) if isinstance(value, tuple) else value
    return _built(type(layer), args | {"bias": bias is not None}, state)


def _smaller_norm(norm: nn.Module, places: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    state = {k: v.detach().cpu()[places] if v.ndim else v.cpu() for k, v in norm.state_dict().items()}
    names = ("eps", "momentum", "affine", "track_running_stats")
    return _built(type(norm), {"num_features": len(places), **{name: getattr(norm, name) for name in names}}, state)


def _built(
    kind: type[nn.Module], args: dict[str, Any], state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    with torch.device("meta"):
        made = kind(**copy.deepcopy(args))
    made.load_state_dict(dict(state), assign=True)
    return made, args
