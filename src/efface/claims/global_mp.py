"""Show that one threshold for all layers is enough: global magnitude pruning beside quotas for each layer.

A convolutional network of 72 496 weights is trained, pruned in one shot and trained on for a while with its mask held:
by one threshold, by equal sparsity of all layers, and by Erdős-Rényi quotas. All arms start from the same trained
weights and see the same batches. A second network, of separable convolutions, has layers small enough to collapse.
"""

from __future__ import annotations

import copy
from statistics import fmean

import torch
from torch import nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.networks.global_mp import GlobalMP
from efface.parts.counting import count_flops
from efface.parts.data.tasks import Task, task
from efface.parts.nn.classifiers import convnet
from efface.parts.sparsity.densities import densities, exact_counts
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.topk import keep_layerwise
from efface.seeds import derive, seeded
from efface.training.recipe import Train
from efface.training.tuning import tune

DENSE, TUNE, BATCH, LR = 900, 300, 64, 2e-3
MINIMUM = 16

CLAIM = Claim(
    statement="Ranking all weights of a network by magnitude, with one threshold, keeps more of its accuracy than "
    "equal sparsity of all layers, and a minimum per layer keeps small layers from collapsing",
    baseline="magnitude pruning by layer, with equal sparsities and with Erdős-Rényi quotas",
    minutes=8,
    data="15 000 labelled pictures, or 6000 of shapes that the package makes, and 2000 to test on",
)


def check(context: Context) -> list[Effect]:
    """Train, prune and train on, per seed and arm, and compare the accuracies on the test pictures."""
    pictures = task(context.data, limit=64 if context.quick else 15_000 if context.data else None)
    points = (
        "uniform 10 %",
        "global 10 %",
        "uniform 5 %",
        "erk 5 %",
        "global 5 %",
        "gradual 5 %",
        "uniform 2 %",
        "global 2 %",
    )
    reached: dict[str, list[float]] = {name: [] for name in points}
    flops: dict[str, list[float]] = {"global 5 %": [], "gradual 5 %": []}
    smallest: dict[str, list[float]] = {"no minimum": [], "minimum": []}
    separable: dict[str, list[float]] = {"no minimum": [], "minimum": []}
    for seed in context.seeds:
        arms = _Arms(context, pictures, seed)
        dense = arms.dense(separable=False)
        context.progress(f"seed {seed}: dense {arms.score(dense):.1f} %")
        for name in points:
            rule, _, percent = name.partition(" ")
            density = float(percent.removesuffix(" %")) / 100
            net, masks = arms.gradual(dense, density) if rule == "gradual" else arms.oneshot(dense, rule, density)
            reached[name].append(arms.score(net))
            if name in flops:
                kept = {layer: part / whole for layer, (part, whole) in masks.per_layer().items()}
                counted = count_flops(net, torch.zeros(1, *pictures.shape))
                flops[name].append(100 * counted.kept(kept) / counted.total)
            context.progress(f"seed {seed}, {name} of the weights: {reached[name][-1]:.1f} %")
        dense = arms.dense(separable=True)
        for name, minimum in (("no minimum", 0), ("minimum", MINIMUM)):
            net, masks = arms.oneshot(dense, "global", 0.05, minimum)
            smallest[name].append(min(kept for kept, _ in masks.per_layer().values()))
            separable[name].append(arms.score(net))
            context.progress(
                f"seed {seed}, separable, {name}: {smallest[name][-1]} weights, {separable[name][-1]:.1f} %"
            )
    return [
        *(_over_uniform(reached, at) for at in ("10 %", "5 %")),
        Effect(
            "equal sparsity breaks down first",
            "with 2 % of the weights, accuracy at most 20 % with equal sparsities and at least 5 points above that "
            "with one threshold, in the mean over seeds",
            {"uniform": reached["uniform 2 %"], "global": reached["global 2 %"]},
            fmean(reached["uniform 2 %"]) <= 20 and _gain(reached, "global 2 %", "uniform 2 %") >= 5,
            unit="%",
        ),
        Effect(
            "as good as tuned quotas",
            "with 5 % of the weights, accuracy at most 2 points below that with Erdős-Rényi quotas, in the mean over "
            "seeds",
            {"erk": reached["erk 5 %"], "global": reached["global 5 %"]},
            _gain(reached, "global 5 %", "erk 5 %") >= -2,
            unit="%",
            note=spread(paired(reached["global 5 %"], reached["erk 5 %"]), "points"),
        ),
        Effect(
            "gradual pruning costs nothing",
            "with 5 % of the weights, accuracy at most 1 point below that of pruning in one shot, in the mean over "
            "seeds",
            {"one-shot": reached["global 5 %"], "gradual": reached["gradual 5 %"]},
            _gain(reached, "gradual 5 %", "global 5 %") >= -1,
            unit="%",
            note="FLOPs left: " + ", ".join(f"{name} {fmean(left):.1f} %" for name, left in flops.items()),
        ),
        Effect(
            "a minimum keeps small layers",
            f"of a separable network with 5 % of its weights, every layer keeps {MINIMUM} with a minimum and some "
            "layer fewer without, in every seed",
            smallest,
            min(smallest["minimum"]) >= MINIMUM > max(smallest["no minimum"]),
            unit="weights",
            note=f"accuracy {fmean(separable['minimum']):.1f} % with, {fmean(separable['no minimum']):.1f} % without",
        ),
    ]


