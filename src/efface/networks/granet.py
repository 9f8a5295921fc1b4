"""Prune while training, and let as much grow back elsewhere as each update takes beyond that.

What is taken away are weights of least magnitude, little by little during one ordinary training, on a cubic schedule
(section 4, eq. 1). How well a network heals from it, its *pruning plasticity*, is high early, while the learning rate
is; and it is higher where connections are renewed. So after each pruning every layer drops a share zeta of its
smallest weights, and regrows as many dead ones by the size of their gradient, from zero (zero-cost neuroregeneration).
A training may start dense, or sparse at ``init_density`` with random Erdős-Rényi masks, which costs less.

Liu et al., Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (arXiv:2106.10404). Gradual magnitude
pruning, RigL, SET, ITOP and static masks are settings of the same controller, as ``preset``. :func:`plasticity` is the
paper's probe. The last pruning comes at the end of the schedule, so the sparsity is the one asked for; what is dropped
and regrown at once begins at zero; the official code does neither. Short trainings exchange less (see
:func:`~efface.parts.sparsity.regimes.preset`): each exchange takes steps to heal.

Left out: growth averaged over several batches; the classifier's own density apart from ``scope="uniform"``; a
command for plasticity.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.errors import UsageError
from efface.parts.counting import count_flops
from efface.parts.metrics.plasticity import Criterion, Plasticity, Wound
from efface.parts.sparsity.budget import best
from efface.parts.sparsity.controller import DynamicSparsity, training_flops
from efface.parts.sparsity.densities import exact_counts
from efface.parts.sparsity.growth import grow_largest, momentum
from efface.parts.sparsity.masks import Attached, MaskSet
from efface.parts.sparsity.regimes import Growth, Regime, Scope, preset
from efface.parts.sparsity.scores import gradient, magnitude, random_scores, snip
from efface.seeds import derive
from efface.training.course import needed
from efface.training.edits import edits
from efface.training.optim import lr_factor
from efface.training.recipe import Train
from efface.training.tuning import tune

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Part, Task


@dataclass(frozen=True, kw_only=True)
class GraNet(Editor):
    """Hyper-parameters of gradual pruning with zero-cost neuroregeneration."""

    sparsity: float = param(0.9, "share of the weights to take away", low=0.001, high=0.999999)
    preset: str = param(
        "granet", "what changes in training", choices=("granet", "gmp", "rigl", "set", "itop", "static")
    )
    init_density: float = param(0.0, "density at first, 1 is dense; 0 is the preset's own", low=0.0, high=1.0)
    drop: float = param(
        -1.0, "share of a layer exchanged at first (zeta_0); -1 is the preset's, less if updates are often", high=1.0
    )
    every: int = param(1000, "steps between two updates (Delta)", low=1)
    stop: float = param(0.5, "share of the training after which pruning has ended (t_f)", low=0.0, high=1.0)
    end: float = param(
        -1.0, "share after which exchanges have ended; -1 is the preset's, 0.7 in short trainings", high=1.0
    )
    scope: str = param("global", "one threshold for all weights, or equal densities", choices=("global", "uniform"))
    growth: str = param("gradient", "what grows", choices=("gradient", "momentum", "random"))
    min_keep: int = param(1, "weights that pruning leaves each layer at least", low=0)
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    steps: int = param(62_500, "optimiser steps of the training", low=1)
    batch: int = param(128, "pictures a step", low=1)
    optimizer: str = param("sgd", "rule that moves the weights", choices=("sgd", "adamw"))
    lr: float = param(0.1, "highest learning rate", low=0.0)
    schedule: str = param("steps", "course of the learning rate", choices=("constant", "cosine", "steps"))
    warmup: float = param(0.0, "share of the steps over which the learning rate rises", low=0.0, high=1.0)
    drops: tuple[float, ...] = param((0.5, 0.75), "where schedule steps drops to a tenth", low=0.0, high=1.0)
    weight_decay: float = param(5e-4, "decay of matrices and kernels", low=0.0)

    card = Card(
        title="GraNet: Sparse Training via Boosting Pruning Plasticity with Neuroregeneration",
        paper="arXiv:2106.10404",
        year=2021,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="Sparse networks from one training, from the first weights on; 90 % and more at little loss, and a "
        "training that costs less in theory. Not for networks that are trained already.",
    )
    needs = "task"
    small: ClassVar[dict[str, Any]] = {"steps": 6, "every": 2, "batch": 8, "optimizer": "adamw", "lr": 1e-3}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the weights trained from those of ``model``, with their masks.

        Facts tell every update, and the theoretical FLOPs of the training over those of a dense one.

        Raises
        ------
        UsageError
            If there is no task, or the sparsity leaves less than ``min_keep`` for each layer.
        LayerCollapse
            If a layer would lose all its weights.
        """
        task, net = needed(data), copy.deepcopy(model).requires_grad_()
        regime = self.regime()
        control = DynamicSparsity(net, regime, seed=work.seed, include=self.include, exclude=self.exclude)
        tune(net, task, self.train(work.seed), device=work.device, attach=[control.attach], progress=work.progress)
        picture = task.train.take(np.zeros(1, np.int64))["picture"].to(next(net.parameters()).device)
        flops = count_flops(net, picture)
        spent = training_flops(control.history, flops, self.steps, regime.growth)
        history = [{k: v for k, v in vars(change).items() if k != "layers"} for change in control.history]
        return self.made(
            model,
            edits(model, control.masks, net.state_dict()),
            work,
            regime=dataclasses.asdict(regime),
            history=history,
            training_flops=spent / (3 * flops.total * self.steps),
        )

    def regime(self) -> Regime:
        """Return what changes at which step."""
        return preset(
            self.preset,
            density=1 - self.sparsity,
            steps=self.steps,
            init_density=self.init_density or None,
            every=min(self.every, self.steps),
            stop=self.stop,
            end=None if self.end < 0 else self.end,
            drop=None if self.drop < 0 else self.drop,
            growth=None if self.preset in ("set", "itop") else cast("Growth", self.growth),
            scope=cast("Scope", self.scope),
            min_keep=self.min_keep,
        )

    def train(self, seed: int) -> Train:
        """Return the training, which is the ordinary one."""
        return Train(
            steps=self.steps, batch=self.batch, seed=seed, optimizer=self.optimizer, lr=self.lr, warmup=self.warmup,
            nesterov=self.optimizer == "sgd", weight_decay=self.weight_decay, schedule=self.schedule, drops=self.drops,
        )  # fmt: skip


