"""Show that adapters of one dimension erase as fine-tuning does, spare others, stack, and fit a sibling pipeline.

Shapes are erased from the tiny pipeline, at its own small settings: 60 steps, and lambda 1 where the paper takes 1000
in 3000 steps, for Gaussian anchors of its short texts move its denoiser so much that 1000 holds everything in place.
Settings were chosen on another shape. The sibling is the pipeline itself, tuned on until it draws each colour as the
next one, so that its weights differ from those that the adapters were made for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.concepts.spm import Spm
from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.eraser import Concepts, editable, edited
from efface.core.erasure_world import score_on_world
from efface.core.method import Step, Work
from efface.core.plan import Plan
from efface.parts.concepts.slots import encode as read
from efface.parts.diffusion.latents import encode
from efface.parts.worlds.captions import caption
from efface.parts.worlds.erasing import kept
from efface.parts.worlds.pipeline import SHIPPED, load_pipeline
from efface.parts.worlds.world import COLOURS, render, scenes
from efface.seeds import numpy_generator
from efface.training.baselines import esd
from efface.training.descent import descend, swapped
from efface.training.recipe import Train
from efface.training.worlds import Denoiser

TARGET, OTHERS = "circle", ("ring", "cross")
SETTINGS: dict[str, Any] = {
    "steps": 60, "lr": 2e-2, "batch": 4, "anchoring": 1.0, "anchors": 1, "rollout_steps": 10, "warmup": 0.1,
}  # fmt: skip
TUNING = 100
NEXT = dict(zip(COLOURS, [*list(COLOURS)[1:], next(iter(COLOURS))], strict=True))

CLAIM = Claim(
    statement="Adapters of one dimension erase a concept as fine-tuning cross-attention does; anchoring and scaling "
    "by prompt spare others, adapters stack without training, and they fit a pipeline that was tuned further",
    baseline="ESD-x in as many steps of the same states, adapters without anchoring, adapters at full strength",
    minutes=14,
    data="pictures that a tiny pipeline draws of shapes; --data takes another folder of a pipeline that draws them",
)


def check(context: Context) -> list[Effect]:
    """Train every arm per seed, and draw with each at other seeds."""
    pipe = load_pipeline(context.data or SHIPPED).to(context.device)
    figures: dict[str, dict[str, list[float]]] = {}
    for seed in context.seeds:
        _measure(context, pipe, seed, figures)

    def of(key: str, *names: str) -> dict[str, list[float]]:
        return {name: figures[name][key] for name in names}

    def means(key: str, *names: str) -> str:
        return ", ".join(f"{name} {np.mean(each):.3f}" for name, each in of(key, *names).items())

    gone, drift = of("ua", "adapter", "ESD-x"), of("drift_u:mse", "adapter", "no anchors")
    scaled, stacked = of("drift_u:mse", "scaled", "adapter"), of("ua", "alone", "stacked")
    stay = paired(figures["stacked"]["ira"], figures["alone"]["ira"])
    moved = {"adapter": figures["adapter"]["ua"], "sibling": figures["sibling"]["ua"]}
    return [
        Effect(
            "erases as fine-tuning does",
            "the concept is gone from at most 0.1 fewer pictures than by ESD-x, in the mean over seeds, and most "
            "pictures show something",
            gone,
            _mean(paired(gone["adapter"], gone["ESD-x"])) >= -0.1 and _mean(figures["adapter"]["broken"]) <= 0.5,
            note=f"{spread(paired(gone['adapter'], gone['ESD-x']), '')}; kept concepts drawn: "
            f"{means('ira', 'original', 'adapter', 'ESD-x')}; scaled by prompt, gone: {means('ua', 'scaled')}",
        ),
        Effect(
            "anchoring spares others",
            "pictures of kept concepts change at most half as much (MSE) as without anchoring, in the mean over seeds",
            drift,
            _mean(drift["adapter"]) <= _mean(drift["no anchors"]) / 2,
            note=f"gone: {means('ua', 'adapter', 'no anchors')}",
        ),
        Effect(
            "scaling by prompt spares others",
            "pictures of prompts that share no word with the concept's change at most half as much as at full "
            "strength, in the mean over seeds",
            scaled,
            _mean(scaled["scaled"]) <= _mean(scaled["adapter"]) / 2,
        ),
        Effect(
            "adapters stack",
            "of three adapters at once, each concept is gone from at most 0.1 fewer pictures than by its own alone, "
            "and kept concepts are drawn at most 0.1 less often, in the mean over seeds and concepts",
            stacked,
            _mean(paired(stacked["stacked"], stacked["alone"])) >= -0.1 and _mean(stay) >= -0.1,
            note=f"kept concepts drawn: {means('ira', 'alone', 'stacked')}",
        ),
        Effect(
            "fits a sibling",
            "on the pipeline tuned to other colours the concept is gone from less than 0.15 fewer pictures, in the "
            "mean over seeds",
            moved,
            _mean(paired(moved["sibling"], moved["adapter"])) > -0.15,
            note=f"kept concepts drawn by the sibling: {means('ira', 'sibling')}",
        ),
    ]


def _measure(context: Context, pipe: Any, seed: int, figures: dict[str, dict[str, list[float]]]) -> None:
    """Train every arm with ``seed``, and add to ``figures``, by arm and figure, what is seen in its pictures."""
    work, scored = (
        Work(seed=seed, device=context.device, progress=context.progress),
        _Scored(context, pipe, seed, figures),
    )
    plan, free = _made(context, TARGET, work, pipe), _made(context, TARGET, work, pipe, anchoring=0.0)
    tuned = Plan.of(editable(pipe), _esd(context, pipe, work), method="esd", whole=False)
    scored(TARGET, {"scaled": plan, "adapter": _open(plan), "no anchors": _open(free), "ESD-x": tuned})
    plans = {TARGET: plan, **{other: _made(context, other, work, pipe) for other in OTHERS}}
    for concept, alone in plans.items():
        scored(concept, {"alone": _open(alone), "stacked": lambda: edited(pipe, list(plans.values()))}, spared=True)
    with swapped(dict(pipe.unet.named_parameters()), _tuned(context, pipe, work)):
        scored(TARGET, {"sibling": lambda: edited(pipe, [_open(plan)], strict=False)}, turned=True)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Scores models at the drawing seeds of one seed of the claim, and collects their figures by the models' names."""

    context: Context
    pipe: Any
    seed: int
    figures: dict[str, dict[str, list[float]]]

    def __call__(self, target: str, models: dict[str, Any], *, spared: bool = False, turned: bool = False) -> None:
        quick = self.context.quick
        keep = [concept for concept in kept(target) if not spared or concept not in (TARGET, *OTHERS)]
        report = score_on_world(
            self.pipe, models, target, keep[: 1 if quick else 4], prompts=1 if quick else 4,
            seeds=range(4 * self.seed, 4 * self.seed + (1 if quick else 4)), steps=2 if quick else 20,
        )  # fmt: skip
        if not quick and not turned:
            report.require_trust()
        report.add_to(self.figures, ("ua", "ira", "broken", "drift_u:mse"))


