"""Show that a learned style of synthetic text teaches to erase real text of a hidden style.

Pictures hold text of one hidden style: outlined, with a shadow to the south-east, slightly soft. An eraser of a quarter
of the full width first learns from plain text. From its weights four erasers go on, in equal numbers of steps on equal
pictures, with boxes alone; they are measured on held-out pictures whose clean version is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Step
from efface.parts.data.boxed import HiddenStyle
from efface.parts.data.photos import Photographs, photographs
from efface.parts.metrics.pixels import decibels
from efface.parts.text.fonts import find_fonts
from efface.pictures.ste import Ste
from efface.seeds import torch_generator
from efface.training.recipe import Train
from efface.training.trainer import Trainer, accelerator

HIDDEN = {
    "feather": 2,
    "stroke": 1,
    "stroke_width": 2,
    "stroke_colour": 0,
    "shadow": 1,
    "direction": 3,
    "distance": 3,
}
TRUE = {"feather": 2, "stroke": 1, "shadow": 1}
"""Decisions, and their options in the hidden style, on which the policy is measured."""
DECISIONS = ("feather", "italic", "stroke", "stroke_width", "stroke_colour", "shadow", "direction", "distance")
SIZE, SCALE, BATCH = 64, 0.4, 8
LETTERS = 0.2, 0.26
LR = 4e-3
FIRST, STEPS, LONGER, TESTS = 500, 130, 6, 48
"""Steps of the common start and of each way, what ``long`` multiplies both by, and pictures measured on."""

CLAIM = Claim(
    statement="A policy that learns the style of synthetic text from rewards finds a hidden style; erasers that learn "
    "from styled text remove text of the hidden style better than one that learns from plain text; the triplet "
    "erasure loss moves the refined picture away from the coarse one without loss of quality",
    baseline="the same eraser trained on plain text, on text of uniformly random style, and without the triplet loss",
    minutes=7,
    data="64 x 64 crops with one word each in a hidden style, on photographs",
)


@dataclass(frozen=True)
class Arm:
    """What one training reached."""

    psnr: float
    """In the mask, mean over the test pictures, in dB."""
    moved: float
    """Mean absolute difference between refined and coarse picture in the mask."""
    found: float
    """Probability of the policy's true options over the uniform one, mean over :data:`TRUE`."""
    reward: float
    """Mean reward of text in the policy's styles."""
    uniform_reward: float
    """Mean reward, from the same networks, of text in uniformly random styles."""


def check(context: Context) -> list[Effect]:
    """Train four erasers per seed and compare them."""
    ways: dict[str, dict[str, Any]] = {
        "plain": {"synthesis": "plain"},
        "random": {"synthesis": "random"},
        "policy": {"synthesis": "policy"},
        "no triplet": {"synthesis": "random", "use_triplet": False},
    }
    arms: dict[str, list[Arm]] = {name: [] for name in ways}
    start = _train(context, ways["plain"], FIRST, seed=0).state_dict()
    for seed in context.seeds:
        for name, params in ways.items():
            net = _train(context, params, STEPS, seed, start)
            arms[name].append(_measure(context, _method(params), net, seed))
            context.progress(f"seed {seed}, {name}: {arms[name][-1].psnr:.2f} dB in the mask")
    psnr = {name: [arm.psnr for arm in found] for name, found in arms.items()}
    found = [arm.found for arm in arms["policy"]]
    rewards = {
        "policy": [arm.reward for arm in arms["policy"]],
        "uniform": [arm.uniform_reward for arm in arms["policy"]],
    }
    gain = paired(psnr["random"], psnr["plain"])
    apart = {
        name: [arm.moved for arm in arms[arm_of]] for name, arm_of in (("with", "random"), ("without", "no triplet"))
    }
    return [
        Effect(
            "the policy finds the hidden style",
            "probability of the true options (outline, shadow, softness) at least 1.5 times the uniform one",
            {"policy": found, "uniform": [1.0] * len(found)},
            fmean(found) >= 1.5,
            unit="times uniform",
        ),
        Effect(
            "styled text teaches more than plain text",
            "PSNR in the mask on the hidden style: random style at least 1 dB above plain, in every seed above",
            {"random": psnr["random"], "plain": psnr["plain"]},
            fmean(gain) >= 1 and min(gain) > 0,
            unit="dB",
            note=spread(gain),
        ),
        Effect(
            "the policy costs nothing against random styles",
            "PSNR in the mask: policy at most 0.1 dB below random",
            {"policy": psnr["policy"], "random": psnr["random"]},
            fmean(paired(psnr["policy"], psnr["random"])) >= -0.1,
            unit="dB",
            note=spread(paired(psnr["policy"], psnr["random"])),
        ),
        Effect(
            "the policy earns more reward than chance",
            "mean reward of the policy's styles above that of uniformly random ones, judged by the same networks",
            rewards,
            fmean(paired(rewards["policy"], rewards["uniform"])) > 0,
        ),
        Effect(
            "the triplet loss moves the refined picture away from the coarse one",
            "mean absolute difference of the two in the mask larger with the loss than without",
            apart,
            fmean(apart["with"]) > fmean(apart["without"]),
        ),
        Effect(
            "the triplet loss costs no quality",
            "PSNR in the mask with the loss not more than 0.1 dB below that without",
            {"with": psnr["random"], "without": psnr["no triplet"]},
            fmean(paired(psnr["random"], psnr["no triplet"])) >= -0.1,
            unit="dB",
            note=spread(paired(psnr["random"], psnr["no triplet"])),
        ),
    ]


