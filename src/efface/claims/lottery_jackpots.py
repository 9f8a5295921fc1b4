"""Show that a trained network holds a good sparse one, found by its mask alone, and best from the magnitude mask.

A convolutional network is trained once per seed. Then masks are searched over its weights, which stay as they are:
from the magnitude mask with the short restriction and without, and from a random mask; some of them for longer, which
tells how many steps the magnitude mask saves. Beside them stands the magnitude mask without a search, with its batch
statistics estimated anew. The network is trained well first: the largest weights of one trained for a fifth of the
steps tell less, and a random start then took fewer than twice the steps.
"""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

from torch import nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.networks.lottery_jackpots import LotteryJackpots
from efface.parts.data.tasks import Task, task
from efface.parts.nn.batchnorm import reestimate
from efface.parts.nn.classifiers import convnet
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable
from efface.seeds import derive, seeded
from efface.training.recipe import Train
from efface.training.tuning import tune

DENSE, SEARCH, BATCH, LR = 3500, 240, 128, 2e-3
SPARSITIES = 0.8, 0.9
ARMS: dict[str, tuple[int, dict[str, Any]]] = {
    "search": (1, {}),
    "every swap": (1, {"restriction": 0.0}),
    "random start": (1, {"start": "random"}),
    "random start, 2x": (2, {"start": "random"}),
    "random start, 3x": (3, {"start": "random"}),
    "search, 4x": (4, {}),
    "every swap, 4x": (4, {"restriction": 0.0}),
}
"""How many times as long an arm searches, and its hyper-parameters."""

CLAIM = Claim(
    statement="A mask searched over the frozen weights of a trained network wins back most of what magnitude pruning "
    "loses, and starting the search from the magnitude mask makes it short",
    baseline="the magnitude mask with batch statistics estimated anew; searches from a random mask, up to three times "
    "as long; searches without the short restriction",
    minutes=30,
    data="15 000 labelled pictures, or 6000 of shapes that the package makes, and 2000 to test on",
)


def check(context: Context) -> list[Effect]:
    """Train once per seed, search from each start and at each sparsity, and compare accuracies on the test pictures."""
    pictures = task(context.data, limit=64 if context.quick else 15_000 if context.data else None)
    limit = 20 if context.quick else None if context.long else 2000
    reached: dict[tuple[str, float], list[float]] = {}
    losses: dict[tuple[str, float], list[float]] = {}
    dense: list[float] = []
    overlap: list[float] = []
    moved: list[float] = []
    for seed in context.seeds:
        net = _trained(context, pictures, seed)
        dense.append(100 * pictures.score(net, limit=limit).accuracy)
        context.progress(f"seed {seed}: dense {dense[-1]:.1f} %")
        for sparsity in SPARSITIES:
            masks: dict[str, MaskSet] = {}
            for name in ("magnitude", *(ARMS if sparsity == SPARSITIES[-1] else ["search"])):
                found, masks[name] = _arm(context, pictures, net, seed, sparsity, name)
                reached.setdefault((name, sparsity), []).append(100 * pictures.score(found, limit=limit).accuracy)
                losses.setdefault((name, sparsity), []).append(pictures.score(found, "train", limit).loss)
                context.progress(f"seed {seed}, {name}, {sparsity:.0%} gone: {reached[name, sparsity][-1]:.1f} %")
                if name != "magnitude":
                    moved.append(_moved(net, found))
        overlap.append(masks["search"].overlap(masks["magnitude"]))
    last = SPARSITIES[-1]
    final, loss = ({name: values[name, last] for name in ARMS} for values in (reached, losses))
    return [
        *(_gain(reached, dense, sparsity) for sparsity in SPARSITIES),
        _start(final, last, fmean(overlap)),
        _steps(final, last),
        _restriction(final, loss, last, ""),
        _restriction(final, loss, last, ", 4x"),
        Effect(
            "no weight changes",
            "the largest change of a kept weight or of a bias or scale is 0, in every search",
            {"largest change": moved},
            max(moved) == 0,
        ),
    ]


