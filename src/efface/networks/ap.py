"""Wake neurons while pruning: give a small share of each cut to negative weights that training hardly moved.

What is taken away are, at each level of iterative magnitude pruning, a share ``rate`` - ``q`` of the weights by the
host's criterion, the least magnitude, and then ``q`` of them by another one: of the negative weights those with the
smallest |w - w_0|, where w_0 is what the level's training began with (AP, section 4). A negative weight lowers what its
neuron is given, if inputs are positive; one that did not need to move is least needed to do so. Without it the neuron
is dead, giving zero, on fewer inputs. Survivors are rewound and trained again, as the host does.

*AP-Lite* chooses on the weights of the host's training; *AP-Pro* trains what the host left once more, and chooses on
that: better, at twice the cost. How dead a network is, :func:`dnr` tells by itself, for any network with ReLUs.

The defaults are those of ResNet-20 on CIFAR-10. Only weights of convolutions and linear layers are pruned and rewound
together with all buffers; the official code also pruned batch norm's scales, counted layers twice for its threshold,
and gave AP a second training that its baseline did not get: here both arms train equally long.

Left out: hosts other than magnitude as settings (:class:`Activate` takes any), and signs corrected by batch norm's
scales; the paper takes signs as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.trained import pick_device
from efface.errors import UsageError
from efface.parts.metrics.activity import DeadNeurons, dead_neurons
from efface.parts.sparsity.budget import Budget, Keep, best
from efface.parts.sparsity.masks import MaskSet
from efface.seeds import torch_generator
from efface.training.course import Course, State, masked
from efface.training.edits import edits
from efface.training.levels import Level, Prune, Round, imp, smallest

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.tasks import Part, Task

Pick = Literal["still negative", "any negative", "still positive"]


@dataclass(frozen=True, kw_only=True)
class ActivateWhilePruning(Editor):
    """Hyper-parameters of activate-while-pruning on top of iterative magnitude pruning."""

    sparsity: float = param(0.9, "share of the weights to take away", low=0.001, high=0.9999)
    rate: float = param(0.2, "largest share of the weights left that goes at each level", low=0.001, high=0.9999)
    q: float = param(0.02, "share of the weights left that goes to wake neurons; part of rate", low=0.0, high=0.9)
    variant: str = param("lite", "choose on the host's training, or pro: on one more", choices=("lite", "pro"))
    skip_first: bool = param(False, "leave the first layer to the host, whose inputs may be negative")
    include: tuple[str, ...] = param(("*",), "globs of the weights that may go")
    exclude: tuple[str, ...] = param((), "globs of the weights that stay")
    deliver: str = param(
        "ticket", "what the plan makes: the ticket to train, or trained", choices=("ticket", "trained")
    )
    folder: str = param("", "folder that keeps each level, to go on from after a stop")
    steps: int = param(39_000, "optimiser steps of each training", low=1)
    batch: int = param(64, "pictures per step", low=1)
    optimizer: str = param("sgd", "rule that moves the weights", choices=("sgd", "adamw"))
    lr: float = param(0.1, "highest learning rate", low=0.0)
    schedule: str = param("steps", "course of the learning rate", choices=("constant", "cosine", "steps"))
    warmup: float = param(0.5, "share of the steps over which the learning rate rises", low=0.0, high=1.0)
    drops: tuple[float, ...] = param((0.5, 0.64), "where schedule steps drops to a tenth", low=0.0, high=1.0)
    weight_decay: float = param(5e-4, "decay of the weights", low=0.0)

    card = Card(
        title="AP: Selective Activation for De-sparsifying Pruned Neural Networks",
        paper="arXiv:2212.06145",
        year=2023,
        task="weights from networks",
        inputs=("model", "task"),
        good_at="An add-on for high sparsity in networks with ReLUs; its report tells how many neurons are dead.",
    )
    needs = "task"
    small: ClassVar[dict[str, Any]] = {"sparsity": 0.6, "rate": 0.4, "q": 0.1, "steps": 4, "batch": 8}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the masks of the ticket, or with them its trained weights; facts: levels and their dead neurons.

        Raises
        ------
        UsageError
            If there is no task, ``q`` is not below the share that goes at a level, the network has no ReLUs, or too
            few of its weights are negative.
        LayerCollapse
            If the ranking leaves nothing of a layer.
        """
        course = Course.of(self, model, data, work)
        dnr(model, course.task, limit=1, device=work.device)  # refuses networks without ReLUs before hours of training
        masks = MaskSet.ones_like(model, self.include, self.exclude)
        budget, levels = Budget(rate=self.rate).reaching(masks, self.sparsity)
        step = Activate(self.q, self.variant, spared=tuple(masks)[:1] if self.skip_first else ())
        facts: list[dict[str, Any]] = []
        before = None
        for level in imp(course, levels, budget, masks=masks, prune=step, folder=self.folder or None):
            facts.append(level.facts() | self._facts(course, step, before, level))
            before = level
        ops = edits(model, level.masks, level.final if self.deliver == "trained" else None)
        return self.made(model, ops, work, rate=budget.rate, levels=facts)

    def _facts(self, course: Course, step: Activate, before: Level | None, level: Level) -> dict[str, Any]:
        """Return the dead neuron rate of the trained level, and of the cut before it what the share ``q`` did."""
        trained = dnr(loaded(course, level.final), course.task, device=course.device)
        facts: dict[str, Any] = {"dynamic": trained.dynamic, "static": trained.static, "per_layer": trained.per_layer()}
        if before is not None:
            hosted = step.hosted(Round(before.masks, before.start, before.final), level.masks.kept)
            cut, host = (
                dnr(loaded(course, masked(before.final, m)), course.task, device=course.device)
                for m in (level.masks, hosted)
            )
            facts["cut"] = {
                "woken": cut.reactivated(host),
                "taken": {name: int((mask & ~level.masks[name]).sum()) for name, mask in hosted.items()},
                "rate": cut.rate,
                "rate_of_host": host.rate,
            }
        return {"dead": facts}


