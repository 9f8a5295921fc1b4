"""Show that a learned style of synthetic text teaches to erase real text of a hidden style.

Pictures hold text of one hidden style: outlined, with a shadow to the south-east, slightly soft. Erasers of a quarter
of the full width learn from them with boxes alone, in equal numbers of steps from equal weights on equal pictures, and
are measured on held-out pictures whose clean version is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from efface.core.claim import Claim, Context, Effect
from efface.parts.data.boxed import HiddenStyle
from efface.parts.data.photos import photographs
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
LR = 2e-3
STEPS, LONG, TESTS = 200, 1500, 48

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
    rewards: list[float]
    found: float
    """Probability of the true options over the uniform one, mean over :data:`TRUE`; nan without a policy."""


def check(context: Context) -> list[Effect]:
    """Train four erasers per seed and compare them."""
    ways: dict[str, dict[str, Any]] = {
        "plain": {"synthesis": "plain"},
        "random": {"synthesis": "random"},
        "policy": {"synthesis": "policy"},
        "no triplet": {"synthesis": "random", "use_triplet": False},
    }
    arms: dict[str, list[Arm]] = {name: [] for name in ways}
    for seed in context.seeds:
        for name, params in ways.items():
            arms[name].append(_train(context, seed, params))
            context.progress(f"seed {seed}, {name}: {arms[name][-1].psnr:.2f} dB in the mask")
    psnr = {name: [arm.psnr for arm in found] for name, found in arms.items()}
    found = [arm.found for arm in arms["policy"]]
    early, late = ([_mean(half) for half in halves] for halves in zip(*map(_halves, arms["policy"]), strict=True))
    gain = _paired(psnr["random"], psnr["plain"])
    apart = {
        name: [arm.moved for arm in arms[arm_of]] for name, arm_of in (("with", "random"), ("without", "no triplet"))
    }
    return [
        Effect(
            "the policy finds the hidden style",
            "probability of the true options (outline, shadow, softness) at least 1.5 times the uniform one",
            {"policy": found, "uniform": [1.0] * len(found)},
            _mean(found) >= 1.5,
            unit="times uniform",
        ),
        Effect(
            "styled text teaches more than plain text",
            "PSNR in the mask on the hidden style: random style at least 1 dB above plain, in every seed above",
            {"random": psnr["random"], "plain": psnr["plain"]},
            _mean(gain) >= 1 and min(gain) > 0,
            unit="dB",
            note=_spread(gain),
        ),
        Effect(
            "the policy costs nothing against random styles",
            "PSNR in the mask: policy at most 0.1 dB below random",
            {"policy": psnr["policy"], "random": psnr["random"]},
            _mean(_paired(psnr["policy"], psnr["random"])) >= -0.1,
            unit="dB",
            note=_spread(_paired(psnr["policy"], psnr["random"])),
        ),
        Effect(
            "the policy's reward rises",
            "mean reward of the second half of the updates above that of the first half",
            {"second half": late, "first half": early},
            _mean(late) > _mean(early),
        ),
        Effect(
            "the triplet loss moves the refined picture away from the coarse one",
            "mean absolute difference of the two in the mask larger with the loss than without",
            apart,
            _mean(apart["with"]) > _mean(apart["without"]),
        ),
        Effect(
            "the triplet loss costs no quality",
            "PSNR in the mask with the loss not more than 0.1 dB below that without",
            {"with": psnr["random"], "without": psnr["no triplet"]},
            _mean(_paired(psnr["random"], psnr["no triplet"])) >= -0.1,
            unit="dB",
            note=_spread(_paired(psnr["random"], psnr["no triplet"])),
        ),
    ]


def _train(context: Context, seed: int, params: dict[str, Any]) -> Arm:
    method = Ste(
        width=8, scale=SCALE, decisions=DECISIONS, perceptual=0.0, style=0.0, adversarial=0.0, realism=20.0,
        policy_every=5, policy_updates=1, policies=8, pictures=3, policy_lr=1e-2, **params,
    )  # fmt: skip
    steps = 2 if context.quick else LONG if context.long else STEPS
    train = Train(steps=steps, batch=BATCH, seed=seed, lr=LR, schedule="cosine", warmup=0.05)
    trainer = Trainer(method, train, accelerator(train, context.device))
    batches = trainer.batches(_source(context, "train"))
    rewards = []
    for _ in range(steps):
        logged = trainer.advance([next(batches)])
        if "loss/policy/reward" in logged:
            rewards.append(float(logged["loss/policy/reward"]))
    net = trainer.net.eval()
    psnr, moved = _measure(method, net, _source(context, "test"), 4 if context.quick else TESTS, context.device)
    return Arm(psnr, moved, rewards, _found(net, seed) if params["synthesis"] == "policy" else float("nan"))


def _source(context: Context, split: str) -> HiddenStyle:
    bold = [p for p in find_fonts() if "bold" in p.stem.lower() and "italic" not in p.stem.lower()]
    return HiddenStyle(
        photos=photographs(context.data, split), size=SIZE, letters=LETTERS, options=HIDDEN, scale=SCALE, fonts=bold
    )


@torch.inference_mode()
def _measure(method: Ste, net: nn.Module, source: HiddenStyle, count: int, device: str) -> tuple[float, float]:
    batch = {k: v.to(device) for k, v in source.batch(0, 0, count).items()}
    mask, area = batch["mask"], 3 * batch["mask"].sum((1, 2, 3))
    out = net.eraser(batch["picture"])  # type: ignore[operator]
    result = method.run(net, batch["picture"], mask=mask)  # type: ignore[arg-type]
    error = ((result - batch["target"]).square() * mask).sum((1, 2, 3)) / area
    moved = ((out.refined - out.coarse).abs() * mask).sum((1, 2, 3)) / area
    return _mean([decibels(e) for e in error.tolist()]), float(moved.mean())


@torch.inference_mode()
def _found(net: nn.Module, seed: int) -> float:
    actions = net.policy(1000, generator=torch_generator(seed, "what the policy prefers")).actions  # type: ignore[operator]
    sizes = dict(zip(DECISIONS, net.policy.sizes, strict=True))  # type: ignore[union-attr,arg-type]
    chosen = {
        name: float((actions[:, DECISIONS.index(name)] == option).float().mean()) for name, option in TRUE.items()
    }
    return _mean([probability * sizes[name] for name, probability in chosen.items()])


def _halves(arm: Arm) -> tuple[list[float], list[float]]:
    middle = max(1, len(arm.rewards) // 2)
    return arm.rewards[:middle], arm.rewards[-middle:]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _paired(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _spread(differences: Sequence[float]) -> str:
    return f"difference {_mean(differences):+.2f} dB, standard deviation over seeds {np.std(differences):.2f}"
