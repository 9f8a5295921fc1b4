"""Find the weights of a network that pruning may take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from efface.errors import UnknownNameError, UsageError

_WEIGHT = re.compile(r"(.*_)?weight|weight_[ih]h_l\d+(_reverse)?")
_EMBEDDING = re.compile(r".*(embed|embeddings?|embed_tokens|_emb)|wte|wpe|shared|relative_attention_bias")


def prunable(model: nn.Module, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """Return the weights of ``model`` that pruning may take, by name, each tied one once.

    They are the weights of convolutions, linear and recurrent layers and attention projections: never biases, norms or
    embeddings (nor a head that is tied to one). A model that has none of these layers, such as the bare content of a
    file, goes by :func:`prunable_names`. Globs match a weight's name or its layer's.

    Raises
    ------
    UnknownNameError
        If a glob matches nothing.
    UsageError
        If there is nothing to prune.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {name: known_as for name, known_as in _candidates(model).items() if parameters[name].numel()}
    chosen = _match(include, names) - _match(exclude, names)
    if not chosen:
        what = "every prunable weight is excluded" if names else "there are no prunable weights"
        raise UsageError(what, fix="Name a network with convolutions or linear layers, and globs that leave some")
    return {name: parameters[name] for name in names if name in chosen}


def by_layer(
    model: nn.Module, texts: Iterable[str], exclude: Iterable[str] = (), *, where: str, what: str
) -> dict[str, float]:
    """Return the number of each prunable weight that one of ``texts``, of the form ``glob=0.1``, is for.

    A later text overrides an earlier one. One of another form raises :class:`UsageError`: it is ``what``, ``where``.
    """
    found: dict[str, float] = {}
    for text in texts:
        glob, _, written = text.partition("=")
        try:
            number = float(written)
        except ValueError as error:
            raise UsageError(f"{text!r} is {what}", where=where, fix="Write it as linear3=0.1") from error
        found |= dict.fromkeys(prunable(model, (glob.strip(),), exclude), number)
    return found


def asides(model: nn.Module) -> list[str]:
    """Say which weights :func:`prunable` passes over for being empty, and which go by one of several names."""
    found, parameters = _candidates(model), dict(model.named_parameters(remove_duplicate=False))
    empty = [name for name in found if not parameters[name].numel()]
    told = [f"Without weights, and passed over: {', '.join(empty)}"] if empty else []
    return told + [f"{', '.join(others)}: tied to {name}" for name, (_, *others) in found.items() if others]


def _candidates(model: nn.Module) -> dict[str, list[str]]:
    """Return the first name of each weight that is of a kind to be pruned, with all names that it has."""
    parameters, first = dict(model.named_parameters(remove_duplicate=False)), tied(model)
    layers, embeddings = [], set()
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        layers += [prefix + name for name in _weights_of(module)]
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            embeddings.add(first.get(prefix + "weight", prefix + "weight"))
    if not layers:
        layers = prunable_names({name: tuple(weight.shape) for name, weight in parameters.items()})
    return {
        name: [name, *(other for other, one in first.items() if one == name)]
        for name in dict.fromkeys(first.get(layer, layer) for layer in layers)
        if name not in embeddings and parameters[name].is_floating_point()
    }


def prunable_names(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names that look like weights of convolutions or linear layers, given nothing but names and shapes."""

    def looks_right(name: str) -> bool:
        layer, _, last = name.rpartition(".")
        layer, ndim = layer.rpartition(".")[2], len(shapes[name])
        other = "norm" in layer or (ndim == 2 and _EMBEDDING.fullmatch(layer))
        return 2 <= ndim <= 5 and _WEIGHT.fullmatch(last) is not None and not other

    return [name for name in shapes if looks_right(name)]


def tied(model: nn.Module) -> dict[str, str]:
    """Return, for each parameter of ``model`` that has several names, the first one under each of the others."""
    first: dict[object, str] = {}
    others: dict[str, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        place = 0 if weight.is_meta else weight.data_ptr()
        same = (weight.device, place, weight.shape, weight.stride()) if place else id(weight)
        if first.setdefault(same, name) != name:
            others[name] = first[same]
    return others


def _weights_of(module: nn.Module) -> list[str]:
    names: Iterable[str] = ()
    if isinstance(module, (_ConvNd, nn.Linear)) or type(module).__module__ == "transformers.pytorch_utils":  # Conv1D
        names = ["weight"]
    elif isinstance(module, nn.MultiheadAttention):
        names = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        names = [name for name in module._parameters if name.startswith("weight_")]
    return [name for name in names if module._parameters.get(name) is not None]


def _match(globs: Iterable[str], names: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the keys of ``names`` of which one name, or the layer it belongs to, fits one of ``globs``."""
    matched: set[str] = set()
    for glob in [globs] if isinstance(globs, str) else globs:
        hits = {
            name
            for name, known_as in names.items()
            if any(fnmatchcase(one, glob) or fnmatchcase(one.rpartition(".")[0], glob) for one in known_as)
        }
        if not hits and glob != "*":
            layers = {name.rpartition(".")[0] for name in names} - {""}
            raise UnknownNameError("prunable weight or layer", glob, layers.union(names))
        matched |= hits
    return matched