class _Arms:
    """What all arms of one seed share: data, lengths of training, and the order of batches."""

    def __init__(self, context: Context, pictures: Task, seed: int) -> None:
        factor = 2 if context.long else 1
        self.dense_steps, self.tune_steps = (2, 2) if context.quick else (factor * DENSE, factor * TUNE)
        self.limit = 20 if context.quick else None if context.long else 2000
        self.device, self.pictures, self.seed = context.device, pictures, seed

    def dense(self, *, separable: bool) -> nn.Module:
        with seeded(self.seed, "weights"):
            net = convnet(16, separable=separable, channels=self.pictures.shape[0], classes=len(self.pictures.classes))
        tune(net, self.pictures, self._train(self.dense_steps), device=self.device)
        return net

    def oneshot(self, dense: nn.Module, rule: str, density: float, minimum: int = 0) -> tuple[nn.Module, MaskSet]:
        net, weights = copy.deepcopy(dense), prunable(dense)
        if rule == "global":
            masks = GlobalMP(sparsity=1 - density, min_keep=minimum).masks(net)
        else:
            sizes = {name: weight.numel() for name, weight in weights.items()}
            shares = densities(rule, {name: tuple(weight.shape) for name, weight in weights.items()}, density)
            masks = keep_layerwise(weights, exact_counts(shares, sizes), key=torch.abs)
        tune(net, self.pictures, self._train(self.tune_steps), device=self.device, attach=[masks.attach])
        return net, masks

    def gradual(self, dense: nn.Module, density: float) -> tuple[nn.Module, MaskSet]:
        method = GlobalMP(
            sparsity=1 - density, min_keep=0, schedule="gradual", every=0.02, steps=self.tune_steps, batch=BATCH,
            optimizer="adamw", lr=LR, momentum=0.9, weight_decay=0.0, label_smoothing=0.0,
        )  # fmt: skip
        plan = method.plan(dense, self.pictures, Work(seed=derive(self.seed, "batches"), device=self.device))
        net = plan.apply(copy.deepcopy(dense))
        return net, MaskSet({name: weight.detach() != 0 for name, weight in prunable(net).items()})

    def score(self, net: nn.Module) -> float:
        return 100 * self.pictures.score(net, limit=self.limit).accuracy

    def _train(self, steps: int) -> Train:
        return Train(steps=steps, batch=BATCH, seed=derive(self.seed, "batches"), lr=LR, schedule="cosine")


def _over_uniform(reached: dict[str, list[float]], at: str) -> Effect:
    one, other = reached[f"global {at}"], reached[f"uniform {at}"]
    return Effect(
        f"one threshold, {at} of the weights",
        "accuracy at least 10 points above that of equal sparsities, in the mean over seeds",
        {"uniform": other, "global": one},
        _gain(reached, f"global {at}", f"uniform {at}") >= 10,
        unit="%",
        note=spread(paired(one, other), "points"),
    )


def _gain(reached: dict[str, list[float]], one: str, other: str) -> float:
    return fmean(paired(reached[one], reached[other]))
