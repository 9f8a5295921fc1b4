"""Show that renewing connections while pruning beats pruning alone, and that a network heals best early.

Six convolutions are trained from equal weights on equal batches to 3 % of their weights: with static random masks, by
gradual magnitude pruning, by RigL, and by GraNet from half of the weights and from all. Then a dense training is
wounded: half or nine tenths of the weights of each layer go after a fifth of it, or after nine tenths.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.networks.granet import GraNet, plasticity
from efface.parts.data.tasks import Task, task
from efface.parts.nn.classifiers import convnet
from efface.seeds import seeded

STEPS, LONG, BATCH, LR = 600, 3000, 64, 2e-3
UPDATES = 20
"""In a training: what is exchanged must have the time to heal, so a longer training has no more of them."""
SPARSITY = 0.97
ARMS: dict[str, dict[str, Any]] = {
    "static": {"preset": "static"},
    "gmp": {"preset": "gmp"},
    "rigl": {"preset": "rigl"},
    "granet from half": {"preset": "granet", "init_density": 0.5},
    "granet from all": {"preset": "granet", "init_density": 1.0},
}
EARLY, LATE = 0.2, 0.9

CLAIM = Claim(
    statement="A network that is pruned while it trains, and renews connections as it is pruned, is better than one "
    "that is only pruned and than one whose connections never change; it heals from pruning early, not late",
    baseline="static random masks, gradual magnitude pruning and RigL at the same sparsity",
    minutes=8,
    data="15 000 labelled pictures, or 6000 of shapes that the package makes, and 2000 to test on",
)


def check(context: Context) -> list[Effect]:
    """Train every arm per seed, and wound a dense training; compare accuracies on the test pictures, in percent."""
    pictures = task(context.data, limit=64 if context.quick else 15_000 if context.data else None)
    limit = 20 if context.quick else 2000
    reached: dict[str, list[float]] = {name: [] for name in ARMS}
    cost: dict[str, list[float]] = {name: [] for name in ARMS}
    healed: dict[tuple[bool, float, str], list[float]] = {}
    for seed in context.seeds:
        net, work = _fresh(pictures, seed), Work(seed=seed, device=context.device)
        for name in ARMS:
            plan = _method(name, context).plan(net, pictures, work)
            score = pictures.score(plan.apply(copy.deepcopy(net)), limit=limit)
            reached[name].append(100 * score.accuracy)
            cost[name].append(plan.made_by["training_flops"])
            density = plan.made_by["history"][-1]["density"]
            context.progress(
                f"seed {seed}, {name}: {reached[name][-1]:.1f} % with {density:.2%} of the weights, "
                f"{cost[name][-1]:.2f} of the FLOPs of a dense training"
            )
        method = _method("granet from all", context)
        steps = 1 if context.quick else None
        wounds = plasticity(
            net, pictures, method.train(seed), at=(EARLY, LATE), rates=(0.5, 0.9), steps=steps, split="test",
            limit=limit, work=work,
        ).wounds  # fmt: skip
        first = min(w.step for w in wounds)
        for w in wounds:
            healed.setdefault((w.step == first, w.rate, w.regrown), []).append(100 * w.plasticity)
            context.progress(
                f"seed {seed}, {w.rate:.0%} pruned at step {w.step}, regrown by {w.regrown}: {100 * w.plasticity:+.1f}"
            )
    return _effects(reached, cost, healed)


def _effects(
    reached: dict[str, list[float]], cost: dict[str, list[float]], healed: dict[tuple[bool, float, str], list[float]]
) -> list[Effect]:
    ours = reached["granet from half"]
    over = {name: paired(ours, reached[name]) for name in ("static", "gmp", "rigl")}
    spent = ", ".join(f"{name} {np.mean(shares):.2f}" for name, shares in cost.items())
    early, late = healed[True, 0.5, "none"], healed[False, 0.5, "none"]
    renewed, plain = (
        np.mean([healed[moment, 0.9, regrown] for moment in (True, False)], axis=0).tolist()
        for regrown in ("gradient", "none")
    )
    return [
        Effect(
            "beats static masks",
            "accuracy from half of the weights down to 3 % at least 2 points above that of static masks, in the mean "
            "over seeds",
            {name: reached[name] for name in ("granet from half", "granet from all", "static")},
            float(np.mean(over["static"])) >= 2,
            unit="%",
            note=f"{spread(over['static'], 'points')}; FLOPs of the training over dense: {spent}",
        ),
        Effect(
            "renewing helps pruning",
            "accuracy above that of gradual magnitude pruning, in the mean over seeds",
            {name: reached[name] for name in ("granet from half", "gmp")},
            float(np.mean(over["gmp"])) > 0,
            unit="%",
            note=spread(over["gmp"], "points"),
        ),
        Effect(
            "no worse than RigL",
            "accuracy at least that of RigL less 0.5 points, in the mean over seeds",
            {name: reached[name] for name in ("granet from half", "rigl")},
            float(np.mean(over["rigl"])) >= -0.5,
            unit="%",
            note=spread(over["rigl"], "points"),
        ),
        Effect(
            "networks heal early",
            "what half of the weights cost, after training on: accuracy gained since the pruning higher after a fifth "
            "of the training than after nine tenths, in the mean over seeds",
            {"after a fifth": early, "after nine tenths": late},
            float(np.mean(paired(early, late))) > 0,
            unit="points",
        ),
        Effect(
            "regrowing helps healing",
            "accuracy gained since nine tenths of the weights went at least as high if as many places regrow at zero, "
            "in the mean over both moments and seeds",
            {"regrown by gradient": renewed, "not regrown": plain},
            float(np.mean(paired(renewed, plain))) >= 0,
            unit="points",
        ),
    ]


def _method(name: str, context: Context) -> GraNet:
    steps = 4 if context.quick else LONG if context.long else STEPS
    return GraNet(
        sparsity=SPARSITY, **ARMS[name], every=max(1, steps // UPDATES), stop=0.6, steps=steps, batch=BATCH,
        optimizer="adamw", lr=LR, schedule="cosine", weight_decay=0.0,
    )  # fmt: skip


def _fresh(pictures: Task, seed: int) -> nn.Module:
    with seeded(seed, "claim"):
        return convnet(16, channels=pictures.shape[0], classes=len(pictures.classes))
