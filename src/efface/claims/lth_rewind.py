"""Show that deep networks have tickets a little after their first step, and that stability tells when.

A residual network with batch norm is trained once at a high learning rate, and pruned in one shot to a tenth. What is
left is rewound to several early steps and trained again; so is, from two of them, a random part with as many weights
in each layer, and a second copy of the ticket that sees the data in another order.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.networks.lth_rewind import stability
from efface.parts.data.tasks import task
from efface.parts.nn.resnets import resnet_cifar
from efface.parts.sparsity.budget import Budget, best
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.scores import magnitude
from efface.seeds import derive, seeded
from efface.training.course import Course, masked
from efface.training.recipe import Train

STEPS, BATCH, WIDTH = 600, 64, 8
REWINDS = (0, 20, 60, 150)
DENSITY = 0.1

CLAIM = Claim(
    statement="Rewound to an early step instead of the first, what pruning leaves of a deep network learns better, and "
    "from where it does so its training is stable to pruning and to the order of the data",
    baseline="the same masks rewound to step 0; random masks with equal layers, rewound to the same step",
    minutes=5,
    data="15 000 labelled pictures, or as many of shapes that the package makes, 16 x 16",
)


def check(context: Context) -> list[Effect]:
    """Train one dense network per seed, then a tenth of it from each step; compare accuracies, angles and barriers."""
    pictures = task(context.data, side=16, limit=256 if context.quick else 15_000)
    steps, rewinds = (4, (0, 1, 2, 3)) if context.quick else (STEPS, REWINDS)
    early, middle, late = rewinds[0], rewinds[2], rewinds[3]
    ticket: dict[int, list[float]] = {k: [] for k in rewinds}
    angle: dict[int, list[float]] = {k: [] for k in rewinds}
    random: dict[int, list[float]] = {early: [], middle: []}
    barrier: dict[int, list[float]] = {early: [], late: []}
    for seed in context.seeds:
        with seeded(seed, "claim"):
            net = resnet_cifar(8, WIDTH, classes=len(pictures.classes))
        train = Train(
            steps=steps, batch=BATCH, seed=seed, optimizer="sgd", lr=0.1, schedule="cosine", weight_decay=1e-4
        )
        course = Course(net, pictures, train, context.device)
        dense = course.run(course.initial, snapshots=rewinds)
        whole = MaskSet.ones_like(net)
        keep = Budget(rate=1 - DENSITY).keep(whole, 1)
        masks = best(magnitude({name: dense.weights[name] for name in whole}), whole, keep)
        others = masks.random_like(derive(seed, "random"))
        for k in rewinds:
            origin = dense.snapshots[k]
            trained = course.run(masked(origin, masks), masks, step=k)
            measure = partial(stability, course, origin, masks, k, trained=trained.weights, dense=dense.weights)
            ticket[k].append(100 * trained.outcome.test.accuracy)
            angle[k].append(measure("pruning", points=2).distance.angle)
            told = f"ticket {ticket[k][-1]:.1f} % right, {angle[k][-1]:.0f} degrees from the dense network"
            if k in random:
                other = course.run(masked(origin, others), others, step=k)
                random[k].append(100 * other.outcome.test.accuracy)
                told += f", random mask {random[k][-1]:.1f} %"
            if k in barrier:
                found = measure("data order").barrier.height
                barrier[k].append(100 * found)
                told += f", barrier {100 * found:.1f} points"
            context.progress(f"seed {seed}, step {k}: {told}; dense {100 * dense.outcome.test.accuracy:.1f} %")
    gain, over = paired(ticket[middle], ticket[early]), paired(ticket[middle], random[middle])
    turned = paired(angle[early], angle[late])
    return [
        Effect(
            "a little training first",
            f"test accuracy of tickets rewound to step {REWINDS[2]} at least 1 point above that of those rewound to "
            "step 0, in the mean over seeds",
            {f"step {k}": values for k, values in ticket.items()},
            float(np.mean(gain)) >= 1,
            unit="%",
            note=spread(gain, "points"),
        ),
        Effect(
            "not any part will do",
            f"tickets rewound to step {REWINDS[2]} at least 1.5 points above random masks rewound to it, in the mean "
            "over seeds",
            {"ticket": ticket[middle]} | {f"random, step {k}": values for k, values in random.items()},
            float(np.mean(over)) >= 1.5,
            unit="%",
            note=spread(over, "points"),
        ),
        Effect(
            "stable to pruning",
            "the angle between a ticket's final weights and the same weights of the dense network is smaller from step "
            f"{REWINDS[3]} than from step 0, in every seed",
            {f"step {k}": values for k, values in angle.items()},
            min(turned) > 0,
            unit="degrees",
            note=spread(turned, "degrees"),
        ),
        Effect(
            "stable to the order of the data",
            "the barrier of error between two orders is at least twice as high from step 0 as from step "
            f"{REWINDS[3]}, in the mean over seeds",
            {f"step {k}": values for k, values in barrier.items()},
            float(np.mean(barrier[early])) >= 2 * float(np.mean(barrier[late])),
            unit="points",
        ),
    ]
