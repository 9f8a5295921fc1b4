"""Show that fewer neurons are dead the more is pruned, and fewer still where a share of the cut wakes them.

A network of two hidden layers is pruned by levels, a fifth of the weights left each time: all of it by magnitude, or a
tenth of each cut by activate-while-pruning, or by one of its controls. All arms share the dense training and take
equally many steps.
"""

from __future__ import annotations

import copy

import numpy as np

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.networks.ap import Activate, dnr
from efface.parts.data.tasks import task
from efface.parts.metrics.paired import verdict
from efface.parts.nn.classifiers import mlp
from efface.parts.sparsity.masks import MaskSet
from efface.seeds import seeded
from efface.training.course import Course, State, masked
from efface.training.levels import Prune, Round, imp, smallest
from efface.training.recipe import Train

LEVELS, STEPS, BATCH, Q = 13, 300, 60, 0.02
SPARSE = 0.07
"""Density from which on arms are compared."""

CLAIM = Claim(
    statement="The share of neurons that give zero falls while a network is pruned and rewound; pruning negative "
    "weights that hardly moved lowers it further, and costs no accuracy at high sparsity",
    baseline="magnitude alone; the same share of any negative weights, or of positive ones that hardly moved",
    minutes=5,
    data="15 000 labelled pictures, or as many of shapes that the package makes, in grey and 16 x 16",
)


def check(context: Context) -> list[Effect]:
    """Prune by levels per seed and arm; compare accuracies in percent, and dead neurons in percent."""
    pictures = task(context.data, side=16, grey=True, limit=120 if context.quick else 15_000, augment=False)
    arms: dict[str, Prune] = {
        "magnitude": smallest,
        "AP": Activate(Q),
        "any negative": Activate(Q, pick="any negative"),
        "still positive": Activate(Q, pick="still positive"),
    }
    accuracy: dict[str, list[float]] = {name: [] for name in arms}
    dead: dict[str, list[float]] = {"dense": [], "pruned": []}
    cuts: dict[str, list[float]] = {"magnitude": [], "AP": []}
    pairs: dict[str, list[float]] = {name: [] for name in arms}
    for seed in context.seeds:
        with seeded(seed, "claim"):
            net = mlp((16 * 16, 300, 100, len(pictures.classes)))
        train = Train(steps=2 if context.quick else STEPS, batch=BATCH, lr=1.2e-3, seed=seed)
        course = Course(net, pictures, train, context.device)
        dense = course.run(course.initial, snapshots=(0,))

        def silent(weights: State, masks: MaskSet, course: Course = course) -> float:
            """Return the share of neurons in percent that give zero, in the mean over validation pictures."""
            pruned = copy.deepcopy(course.net)
            pruned.load_state_dict(masked(weights, masks))
            return 100 * dnr(pruned, course.task, device=course.device).dynamic

        for name, prune in arms.items():
            reached, before = [], None
            change: dict[str, list[float]] = {"magnitude": [], "AP": []}
            for level in imp(course, LEVELS, prune=prune, dense=dense):
                if level.masks.density <= SPARSE:
                    reached.append(100 * level.ticket.test.accuracy)
                if name == "AP" and before is not None:  # both cuts of the same trained network
                    host = smallest(Round(before.masks, before.start, before.final), level.masks.kept)
                    for cut, masks in (("magnitude", host), ("AP", level.masks)):
                        change[cut].append(silent(before.final, masks))
                before = level
            accuracy[name].append(float(np.mean(reached)))
            pairs[name] += reached
            if name == "magnitude":
                dead["dense"].append(silent(dense.weights, MaskSet.ones_like(net)))
                dead["pruned"].append(silent(level.final, level.masks))
            if name == "AP":
                for cut, values in change.items():
                    cuts[cut].append(float(np.mean(values)))
            context.progress(f"seed {seed}, {name}: {accuracy[name][-1]:.1f} % right at 7 % of the weights and less")
        context.progress(
            f"seed {seed}: {dead['dense'][-1]:.1f} % of neurons silent in the dense network, {dead['pruned'][-1]:.1f} "
            f"in the last; after a cut {cuts['magnitude'][-1]:.2f}, with AP {cuts['AP'][-1]:.2f}"
        )
    fall, woken = paired(dead["dense"], dead["pruned"]), paired(cuts["magnitude"], cuts["AP"])
    judged = verdict(pairs["AP"], pairs["magnitude"], unit="points")
    return [
        Effect(
            "neurons wake as weights go",
            "dynamic dead neuron rate of the trained network at the last level below that of the dense one, in every "
            "seed",
            dead,
            min(fall) > 0,
            unit="%",
            note=spread(fall, "points"),
        ),
        Effect(
            "AP wakes more",
            "rate right after a cut lower with AP than with magnitude alone, in the mean over levels, in every seed",
            cuts,
            min(woken) > 0,
            unit="%",
            note=spread(woken, "points"),
        ),
        Effect(
            "at no cost",
            f"at {SPARSE:.0%} of the weights and less, the interval of AP's accuracy less that of magnitude alone does "
            "not lie below -0.5 points",
            accuracy,
            judged.interval.high >= -0.5,
            unit="%",
            note=judged.words,
        ),
    ]
