"""Show that matching a domain carries over to sentences that were not trained with, and that surgery spares others.

A shape is drawn into the domain of another one in the tiny pipeline. Edits see captions in two sentences; pictures are
asked for in these and in four other ones, beside the same colours and backgrounds. Concept ablation regresses the noise
prompt by prompt, on the same pictures, in as many steps. Settings were chosen on the star, with DoCo; the
others have the same. In the stored results regression leaves no gap between sentences that could be narrowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from efface.concepts.doco import Doco
from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.eraser import Concepts, editable
from efface.core.erasure import Negative, score_erasure
from efface.core.method import Work
from efface.core.plan import Plan
from efface.parts.diffusion.pipelines import usual_guidance
from efface.parts.worlds.erasing import SPLITS, asked, held_out, kept, neutral, world_judge
from efface.parts.worlds.pipeline import SHIPPED, load_pipeline
from efface.parts.worlds.world import BACKGROUNDS, COLOURS
from efface.training.baselines import uce

TARGET, ANCHOR = "circle", "square"
SENTENCES, OTHERS = SPLITS["edit"][1:3], SPLITS["test"][:4]
"""Sentences that edits see, and those that they do not."""
FORMS = tuple(f"a {colour} {{}} on {ground}" for colour, ground in zip(COLOURS, [*BACKGROUNDS] * 2, strict=False))
SETTINGS: dict[str, Any] = {
    "captions": tuple(text.format(form.format(ANCHOR)) for text in SENTENCES for form in FORMS),
    "count": 48, "sampling_steps": 8, "guidance": 2.0, "warm_up": 75, "steps": 100, "batch": 8, "lr": 3e-3,
    "rival_lr": 1e-3, "t_range": (0, 800), "widths": (32, 64),
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "DoCo": {},
    "without surgery": {"surgery": False},
    "concept ablation": {"match": "noise", "surgery": False},
}
STEPS, COUNT, DRAWN = 8, 4, 4

CLAIM = Claim(
    statement="Drawing a concept into the domain of an anchor erases it from other sentences as from those that were "
    "trained with, unlike regression of the noise, and surgery of the gradient spares other concepts",
    baseline="concept ablation, on the same pictures in as many steps; without surgery; UCE; a negative prompt",
    minutes=5,
    data="pictures that a tiny pipeline draws of shapes; --data takes another folder of a pipeline that draws them",
)


def check(context: Context) -> list[Effect]:
    """Train every arm per seed, and draw with each at other seeds."""
    pipe = load_pipeline(context.data or SHIPPED).to(context.device)
    concepts = Concepts.of(TARGET, ANCHOR)
    plain = Plan.of(editable(pipe), uce(pipe, concepts), method="uce", whole=False)
    less = {"count": 2, "sampling_steps": 2, "warm_up": 1, "steps": 1} if context.quick else {}
    count, drawn = (1, 1) if context.quick else (COUNT, DRAWN)
    keep = kept(TARGET, 1 if context.quick else 3)
    figures: dict[str, dict[str, list[float]]] = {}
    agreed: dict[str, list[float]] = {"cosine": [], "conflicts": []}
    for seed in context.seeds:
        made: dict[str, Any] = {"UCE": plain, "negative prompt": Negative(TARGET)}
        for name, arm in ARMS.items():
            work = Work(seed=seed, device=context.device, progress=context.progress)
            made[name] = Doco(**SETTINGS | arm | less).plan(pipe, concepts, work)
        for key, values in agreed.items():
            values.append(made["DoCo"].made_by["loss"][key])
        report = score_erasure(
            pipe, made, TARGET, keep, world_judge(), prompts(keep, count), range(seed * drawn, (seed + 1) * drawn),
            instead=ANCHOR, neutral=neutral(TARGET), steps=2 if context.quick else STEPS,
            guidance=usual_guidance(pipe), renders=held_out(TARGET),
        )  # fmt: skip
        if not context.quick:
            report.require_trust()
        report.add_to(figures, ("acc_e", "acc_g:seen", "instead", "ira", "broken", "drift_u:mse"))
        for each in figures.values():
            each.setdefault("gap", []).append(each["acc_e"][-1] - each["acc_g:seen"][-1])
        context.progress(f"seed {seed}: {TARGET} drawn: " + means(figures, "acc_e"))

    def of(key: str, *names: str) -> dict[str, list[float]]:
        return {name: figures[name][key] for name in names}

    def mean(name: str, key: str) -> float:
        return float(np.mean(figures[name][key]))

    gone = paired(figures["without surgery"]["acc_e"], figures["DoCo"]["acc_e"])
    return [
        Effect(
            "erases from other sentences",
            "the concept is drawn from sentences that were not trained with at most half as often as by the original, "
            "in the mean over seeds, in pictures of which most show something",
            of("acc_e", "DoCo", "original"),
            mean("DoCo", "acc_e") <= mean("original", "acc_e") / 2 and mean("DoCo", "broken") <= 0.5,
            note=f"drawn: {means(figures, 'acc_e')}; in trained sentences: {means(figures, 'acc_g:seen')}; the anchor "
            f"in its place: {means(figures, 'instead')}",
        ),
        Effect(
            "carries over",
            "what is gone from trained sentences but drawn from others is a smaller share than after concept "
            "ablation, in the mean over seeds",
            of("gap", "DoCo", "concept ablation"),
            mean("DoCo", "gap") < mean("concept ablation", "gap"),
            note=spread(paired(figures["DoCo"]["gap"], figures["concept ablation"]["gap"]), ""),
        ),
        Effect(
            "surgery spares others",
            "with it kept concepts are drawn oftener or their pictures change less (MSE), and the concept is drawn at "
            "most 0.1 oftener, in the mean over seeds",
            of("drift_u:mse", "DoCo", "without surgery"),
            (
                mean("DoCo", "ira") > mean("without surgery", "ira")
                or mean("DoCo", "drift_u:mse") < mean("without surgery", "drift_u:mse")
            )
            and float(np.mean(gone)) >= -0.1,
            note=f"kept concepts drawn: {means(figures, 'ira')}; cosine of gradients {np.mean(agreed['cosine']):.3f}, "
            f"below 0 in {np.mean(agreed['conflicts']):.0%} of the tensors",
        ),
    ]


def prompts(keep: tuple[str, ...], count: int) -> dict[str, list[str]]:
    """Return prompts in sentences that edits do not see, and as ``seen`` those of the target in trained ones."""
    bodies = [form.format(TARGET) for form in FORMS]
    others = asked(TARGET, keep, count=count)
    return {
        TARGET: [OTHERS[i % len(OTHERS)].format(bodies[i]) for i in range(count)],
        **{concept: others[concept] for concept in keep},
        "seen": [SENTENCES[i % len(SENTENCES)].format(bodies[i]) for i in range(count)],
    }


def means(figures: dict[str, dict[str, list[float]]], key: str) -> str:
    """Return the mean of one figure for each model, in words."""
    return ", ".join(f"{name} {np.mean(each[key]):.3g}" for name, each in figures.items())