def _method(params: dict[str, Any]) -> Ste:
    return Ste(
        width=8, scale=SCALE, decisions=DECISIONS, perceptual=0.0, style=0.0, adversarial=0.0, realism=20.0,
        policy_every=5, policy_updates=1, policies=8, pictures=3, policy_lr=1e-2, **params,
    )  # fmt: skip


def _train(
    context: Context, params: dict[str, Any], steps: int, seed: int, start: dict[str, Tensor] | None = None
) -> nn.Module:
    steps = 2 if context.quick else steps * LONGER if context.long else steps
    schedule = "constant" if start is None else "cosine"
    train = Train(steps=steps, batch=BATCH, seed=seed, lr=LR, schedule=schedule, warmup=0.05)
    trainer = Trainer(_method(params), train, accelerator(train, context.device))
    if start is not None:
        trainer.net.load_state_dict(start)
    batches = trainer.batches(_source(context, "train"))
    for _ in range(steps):
        trainer.advance([next(batches)])
    return trainer.net.eval()


def _source(context: Context, split: str) -> HiddenStyle:
    bold = [p for p in find_fonts() if "bold" in p.stem.lower() and "italic" not in p.stem.lower()]
    return HiddenStyle(
        photos=_photos(context.data, split, 4 if context.quick else None),
        size=SIZE,
        letters=LETTERS,
        options=HIDDEN,
        scale=SCALE,
        fonts=bold,
    )


@cache  # pictures are made or read once, not once for each training
def _photos(folder: Path | None, split: str, count: int | None) -> Photographs:
    return photographs(folder, split)[:count]


@torch.inference_mode()
def _measure(context: Context, method: Ste, net: Any, seed: int) -> Arm:
    batch = _source(context, "test").batch(0, 0, 4 if context.quick else TESTS)
    batch = {k: v.to(context.device) for k, v in batch.items()}
    mask, area = batch["mask"], 3 * batch["mask"].sum((1, 2, 3))
    out = net.eraser(batch["picture"])
    result = method.run(net, batch["picture"], mask=mask)
    error = ((result - batch["target"]).square() * mask).sum((1, 2, 3)) / area
    moved = ((out.refined - out.coarse).abs() * mask).sum((1, 2, 3)) / area
    return Arm(
        psnr=fmean([decibels(e) for e in error.tolist()]),
        moved=fmean(moved.tolist()),
        found=_found(net, seed),
        reward=_reward(_method({"synthesis": "policy"}), net, batch, seed),
        uniform_reward=_reward(_method({"synthesis": "random"}), net, batch, seed),
    )


def _found(net: Any, seed: int) -> float:
    actions = net.policy(1000, generator=torch_generator(seed, "what the policy prefers")).actions
    chosen = {name: (actions[:, DECISIONS.index(name)] == option).float().mean() for name, option in TRUE.items()}
    return fmean([float(share) * net.policy.sizes[DECISIONS.index(name)] for name, share in chosen.items()])


def _reward(method: Ste, net: Any, batch: dict[str, Tensor], seed: int) -> float:
    written = method.prepare(net, batch, Step(seed=seed))
    return float(method.rewards(net, *method.judge(net, written))["reward"].mean())
