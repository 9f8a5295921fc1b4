"""Save decoders with parts taken out as ordinary folders of transformers, and build them again.

The configuration of transformers has one width for all blocks and no word for a missing layer. So two keys of our own
say it: ``removed_sublayers``, names of branches, and ``ffn_widths``, one number for each block.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from efface.errors import UsageError, WeightsError
from efface.extras import need
from efface.parts.graph.remove import remove as cut
from efface.parts.language.blocks import blocks_of, sublayers
from efface.parts.language.ffn import WIDTH_KEYS, ffns, full_width, removal
from efface.parts.language.silence import remove
from efface.parts.nn.passing import Silent
from efface.seeds import seeded

REMOVED, WIDTHS = "removed_sublayers", "ffn_widths"


def note_shape(model: nn.Module) -> None:
    """Write into the configuration of ``model`` what parts of it are gone, if it is a decoder with such parts."""
    gone = [name for name, module in model.named_modules() if isinstance(module, Silent)]
    for key, value in ((REMOVED, gone), (WIDTHS, _widths(model))):
        if value:
            setattr(model.config, key, value)
        elif hasattr(getattr(model, "config", None), key):
            delattr(model.config, key)


def is_shaped(config: dict[str, Any]) -> bool:
    """Say whether a ``config.json`` tells of parts that are gone."""
    return bool(config.get(REMOVED) or config.get(WIDTHS))


def shaped(kind: type[Any]) -> type[Any]:
    """Return a subclass of a model class of transformers that builds itself without the parts that are gone."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        take_shape(self)

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})


def take_shape(model: Any) -> None:
    """Take out of a new ``model`` what its configuration says is gone; raise :class:`WeightsError` if that is wrong."""
    widths, names = (getattr(model.config, key, None) or [] for key in (WIDTHS, REMOVED))
    found = ffns(model) if widths else []
    if len(widths) != len(found) or not all(0 < w <= ffn.width for w, ffn in zip(widths, found, strict=True)):
        raise WeightsError(f"{WIDTHS} does not fit its blocks", where="config.json", fix="Save the folder again")
    for ffn, width in zip(found, widths, strict=True):
        if width < ffn.width:
            cut(model, removal(model, ffn, np.arange(width)))
    known = {sublayer.branch: sublayer for sublayer in sublayers(model)}
    if strange := [name for name in names if name not in known]:
        what = f"{REMOVED} names {strange[0]}, which is no attention or feed-forward layer"
        raise WeightsError(what, where="config.json", fix="Save the folder again")
    remove(model, [known[name] for name in names])


def load_pruned(folder: str | Path) -> Any:
    """Return the causal language model in a ``folder`` of transformers, parts of which may be gone."""
    transformers = need("transformers", extra="diffusion", job=f"opening {folder}")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = getattr(transformers, config.architectures[0])
    built = shaped(kind) if is_shaped(config.to_dict()) else kind
    model = built.from_pretrained(folder, dtype="auto", local_files_only=True, use_safetensors=True)
    model.__class__ = kind
    return model.eval()


def save_pruned(model: Any, folder: str | Path) -> None:
    """Write ``model`` as an ordinary folder of transformers, whose configuration says what is gone."""
    note_shape(model)
    model.save_pretrained(folder)


def padded(model: Any) -> Any:
    """Return a model of the stock class that computes the same, with zeros where parts are gone.

    For engines that know uniform blocks alone. Feed-forward layers are as wide as the widest; nothing gets faster.
    """
    config = copy.deepcopy(model.config)
    for key in (REMOVED, WIDTHS):
        if hasattr(config, key):
            delattr(config, key)
    if widths := _widths(model):
        text = config.get_text_config(decoder=True)
        setattr(text, next(key for key in WIDTH_KEYS if hasattr(text, key)), max(widths))
    with seeded(0, "padded"):
        whole = type(model)(config).to(model.dtype).eval()
    gone = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Silent))
    halved = tuple(f"{ffn.ups[0]}." for ffn in ffns(whole) if ffn.fused) if widths else ()
    ours = model.state_dict()
    for name, tensor in whole.state_dict().items():
        if name.startswith(gone):
            tensor.zero_()
        elif name in ours:
            _place(tensor, ours[name], 2 if name.startswith(halved) else 1)
    return whole


def _place(tensor: Tensor, values: Tensor, parts: int) -> None:
    """Put ``values`` at the beginning of each of as many ``parts`` of a zero ``tensor`` along its first axis."""
    tensor.zero_()
    for part, given in zip(tensor.chunk(parts), values.chunk(parts), strict=True):
        part[tuple(slice(n) for n in given.shape)] = given


def _widths(model: nn.Module) -> list[int]:
    """Return the widths of all feed-forward layers, or nothing if they are what the configuration says."""
    try:
        widths, count = {ffn.block: ffn.width for ffn in ffns(model)}, len(blocks_of(model)[1])
    except UsageError:  # it is no such model, so nothing of it is gone
        return []
    full = full_width(model)
    return [widths.get(block, full) for block in range(count)] if set(widths.values()) - {full} else []
