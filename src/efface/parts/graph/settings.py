"""Find the settings with which the stock class of transformers builds a network in the sizes it has come to.

Sizes are products of settings, so their logarithms are linear in those of the settings. Which settings a size depends
on, the class tells: it is built once more for each, with twice as much of it, on no memory at all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from efface.parts.graph.names import ENTRY
from efface.parts.graph.remove import CONFIG, Resize
from efface.parts.graph.sizes import attributes

SETTINGS = ("hidden_size", "intermediate_size", "n_inner", "num_attention_heads", "num_key_value_heads", "head_dim")


def settings_of(model: nn.Module) -> list[Resize]:
    """Return how settings change so that a stock class builds ``model``; none where they do already, or cannot."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict"):  # not of transformers
        return []
    held = {name: getattr(config, name, None) for name in SETTINGS}
    try:
        now, plain = {name: n for name, n in held.items() if type(n) is int}, _sizes(model)
        now |= {name: n for name, n in _defaults(now).items() if held[name] is None}
        before = _built(model, now)
        if before.keys() != plain.keys() or before == plain:
            return []
        slopes = {name: _slopes(before, _built(model, {**now, name: 2 * n})) for name, n in now.items()}
        slopes = {name: slope for name, slope in slopes.items() if slope.any()}
        ratios = np.log2([plain[key] / before[key] if before[key] > 0 else 1.0 for key in before])
        matrix = np.stack(list(slopes.values()), axis=1)
        solved = np.linalg.lstsq(matrix, ratios, rcond=None)[0]
        new = {name: round(now[name] * 2**x) for name, x in zip(slopes, solved.tolist(), strict=True)}
        if _built(model, now | new) != plain:
            return []
    except Exception:  # a class may take other numbers for no network, and raise anything
        return []
    return [Resize("", CONFIG + name, held[name], n) for name, n in new.items() if n != held[name]]


def _defaults(now: Mapping[str, int]) -> dict[str, int]:
    """Return what settings that are None stand for."""
    hidden, heads = now["hidden_size"], now["num_attention_heads"]
    return {"head_dim": hidden // heads, "n_inner": 4 * hidden}


def _built(model: nn.Module, settings: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of a new network of the class of ``model`` with other settings."""
    config = copy.deepcopy(model.config)
    for name, value in settings.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return _sizes(type(model)(config))  # type: ignore[call-arg]


def _sizes(model: nn.Module) -> dict[str, int]:
    """Return every dimension of every tensor that is saved, and every attribute that is a size inside, by name.

    How wide a module's inputs are its tensors tell, and outer modules may keep the old number, which they never read.
    """
    found = {f"{name} {dim}": n for name, tensor in model.state_dict().items() for dim, n in enumerate(tensor.shape)}
    return found | {name: n for name, n in attributes(model).items() if name.rpartition(".")[2] not in ENTRY}


def _slopes(before: Mapping[str, int], twice: Mapping[str, int]) -> NDArray[np.float64]:
    """Return by which power of a setting each size grows."""
    ratios = [twice[key] / n if n > 0 and twice[key] > 0 else 1.0 for key, n in before.items()]
    return np.array([math.log2(ratio) for ratio in ratios])
