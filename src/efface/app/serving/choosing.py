"""Turn the rules that came over the wire, and the texts of a picture, into the rules of the verb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface.app.serving.schemas import Rules, Words
from efface.errors import UsageError
from efface.parts.text.detect import TextBox
from efface.verbs import clean


@dataclass(frozen=True)
class Means:
    """What the server, and not the client, decides about a job."""

    memory: int
    weights: Path | None = None
    mask: Path | None = None


def resolve(wanted: Rules, texts: Sequence[TextBox], means: Means) -> clean.Rules:
    """Return the verb's rules: the texts that go are outlines in it.

    Raises :class:`UsageError` where an index is none of a text, or a rule is not as it should be.
    """
    for index in (*wanted.take, *wanted.leave):
        if index >= len(texts):
            raise UsageError(f"there is no text {index}", where="take or leave", fix=f"{len(texts)} texts were found")
    chosen = searching(wanted)
    goes = [wanted.texts and not chosen.choose(text) for text in texts]
    take, leave = set(wanted.take), set(wanted.leave)
    polygons = [t.polygon for i, t in enumerate(texts) if i in take or (goes[i] and i not in leave)]
    return clean.Rules(
        polygons=polygons,
        boxes=wanted.boxes,
        mask=means.mask,
        keep=chosen.regions,
        memory=means.memory,
        weights=means.weights,
        **how(wanted),
    )


def searching(wanted: Rules) -> clean.Rules:
    """Return the rules by which text is chosen where nobody chose it by hand."""
    return clean.Rules(min_confidence=wanted.min_confidence, only=wanted.only, keep=wanted.keep, **how(wanted))


def reasons(wanted: Words) -> list[str]:
    """Return why each of the words stays; an empty reason means that it goes."""
    rules = clean.Rules(only=wanted.only, keep=wanted.keep)
    nowhere = np.zeros((4, 2), np.float32)
    found = {words: rules.choose(TextBox(nowhere, words, 1.0)) for words in {*wanted.words}}
    return [found[words] for words in wanted.words]


def how(wanted: Rules) -> dict[str, Any]:
    """Return the rules that are the verb's own, by their names."""
    names = ("grow", "feather", "quality", "method", "iterations")
    return {name: getattr(wanted, name) for name in names}