def _made(context: Context, concept: str, work: Work, pipe: Any, **other: Any) -> Plan:
    quick = {"steps": 1, "rollout_steps": 2} if context.quick else {}
    return Spm(**{**SETTINGS, **other, **quick}).plan(pipe, Concepts.of(concept), work)


def _esd(context: Context, pipe: Any, work: Work) -> Any:
    given = {name: SETTINGS[name] for name in ("steps", "batch", "rollout_steps")} | {"lr": 2e-3}
    quick = {"steps": 1, "rollout_steps": 2} if context.quick else {}
    return esd(pipe, Concepts.of(TARGET), work, **{**given, **quick})


def _open(plan: Plan) -> Plan:
    """Return ``plan`` as it acts on every prompt alike."""
    return dataclasses.replace(plan, made_by={**plan.made_by, "gate": False})


def _tuned(context: Context, pipe: Any, work: Work) -> dict[str, Tensor]:
    """Return the weights of the denoiser, tuned until it draws each colour as the next one."""
    method, count = Denoiser(), 2 if context.quick else 32

    def loss(step: Step) -> dict[str, Tensor]:
        asked = scenes(count, numpy_generator(work.seed, step.step, "sibling"))
        shown = [dataclasses.replace(scene, colour=NEXT[scene.colour]) for scene in asked]
        with torch.no_grad():
            latent = encode(pipe.vae, torch.from_numpy(render(shown).picture).to(context.device))
            text = read(pipe, [caption(scene) for scene in asked]).embeds
        return method.loss(pipe.unet, {"latent": latent, "text": text}, step)

    train = Train(steps=1 if context.quick else TUNING, lr=5e-4, batch=count, seed=work.seed)
    return descend(pipe.unet, dict(pipe.unet.named_parameters()), loss, train, work, name="sibling").values


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
