"""Draw with the models that erasers are compared as: pipelines, plans for one, negative prompts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.core.eraser import edited, steered
from efface.core.gating import acting, gated
from efface.core.plan import Plan
from efface.parts.concepts.case import Drawing


@dataclass(frozen=True)
class Negative:
    """The original, steered away from a prompt: the baseline that edits nothing."""

    prompt: str


Model = Any
"""A pipeline, a :class:`Plan` for the original, a :class:`Negative`, or a function that gives a context manager of the
pipeline to draw with."""


def drawn_by(m0: Any, model: Model, drawing: Drawing, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Return the pictures of ``prompts`` that ``model`` draws; a gated plan acts on each prompt as far as it should."""
    if isinstance(model, Plan):
        drawing = dataclasses.replace(drawing, negative=steered(drawing.negative, [model]))
    if not (isinstance(model, Plan) and gated(model)):
        with opened(m0, model) as pipe:
            return drawing(pipe, prompts, seeds)
    found: dict[int, Tensor] = {}
    for plans, texts in acting(m0, prompts, [model]):
        places = [i for i, text in enumerate(prompts) if text in texts]
        with edited(m0, plans):
            made = drawing(m0, [prompts[i] for i in places], [seeds[i] for i in places])
        found |= zip(places, made, strict=True)
    return torch.stack([found[i] for i in range(len(prompts))])


@contextlib.contextmanager
def opened(m0: Any, model: Model) -> Iterator[Any]:
    """Give the pipeline that is ``model``; ``m0`` is afterwards as it was.

    Gated plans act in full, for what an attack feeds is no prompt that could be compared with the concept.
    """
    if isinstance(model, Plan):
        with edited(m0, [model]):
            yield m0
    elif isinstance(model, Negative):
        yield m0
    elif hasattr(model, "unet") or hasattr(model, "transformer"):
        yield model
    else:
        with model() as pipe:
            yield pipe


def eight_bits(pictures: Tensor) -> Tensor:
    """Return ``pictures`` as they would be after being stored: rounded to 256 levels, still in [0, 1]."""
    return (pictures.float().clamp(0, 1) * 255).round() / 255
