"""Find tickets of deep networks: rewind the weights that stay to an early step of the training, not to its start.

What is taken away are the weights that end up smallest in training, a share of the rest at each level; survivors go
back to their values after ``rewind`` steps, theta_k, and the learning rate and the data with them (Frankle et al.,
Stabilizing the Lottery Ticket Hypothesis, section 3). The network that is given has the initial weights. The plan holds
theta_k and the masks, and so makes of it the ticket m * theta_k, to be trained from step k on; or the trained ticket.

How early a network may be pruned shows in its *stability*: how far a subnetwork ends from where the same weights end
within the whole network (to pruning), and how far two copies end from each other that see the data in different orders
(to data order), as distance, angle and barrier of error between them. :func:`find_rewind` looks for the earliest step
from which the barrier stays low.

The defaults are those of ResNet-20 (called ResNet-18 there) on CIFAR-10. VGG-19 rewinds to 100 steps and trains 160
epochs; ResNet-50 on ImageNet rewinds to epoch 6 of 90 (batch 1024, lr 0.4, warmup 5 epochs, drops at 30, 60 and 80).

Left out: keeping the optimiser's momenta at the step rewound to; they begin at zero, as in the paper. Stability and
the search for a step have no command.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.trained import pick_device
from efface.errors import UsageError
from efface.parts.metrics.stability import Barrier, Distance, barrier, distance, distance_per_layer
from efface.parts.sparsity.budget import Budget
from efface.parts.sparsity.masks import MaskSet
from efface.seeds import derive
from efface.training.course import Course, State, masked
from efface.training.edits import edits
from efface.training.levels import imp

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Task

Kind = Literal["pruning", "data order"]
STATISTICS = 15
"""Batches from which running statistics are estimated between two networks."""


@dataclass(frozen=True, kw_only=True)
class RewoundTicket(Editor):
    """Hyper-parameters of iterative magnitude pruning with rewinding to an early step."""

    sparsity: float = param(0.8, "share of the weights to take away", low=0.001, high=0.9999)
    rate: float = param(0.2, "largest share of the weights left that goes at each level", low=0.001, high=0.9999)
    rewind: str = param("500it", "where survivors go back to: 500it, 3% or 6ep")
    restart: str = param("weights", "what goes back: all, or the learning rate alone", choices=("weights", "rate"))
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    deliver: str = param(
        "ticket", "what the plan makes: the ticket to train, or trained", choices=("ticket", "trained")
    )
    measure: bool = param(False, "measure the stability of the ticket, which takes one more training")
    folder: str = param("", "folder that keeps each level, to go on from after a stop")
    steps: int = param(30_000, "optimiser steps of the dense training", low=1)
    batch: int = param(128, "pictures per step", low=1)
    optimizer: str = param("sgd", "rule that moves the weights", choices=("sgd", "adamw"))
    lr: float = param(0.1, "highest learning rate", low=0.0)
    schedule: str = param("steps", "course of the learning rate", choices=("constant", "cosine", "steps"))
    warmup: float = param(0.0, "share of the steps over which the learning rate rises", low=0.0, high=1.0)
    drops: tuple[float, ...] = param((0.6667, 0.8333), "where schedule steps drops to a tenth", low=0.0, high=1.0)
    weight_decay: float = param(1e-4, "decay of the weights", low=0.0)

    card = Card(
        title="Stabilizing the Lottery Ticket Hypothesis",
        paper="arXiv:1903.01611",
        year=2019,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="Deep networks with batch norm at full learning rates, where tickets from the first step fail.",
    )
    needs = "task"
    small: ClassVar[dict[str, Any]] = {"sparsity": 0.6, "rate": 0.4, "steps": 4, "batch": 8, "rewind": "1it"}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return theta_k and the masks of the ticket, or its trained weights; facts: what each level reached.

        Raises
        ------
        UsageError
            If there is no task, or ``rewind`` is not of the forms above or not a step of the training.
        LayerCollapse
            If the ranking leaves nothing of a layer.
        """
        course = Course.of(self, model, data, work)
        step = step_of(self.rewind, self.steps, -(-len(course.task.train) // self.batch))
        masks = MaskSet.ones_like(model, self.include, self.exclude)
        budget, levels = Budget(rate=self.rate).reaching(masks, self.sparsity)
        trained = imp(
            course, levels, budget, masks=masks, rewind=step, restart=self.restart, folder=self.folder or None
        )
        dense = level = next(trained)
        facts = [dense.facts()]
        for level in trained:
            facts.append(level.facts())
        report: dict[str, Any] = {"rewind": step, "rate": budget.rate, "levels": facts}
        for kind in get_args(Kind) if self.measure else ():
            found = stability(course, level.start, level.masks, step, kind, trained=level.final, dense=dense.final)
            report[f"stability to {kind}"] = found.as_dict()
        weights = level.final if self.deliver == "trained" else level.start
        return self.made(model, edits(model, level.masks, weights), work, **report)


def step_of(text: str, steps: int, per_epoch: int) -> int:
    """Return the step that ``text`` means: ``500it`` steps, ``3%`` of ``steps``, or ``6ep`` epochs of ``per_epoch``."""
    form = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(it|%|ep)\s*", text)
    if form is None:
        raise UsageError(f"{text!r} is no step", where="rewind", fix="Write 500it, 3% or 6ep")
    unit = {"it": 1.0, "%": steps / 100, "ep": float(per_epoch)}[form[2]]
    step = round(float(form[1]) * unit)
    if step >= steps:
        raise UsageError(
            f"{text} is step {step} of a training of {steps}", where="rewind", fix="Rewind to an earlier one"
        )
    return step


@dataclass(frozen=True)
class Stability:
    """How far apart two trainings of one subnetwork end."""

    distance: Distance
    layers: dict[str, Distance]
    barrier: Barrier
    accuracy: float
    """Mean of both ends on the part ``val``."""

    def as_dict(self) -> dict[str, Any]:
        """Return the measures as JSON-ready values."""
        return {
            "l2": self.distance.l2,
            "angle_deg": self.distance.angle,
            "per_layer": {name: {"l2": d.l2, "angle_deg": d.angle} for name, d in self.layers.items()},
            "barrier": self.barrier.height,
            "alphas": list(self.barrier.alphas),
            "errors": list(self.barrier.errors),
            "accuracy": self.accuracy,
        }


def stability(
    course: Course,
    origin: State,
    masks: MaskSet,
    step: int,
    kind: Kind,
    *,
    trained: State | None = None,
    dense: State | None = None,
    points: int = 11,
) -> Stability:
    """Measure the stability of the subnetwork ``masks`` of the weights ``origin``, theta_k of ``step``.

    ``pruning``: the subnetwork trained alone against the whole network trained with the same order of the data, then
    masked. ``data order``: two copies of the subnetwork that see the data in different orders. ``trained`` and
    ``dense``, final weights of the subnetwork and of the whole network, spare a training each. The dense run in which
    the masks were found serves as well as one from theta_k on, but for the momenta that it had at that step.
    """
    first = trained or course.run(origin, masks, step=step).weights
    if kind == "pruning":
        second = masked(dense or course.run(origin, step=step).weights, masks)
    else:
        second = course.run(origin, masks, step=step, seed=derive(course.train.seed, "other order")).weights
    line = _line(course, first, second, points)
    accuracy = 1 - (line.errors[0] + line.errors[-1]) / 2
    return Stability(distance(first, second, masks), distance_per_layer(first, second, masks), line, accuracy)


def find_rewind(
    course: Course, masks: MaskSet | None = None, *, target: float = 0.02, candidates: Sequence[int] = ()
) -> tuple[int | None, dict[int, float]]:
    """Return the earliest step from which training is stable, and the barriers of error that were measured.

    Stable means that two copies that see the data in different orders are joined by a line on which the error rises by
    less than ``target``; the answer tells how early the network, or its part ``masks``, may be pruned. ``candidates``
    are the steps to choose from, by default 0 and the powers of two up to half of the training. They are bisected,
    since stability grows with the step: about two trainings for each halving. None says that no candidate is stable.
    """
    steps = sorted(set(candidates)) or [0, *(1 << i for i in range((course.train.steps // 2).bit_length()))]
    for step in steps:
        course.check_step(step)
    dense = course.run(course.initial, snapshots=steps)
    whole = masks or MaskSet.ones_like(course.net)

    def height(step: int) -> float:
        found = stability(course, dense.snapshots[step], whole, step, "data order").barrier.height
        course.progress(f"step {step}: the error rises by {found:.1%} between two orders of the data")
        return found

    return earliest(steps, height, target)


def earliest(
    steps: Sequence[int], height: Callable[[int], float], target: float
) -> tuple[int | None, dict[int, float]]:
    """Return the first of ``steps`` at which ``height`` is at most ``target``, by bisection, and what was measured."""
    measured: dict[int, float] = {}
    low, high = 0, len(steps)  # all before low are too high, all from high on are not
    while low < high:
        middle = (low + high) // 2
        measured[steps[middle]] = height(steps[middle])
        low, high = (low, middle) if measured[steps[middle]] <= target else (middle + 1, high)
    return (steps[low] if low < len(steps) else None), measured


def _line(course: Course, first: State, second: State, points: int) -> Barrier:
    device = pick_device(course.device)
    examples = course.task.train
    count = min(course.train.batch, len(examples))
    batches = [examples.batch(course.train.seed, i, count)["picture"].to(device) for i in range(STATISTICS)]
    net = copy.deepcopy(course.net).to(device).eval()

    def error(between: nn.Module) -> float:
        return 1 - course.task.score(between, "val").accuracy

    return barrier(net, first, second, error, points=points, batches=batches)
