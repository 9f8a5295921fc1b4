"""List the names of attributes in which modules keep sizes that a removal changes.

Layers of torch are sure: their rule says which dimension each attribute belongs to. The modules around them (blocks of
transformers and diffusers) are known by the names below; an attribute is meant where its value is the size of a
dimension that enters the module, or that the module's own code handles.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

ENTRY = ("channels", "in_channels", "num_channels", "num_features", "hidden_size", "embed_dim", "query_dim", "dim")
"""Sizes of what is given to a module."""
INSIDE = (
    "intermediate_size", "inner_dim", "inner_kv_dim", "all_head_size", "split_size", "d_ff", "nf", "nx",
    "heads", "num_heads", "n_heads", "n_head", "num_attention_heads", "num_key_value_heads", "num_kv_heads",
)  # fmt: skip
"""Sizes of what the code of a module handles."""


def sizes_of(module: nn.Module, names: Sequence[str]) -> dict[int, list[str]]:
    """Return those of the attributes ``names`` of ``module`` that hold a size, by their values."""
    found: dict[int, list[str]] = {}
    for name in names:
        value = module.__dict__.get(name)
        if type(value) is int and value > 1:
            found.setdefault(value, []).append(name)
    return found
