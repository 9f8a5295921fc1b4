"""Show that searching among untrained sub-networks finds a lower loss at the start, and nothing at the end.

A network of three hidden layers loses the same share of the nodes of each, and what is left is scaled up, or signals
would fade and all losses at the start be alike. Trained alike are the whole network, one sub-network at random, and the
one of least loss among many before training. That the comparison would see a real difference is tried on sub-networks
of different size; beside them stand, without a rule, the nodes with the largest weights of the trained network, with
these weights.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.core.plan import Plan
from efface.networks.random_search import RandomSearch, Searched, compare
from efface.parts.data.tasks import Task, task
from efface.parts.metrics.paired import verdict
from efface.parts.nn.classifiers import mlp
from efface.seeds import derive, seeded
from efface.training.recipe import Train
from efface.training.tuning import tune

SPARSITIES = 0.5, 0.8, 0.9, 0.95
POWERED = 0.8, 0.9
"""Shares of the nodes gone between which a real difference must be seen."""
STEPS, BATCH = 400, 64

CLAIM = Claim(
    statement="Among random sub-networks the one with the least loss before training is found easily, and after "
    "training it is no better than any other; much of the accuracy is kept with most nodes gone",
    baseline="a random sub-network of the same size, and the whole network, trained alike",
    minutes=4,
    data="15 000 labelled pictures, or as many of shapes that the package makes, in grey and 16 x 16",
)


def check(context: Context) -> list[Effect]:
    """Search and train per seed and sparsity; compare the losses at the start and the accuracies at the end."""
    pictures = task(context.data, side=16, grey=True, limit=120 if context.quick else 15_000, augment=False)
    ends: dict[tuple[str, float], list[float]] = {}
    starts: dict[str, list[float]] = {"searched": [], "random": []}
    agreement: list[float] = []
    for seed in context.seeds:
        net = _fresh(pictures, seed)
        train = Train(steps=2 if context.quick else STEPS, batch=BATCH, seed=derive(seed, "batches"), lr=1e-3)
        trained = copy.deepcopy(net)
        tune(trained, pictures, train, device=context.device)
        for sparsity in SPARSITIES:
            method = RandomSearch(node_sparsity=sparsity, budget=8 if context.quick else 200, rescale=True)
            found = method.search(net, pictures, Work(seed=seed, device=context.device))
            best = float(found.losses[found.best])
            starts["searched"].append(best)
            starts["random"].append(float(found.losses[0]))
            agreement.append(found.agreement)
            arms = {
                name: _child(method, net, found.choice(number), found)
                for name, number in (("random", 0), ("searched", found.best))
            }
            if sparsity == SPARSITIES[0]:
                arms["dense"] = net
            if sparsity == POWERED[1]:
                arms["trained"] = _child(method, trained, _largest(trained, found), found)
            result = compare(arms, pictures, train, repeats=1, device=context.device)
            for name in arms:
                ends.setdefault((name, sparsity), []).extend(result.accuracies(name))
            line = ", ".join(f"{name} {ends[name, sparsity][-1]:.1f} %" for name in arms)
            context.progress(f"seed {seed}, {sparsity:.0%} of the nodes gone: {line}")
    return [_start(starts, agreement), _end(ends), _power(ends), _kept(ends)]


def _start(starts: dict[str, list[float]], agreement: list[float]) -> Effect:
    lower = [1 - a / b for a, b in zip(starts["searched"], starts["random"], strict=True)]
    return Effect(
        "the search finds a lower loss at the start",
        "loss before training at least 2 % below that of the random sub-network, in the mean over sparsities and seeds",
        starts,
        float(np.mean(lower)) >= 0.02,
        note=f"{100 * float(np.mean(lower)):.1f} % lower; rank correlation of the losses on two batches "
        f"{float(np.mean(agreement)):.2f}",
    )


def _end(ends: dict[tuple[str, float], list[float]]) -> Effect:
    arms = {name: [v for s in SPARSITIES for v in ends[name, s]] for name in ("searched", "random")}
    differences = paired(arms["searched"], arms["random"])
    found = verdict(arms["searched"], arms["random"], unit="points")
    return Effect(
        "at the end it makes no difference",
        "mean difference of the test accuracies within 1 point of 0, and 0 in its 95 % interval, over sparsities and "
        "seeds",
        arms,
        abs(found.interval.mean) <= 1 and not found.differ,
        unit="%",
        note=f"{found.words}; {spread(differences, 'points')}",
    )


def _power(ends: dict[tuple[str, float], list[float]]) -> Effect:
    """Hold networks with twice the nodes against the others, in as many pairs as there are seeds."""
    more, less = POWERED
    arms = {f"{gone:.0%} gone": ends["random", gone] for gone in POWERED}
    found = verdict(*arms.values(), unit="points") if len(ends["random", more]) > 1 else None
    gain = paired(ends["trained", less], ends["random", less])
    return Effect(
        "a real difference would be seen",
        "the same comparison of random sub-networks with twice the nodes and those without finds the former better: 0 "
        "is below the 95 % interval of the difference over seeds",
        arms,
        found is not None and found.differ and found.interval.mean > 0,
        unit="%",
        note=f"{found.words if found else 'one seed is too few'}; the nodes with the largest trained weights, with "
        f"these weights, {less:.0%} gone: {spread(gain, 'points')}",
    )


def _kept(ends: dict[tuple[str, float], list[float]]) -> Effect:
    dense = ends["dense", SPARSITIES[0]]
    shares = {
        f"{sparsity:.0%} gone": [a / b for a, b in zip(ends["random", sparsity], dense, strict=True)]
        for sparsity in SPARSITIES
    }
    return Effect(
        "much is kept at high sparsity",
        "a random sub-network with 80 % of the nodes gone keeps at least 0.8 of the dense accuracy, in the mean over "
        "seeds",
        shares,
        float(np.mean(shares["80% gone"])) >= 0.8,
        note="of the dense network's accuracy",
    )


def _fresh(pictures: Task, seed: int) -> nn.Module:
    channels, height, width = pictures.shape
    with seeded(seed, "weights"):
        return mlp((channels * height * width, 256, 512, 256, len(pictures.classes)))


def _child(method: RandomSearch, net: nn.Module, alive: dict[str, torch.Tensor], found: Searched) -> nn.Module:
    return Plan.of(net, method.replacements(net, found, alive)).apply(copy.deepcopy(net))


def _largest(trained: nn.Module, found: Searched) -> dict[str, torch.Tensor]:
    """Return as many nodes of each layer as ``found`` has, those whose weights from and to them are largest."""
    alive = {}
    for layer in found.hidden:
        makes, reads = (trained.get_submodule(name).get_parameter("weight") for name in (layer.name, layer.reader))
        size = makes.square().sum(1) * reads.square().sum(0)
        alive[layer.name] = torch.zeros(layer.nodes, dtype=torch.bool)
        alive[layer.name][size.topk(int(found.alive[layer.name][0].sum())).indices] = True
    return alive