def _gain(reached: dict[tuple[str, float], list[float]], dense: list[float], sparsity: float) -> Effect:
    search, before = reached["search", sparsity], reached["magnitude", sparsity]
    return Effect(
        f"the search wins back what was lost, {sparsity:.0%} gone",
        "accuracy at least half way from that of the magnitude mask to that of the dense network, in the mean over "
        "seeds",
        {"magnitude": before, "search": search, "dense": dense},
        fmean(paired(search, before)) >= fmean(paired(dense, before)) / 2,
        unit="%",
        note=spread(paired(search, before), "points"),
    )


def _start(final: dict[str, list[float]], sparsity: float, overlap: float) -> Effect:
    search, other = final["search"], final["random start"]
    return Effect(
        "the magnitude mask is a good start",
        f"with {sparsity:.0%} of the weights gone, accuracy at least 2 points above that of a search as long from a "
        "random mask, in the mean over seeds",
        {"magnitude start": search, "random start": other},
        fmean(paired(search, other)) >= 2,
        unit="%",
        note=f"{spread(paired(search, other), 'points')}; overlap of the mask found with it {overlap:.2f}",
    )


def _steps(final: dict[str, list[float]], sparsity: float) -> Effect:
    arms = {name: final[name] for name in ("search", "random start, 2x", "random start, 3x")}
    twice, thrice = (paired(arms["search"], arms[f"random start, {times}x"]) for times in (2, 3))
    return Effect(
        "a random start takes more than twice the steps",
        f"with {sparsity:.0%} of the weights gone, accuracy of a search twice as long from a random mask below that of "
        "the search from the magnitude mask, in the mean over seeds",
        arms,
        fmean(twice) > 0,
        unit="%",
        note=f"{spread(twice, 'points')}; to one three times as long {spread(thrice, 'points')}",
    )


def _restriction(final: dict[str, list[float]], loss: dict[str, list[float]], sparsity: float, longer: str) -> Effect:
    search, free = f"search{longer}", f"every swap{longer}"
    apart = paired(final[search], final[free])
    return Effect(
        f"the short restriction costs nothing{longer and ', four times as long'}",
        f"with {sparsity:.0%} of the weights gone, accuracy at least that of making every swap, less 0.5 points, in "
        "the mean over seeds",
        {"restricted": final[search], "every swap": final[free]},
        fmean(apart) >= -0.5,
        unit="%",
        note=f"{spread(apart, 'points')}; loss on training pictures {fmean(loss[search]):.3f} restricted, "
        f"{fmean(loss[free]):.3f} with every swap",
    )


def _trained(context: Context, pictures: Task, seed: int) -> nn.Module:
    with seeded(seed, "weights"):
        net = convnet(16, channels=pictures.shape[0], classes=len(pictures.classes))
    steps = 2 if context.quick else DENSE * (2 if context.long else 1)
    train = Train(steps=steps, batch=64, seed=derive(seed, "batches"), lr=LR, schedule="cosine")
    tune(net, pictures, train, device=context.device)
    return net


def _arm(
    context: Context, pictures: Task, net: nn.Module, seed: int, sparsity: float, name: str
) -> tuple[nn.Module, MaskSet]:
    """Return a copy of ``net`` under the mask of an arm, and the mask."""
    times, params = ARMS.get(name, (1, {}))
    steps = 2 if context.quick else SEARCH * times * (2 if context.long else 1)
    method = LotteryJackpots(sparsity=sparsity, steps=steps, batch=BATCH, **params)
    found, work = copy.deepcopy(net), Work(seed=derive(seed, "search"), device=context.device)
    masks = method.first(net, work)
    if name == "magnitude":
        masks.apply_(found)
        reestimate(found, (pictures.train.batch(seed, step, BATCH)["picture"] for step in range(20)))
    else:
        masks = method.search(found, pictures, masks, work)
        masks.apply_(found)
    return found, masks


def _moved(before: nn.Module, after: nn.Module) -> float:
    """Return the largest change of what was to stay, over all parameters."""
    largest, weights = 0.0, prunable(before)
    for name, old in before.named_parameters():
        new = after.get_parameter(name)
        change = (new - old).detach().abs()
        largest = max(largest, float((change[new != 0] if name in weights else change).max()))
    return largest
