"""Show that random masks train well where layers have the right densities, the better the wider the network.

Six convolutions of three widths are trained from equal weights on equal batches: whole, and with random masks whose
layer densities are equal or follow Erdős-Rényi kernels. Wide and sparse stands beside narrow and dense of equal size.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.networks.random_pruning import RandomPruning
from efface.parts.data.tasks import Task, task
from efface.parts.metrics.calibration import robustness
from efface.parts.nn.classifiers import convnet
from efface.seeds import derive, seeded

WIDTHS = 4, 8, 16
STEPS, BATCH, LR = 300, 64, 2e-3
RUNS = "dense", "erk 0.3", "erk 0.1", "uniform 0.1"
MATCHED = "erk 0.25"
"""Density at which a network of the largest width has as many weights as a dense one of the width below."""

CLAIM = Claim(
    statement="A network with a random mask, drawn before training, learns nearly as well as the whole one if its "
    "layers have densities by Erdős-Rényi kernels, and the wider it is the less it loses",
    baseline="the dense networks, random masks of equal density in all layers, and a dense network of equal size",
    minutes=5,
    data="15 000 labelled pictures, or 6000 of shapes that the package makes, and 2000 to test on",
)


def check(context: Context) -> list[Effect]:
    """Train every width whole and masked, per seed, and compare the accuracies on the test pictures."""
    pictures = task(context.data, limit=64 if context.quick else 15_000 if context.data else None)
    limit = 20 if context.quick else None if context.long else 2000
    reached: dict[tuple[int, str], list[float]] = {}
    trust: dict[str, list[dict[str, float]]] = {"dense": [], "erk 0.3": []}
    for seed in context.seeds:
        for width, run in [*((width, run) for width in WIDTHS for run in RUNS), (WIDTHS[-1], MATCHED)]:
            net = _trained(context, pictures, seed, width, run)
            reached.setdefault((width, run), []).append(100 * pictures.score(net, limit=limit).accuracy)
            if width == WIDTHS[-1] and run in trust:
                trust[run].append(robustness(net, pictures, limit=limit, seed=seed))
            context.progress(f"seed {seed}, width {width}, {run}: {reached[width, run][-1]:.1f} %")
    kept = {
        f"width {width}": [a / b for a, b in zip(reached[width, "erk 0.3"], reached[width, "dense"], strict=True)]
        for width in WIDTHS
    }
    gains = [paired(reached[width, "erk 0.1"], reached[width, "uniform 0.1"]) for width in WIDTHS]
    over_widths = np.mean(gains, axis=0).tolist()
    wide, narrow = reached[WIDTHS[-1], MATCHED], reached[WIDTHS[-2], "dense"]
    grown = paired(kept[f"width {WIDTHS[-1]}"], kept[f"width {WIDTHS[0]}"])
    return [
        Effect(
            "width closes the gap",
            f"share of the dense accuracy kept with 30 % of the weights higher at width {WIDTHS[-1]} than at "
            f"{WIDTHS[0]}, in the mean over seeds",
            kept,
            float(np.mean(grown)) > 0,
            note=f"width {WIDTHS[-1]}, reported without a rule: {_in_words(trust)}",
        ),
        Effect(
            "densities of layers matter",
            "with 10 % of the weights, accuracy more than 1 point above that of equal densities, in the mean over "
            "widths and seeds",
            {
                name: np.mean([reached[width, f"{name} 0.1"] for width in WIDTHS], axis=0).tolist()
                for name in ("uniform", "erk")
            },
            float(np.mean(over_widths)) > 1,
            unit="%",
            note=spread(over_widths, "points"),
        ),
        Effect(
            "wide and sparse beats narrow and dense",
            "accuracy with 25 % of the weights above that of the dense network of half the width, in the mean over "
            "seeds",
            {f"dense, width {WIDTHS[-2]}": narrow, f"a quarter of width {WIDTHS[-1]}": wide},
            float(np.mean(paired(wide, narrow))) > 0,
            unit="%",
            note=spread(paired(wide, narrow), "points"),
        ),
    ]


def _trained(context: Context, pictures: Task, seed: int, width: int, run: str) -> nn.Module:
    """Train a network of ``width`` from the seed's weights, by the method where it is sparse."""
    with seeded(seed, "weights", width):
        net = convnet(width, channels=pictures.shape[0], classes=len(pictures.classes))
    rule, _, density = run.partition(" ")
    steps = 2 if context.quick else (2 if context.long else 1) * STEPS
    method = RandomPruning(
        sparsity=1 - float(density or 1), rule="uniform" if rule == "dense" else rule, steps=steps, batch=BATCH,
        optimizer="adamw", lr=LR, weight_decay=0.0,
    )  # fmt: skip
    return method.plan(net, pictures, Work(seed=derive(seed, "batches"), device=context.device)).apply(net)


def _in_words(trust: dict[str, list[dict[str, float]]]) -> str:
    figures = {
        name: {key: float(np.mean([run[key] for run in runs])) for key in runs[0]} for name, runs in trust.items()
    }
    dense, sparse = figures["dense"], figures["erk 0.3"]
    return ", ".join(f"{key} {dense[key]:.3f} dense and {sparse[key]:.3f} sparse" for key in dense if key != "accuracy")
