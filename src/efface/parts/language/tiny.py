"""Find the tiny language model that comes with the package, and give text to try it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from efface.parts.data.language import Corpus, Tokens, characters, encode, read_text, sampled
from efface.seeds import derive

SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "tiny-llama"
"""An ordinary folder of transformers, made by recipes/tiny-llama.toml."""
LENGTH = 128
"""Characters that the model has learned to read at once."""
SCORED = 64
"""Windows of text that are measured on: 8 000 characters, on which two models are compared."""


def tiny_corpus(model: Any, folder: str | Path | None, seed: int, *, windows: int = 256) -> Corpus:
    """Return text for the tiny model: that of a ``folder``, or else what the model writes itself.

    Text to learn from begins at another place for every ``seed``, or is drawn anew; that to measure on is the end of
    the folder's text, or is drawn anew. ``windows`` is how many the model writes to learn from.
    """
    if folder is None:
        ids = sampled(model, windows + SCORED, LENGTH, seed)
        cut = windows * LENGTH
        return Corpus("what the model writes", Tokens(ids[:cut], LENGTH), Tokens(ids[cut:], LENGTH))
    found = Corpus.of(encode(characters(), read_text(folder)), name=Path(folder).name, length=LENGTH)
    start = derive(seed, "beginning") % len(found.train.ids)
    train, val = torch.roll(found.train.ids, -start), found.val.ids[: SCORED * LENGTH]
    return Corpus(found.name, Tokens(train, LENGTH), Tokens(val, LENGTH))