def plasticity(
    model: nn.Module,
    data: Task,
    train: Train,
    *,
    at: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    rates: Sequence[float] = (0.2, 0.5, 0.8, 0.9, 0.98),
    criteria: Sequence[Criterion] = ("magnitude",),
    regrow: Sequence[Growth] = ("none", "gradient"),
    scope: Scope = "uniform",
    density: float = 1.0,
    steps: int | None = None,
    split: Part = "val",
    limit: int | None = None,
    work: Work | None = None,
) -> Plasticity:
    """Prune ``model`` at several moments of the training ``train``, and measure how it heals (section 3).

    After each share ``at`` of the steps, each of ``rates`` of the live weights goes by each of ``criteria``, and as
    many places as that regrow at zero (``none``: nothing does). Then ``steps`` more (by default 30/160 of the training)
    follow at the learning rate of that moment. ``density`` is that of static random masks, with 1 the network is dense:
    regrowing then brings all weights back, by whatever. Accuracies are those on ``limit`` examples of the part
    ``split``. The model stays as it is.

    Raises
    ------
    UsageError
        If a share is outside [0, 1), or nothing of a layer would be left.
    """
    for name, shares in (("at", at), ("rates", rates)):
        for share in shares:
            if not 0 <= share < 1:
                raise UsageError(f"{share:g} is outside [0, 1)", where=name, fix="Give shares such as 0.5")
    work, moments = work or Work(), {int(share * train.steps): None for share in at}
    net = copy.deepcopy(model).requires_grad_()
    control = DynamicSparsity(net, preset("static", density=density, steps=train.steps), seed=work.seed)
    tuned = tune(net, data, train, device=work.device, attach=[control.attach], snapshots=[*moments], stop=max(moments))
    wounds = []
    for step in moments:
        net.load_state_dict(tuned.snapshots[step])
        before = data.score(net, split, limit).accuracy
        factor = lr_factor(train.schedule, step, train.steps, train.warmup, train.drops)
        healing = dataclasses.replace(
            train, steps=max(1, train.steps * 30 // 160) if steps is None else steps, lr=train.lr * factor,
            schedule="constant", warmup=0.0, seed=derive(train.seed, "healing", step),
        )  # fmt: skip
        for rate, criterion, growth in ((r, c, g) for r in rates for c in criteria for g in regrow):
            net.load_state_dict(tuned.snapshots[step])
            wound = partial(_wound, control.masks, data, healing, rate, criterion, growth, scope)
            tune(net, data, healing, device=work.device, attach=[wound], moments=tuned.moments[step])
            after = data.score(net, split, limit).accuracy
            wounds.append(Wound(step, rate, criterion, growth, before, after))
            work.progress(f"step {step}, {rate:.0%} by {criterion}, regrown by {growth}: {before:.3f} -> {after:.3f}")
    return Plasticity(tuple(wounds))


def _wound(
    masks: MaskSet, data: Task, train: Train, rate: float, criterion: Criterion, growth: Growth, scope: Scope,
    net: nn.Module, optimizer: torch.optim.Optimizer,
) -> Attached:  # fmt: skip
    """Prune ``net``, let as many weights regrow, and hold that; return the handle that lets go."""
    weights = {name: net.get_parameter(name) for name in masks}
    place = next(iter(weights.values())).device
    batch = {k: v.to(place) for k, v in data.train.batch(train.seed, 0, train.batch).items()}

    def scored(kind: str, use: str) -> dict[str, Tensor]:
        match kind:
            case "magnitude":
                return magnitude(weights)
            case "gradient" | "snip":
                return (snip if kind == "snip" else gradient)(net, weights, data.loss, [batch])
            case "momentum":
                found = {name: momentum(optimizer.state.get(w, {})) for name, w in weights.items()}
                return {name: torch.zeros_like(weights[name]) if m is None else m for name, m in found.items()}
            case _:
                return random_scores(weights, derive(train.seed, use))

    sizes = {name: kept for name, (kept, _) in masks.per_layer().items()}
    counts = exact_counts(dict.fromkeys(sizes, 1 - rate), sizes)
    left = best(scored(criterion, "criterion"), masks, counts if scope == "uniform" else sum(counts.values()))
    left.check()
    grown = left
    if growth != "none":
        scores, now = scored(growth, "growth"), left.per_layer()
        grown = MaskSet({n: grow_largest(scores[n], left[n], sizes[n] - now[n][0]) for n in left}, masks.aliases)
    left.attach(net, optimizer).remove()  # what regrows begins at zero, without momentum
    return grown.attach(net, optimizer)
