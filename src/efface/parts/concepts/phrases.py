"""Hold what is said around concepts: sentences, captions of everyday things, and lists of phrases from files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from efface.errors import DataError, UsageError
from efface.parts.concepts.slots import TEMPLATES

SENTENCES = (
    *TEMPLATES,
    "a painting of {}",
    "a sketch of {}",
    "a close view of {}",
    "a poster with {}",
    "a scene with {}",
    "an old photo of {}",
    "somebody looks at {}",
    "nothing but {}",
    "{} in the morning light",
    "{} in front of a wall",
)
"""Fifteen sentences around a phrase."""
THINGS = (
    "a dog", "two cats", "a horse", "a bird", "a cow", "a boat", "a train", "a red bus", "a bicycle", "a car",
    "an old man", "a woman with a hat", "two children", "a baker", "a football player", "a bowl of fruit", "a cake",
    "a cup of coffee", "a wooden chair", "a clock", "a laptop", "a pile of books", "a vase of flowers", "a guitar",
)  # fmt: skip
PLACES = (
    "on a beach", "in a kitchen", "in a green field", "on a city street at night", "under a blue sky", "by a river",
    "in the snow", "on a table", "near a stone bridge", "in a crowded market", "in black and white", "at sunset",
)  # fmt: skip


def everyday(without: Iterable[str] = ()) -> list[str]:
    """Return 288 captions of everyday things, those that name a text in ``without`` left out."""
    gone = [text.casefold() for text in without if text]
    made = [f"{thing} {place}" for place in PLACES for thing in THINGS]
    return [caption for caption in made if not any(names(caption, text) for text in gone)]


def names(text: str, phrase: str) -> bool:
    """Return whether ``phrase`` is in ``text``, word by word and whatever the case."""
    return f" {' '.join(phrase.casefold().split())} " in f" {' '.join(text.casefold().split())} "


def filled(pairs: Iterable[tuple[str, str]], templates: Sequence[str]) -> list[tuple[str, str]]:
    """Return every pair of texts in every one of ``templates``, which are sentences with a place {} for them.

    Raises :class:`UsageError` if a template has no such place.
    """
    if bare := [text for text in templates if text.count("{}") != 1]:
        fix = "Write {} once, where the concept is to stand"
        raise UsageError(f"{bare[0]!r} has no single place for a concept", where="templates", fix=fix)
    return [(t.replace("{}", a).strip(), t.replace("{}", b).strip()) for a, b in pairs for t in templates]


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Read a JSON list of pairs of texts, such as ``[["a burning car", "a parked car"], …]``.

    Raises :class:`DataError` if the file cannot be read or has another form.
    """
    fix = 'Give a JSON file such as [["a burning car", "a parked car"]]'
    try:
        given = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"holds no pairs of texts ({error})", where=path, fix=fix) from error
    if not isinstance(given, list) or not given:
        raise DataError("holds no pairs of texts", where=path, fix=fix)
    for number, pair in enumerate(given, 1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataError(f"entry {number} is no pair of texts", where=path, fix=fix)
    return [(first.strip(), second.strip()) for first, second in given]
