"""Show that choosing and adjusting a mask by what clients tell beats a fixed one, at a fraction of dense traffic.

A server trains a small residual network on the few examples of its own, and eight clients of unlike data go on with a
twentieth of its weights: with both modules, and with the magnitude mask that the server begins with. Then each
candidate of module 1 is trained as it is, for a few rounds, to see whether the loss that chose among them told how well
they would do; with the merged statistics, and without.
"""

from __future__ import annotations

import copy
import dataclasses
from statistics import fmean

import numpy as np
from torch import nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.networks.fedtiny import FedTiny
from efface.parts.data.tasks import Task, task
from efface.parts.nn.resnets import resnet_cifar
from efface.parts.sparsity.candidates import noisy_masks
from efface.parts.sparsity.masks import MaskSet
from efface.seeds import seeded
from efface.training.recipe import Train
from efface.training.tuning import tune

CLIENTS, ROUNDS, SHORT, CANDIDATES, SPARSITY, SIDE = 8, 12, 2, 5, 0.95, 16
PRETRAINING = 200
"""Steps on the server's own examples, which are those held out for validation."""

CLAIM = Claim(
    statement="Clients that exchange batch statistics and a few gradients find a better sparse network than a mask "
    "fixed by the server, without ever sending a dense gradient",
    baseline="the server's magnitude mask, never changed; uploads of whole gradients (counted); the choice among "
    "candidates by losses without new batch statistics",
    minutes=6,
    data="8000 labelled pictures, 16 x 16, or the digits of scikit-learn, shared out with Dirichlet 0.5",
)


def check(context: Context) -> list[Effect]:
    """Train both arms and all candidates per seed; compare accuracies in percent, bytes, and ranks."""
    limit = 200 if context.quick else 8000 if context.data else None
    pictures = task(context.data, side=SIDE, limit=limit) if context.data else task("digits", limit=limit)
    reached: dict[str, list[float]] = {"both modules": [], "fixed mask": []}
    bytes_: dict[str, list[float]] = {"top gradients": [], "whole gradients": []}
    buffers: dict[str, list[float]] = {"buffer": [], "layer": []}
    ranks: dict[str, list[float]] = {"merged statistics": [], "statistics as they were": []}
    for seed in context.seeds:
        net = _pretrained(context, pictures, seed)
        work = Work(seed=seed, device=context.device)
        method = _method(context)
        tiny, cost = method.federate(net, pictures, work)
        fixed, _ = _method(context, candidates=1, stop=0).federate(net, pictures, work)
        for name, server in (("both modules", tiny), ("fixed mask", fixed)):
            reached[name].append(100 * pictures.score(server.network(), limit=2000).accuracy)
            context.progress(f"seed {seed}, {name}: {reached[name][-1]:.1f} %")
        exchanges = [c for c in cost if c.get("buffer")]
        top = fmean(c["up"] / method.clients for c in exchanges)
        plain = min(c["up"] / method.clients for c in cost if "buffer" in c)
        bytes_["top gradients"].append(top)
        bytes_["whole gradients"].append(plain + 4 * tiny.masks.total)
        buffers["buffer"].append(max(c["buffer"] for c in exchanges))
        buffers["layer"].append(max(mask.numel() for mask in tiny.masks.values()))
        for name, value in _ranks(context, pictures, net, work, tiny.selection).items():
            ranks[name].append(value)
        context.progress(f"seed {seed}: rank correlation {ranks['merged statistics'][-1]:+.2f} with merged statistics")
    gained = paired(reached["both modules"], reached["fixed mask"])
    share = fmean(bytes_["top gradients"]) / fmean(bytes_["whole gradients"])
    return [
        Effect(
            "better than a fixed mask",
            "accuracy at least 1 point above that of the server's magnitude mask, in the mean over seeds",
            reached,
            fmean(gained) >= 1,
            unit="%",
            note=spread(gained, "points"),
        ),
        Effect(
            "a fraction of the traffic",
            "bytes that a client sends in a round with an exchange less than 0.2 of those with whole gradients",
            bytes_,
            share < 0.2,
            unit="bytes",
            note=f"{share:.3f} of the bytes; those sent are the lengths of the serialised messages",
        ),
        Effect(
            "small buffers",
            "most gradients that a client keeps at once less than a tenth of the weights of the largest layer",
            buffers,
            max(buffers["buffer"]) < 0.1 * min(buffers["layer"]),
            unit="numbers",
        ),
        Effect(
            "merged statistics tell candidates apart",
            "rank correlation of the loss that candidates are chosen by with the error that they reach higher with "
            "merged statistics than with those they came with, in the mean over seeds",
            ranks,
            fmean(ranks["merged statistics"]) > fmean(ranks["statistics as they were"]),
            note=f"Spearman's, over {CANDIDATES} candidates trained for {SHORT} rounds",
        ),
    ]


def _pretrained(context: Context, pictures: Task, seed: int) -> nn.Module:
    """Return the dense network that the server begins with."""
    with seeded(seed, "claim"):
        net = resnet_cifar(8, 16, channels=pictures.shape[0], classes=len(pictures.classes))
    own = dataclasses.replace(pictures, train=pictures.val)
    train = Train(steps=2 if context.quick else PRETRAINING, batch=64, seed=seed, lr=2e-3, schedule="cosine")
    tune(net, own, train, device=context.device)
    return net


def _method(context: Context, **params: int) -> FedTiny:
    rounds = 2 if context.quick else ROUNDS * (3 if context.long else 1)
    epochs = 1 if context.data or context.quick else 5  # clients have some 150 digits each
    given = {"candidates": CANDIDATES, "rounds": rounds, "every": 1, "stop": max(2, 2 * rounds // 3), **params}
    return FedTiny(sparsity=SPARSITY, clients=CLIENTS, alpha=0.5, epochs=epochs, batch=64, lr=0.1, **given)  # type: ignore[arg-type]


def _ranks(context: Context, pictures: Task, net: nn.Module, work: Work, selection: list[float]) -> dict[str, float]:
    """Train every candidate of module 1 as it is, and compare the errors reached with the losses before."""
    method = _method(context, candidates=1, stop=0, rounds=1 if context.quick else SHORT)
    masks = noisy_masks(net, MaskSet.ones_like(net), 1 - SPARSITY, CANDIDATES, method.noise, work.seed)
    found = [method.federate(net, pictures, work, masks=one)[0].network() for one in masks]
    missed = [1 - pictures.score(one, limit=2000).accuracy for one in found]
    before = []
    for one in masks:
        one.apply_(copied := copy.deepcopy(net))
        before.append(pictures.score(copied, "train", 2000).loss)
    foretold = {"merged statistics": selection, "statistics as they were": before}
    return {name: _spearman(values, missed) for name, values in foretold.items()}


def _spearman(first: list[float], second: list[float]) -> float:
    one, two = (np.argsort(np.argsort(values)).astype(np.float64) for values in (first, second))
    return float(np.corrcoef(one, two).item(1))
