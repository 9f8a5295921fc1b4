"""Say how erasers are judged on the world: which prompts, which other words, which neighbours, which judge.

Edits are made with the sentences of the split ``edit`` and judged with those of the split ``test``. All values of a
factor are asked for beside the same colours and backgrounds, so that nothing else differs between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from efface.errors import UsageError
from efface.parts.metrics.judged import Judge, Seen
from efface.parts.worlds.captions import ANY_SHAPE, SYNONYMS, TEMPLATES, USUAL, caption, plural
from efface.parts.worlds.judge import CLASSES, load_judge
from efface.parts.worlds.world import FACTORS, Scene, render, scenes
from efface.seeds import numpy_generator

Split = Literal["edit", "test"]
SPLITS: dict[Split, tuple[str, ...]] = {"edit": TEMPLATES[:5], "test": TEMPLATES[5:]}
"""Sentences around what is asked for."""
NEIGHBOURS = {"circle": "ring", "ring": "circle", "square": "diamond", "diamond": "square", "orange": "red"}
"""What looks most like a value, and must stay when that goes."""
PROMPTS = 6
"""Prompts of a concept."""
SEEDS = tuple(range(8))
"""Seeds at which every prompt is drawn: with six prompts an interval is at most +-0.14 wide."""


def factor_of(concept: str) -> str:
    """Return the factor of which ``concept`` is a value that captions name.

    Raises :class:`UsageError` for anything else.
    """
    known = {value: factor for factor, values in FACTORS.items() for value in values if value != USUAL.get(factor)}
    if concept not in known:
        raise UsageError("is no concept of this world", where=concept, fix=f"Use one of {', '.join(known)}")
    return known[concept]


def prompts(concept: str, split: Split = "test", *, count: int = PROMPTS, word: str | None = None) -> list[str]:
    """Return ``count`` prompts that ask for ``concept``, different ones, under another ``word`` if one is given."""
    factor, templates = factor_of(concept), SPLITS[split]
    asked = []
    for i in range(count):
        shape, colour = (FACTORS[f][i % len(FACTORS[f])] for f in ("shape", "colour"))
        ground = FACTORS["background"][(i + i // 4) % 4]  # so that a colour is not always on the same one
        asks: dict[str, Any] = {factor: concept}
        scene = replace(Scene(shape, colour, ground), **asks)
        asked.append(caption(scene, template=templates[i % len(templates)]))
    return [text.replace(concept, concept if word is None else word) for text in asked]


def kept(concept: str, count: int | None = None) -> tuple[str, ...]:
    """Return the other values of the factor that captions name, the nearest neighbour first; ``count`` at most."""
    factor = factor_of(concept)
    others = [value for value in FACTORS[factor] if value not in (concept, USUAL.get(factor))]
    others.sort(key=lambda value: value != NEIGHBOURS.get(concept))
    return tuple(others[:count])


def wordings(concept: str) -> dict[str, Callable[[str], str]]:
    """Return what else asks for ``concept``, by name: its synonym, and two of a shape."""
    found: dict[str, Callable[[str], str]] = {}
    if concept in SYNONYMS:
        found[SYNONYMS[concept]] = lambda text: text.replace(concept, SYNONYMS[concept])
    if factor_of(concept) == "shape":
        found[f"two {plural(concept)}"] = lambda text: _two(text, concept)
    return found


def asked(target: str, keep: Sequence[str], *, count: int = PROMPTS) -> dict[str, list[str]]:
    """Return the prompts to score with: of the target, of each kept concept, and of the target in other words."""
    texts = {concept: prompts(concept, count=count) for concept in (target, *keep)}
    return texts | {name: list(map(other, texts[target])) for name, other in wordings(target).items()}


def neutral(concept: str) -> str:
    """Return the word that stands where ``concept`` is not asked for; colours and styles have none."""
    return ANY_SHAPE if factor_of(concept) == "shape" else ""


def world_judge() -> Judge:
    """Return the judge that comes with the package, which sees every factor and gives its features."""
    net = load_judge()

    @torch.no_grad()
    def judge(pictures: Tensor) -> Seen:
        features = net.features(pictures)
        beliefs = {factor: head(features).log_softmax(1).numpy() for factor, head in net.heads.items()}
        return Seen(CLASSES, beliefs, features.numpy())

    return judge


def held_out(concept: str, count: int = 256) -> tuple[Tensor, list[str]]:
    """Return pictures that the judge was not trained on, and the value of the concept's factor in each."""
    drawn = scenes(count, numpy_generator(0, "held out", concept))
    return torch.from_numpy(render(drawn).picture), [getattr(scene, factor_of(concept)) for scene in drawn]


def _two(text: str, shape: str) -> str:
    """Return a prompt for one ``shape`` as one for two: "a red circle" becomes "two red circles"."""
    before, _, after = text.partition(shape)
    words = before.split()
    article = max(i for i, word in enumerate(words) if word in ("a", "an"))
    return " ".join([*words[:article], "two", *words[article + 1 :], f"{plural(shape)}{after}"])
