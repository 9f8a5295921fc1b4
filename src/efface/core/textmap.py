"""Take an edit of all that reads the text as what it is: one linear map on text embeddings.

Where every layer that is given the text has its weight W multiplied by one matrix M, the untouched layers do the same
for the embeddings M c. Such a map serves every model with the same text encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from efface.core.eraser import ENCODERS
from efface.core.fingerprint import Fingerprint
from efface.core.ops import Map
from efface.core.plan import Plan
from efface.core.run import versions
from efface.errors import PlanError, UsageError
from efface.io.weights import CARD, load_weights, save_weights
from efface.parts.concepts.attention import backbone, cross_attention

FILES = ("map.safetensors", CARD)
TEXT = "encoder_hidden_states"


@dataclass(frozen=True, eq=False)
class TextMap:
    """A map of text embeddings, made by :meth:`of` or read by :meth:`load`."""

    matrix: Tensor
    """(width, width): an embedding c becomes matrix @ c."""
    text: str
    """sha256 of the text encoders that the embeddings come from."""
    made_by: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, pipe: Any, plans: Sequence[Plan]) -> Self:
        """Return what ``plans`` do together to ``pipe``, as a map.

        Raises :class:`UsageError` if that is none: an edit changes something else, or not all that reads the text.
        """
        name, net = backbone(pipe)
        layers = set(cross_attention(net))
        matrix: Tensor | None = None
        for plan in plans:
            for op in plan.ops:
                if not (isinstance(op, Map) and op.target == name and set(op.layers) == layers):
                    what = f"{plan.name} is more than one map of all that reads the text"
                    raise UsageError(what, where=op.target, fix="Export the edit as a pipeline or as LoRA")
                matrix = op.matrix if matrix is None else matrix @ op.matrix  # the first edit is next to the layer
        if matrix is None:
            raise UsageError("there is no edit", where="map", fix="Give one")
        return cls(matrix.float(), text_hash(pipe), tuple(plan.made_by for plan in plans))

    def __call__(self, embeds: Tensor) -> Tensor:
        """Return the embeddings (..., width) as the edit would have the model see them."""
        return embeds @ self.matrix.T.to(embeds)

    @contextlib.contextmanager
    def acting(self, pipe: Any) -> Iterator[Any]:
        """Let the denoiser of ``pipe`` be given mapped embeddings for a block.

        Raises :class:`PlanError` if the pipeline has another text encoder than the map was made for.
        """
        _, net = backbone(pipe)
        if text_hash(pipe) != self.text:
            fix = "Take a pipeline with the text encoder that the map was made for"
            raise PlanError("has another text encoder", where=type(pipe).__name__, fix=fix)

        def mapped(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if TEXT in given:
                return args, {**given, TEXT: self(given[TEXT])}
            return (*args[:2], self(args[2]), *args[3:]), given  # of a UNet: sample, time, text

        handle = net.register_forward_pre_hook(mapped, with_kwargs=True)
        try:
            yield pipe
        finally:
            handle.remove()

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write ``map.safetensors`` and ``card.json`` into ``folder``."""
        about = {"text_encoder": self.text, "edits": list(self.made_by), "versions": versions()}
        save_weights(folder, {"map": self.matrix}, about, overwrite=overwrite, files=FILES)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what :meth:`save` wrote."""
        tensors, about = load_weights(Path(folder), files=FILES)
        matrix = tensors.get("map", torch.empty(0))
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or "text_encoder" not in about:
            raise PlanError("is no map of text embeddings", where=folder, fix="Export it again")
        return cls(matrix, str(about["text_encoder"]), tuple(about.get("edits", ())))


def text_hash(pipe: Any) -> str:
    """Return one figure for all text encoders of ``pipe``."""
    parts = {name: part for name in ENCODERS if isinstance(part := getattr(pipe, name, None), nn.Module)}
    return Fingerprint.of(nn.ModuleDict(parts)).sha256
