"""Score erasers on the procedural world, as its protocol says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from efface.core.erasure import Model, score_erasure
from efface.core.erasure_report import Report
from efface.parts.concepts.case import Attack
from efface.parts.worlds.erasing import PROMPTS, SEEDS, asked, held_out, kept, neutral, world_judge


def score_on_world(
    pipe: Any,
    m: Model | Mapping[str, Model],
    target: str,
    keep: Sequence[str] = (),
    attacks: Sequence[Attack] = (),
    *,
    instead: str = "",
    prompts: int = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    steps: int = 20,
    guidance: float = 2.0,
    frechet: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Score ``m`` beside the tiny pipeline ``pipe`` by the judge of the world, on the test split of its prompts.

    Without ``keep``, every other value of the target's factor should stay. The rest is as in :func:`score_erasure`.
    """
    keep = tuple(keep) or kept(target)
    return score_erasure(
        pipe, m, target, keep, world_judge(), asked(target, keep, count=prompts), seeds, attacks, instead=instead,
        neutral=neutral(target), steps=steps, guidance=guidance, renders=held_out(target), frechet=frechet,
        progress=progress,
    )  # fmt: skip
