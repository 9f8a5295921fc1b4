"""Show that a winning ticket learns what its whole network learns, and owes it to its initial weights.

A network of two hidden layers is pruned by levels, a fifth of the weights each time, down to a fifteenth. Beside every
ticket between a fifth and a fifteenth of the size its mask is trained with new initial weights, equally long and on the
same batches.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.networks.lth import rates_by_layer
from efface.parts.data.tasks import task
from efface.parts.metrics.paired import steps_to_threshold
from efface.parts.nn.classifiers import mlp
from efface.parts.sparsity.budget import Budget
from efface.seeds import seeded
from efface.training.course import Course, masked
from efface.training.levels import imp
from efface.training.recipe import Train

LEVELS, STEPS, EVERY, BATCH = 12, 600, 50, 60
SPARSE = (0.065, 0.2)
"""Densities between which tickets are compared with the dense network and with new weights."""

CLAIM = Claim(
    statement="A part of a network found by pruning, with the weights it began with, learns better than the same part "
    "with other weights, no worse than the whole, and faster",
    baseline="the same masks with new initial weights (random reinit); the dense network",
    minutes=4,
    data="15 000 labelled pictures, or as many of shapes that the package makes, in grey and 16 x 16",
)


def check(context: Context) -> list[Effect]:
    """Prune by levels per seed; compare test accuracies in percent, and steps to the dense network's best."""
    pictures = task(context.data, side=16, grey=True, limit=120 if context.quick else 15_000, augment=False)
    sizes = (16 * 16, 300, 100, len(pictures.classes))
    arms: dict[str, list[float]] = {"ticket": [], "new weights": [], "dense": []}
    speed: dict[str, list[float]] = {"ticket": [], "dense": []}
    for seed in context.seeds:

        def fresh() -> nn.Module:
            return mlp(sizes)

        with seeded(seed, "claim"):
            net = fresh()
        steps, every, levels = (2, 1, 9) if context.quick else (STEPS, EVERY, LEVELS)
        train = Train(steps=steps, batch=BATCH, lr=1.2e-3, seed=seed)  # AdamW without decay is Adam
        course = Course(net, pictures, train, context.device, every)
        budget = Budget(rate=0.2, scope="layer", rates=rates_by_layer(net, ("linear3=0.1",)))
        new, tickets, others, first = course.redrawn(fresh), [], [], []
        for level in imp(course, levels, budget):
            outcome, density = level.ticket, level.masks.density
            if level.number == 0:
                dense = outcome
            if not SPARSE[0] <= density <= SPARSE[1]:
                continue
            reinit = course.run(masked(new, level.masks), level.masks).outcome
            tickets.append(100 * outcome.test.accuracy)
            others.append(100 * reinit.test.accuracy)
            first.append(steps_to_threshold(outcome.steps, outcome.accuracies, max(dense.accuracies)) or steps + every)
            context.progress(
                f"seed {seed}, {density:.1%} of the weights: ticket {tickets[-1]:.1f} %, new weights {others[-1]:.1f}, "
                f"dense {100 * dense.test.accuracy:.1f}; at the dense network's best after {first[-1]} steps"
            )
        for name, values in (("ticket", tickets), ("new weights", others), ("dense", [100 * dense.test.accuracy])):
            arms[name].append(float(np.mean(values)))
        speed["ticket"].append(float(np.mean(first)))
        speed["dense"].append(
            float(steps_to_threshold(dense.steps, dense.accuracies, max(dense.accuracies)) or steps + every)
        )
    gain, over = paired(arms["ticket"], arms["new weights"]), paired(arms["ticket"], arms["dense"])
    return [
        Effect(
            "initial weights matter",
            "test accuracy of tickets with 6.5 to 20 % of the weights at least 2 points above that of the same masks "
            "with new weights, in the mean over densities and seeds",
            {name: arms[name] for name in ("ticket", "new weights")},
            float(np.mean(gain)) >= 2,
            unit="%",
            note=spread(gain, "points"),
        ),
        Effect(
            "no worse than the whole",
            "test accuracy of these tickets at least that of the dense network, in the mean over densities and seeds",
            {name: arms[name] for name in ("ticket", "dense")},
            float(np.mean(over)) >= 0,
            unit="%",
            note=spread(over, "points"),
        ),
        Effect(
            "faster than the whole",
            "fewer steps to the dense network's best validation accuracy than it takes itself, in the mean over "
            "densities and seeds; never getting there counts as one evaluation more than the training is long",
            speed,
            float(np.mean(speed["ticket"])) < float(np.mean(speed["dense"])),
            unit="steps",
        ),
    ]
