"""Write sparse networks and sparse gradients as a few plain arrays, the way they travel.

Nothing is lost and nothing is sent twice: a network is the values of its live weights, one layer behind the other, all
other floating-point tensors, and, where the receiver does not have them yet, its masks with one bit a weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from efface.errors import DataError
from efface.parts.sparsity.bits import pack, unpack
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import tied

Arrays = dict[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Which tensors of a network travel, and in which order; both sides have the same one."""

    weights: Shapes
    """Those with masks."""
    rest: Shapes
    """Other floating-point parameters and buffers. Integer buffers, which count batches, stay where they are."""

    @classmethod
    def of(cls, net: nn.Module, masks: MaskSet) -> Layout:
        """Return the layout of ``net`` under ``masks``."""
        others = tied(net)
        shapes = {n: tuple(t.shape) for n, t in net.state_dict().items() if t.is_floating_point() and n not in others}
        return cls({n: shapes[n] for n in masks}, {n: s for n, s in shapes.items() if n not in masks})

    @property
    def digest(self) -> str:
        """A text that two layouts share if they are the same."""
        return hashlib.sha256(repr((self.weights, self.rest)).encode()).hexdigest()[:16]

    def encode(self, state: Mapping[str, Tensor], masks: MaskSet, *, places: bool = True) -> Arrays:
        """Return float32 ``values`` and ``rest``, and with ``places`` the ``bits`` of the masks."""
        values = [state[name].detach().cpu()[masks[name].cpu()] for name in self.weights]
        rest = [state[name].detach().cpu().flatten() for name in self.rest]
        arrays = {"values": _joined(values), "rest": _joined(rest)}
        if places:
            arrays["bits"] = np.concatenate([pack(masks[name]).numpy() for name in self.weights])
        return arrays

    def decode(self, arrays: Mapping[str, NDArray[Any]], masks: MaskSet | None = None) -> tuple[Any, MaskSet]:
        """Return the state (dense tensors) and the masks, those given where the arrays hold none.

        Raises :class:`DataError` if the arrays are of another network or of other masks.
        """
        try:
            if "bits" in arrays:
                masks = self.masks(arrays["bits"])
            if masks is None:
                raise ValueError("no masks came, and none are known")
            kept = [int(masks[name].sum()) for name in self.weights]
            values = _parts(arrays["values"], kept)
            state = {
                name: torch.zeros(shape).masked_scatter_(masks[name], value)
                for (name, shape), value in zip(self.weights.items(), values, strict=True)
            }
            rest = _parts(arrays["rest"], [prod(shape) for shape in self.rest.values()])
            state |= {n: value.view(shape) for (n, shape), value in zip(self.rest.items(), rest, strict=True)}
        except (KeyError, ValueError) as error:
            fix = "Run the same version and network on all nodes"
            raise DataError(f"a message holds no such network ({error})", fix=fix) from error
        return state, masks

    def masks(self, bits: NDArray[np.uint8]) -> MaskSet:
        """Return the masks whose ``bits`` came; raise ValueError if they are of another network."""
        sizes = [-(-prod(shape) // 8) for shape in self.weights.values()]
        parts = _parts(bits, sizes)
        return MaskSet({n: unpack(part, s) for (n, s), part in zip(self.weights.items(), parts, strict=True)})


@dataclass(frozen=True)
class Entries:
    """Some entries of a layer's weight: flat ``indices`` (int64) and their ``values`` (float32)."""

    indices: Tensor
    values: Tensor


def encode_entries(entries: Mapping[str, Entries]) -> Arrays:
    """Return the entries of all layers, in order, with int32 indices and their number for each layer."""
    return {
        "indices": np.concatenate([e.indices.cpu().numpy().astype(np.int32) for e in entries.values()]),
        "gradients": _joined([e.values.detach().cpu() for e in entries.values()]),
        "counts": np.array([len(e.indices) for e in entries.values()], np.int32),
    }


def decode_entries(arrays: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> dict[str, Entries]:
    """Return the entries of the layers ``sizes``, given by their number of weights.

    Raises :class:`DataError` if they do not fit: an index that is out of place would change another weight.
    """
    try:
        counts = arrays["counts"].tolist()
        indices = _parts(arrays["indices"].astype(np.int64), counts)
        values = _parts(arrays["gradients"], counts)
        found = {n: Entries(i, v) for n, i, v in zip(sizes, indices, values, strict=True)}
        if any(len(e.indices) and not 0 <= int(e.indices.min()) <= int(e.indices.max()) < sizes[n]
               for n, e in found.items()):  # fmt: skip
            raise ValueError("an index is outside its layer")
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"a message holds no such entries ({error})") from error
    return found


def _joined(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    return torch.cat([part.float() for part in parts]).numpy() if parts else np.zeros(0, np.float32)


def _parts(array: NDArray[Any], sizes: Sequence[int]) -> tuple[Tensor, ...]:
    if array.shape != (sum(sizes),):
        raise ValueError(f"{array.shape} numbers where {sum(sizes)} belong")
    return torch.from_numpy(np.array(array)).split(list(sizes))
