"""Ask whether what lies near a concept goes with it, and what lies beyond stays, beside an edit of its name alone.

A shape is replaced by another in the tiny pipeline, and nothing is named to keep, for that is what samples beyond are
for. The judge looks for it under its synonym and its plural, which no edit is told. Settings were chosen on another
shape, with the edit's sentences: there samples had to weigh little in the map, or others went as well, so what they do
is shown beside by maps that weigh them as much as the concept. It is told how near the synonym is to the name, since
only what UCE leaves can be taken away.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from efface.concepts.realera import RealEra
from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.eraser import Concepts, editable
from efface.core.erasure import Negative
from efface.core.erasure_world import score_on_world
from efface.core.method import Work
from efface.core.plan import Plan
from efface.parts.concepts.slots import encode
from efface.parts.worlds.captions import SYNONYMS
from efface.parts.worlds.erasing import kept
from efface.parts.worlds.pipeline import SHIPPED, load_pipeline
from efface.training.baselines import esd, uce

TARGET, INSTEAD = "circle", "square"
SETTINGS: dict[str, Any] = {
    "reach": 0.01, "held": 0.01, "steps": 60, "lr": 2e-2, "mu": 3.0, "rollouts": 8, "rollout_steps": 10,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {"map": {"stages": "map"}, "adapters": {"stages": "adapters"}, "RealEra": {}}
WIDE: dict[str, Any] = {"stages": "map", "reach": 1.0, "held": 1.0, "near": 0.9}
"""A map that weighs samples as much as the concept, at a distance D1 that allows for all cones of the sweep."""
CONES = (0.95, 0.8, 0.5)
"""Values of S1."""
KEYS = ("acc_e", "acc_g", "ira", "h_o", "broken", "drift_u:mse")
STEPS, PROMPTS, EACH = 8, 3, 2
"""Steps of a picture; prompts of a concept, and pictures of each."""

CLAIM = Claim(
    statement="With its neighbourhood a concept goes from words that the edit never saw, samples beyond keep others in "
    "place, and map and adapters together score best on gone, kept and other words",
    baseline="UCE; ESD-x in as many steps; the map alone, with and without samples beyond; the adapters alone; a "
    "negative prompt",
    minutes=4,
    data="pictures that a tiny pipeline draws of shapes; --data takes another folder of a pipeline that draws them",
)


def check(context: Context) -> list[Effect]:
    """Edit with every arm per seed, and draw with each at other seeds."""
    pipe = load_pipeline(context.data or SHIPPED).to(context.device)
    cosine = _cosine(pipe)
    context.progress(f"cosine of {TARGET} and {SYNONYMS[TARGET]}: {cosine:.3f}")
    figures: dict[str, dict[str, list[float]]] = {}
    for seed in context.seeds:
        _measure(context, pipe, seed, figures)

    def of(key: str, *arms: str) -> dict[str, list[float]]:
        return {name: figures[name][key] for name in arms}

    def mean(name: str, key: str) -> float:
        return float(np.mean(figures[name][key]))

    def means(key: str) -> str:
        return ", ".join(f"{name} {mean(name, key):.3f}" for name in figures)

    residue = paired(figures["RealEra"]["acc_g"], figures["UCE"]["acc_g"])
    sweep = [_swept(low) for low in CONES]
    held, free = (mean(name, "ira") for name in (sweep[1], "nothing beyond"))
    fall, rise = ([mean(name, key) for name in sweep] for key in ("ira", "acc_g"))
    return [
        Effect(
            "related words go too",
            "under its synonym and its plural the concept is drawn at least 0.15 less often than after UCE, in the "
            "mean over seeds",
            of("acc_g", "original", "UCE", "RealEra"),
            float(np.mean(residue)) <= -0.15,
            note=f"{spread(residue, '')}; the synonym has a cosine of {cosine:.3f} with the name, and UCE leaves "
            f"{mean('UCE', 'acc_g'):.2f} of it; by name: {means('acc_e')}",
        ),
        Effect(
            "samples beyond keep others",
            "by the map, kept concepts are drawn at least 0.1 less often without samples beyond than with them, and "
            "with them at most 0.05 less often than after UCE, in the mean over seeds",
            of("ira", "UCE", sweep[1], "nothing beyond"),
            held - free >= 0.1 and held >= mean("UCE", "ira") - 0.05,
            note=f"kept concepts drawn: {means('ira')}; neighbours in random directions ask the map to shrink all that "
            "lies across the concept, and samples beyond, which share a part of it, ask to hold that part",
        ),
        Effect(
            "both stages are best",
            "H_o of gone, kept and other words is higher than after UCE and after the map alone, in the mean over "
            "seeds, in pictures of which most show something",
            of("h_o", "UCE", "ESD-x", "map", "adapters", "RealEra"),
            mean("RealEra", "h_o") > max(mean(name, "h_o") for name in ("UCE", "map"))
            and mean("RealEra", "broken") <= 0.5,
            note=f"H_o: {means('h_o')}; showing nothing: {means('broken')}; tried on the other shape: samples "
            "with the weights 1, 0.1 and 0.01, words as neighbours, mu of 1, 3 and 10",
        ),
        Effect(
            "a wider cone trades",
            f"as S1 falls from {CONES[0]} to {CONES[-1]}, the map draws the concept under other words ever less often "
            "and kept concepts ever less often, in the mean over seeds, and at the end one of them has fallen",
            {f"kept, S1 {low}": figures[name]["ira"] for low, name in zip(CONES, sweep, strict=True)},
            _falls(fall) and _falls(rise) and (fall[-1] < fall[0] or rise[-1] < rise[0]),
            note=f"other words: {', '.join(f'{value:.3f}' for value in rise)}",
        ),
    ]


def _measure(context: Context, pipe: Any, seed: int, figures: dict[str, dict[str, list[float]]]) -> None:
    """Edit with every arm and ``seed``, and add to ``figures``, by arm and figure, what its pictures show."""
    work, concepts = Work(seed=seed, device=context.device), Concepts.of(TARGET, INSTEAD)
    quick = {"steps": 1, "rollouts": 2, "rollout_steps": 2} if context.quick else {}
    settings = SETTINGS | quick
    rival = {name: settings[name] for name in ("steps", "rollout_steps")} | {"batch": 4, "lr": 2e-3}
    box = editable(pipe)
    made: dict[str, Any] = {
        "UCE": Plan.of(box, uce(pipe, concepts), method="uce", whole=False),
        "ESD-x": Plan.of(box, esd(pipe, concepts, work, **rival), method="esd", whole=False),
        "negative prompt": Negative(TARGET),
    }
    arms = (
        ARMS | {_swept(low): {**WIDE, "cos": (low, 0.98)} for low in CONES} | {"nothing beyond": {**WIDE, "beyond": 0}}
    )
    made |= {name: RealEra(**settings | arm).plan(pipe, concepts, work) for name, arm in arms.items()}
    each = 1 if context.quick else EACH
    report = score_on_world(
        pipe, made, TARGET, kept(TARGET, 1 if context.quick else 4), instead=INSTEAD,
        prompts=1 if context.quick else PROMPTS, seeds=range(seed * each, (seed + 1) * each),
        steps=2 if context.quick else STEPS,
    )  # fmt: skip
    if not context.quick:
        report.require_trust()
    report.add_to(figures, KEYS)
    told = {name: f"{each['h_o'][-1]:.2f}" for name, each in figures.items()}
    context.progress(f"seed {seed}: H_o {told}")


def _swept(low: float) -> str:
    return f"S1 {low:g}"


def _falls(values: list[float]) -> bool:
    return all(b <= a for a, b in itertools.pairwise(values))


def _cosine(pipe: Any) -> float:
    """Return the cosine of the ends of the concept's name and its synonym."""
    text = encode(pipe, [TARGET, SYNONYMS[TARGET]])
    name, synonym = text.embeds[text.first_end]
    return float(torch.cosine_similarity(name, synonym, dim=0))
