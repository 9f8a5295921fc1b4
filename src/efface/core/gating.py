"""Let edits that are gated act on each prompt by how much it is about what they erase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from efface.core.plan import Plan
from efface.parts.concepts.gate import facilitation


def acting(pipe: Any, prompts: Sequence[str], plans: Sequence[Plan]) -> list[tuple[list[Plan], list[str]]]:
    """Return the prompts, each once, in groups on which the same edits act equally, with these edits as they act."""
    texts = list(dict.fromkeys(prompts))
    gates = [gate(pipe, texts, plan) for plan in plans]
    groups: dict[tuple[float, ...], list[str]] = {}
    for text in texts:
        groups.setdefault(tuple(gate[text] for gate in gates), []).append(text)
    return [
        ([plan.scaled(share) for plan, share in zip(plans, shares, strict=True) if share], group)
        for shares, group in groups.items()
    ]


def gated(plan: Plan) -> bool:
    """Say whether ``plan`` is to be scaled for each prompt."""
    return bool(plan.made_by.get("gate"))


def gate(pipe: Any, prompts: Sequence[str], plan: Plan) -> dict[str, float]:
    """Return how much ``plan`` acts on each prompt: wholly, or if it is gated by the concept that is nearest to it."""
    if not gated(plan):
        return dict.fromkeys(prompts, 1.0)
    concepts = [one["remove"] for one in plan.made_by["erases"]]
    return dict(zip(prompts, facilitation(pipe, prompts, concepts).amax(1).tolist(), strict=True))
