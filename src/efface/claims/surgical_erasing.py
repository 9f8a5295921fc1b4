"""Show that changing guidance alone puts the chosen shape in the erased one's place, and leaves what it does not guide.

A circle becomes a square in the tiny pipeline. Every arm trains cross-attention in as many steps on as many states;
settings were chosen on another shape. A first run of the claim with 100 steps showed all but the second effect.
States on which the empty prompt is watched are of prompts and noise that no arm saw. Pictures to purify are drawn by
the world and not by the pipeline.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.concepts.surgical_erasing import SurgicalErasing, purify
from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.eraser import Concepts, editable, edited
from efface.core.erasure_world import score_on_world
from efface.core.method import Work
from efface.core.plan import Plan
from efface.parts.concepts.rollout import predictions, trajectories
from efface.parts.concepts.slots import encode
from efface.parts.diffusion.pipelines import first_noise, sample, usual_guidance
from efface.parts.worlds.captions import caption
from efface.parts.worlds.erasing import kept, prompts
from efface.parts.worlds.judge import load_judge
from efface.parts.worlds.pipeline import SHIPPED, load_pipeline
from efface.parts.worlds.world import BACKGROUNDS, Scene, render
from efface.training.baselines import esd

TARGET, INSTEAD, COLOUR = "circle", "square", "red"
KEPT = ("ring", "triangle")
SETTINGS: dict[str, Any] = {
    "steps": 150, "lr": 3e-3, "batch": 4, "rollouts": 20, "rollout_steps": 20, "rollout_guidance": 2.0,
}  # fmt: skip
EACH, PICTURES = 3, 32
"""Seeds at which a prompt is drawn; pictures to purify."""
FRESH = 10_000
"""First seed of the noise under the watched states."""

CLAIM = Claim(
    statement="Matching what a prompt adds to the empty one, and holding that, draws the chosen alternative in the "
    "concept's place and the same layout, moves unconditional noise at most a third as far, and takes the concept out "
    "of pictures that exist",
    baseline="ESD-x; regression on the alternative's noise, as in ESD, that does not hold the empty prompt",
    minutes=6,
    data="pictures that a tiny pipeline draws of shapes; --data takes another folder of a pipeline that draws them",
)


def check(context: Context) -> list[Effect]:
    """Train every arm per seed, draw with each at other seeds, and purify renders of the target."""
    pipe = load_pipeline(context.data or SHIPPED).to(context.device)
    figures: dict[str, dict[str, list[float]]] = {}
    for seed in context.seeds:
        _measure(context, pipe, seed, figures)

    def of(key: str, *names: str) -> dict[str, list[float]]:
        return {name: figures[name][key] for name in names}

    def mean(key: str, name: str = "surgical") -> float:
        return float(np.mean(figures[name][key]))

    def means(key: str) -> str:
        return ", ".join(f"{name} {np.mean(each[key]):.3f}" for name, each in figures.items() if key in each)

    gone = {name: mean("ua") - mean("ua", name) for name in ("not held", "ESD-x")}
    cleaned = {f"{name}: {key}": figures[name][key] for name in ("original", "surgical") for key in ("gone", "colour")}
    moved = of("centre", "surgical", "ESD-x")
    return [
        Effect(
            "draws the alternative",
            f"at least 0.7 of the pictures asked for with {TARGET} show a {INSTEAD}, and less than half after ESD-x, "
            "in the mean over seeds",
            of("instead", "surgical", "ESD-x"),
            mean("instead") >= 0.7 and mean("instead", "ESD-x") < 0.5,
            note=f"gone: {means('ua')}; in other words, drawn: {means('acc_g')}; showing nothing: {means('broken')}",
        ),
        Effect(
            "the empty prompt stays",
            "noise found under it moves at most a third as far as without holding it, in the mean over seeds",
            of("null", "surgical", "not held"),
            mean("null") <= mean("null", "not held") / 3,
            note=f"of its length: {means('null')}; with 100 steps 0.045 and 0.052",
        ),
        Effect(
            "others stay",
            "pictures of kept concepts change less (MSE) than after either baseline, while the concept is gone from "
            "at most 0.05 fewer pictures, in the mean over seeds",
            of("drift_u:mse", "surgical", "not held", "ESD-x"),
            mean("drift_u:mse") < min(mean("drift_u:mse", name) for name in gone) and min(gone.values()) >= -0.05,
            note=f"kept concepts drawn: {means('ira')}; gone: {means('ua')}",
        ),
        Effect(
            "the layout stays",
            "the centre of the shape moves less far than after ESD-x, in the mean over seeds",
            moved,
            mean("centre") < mean("centre", "ESD-x"),
            "pixels",
            note=f"{spread(paired(moved['surgical'], moved['ESD-x']), 'pixels')}; all: {means('centre')}",
        ),
        Effect(
            "purifies pictures",
            f"of pictures of {TARGET}s the original draws at least 0.8 again from their noise; after the edit at most "
            f"0.4 still show one, and 0.8 have their colour, in the mean over seeds",
            cleaned,
            mean("gone", "original") <= 0.2 and mean("gone") >= 0.6 and mean("colour") >= 0.8,
            note=f"showing a {INSTEAD}: {means('replaced')}",
        ),
    ]


def _measure(context: Context, pipe: Any, seed: int, figures: dict[str, dict[str, list[float]]]) -> None:
    """Train every arm with ``seed``, and add to ``figures``, by arm and figure, what is seen of it."""
    quick = context.quick
    arms, keep = _arms(context, pipe, seed), KEPT[: 1 if quick else 2]
    count, seeds = (1, [seed]) if quick else (4, [EACH * seed + i for i in range(EACH)])
    steps, guidance = 2 if quick else 20, usual_guidance(pipe)
    report = score_on_world(
        pipe, arms, TARGET, keep, instead=INSTEAD, prompts=count, seeds=seeds, steps=steps, guidance=guidance
    )
    if not quick:
        report.require_trust()
    found = {
        name: {key: scored[key].value for key in ("ua", "instead", "acc_g", "ira", "broken", "drift_u:mse")}
        for name, scored in report.models.items()
    }
    texts = [text for text in prompts(TARGET, count=count) for _ in seeds]
    scenes = [Scene(TARGET, COLOUR, list(BACKGROUNDS)[i % 4], seed=FRESH * seed + i) for i in range(PICTURES)]
    scenes = scenes[: 1 if quick else None]
    pictures, judge = torch.from_numpy(render(scenes).picture), load_judge()
    drawn: dict[str, Tensor] = {}
    noise: dict[str, Tensor] = {}
    x, t = _watched(pipe, seed, steps)
    for name, plans in {"original": [], **{name: [plan] for name, plan in arms.items()}}.items():
        with edited(pipe, plans), torch.no_grad():
            drawn[name] = sample(pipe, texts, seeds * count, steps=steps, guidance=guidance)
            noise[name] = predictions(pipe, x, t, encode(pipe, [""]))
        if name in ("original", "surgical"):
            asked = [caption(scene) for scene in scenes]
            seen = judge.names(purify(pipe, pictures, asked, plans, steps=steps, guidance=guidance))
            found[name] |= {
                "gone": _share(shape != TARGET for shape in seen["shape"]),
                "replaced": _share(shape == INSTEAD for shape in seen["shape"]),
                "colour": _share(colour == COLOUR for colour in seen["colour"]),
            }
    for name in arms:
        far = (_centres(drawn[name]) - _centres(drawn["original"])).norm(dim=1).mean()
        away = (noise[name] - noise["original"]).norm() / noise["original"].norm()
        found[name] |= {"centre": float(far), "null": float(away)}
    for name, values in found.items():
        for key, value in values.items():
            figures.setdefault(name, {}).setdefault(key, []).append(value)
    context.progress(f"seed {seed}: {TARGET} gone, then a {INSTEAD}: {found['surgical']}")


def _arms(context: Context, pipe: Any, seed: int) -> dict[str, Plan]:
    work = Work(seed=seed, device=context.device, progress=context.progress)
    settings = {**SETTINGS, **({"steps": 1, "rollouts": 2, "rollout_steps": 2} if context.quick else {})}
    concepts, plain = Concepts.of(TARGET, INSTEAD), {k: v for k, v in settings.items() if k != "rollouts"}
    away = esd(pipe, Concepts.of(TARGET), work, **{**plain, "rollout_steps": settings["rollout_steps"] // 2})
    return {
        "surgical": SurgicalErasing(**settings).plan(pipe, concepts, work),
        "not held": SurgicalErasing(**settings, anchor="fixed", unconditional=0.0).plan(pipe, concepts, work),
        "ESD-x": Plan.of(editable(pipe), away, method="esd", whole=False),
    }


def _watched(pipe: Any, seed: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return states of the original with their time steps, under prompts of every kind that are asked for in tests."""
    asked = ["", *(prompts(concept, count=1)[0] for concept in (TARGET, INSTEAD, *kept(TARGET, 1)))]
    noise = first_noise(pipe, [FRESH + len(asked) * seed + i for i in range(len(asked))])
    states, times = trajectories(
        pipe, encode(pipe, asked), encode(pipe, [""]), noise, steps=steps, guidance=usual_guidance(pipe)
    )
    return states.flatten(0, 1), times.repeat_interleave(len(asked))


def _centres(pictures: Tensor) -> Tensor:
    """Return where in pixels (b, 2) what differs from the colour of the rim lies; the middle if nothing does."""
    rim = torch.cat([pictures[..., [0, -1], :].flatten(2), pictures[..., [0, -1]].flatten(2)], 2).median(2).values
    cover = ((pictures - rim[..., None, None]).norm(dim=1) > 0.25) + 1e-6
    places = torch.stack(torch.meshgrid(*map(torch.arange, cover.shape[1:]), indexing="ij")).double()
    return torch.einsum("bhw,khw->bk", cover.double(), places) / cover.double().sum((1, 2))[:, None]


def _share(hits: Any) -> float:
    return float(np.mean(list(hits)))
