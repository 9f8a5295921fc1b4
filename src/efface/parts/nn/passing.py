"""Stand in for a module that is skipped, and hand its input through."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

CACHES = ("past_key_values", "past_key_value", "layer_past")
"""What the layers of transformers call the cache of keys and values that they are given."""


class PassThrough(nn.Module):
    """Return an argument as it came, under whichever name or position the skipped module would have taken it.

    Parameters
    ----------
    arguments:
        Names of the arguments of the skipped module, in order.
    result:
        What is returned: the first argument itself (None), or a tuple of the arguments named here, with None for a
        value that is not there (an attention map).
    cache_layer:
        Number of the layer in a transformer's cache. Transformers count tokens by what layers put there, so a skipped
        one puts in zeros of width 1.
    facts:
        Plain attributes that a parent may ask the layer for, such as its ``attention_type``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        result: Sequence[str | None] | None = None,
        *,
        cache_layer: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (facts or {}).items():
            setattr(self, name, value)
        self.arguments, self.result, self.cache_layer = tuple(arguments), result, cache_layer

    @classmethod
    def of(cls, module: nn.Module, result: Sequence[str | None] | None = None) -> PassThrough:
        """Make what stands in for ``module``."""
        numbers = (getattr(part, "layer_idx", None) for part in module.modules())
        cache_layer = next((number for number in numbers if isinstance(number, int)), None)
        plain = {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, (str, int, float))}
        return cls(arguments_of(module), result, cache_layer=cache_layer, facts=plain)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what came in."""
        given = dict(zip(self.arguments, args, strict=False)) | kwargs
        first = given[self.arguments[0]]
        cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
        if cache is not None and self.cache_layer is not None:
            nothing = first.new_zeros(first.shape[0], 1, first.shape[1], 1)  # (b, heads, tokens, width)
            cache.update(nothing, nothing, self.cache_layer)
        return first if self.result is None else tuple(given.get(name or "") for name in self.result)


class Silent(PassThrough):
    """Return zeros where a residual branch would return what is added to its input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros of the shape of what came in."""
        passed = super().forward(*args, **kwargs)
        if isinstance(passed, tuple):
            return tuple(None if value is None else torch.zeros_like(value) for value in passed)
        return torch.zeros_like(passed)


def arguments_of(module: nn.Module) -> list[str]:
    """Return the names of the arguments that the ``forward`` of ``module`` takes, in order."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind not in several]
