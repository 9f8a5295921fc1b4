"""Find a winning ticket: a small part of an untrained network that learns as well as the whole.

What is taken away are the weights that end up smallest when the network is trained. What is left goes back to its
initial values, is trained again, loses its smallest weights, and so on (Frankle and Carbin, The Lottery Ticket
Hypothesis, section 2). The network that is given is the untrained one: its weights are theta_0. The plan holds the
masks m, and so makes of it the ticket m * theta_0, ready to be trained; or else the trained ticket.

A share ``rate`` of what is left goes at each level; it is lowered a little so that a whole number of levels reaches the
sparsity. A rate as high as the sparsity prunes in one shot. Recipes of the paper (its appendices G to I), as settings:

- LeNet-300-100: optimizer adamw, lr 1.2e-3, batch 60, 50 000 steps, schedule constant; by layer, rate 0.2, output 0.1.
- Conv-2, -4, -6: the same with lr 2e-4, 3e-4, 3e-4 and 20 000, 25 000, 30 000 steps; convolutions 0.1, 0.1, 0.15.
- ResNet-20 (which the paper calls ResNet-18): the defaults, with the output layer and 1x1 shortcuts excluded.
- VGG-19: the defaults with lr 0.1, 112 480 steps, warmup 0.09, drops 0.5 and 0.75, and the output layer excluded.

At high rates without warmup deep networks have no such tickets: rewind to a later step than the first (lth-rewind).
Controls with new initial weights draw them by the ``reset_parameters`` of every module.

Left out: pruning as soon as masks settle (early birds), which is not of the paper; a command that draws accuracy
against density, which the plan holds as ``levels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.parts.sparsity.budget import Budget
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import by_layer
from efface.training.course import Course
from efface.training.edits import edits
from efface.training.levels import imp

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task


@dataclass(frozen=True, kw_only=True)
class LotteryTicket(Editor):
    """Hyper-parameters of iterative magnitude pruning with rewinding to the initial weights."""

    sparsity: float = param(0.9, "share of the weights to take away", low=0.001, high=0.9999)
    rate: float = param(0.2, "largest share of the weights left that goes at each level", low=0.001, high=0.9999)
    scope: str = param("global", "weights compete with all others, or by layer", choices=("global", "layer"))
    rates: tuple[str, ...] = param((), "rates of single layers, as linear3=0.1; by layer only")
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    deliver: str = param(
        "ticket", "what the plan makes: the ticket to train, or trained", choices=("ticket", "trained")
    )
    controls: tuple[str, ...] = param(
        (), "what is trained beside each ticket", choices=("reinit", "same-sign", "shuffle")
    )
    folder: str = param("", "folder that keeps each level, to go on from after a stop")
    steps: int = param(30_000, "optimiser steps of each training", low=1)
    batch: int = param(128, "pictures per step", low=1)
    optimizer: str = param("sgd", "rule that moves the weights", choices=("sgd", "adamw"))
    lr: float = param(0.03, "highest learning rate", low=0.0)
    schedule: str = param("steps", "course of the learning rate", choices=("constant", "cosine", "steps"))
    warmup: float = param(0.6667, "share of the steps over which the learning rate rises", low=0.0, high=1.0)
    drops: tuple[float, ...] = param((0.6667, 0.8333), "where schedule steps drops to a tenth", low=0.0, high=1.0)
    weight_decay: float = param(1e-4, "decay of the weights", low=0.0)

    card = Card(
        title="The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        paper="arXiv:1803.03635",
        year=2019,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="Small networks to be trained again and again. It trains once for each level: 11 times for 90 %.",
    )
    needs = "task"
    small: ClassVar[dict[str, Any]] = {"sparsity": 0.6, "rate": 0.4, "steps": 4, "batch": 8}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the masks of the ticket, or with them its trained weights; facts: what each level reached.

        Raises
        ------
        UsageError
            If there is no task, a rate or a glob is wrong, or a level would leave nothing of a layer.
        LayerCollapse
            If a global ranking leaves nothing of a layer.
        """
        course = Course.of(self, model, data, work)
        masks = MaskSet.ones_like(model, self.include, self.exclude)
        budget = Budget(rate=self.rate, scope=self.scope, rates=rates_by_layer(model, self.rates))
        budget, levels = budget.reaching(masks, self.sparsity)
        facts = []
        for level in imp(course, levels, budget, masks=masks, controls=self.controls, folder=self.folder or None):
            facts.append(level.facts())
        ops = edits(model, level.masks, level.final if self.deliver == "trained" else None)
        return self.made(model, ops, work, rate=budget.rate, levels=facts)


def rates_by_layer(model: nn.Module, rates: Sequence[str]) -> dict[str, float]:
    """Return the rate of each weight that one of ``rates``, of the form ``glob=0.1``, is for."""
    return by_layer(model, rates, where="rates", what="no rate")
