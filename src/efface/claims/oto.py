"""Show that what is trained to zero goes without a trace and needs no tuning, and that networks stay whole.

Random channels of networks of many builds are zeroed and taken out. A residual network is trained once with groups that
come to zero, beside one that is pruned after its training and one that is then trained on, equally long in all. And
branches of a super-network are erased, by importance alone and with a look at what would be left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.core.plan import Plan
from efface.core.removal import plan_removal
from efface.core.trial import trial
from efface.networks.oto import OTO
from efface.parts.data.tasks import Task, task
from efface.parts.graph import channel_graph, keep_best
from efface.parts.graph.erasing import Erasing
from efface.parts.graph.segments import settle
from efface.parts.graph.selection import Channels, difference, invariant, makers
from efface.parts.nn.cells import cell_net
from efface.parts.nn.classifiers import convnet
from efface.parts.nn.resnets import Bottleneck, ResNet, resnet_cifar, wide_resnet
from efface.parts.sparsity.group_sparse import GroupSparse, Stage
from efface.parts.sparsity.groups import GroupViews
from efface.parts.timing import interleave
from efface.seeds import derive, seeded, torch_generator
from efface.training.recipe import Train
from efface.training.tuning import tune

SIDE, STEPS, BATCH, LR, WIDTH = 16, 600, 64, 0.1, 16
TARGET, MULTIPLE, WEIGHT = 0.6, 4, 0.3
"""Share of the groups that goes; what numbers of channels are multiples of; weight of the norm in DHSPG, by which
groups of norm 1 to 4 come to zero within the stage of so short a training."""
CELLS, ERASED, DRAWS, WARM, HEAVY = (8, 8, 16, 16), 0.5, 20, 20, 0.5
"""Widths of the cells, share of the operators that goes, draws of weights, steps of a warm-up, and the weight of the
norm in H2SPG, whose groups are several times as large."""
BUILDS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: convnet(8),
    "depthwise": lambda: convnet(8, separable=True),
    "residual": lambda: resnet_cifar(8, 8),
    "residual, padded": lambda: resnet_cifar(8, 8, shortcut="pad"),
    "bottlenecks": lambda: ResNet(Bottleneck, 4, (1, 1), 8, 3, 10, large=False),
    "norm first": lambda: wide_resnet(10, 1),
    "added branches": lambda: cell_net(CELLS),
    "concatenated branches": lambda: cell_net(CELLS, branches=("conv3", "conv1", "depthwise"), join="concat"),
}

CLAIM = Claim(
    statement="Groups that one training brings to zero can be taken out without changing an output, which beats "
    "pruning afterwards and needs no fine-tuning; and choosing operators by hierarchy always leaves a network",
    baseline="channels of least L1 norm pruned after the training, without and with fine-tuning; operators by "
    "importance alone; random operators",
    minutes=5,
    data="15 000 labelled pictures, or 6000 of shapes that the package makes, in 16 x 16",
)


def check(context: Context) -> list[Effect]:
    """Measure exactness over builds, accuracy and time per seed, and validity over twenty draws of weights."""
    pictures = task(context.data, side=SIDE, limit=64 if context.quick else 15_000 if context.data else None)
    builds = dict(list(BUILDS.items())[:: 4 if context.quick else 1])
    away = {name: [_exactness(build, seed) for seed in context.seeds] for name, build in builds.items()}
    context.progress(f"largest difference {max(map(max, away.values())):.1e} of an output over {len(away)} builds")
    effects = [
        Effect(
            "exact",
            "without 40 % of their channels, drawn at random and zeroed, networks of every build give outputs that "
            "differ by at most 1e-5 of the largest",
            away,
            max(map(max, away.values())) <= 1e-5,
        )
    ]
    return [*effects, *_once(context, pictures), *_operators(context, pictures)]


def _exactness(build: Callable[[], nn.Module], seed: int) -> float:
    """Return by how much outputs change when random channels that were zeroed are taken out."""
    with seeded(seed, "weights"):
        net = build().eval()
        graph = channel_graph(net, (torch.randn(2, 3, SIDE, SIDE),))
    made = makers(graph)
    channels = Channels(graph, invariant(graph, list(graph.groups), made, seed), 0.4)
    zero = channels.choose(torch.rand(channels.count, generator=torch_generator(seed, "channels")))
    views = GroupViews(net, channels.views(made), channels.count)
    views.zero_(views.values(), zero)
    whole = copy.deepcopy(net)
    with trial(plan_removal(graph, channels.keep(zero), reexport=False), net):
        return difference(whole, net, graph)


def _once(context: Context, pictures: Task) -> list[Effect]:
    """Train once with each rule, and beside it prune after a training of equal length."""
    steps = 4 if context.quick else (2 if context.long else 1) * STEPS
    limit = 20 if context.quick else None if context.long else 2000
    reached: dict[str, list[float]] = {"HESSO": [], "DHSPG": [], "pruned": [], "pruned and tuned": []}
    faster, changed = list[float](), list[float]()
    for seed in context.seeds:
        with seeded(seed, "weights"):
            net = resnet_cifar(8, WIDTH, channels=pictures.shape[0], classes=len(pictures.classes))
        work, made = Work(seed=derive(seed, "batches"), device=context.device), dict[str, nn.Module]()
        for name in ("HESSO", "DHSPG"):
            method = OTO(
                target=TARGET, rule=name.lower(), multiple_of=MULTIPLE, weight=WEIGHT, steps=steps, batch=BATCH, lr=LR,
                start=0.1, stop=0.6 if steps > 4 else 1.0,
            )  # fmt: skip
            plan = method.plan(net, pictures, work)
            changed.append(plan.made_by["difference"])
            made[name] = plan.apply(copy.deepcopy(net))
        for name, first in (("pruned", steps), ("pruned and tuned", steps - steps // 3)):
            made[name] = _pruned(copy.deepcopy(net), pictures, first, steps - first, work)
        for name, module in made.items():
            reached[name].append(100 * pictures.score(module, limit=limit).accuracy)
        batch = pictures.test.take(np.arange(32))["picture"]
        calls = {"whole": partial(net, batch), "small": partial(made["HESSO"], batch)}
        with torch.inference_mode():
            times = interleave(calls, seconds=0.0 if context.quick else 2.0)
        faster.append(times["whole"].seconds / times["small"].seconds)
        told = ", ".join(f"{name} {values[-1]:.1f} %" for name, values in reached.items())
        context.progress(f"seed {seed}: {told}; {faster[-1]:.2f} times as fast")
    over = [paired(reached[name], reached["pruned"]) for name in ("HESSO", "DHSPG")]
    tuned = paired(reached["HESSO"], reached["pruned and tuned"])
    return [
        Effect(
            "no fine-tuning",
            f"without {TARGET:.0%} of the groups, both rules more than 20 points above pruning after a training of "
            "equal length, in the mean over seeds, and no output changed by more than 1e-4 in construction",
            {name: reached[name] for name in ("HESSO", "DHSPG", "pruned")},
            min(map(float, np.mean(over, axis=1))) > 20 and max(changed) <= 1e-4,
            unit="%",
            note=f"HESSO: {spread(over[0], 'points')}; DHSPG: {spread(over[1], 'points')}",
        ),
        Effect(
            "as good as fine-tuning",
            "HESSO at most 1 point below training for two thirds of the steps, pruning, and tuning for the rest, in "
            "the mean over seeds",
            {name: reached[name] for name in ("HESSO", "pruned and tuned")},
            float(np.mean(tuned)) >= -1,
            unit="%",
            note=spread(tuned, "points"),
        ),
        Effect(
            "faster",
            "the network that HESSO leaves at least twice as fast as the whole one on 32 pictures, in the mean",
            {"times as fast": faster},
            float(np.mean(faster)) >= 2,
        ),
    ]


def _pruned(net: nn.Module, pictures: Task, steps: int, more: int, work: Work) -> nn.Module:
    """Train, take out the channels of least L1 norm of each group (arXiv:1608.08710), and train on."""
    train = Train(
        steps=steps, batch=BATCH, seed=work.seed, optimizer="sgd", lr=LR, schedule="cosine", weight_decay=1e-4
    )
    tune(net, pictures, train, device=work.device)
    graph = channel_graph(net, (pictures.train.take(np.arange(2))["picture"],))
    keep = {}
    for name, group in graph.groups.items():
        channels = Channels(graph, [name], 0.0)
        views = GroupViews(net, channels.views(), channels.count)
        ones = {key: torch.ones_like(value) for key, value in views.values().items()}
        l1 = views.dots({key: value.abs() for key, value in views.values().items()}, ones)
        keep[name] = keep_best(group, l1.numpy(), 1 - TARGET, multiple_of=MULTIPLE)
    Plan.of(net, plan_removal(graph, keep)).apply(net)
    if more:
        again = Train(steps=more, batch=BATCH, seed=work.seed + 1, optimizer="sgd", lr=LR / 10, schedule="cosine")
        tune(net, pictures, again, device=work.device)
    return net


@dataclass
class _By:
    """Chooses operators by other importances than those measured, which it keeps."""

    erasing: Erasing
    importance: Tensor | None
    seen: Tensor | None = None

    def choose(self, importance: Tensor, part: float = 1.0, spare: float = 0.0) -> Tensor:
        """Choose by the given importances, or nothing."""
        self.seen = importance
        none = torch.zeros(len(importance), dtype=torch.bool)
        return none if self.importance is None else self.erasing.choose(self.importance, part, spare)

    def enough(self, zero: Tensor) -> bool:
        """Say whether the target is reached."""
        return self.erasing.enough(zero)


def _operators(context: Context, pictures: Task) -> list[Effect]:
    """Choose half of the branches of a super-network over many draws, and train some of the sub-networks."""
    train = Train(steps=2 if context.quick else STEPS // 2, batch=BATCH, optimizer="sgd", lr=LR, schedule="cosine")
    whole: dict[str, list[float]] = {"by hierarchy": [], "by importance alone": []}
    for draw in range(2 if context.quick else DRAWS):
        net, erasing = _super_net(pictures, draw)
        watch = _By(erasing, None)
        _trained(net, pictures, train, watch, 0 if context.quick else WARM, draw, stop=1 if context.quick else WARM + 1)
        assert watch.seen is not None
        chosen = erasing.choose(watch.seen)
        naive = torch.zeros_like(chosen).index_fill(0, watch.seen.argsort()[: int(chosen.sum())], True)
        for name, zero in (("by hierarchy", chosen), ("by importance alone", naive)):
            gone = {n for n, out in zip(erasing.groups, zero.tolist(), strict=True) if out}
            left = settle(erasing.segments, erasing.outputs, gone)
            whole[name].append(float(left is not None and left & set(erasing.groups) == gone and erasing.legal(left)))
    context.progress(", ".join(f"{name}: {int(sum(v))} of {len(v)} networks whole" for name, v in whole.items()))
    reached: dict[str, list[float]] = {"H2SPG": [], "random": []}
    for seed in context.seeds:
        for name, values in reached.items():
            net, erasing = _super_net(pictures, seed)
            draws = torch.rand(erasing.count, generator=torch_generator(seed, "operators"))
            choice: Any = _By(erasing, draws) if name == "random" else erasing
            start = 0 if context.quick else train.steps // 10
            _trained(net, pictures, train, choice, start, seed, stop=train.steps)
            values.append(100 * pictures.score(net, limit=20 if context.quick else 2000).accuracy)
        context.progress(f"seed {seed}: H2SPG {reached['H2SPG'][-1]:.1f} %, random {reached['random'][-1]:.1f} %")
    over = paired(reached["H2SPG"], reached["random"])
    return [
        Effect(
            "always a network",
            f"half of the operators chosen by hierarchy leave a network that gives what zeros give, in all of {DRAWS} "
            "draws of the weights; by importance alone in fewer",
            {name: [float(np.mean(values))] for name, values in whole.items()},
            min(whole["by hierarchy"]) == 1 and min(whole["by importance alone"]) == 0,
            unit="share",
        ),
        Effect(
            "better than chance",
            "the sub-network of half of the operators more accurate than a random legal one trained alike, in the mean "
            "over seeds",
            reached,
            float(np.mean(over)) > 0,
            unit="%",
            note=spread(over, "points"),
        ),
    ]


def _super_net(pictures: Task, seed: int) -> tuple[nn.Module, Erasing]:
    with seeded(seed, "super-network"):
        net = cell_net(CELLS, channels=pictures.shape[0], classes=len(pictures.classes))
    graph = channel_graph(net, (pictures.train.take(np.arange(2))["picture"],))
    return net, Erasing(graph, ERASED, seed=seed)


def _trained(net: nn.Module, pictures: Task, train: Train, choice: Any, start: int, seed: int, stop: int) -> None:
    """Train up to ``stop`` with operators that ``choice`` names at ``start`` coming to zero in half of the steps."""
    erasing = choice if isinstance(choice, Erasing) else choice.erasing
    stage = Stage(start, max(start + 1, start + train.steps // 2), weight=HEAVY)
    sparse = GroupSparse(erasing.views(), erasing.count, choice, stage)
    tune(net, pictures, train, stop=min(stop, train.steps), attach=[sparse.attach])
