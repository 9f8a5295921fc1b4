"""Find the feed-forward layers of a decoder, and take channels out of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from efface.errors import UsageError
from efface.parts.graph.atoms import Ints
from efface.parts.graph.remove import Cut, Removal, Resize
from efface.parts.language.blocks import sublayers, text_config

LAYERS = (
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("fc_in", "fc_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
)
"""Names of the linear layers of a feed-forward layer; the last one is that behind the activation."""
WIDTH_KEYS = ("intermediate_size", "ffn_dim", "n_inner")
"""What configurations call the number of channels."""


@dataclass(frozen=True)
class Ffn:
    """A feed-forward layer: its channels are what the activation is computed of."""

    block: int
    holder: str
    """Name of the module that holds the layers."""
    ups: tuple[str, ...]
    """Names of the layers before the activation; of two the first is the gate."""
    down: str
    """Name of the layer behind the activation."""
    width: int
    """Number of channels."""
    fused: bool
    """Whether the one layer before the activation gives the gate and, behind it, what is gated."""


def ffns(model: nn.Module) -> list[Ffn]:
    """Return the feed-forward layers of the decoder ``model`` by blocks, those left out that are gone.

    Raises :class:`UsageError` for mixtures of experts, layers in unknown forms, tied or quantised weights.
    """
    return [_ffn(model, s.block, s.branch) for s in sublayers(model) if s.kind == "ffn"]


def full_width(model: nn.Module) -> int:
    """Return the number of channels that the configuration tells."""
    config = text_config(model)
    return next((width for key in WIDTH_KEYS if (width := getattr(config, key, None))), 4 * config.hidden_size)


def up_rows(model: nn.Module, ffn: Ffn) -> list[Tensor]:
    """Return the weights before the activation as matrices (channels, d): the gate's, where there is one, first."""
    weights = [_as_linear(model.get_submodule(name)) for name in ffn.ups]
    return list(weights[0].chunk(2)) if ffn.fused else weights


def down_columns(model: nn.Module, ffn: Ffn) -> Tensor:
    """Return the weights behind the activation as a matrix (d, channels)."""
    return _as_linear(model.get_submodule(ffn.down))


def removal(model: nn.Module, ffn: Ffn, keep: Ints) -> Removal:
    """Return the removal of all channels but those numbered ``keep``; which are fewer than there are."""
    gone = np.delete(np.arange(ffn.width), keep)
    kept = ffn.width - len(gone)
    cuts, sizes = [], []
    for name in ffn.ups:
        layer: Any = model.get_submodule(name)
        copies = 2 if ffn.fused else 1
        rows = np.concatenate([gone + i * ffn.width for i in range(copies)])
        cuts.append(Cut(f"{name}.weight", int(_is_conv1d(layer)), copies * ffn.width, rows))
        if layer.bias is not None:
            cuts.append(Cut(f"{name}.bias", 0, copies * ffn.width, rows))
        sizes.append(Resize(name, "nf" if _is_conv1d(layer) else "out_features", copies * ffn.width, copies * kept))
    layer = model.get_submodule(ffn.down)
    cuts.append(Cut(f"{ffn.down}.weight", int(not _is_conv1d(layer)), ffn.width, gone))
    sizes.append(Resize(ffn.down, "nx" if _is_conv1d(layer) else "in_features", ffn.width, kept))
    if getattr(model.get_submodule(ffn.holder), "intermediate_size", None) == ffn.width:
        sizes.append(Resize(ffn.holder, "intermediate_size", ffn.width, kept))
    return Removal(f"{ffn.holder} channels", tuple(cuts), tuple(sizes))


def _ffn(model: nn.Module, block: int, branch: str) -> Ffn:
    holder = branch.rpartition(".")[0] if isinstance(model.get_submodule(branch), nn.Linear) else branch
    children = dict(model.get_submodule(holder).named_children())
    names = next((names for names in LAYERS if all(name in children for name in names)), None)
    if names is None:
        what = f"is no plain feed-forward layer: it holds {', '.join(_told(children))}"
        raise UsageError(what, where=holder, fix="Mixtures of experts and other forms are not cut")
    weights = [_as_linear(children[name]) for name in names]
    *ups, down = weights
    width = down.shape[1]
    fused = len(ups) == 1 and len(ups[0]) == 2 * width
    if not all(w.is_floating_point() and w.ndim == 2 for w in weights):
        raise UsageError("its weights are quantised", where=holder, fix="Give the model before it was quantised")
    if not fused and any(len(up) != width for up in ups):
        raise UsageError(f"the layer behind the activation takes {width} channels, not all of them", where=holder)
    if len(model.get_submodule(holder)._parameters):
        raise UsageError("holds weights beside its layers", where=holder, fix="Leave this model")
    return Ffn(block, holder, tuple(f"{holder}.{name}" for name in names[:-1]), f"{holder}.{names[-1]}", width, fused)


def _as_linear(layer: nn.Module) -> Tensor:
    """Return the weight as (out, in); GPT-2 stores it the other way round."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise UsageError("its weights are quantised", fix="Give the model before it was quantised")
    return weight.detach().T if _is_conv1d(layer) else weight.detach()


def _is_conv1d(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D"


def _told(children: dict[str, nn.Module]) -> Iterator[str]:
    return (f"{name} ({type(child).__name__})" for name, child in children.items())
