"""Take residual branches out of a decoder, so that what is left runs like any other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import nn

from efface.parts.language.blocks import Sublayer, idle, sublayers, text_config
from efface.parts.nn.passing import CACHES, Silent, arguments_of

Undo = Callable[[nn.Module], None]


def silence(model: nn.Module, branch: str) -> Undo:
    """Put a :class:`Silent` in the place of ``branch``, and return what undoes it.

    The slots of the remaining attentions in the cache of keys and values close up, for transformers count tokens by
    what lies in the first slot. Where slots are of different kinds (layers with a sliding window among others), and
    where no attention remains, they stay, and the silent module counts the tokens in its own.
    """
    old = model.get_submodule(branch)
    arguments = arguments_of(old)
    cached = any(name in arguments for name in CACHES)
    new = Silent.of(old, (arguments[0], None) if cached else None)
    slot, behind = new.cache_layer, []
    if cached and slot is not None:
        others = [module for module in _attentions(model) if module is not old and hasattr(module, "layer_idx")]
        kinds = getattr(text_config(model), "layer_types", None) or [""]
        if others and len(set(kinds)) == 1:
            new.cache_layer = None
            behind = [module for module in others if module.layer_idx > slot]
    model.set_submodule(branch, new.train(old.training))
    _renumber(behind, -1)

    def undo(model: nn.Module) -> None:
        model.set_submodule(branch, old)
        _renumber(behind, 1)

    return undo


def remove(model: nn.Module, removed: Collection[Sublayer]) -> Undo:
    """Take the branches ``removed`` out of ``model``, and with them the norms that served them alone."""
    dropped = {name: model.get_submodule(name) for name in idle(sublayers(model), removed)}
    for name in dropped:
        model.set_submodule(name, nn.Identity())
    undos = [silence(model, sublayer.branch) for sublayer in removed]

    def undo(model: nn.Module) -> None:
        for back in reversed(undos):
            back(model)
        for name, module in dropped.items():
            model.set_submodule(name, module)

    return undo


@contextlib.contextmanager
def without(model: nn.Module, removed: Collection[Sublayer]) -> Iterator[None]:
    """Take branches out of ``model`` for the length of a block."""
    undo = remove(model, removed)
    try:
        yield
    finally:
        undo(model)


def _attentions(model: nn.Module) -> list[Any]:
    """Return the innermost modules that are given the cache of keys and values and have a slot in it."""
    found = [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int) and _takes_cache(m)]
    return [m for m in found if not any(inner is not m and inner in found for inner in m.modules())]


def _takes_cache(module: nn.Module) -> bool:
    return any(name in CACHES for name in arguments_of(module))


def _renumber(attentions: list[Any], by: int) -> None:
    for attention in attentions:
        attention.layer_idx += by
