"""Say what a scene shows: captions from templates, with synonyms, plurals and parts left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from numpy.random import Generator

from efface.parts.worlds.world import FACTORS, POSITIONS, SHAPES, Scene

TEMPLATES = (
    "{}",
    "a picture of {}",
    "a drawing of {}",
    "an image of {}",
    "a photo of {}",
    "this is {}",
    "here is {}",
    "we see {}",
    "look at {}",
    "show {}",
)
"""Sentences around what is shown. Methods edit with some and are judged with others."""
SYNONYMS = {"circle": "disc", "purple": "violet", "cross": "plus"}
"""Other words for a value: captions use them, edits that name the value never see them."""
PLURALS = {"cross": "crosses", "plus": "pluses"}
ANY_SHAPE = "shape"
"""The word for a shape that is not named: what an erased one may become."""
USUAL = {"style": "plain", "count": "one", "position": "centre"}
"""Values that captions often pass over."""


def caption(scene: Scene, *, template: str = "{}", synonyms: bool = False, without: Sequence[str] = ()) -> str:
    """Return "a striped red circle at left on white", in ``template``; factors in ``without`` are left out.

    ``synonyms`` takes the other word wherever there is one. Usual values of style, count and position have no word.
    """
    value = {factor: "" if factor in without else getattr(scene, factor) for factor in FACTORS}
    shape = value["shape"] or ANY_SHAPE
    if synonyms:
        shape, value["colour"] = (SYNONYMS.get(word, word) for word in (shape, value["colour"]))
    two = value["count"] == "two"
    style = "" if value["style"] == USUAL["style"] else value["style"]
    words = [word for word in (style, value["colour"], plural(shape) if two else shape) if word]
    if value["position"] and value["position"] != USUAL["position"]:
        words += ["at", value["position"]]
    if value["background"]:
        words += ["on", value["background"]]
    article = "two" if two else "an" if words[0][0] in "aeio" else "a"
    return template.format(" ".join([article, *words]))


def drawn_caption(scene: Scene, generator: Generator) -> str:
    """Return one of the captions that a training may see of ``scene``.

    Colour, background, style and position are each left out one time in ten, the shape one time in twenty; words have
    their synonyms in a third of the captions, and half of them are bare, without a sentence around.
    """
    rare = {"shape": 0.05, "colour": 0.1, "background": 0.1, "style": 0.1, "position": 0.1}
    without = [factor for factor, chance in rare.items() if generator.random() < chance]
    bare, other = generator.random(2)
    template = TEMPLATES[0] if bare < 0.5 else TEMPLATES[generator.integers(len(TEMPLATES))]
    return caption(scene, template=template, synonyms=other < 1 / 3, without=without)


def plural(shape: str) -> str:
    """Return the word for two of ``shape``."""
    return PLURALS.get(shape, f"{shape}s")


def words() -> tuple[str, ...]:
    """Return every word of the captions, each once, in a fixed order."""
    return tuple(dict.fromkeys(_words()))


def _words() -> Iterator[str]:
    shapes = [*SHAPES, *(other for word, other in SYNONYMS.items() if word in SHAPES), ANY_SHAPE]
    phrases = [*TEMPLATES, *shapes, *map(plural, shapes), *SYNONYMS.values(), *POSITIONS, "an at on the and"]
    for phrase in [*phrases, *(value for values in FACTORS.values() for value in values)]:
        yield from phrase.replace("{}", "").split()
