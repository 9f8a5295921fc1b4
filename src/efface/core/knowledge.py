"""Sum up what a pipeline knows: the mean of k k^T over the rows k of many captions, which edits are to leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from efface.core.textmap import text_hash
from efface.errors import UsageError, WeightsError
from efface.io.weights import CARD, load_weights, save_weights
from efface.parts.concepts.maps import gram
from efface.parts.concepts.slots import encode

FILES = ("knowledge.safetensors", CARD)
AT_ONCE = 256  # captions that are encoded at once


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Captions of a pipeline as one matrix, whatever their number; made by :meth:`of` or read by :meth:`load`."""

    gram: Tensor
    """(width, width) in float64: the mean of k k^T over all slots of all captions."""
    text: str
    """sha256 of the text encoders that the rows come from."""
    captions: int

    @classmethod
    def of(cls, pipe: Any, captions: Sequence[str]) -> Self:
        """Encode ``captions``; raises :class:`UsageError` if there is none."""
        if not captions:
            raise UsageError("no caption is given", where="knowledge", fix="Give what is to stay")
        total: Tensor | None = None
        count = 0
        for start in range(0, len(captions), AT_ONCE):
            rows = encode(pipe, captions[start : start + AT_ONCE]).embeds.flatten(0, 1)
            part, count = gram([rows]), count + len(rows)
            total = part if total is None else total + part
        assert total is not None
        return cls(total / count, text_hash(pipe), len(captions))

    def check(self, pipe: Any) -> None:
        """Raise :class:`WeightsError` unless ``pipe`` has the text encoders that the rows come from."""
        if self.text != text_hash(pipe):
            fix = "Sum up captions with the text encoder of this pipeline"
            raise WeightsError("comes from another text encoder", where="knowledge", fix=fix)

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write ``knowledge.safetensors`` and ``card.json`` into ``folder``."""
        about = {"text_encoder": self.text, "captions": self.captions}
        save_weights(folder, {"gram": self.gram}, about, overwrite=overwrite, files=FILES)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what :meth:`save` wrote; raises :class:`WeightsError` if it is something else."""
        tensors, card = load_weights(folder, files=FILES)
        matrix, text, captions = tensors.get("gram"), card.get("text_encoder"), card.get("captions")
        if matrix is None or matrix.ndim != 2 or not isinstance(text, str) or not isinstance(captions, int):
            raise WeightsError("is no knowledge of a pipeline", where=folder, fix="Save it again")
        return cls(matrix.double(), text, captions)