@dataclass(frozen=True)
class Activate:
    """The prune step: the host's cut, smaller by the share ``q`` of what is left, then that share by AP's criterion.

    ``pick`` tells AP (``still negative``: the smallest |w - w_0| of the negative weights) from its controls: any of the
    negative ones, or the smallest |w - w_0| of the positive ones. Layers ``spared`` are left to the host.
    """

    q: float
    variant: str = "lite"
    pick: Pick = "still negative"
    host: Prune = smallest
    spared: tuple[str, ...] = ()
    seed: int = 0

    def __call__(self, given: Round, keep: Keep) -> MaskSet:
        """Return what stays of a round, ``keep`` weights of all layers together."""
        hosted, count = self.hosted(given, keep), self._count(given)
        if not count:
            return hosted
        final = given.retrain(hosted) if self.variant == "pro" else given.final
        return self.activate(hosted, given.start, final, count)

    def hosted(self, given: Round, keep: Keep) -> MaskSet:
        """Return what the host leaves: the floor of ``q`` times what there was more than ``keep``."""
        if not isinstance(keep, int):
            raise UsageError("AP shares out a cut over all layers", where="scope", fix="Prune globally")
        spare = self._count(given)
        if spare and keep + spare >= given.masks.kept:
            what = f"q = {self.q:g} leaves nothing of the {given.masks.kept - keep} weights of this level to the host"
            raise UsageError(what, where="q", fix="Set q well below rate; the paper takes a tenth of it")
        return self.host(given, keep + spare)

    def _count(self, given: Round) -> int:
        return math.floor(round(self.q * given.masks.kept, 6))  # else 0.29 of 100 would be 28

    def activate(self, masks: MaskSet, start: State, final: State, count: int) -> MaskSet:
        """Return ``masks`` without the ``count`` weights that the criterion picks."""
        scores: dict[str, Tensor] = {}
        chosen = 0
        for name, mask in masks.items():
            weight = final[name]
            alive = mask.to(weight.device)
            sign = weight > 0 if self.pick == "still positive" else weight < 0
            candidates = alive & sign if name not in self.spared else torch.zeros_like(alive)
            chosen += int(candidates.sum())
            moved = (weight - start[name]).abs().float()
            if self.pick == "any negative":
                draw = torch_generator(self.seed, "pick", name, masks.kept)
                moved = torch.rand(moved.shape, generator=draw).to(moved.device)
            scores[name] = moved.masked_fill(~candidates, math.inf)  # all others stay
        if chosen < count:
            kind = self.pick.split()[1]
            what = f"{count} {kind} weights are to go, and there are {chosen}"
            raise UsageError(what, where="q", fix="Lower q, or take weights that were trained")
        return best(scores, masks, masks.kept - count)


def dnr(
    model: nn.Module, task: Task, *, split: Part = "val", limit: int = 1000, maps: bool = False, device: str = "cpu"
) -> DeadNeurons:
    """Return the dead neuron rates of ``model`` on ``limit`` examples of a part of ``task``; the model stays as it is.

    ``dynamic`` counts neurons that are zero in the mean over inputs, ``static`` those that weights no longer reach or
    read; with ``maps`` a channel of a convolution counts as one neuron. Raises :class:`UsageError` if there is no ReLU
    or similar activation.
    """
    where = pick_device(device)
    return dead_neurons(copy.deepcopy(model).to(where), _pictures(task, split, limit, where), maps=maps)


def loaded(course: Course, weights: State) -> nn.Module:
    """Return a copy of the network of ``course`` with ``weights``."""
    net = copy.deepcopy(course.net)
    net.load_state_dict(weights)
    return net


def _pictures(task: Task, split: Part, limit: int, device: str) -> Iterator[Tensor]:
    examples = getattr(task, split)
    index = examples.order(0, 0, min(limit, len(examples)))
    for start in range(0, len(index), 250):
        yield examples.take(index[start : start + 250])["picture"].to(device)
