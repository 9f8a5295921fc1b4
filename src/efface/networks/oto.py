"""Train once, and take out what the training brings to zero: channels, operators or both.

What may go is found in the network itself: groups of channels that contribute exactly nothing once their weights,
biases and norms are zero, and segments of operators that run beside others. After a warm-up groups are called redundant
by their size and by whether the step shrinks them anyway. HESSO then scales redundant groups to zero in a line; DHSPG
penalises them within the dual half-space, where a step lessens both their norm and the loss, and projects to zero those
that leave their own half-space. For operators, the choice (H2SPG) walks up the order of importance and passes over what
would leave no legal network. The others are trained on. The plan takes out what is zero: the smaller network gives the
outputs of the whole one, which is made sure, and needs no fine-tuning.

Chen et al., OTOv3: Automatic Architecture-Agnostic Neural Network Training and Compression from Structured Pruning to
Erasing Operators (arXiv:2312.09411); DHSPG is of OTOv2 (arXiv:2303.06862). The cosine of weights and step counts
towards redundancy under both rules; the official HESSO adds it the other way round, and shrinks all channels behind a
concatenation where one is redundant. Erasing was never published as code.

Left out: the presets of single networks; quantisation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from torch import nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.ops import Bypass, Drop, Op, Replace
from efface.core.plan import Plan
from efface.core.removal import plan_removal
from efface.core.trial import perform, trial
from efface.errors import EffaceError, UnknownNameError
from efface.parts.graph import ChannelGraph, channel_graph
from efface.parts.graph.erasing import Erasing
from efface.parts.graph.segments import Operators
from efface.parts.graph.selection import Budget, Channels, difference, invariant, makers
from efface.parts.graph.verify import TOLERANCE
from efface.parts.nn.cells import Erased
from efface.parts.sparsity.group_sparse import GroupSparse, Stage
from efface.parts.sparsity.groups import GroupViews
from efface.parts.sparsity.masks import MaskSet
from efface.training.course import needed
from efface.training.edits import edits
from efface.training.recipe import Train
from efface.training.tuning import tune

if TYPE_CHECKING:
    from efface.parts.data.tasks import Task

WEIGHTS = {"sgd": (1e-3, 2.0, 10.0), "adamw": (1e-2, 20.0, 1e3)}
"""Weight of the norm of a redundant group, how it is amplified and how far, as the official code has them."""


@dataclass(frozen=True, kw_only=True)
class OTO(Editor):
    """Hyper-parameters of training once with groups that come to zero."""

    target: float = param(0.5, "share that goes of what budget counts", low=0.001, high=0.999)
    budget: str = param(
        "groups", "what target counts: groups, parameters or FLOPs", choices=("groups", "params", "flops")
    )
    mode: str = param("prune", "prune channels, erase operators, or both", choices=("prune", "erase", "both"))
    rule: str = param("hesso", "how groups come to zero", choices=("hesso", "dhspg"))
    multiple_of: int = param(8, "numbers of channels are multiples of this", low=1)
    include: tuple[str, ...] = param(("*",), "globs of the groups that may go")
    exclude: tuple[str, ...] = param((), "globs of the groups that stay")
    start: float = param(0.1, "share of the training after which groups are chosen", low=0.0, high=0.99)
    stop: float = param(0.6, "share of the training after which all of them are zero", low=0.01, high=1.0)
    periods: int = param(1, "rounds in which hesso chooses and shrinks", low=1)
    weight: float = param(0.0, "weight of the norm in dhspg (lambda); 0 is the optimiser's default", low=0.0)
    epsilon: float = param(0.0, "how eagerly dhspg projects", low=0.0, high=0.9999)
    spare: float = param(0.05, "share that dhspg penalises beyond the target", low=0.0, high=1.0)
    steps: int = param(1000, "steps of the training", low=1)
    batch: int = param(128, "pictures a step", low=1)
    optimizer: str = param("sgd", "rule that moves the weights", choices=("sgd", "adamw"))
    lr: float = param(0.1, "highest learning rate", low=0.0)
    schedule: str = param("cosine", "course of the learning rate", choices=("constant", "cosine", "onecycle", "steps"))
    warmup: float = param(0.0, "share of the steps over which the learning rate rises", low=0.0, high=1.0)
    drops: tuple[float, ...] = param((0.5, 0.75), "where schedule steps drops to a tenth", low=0.0, high=1.0)
    weight_decay: float = param(1e-4, "decay of matrices and kernels", low=0.0)

    card = Card(
        title="OTOv3: Automatic Architecture-Agnostic Neural Network Training and Compression (HESSO, DHSPG, H2SPG)",
        paper="arXiv:2312.09411",
        year=2023,
        task="channels and operators from networks",
        inputs=("model", "task"),
        good_at="One training gives a smaller dense network, faster everywhere, with the outputs of the whole one. Any "
        "network whose channels can be followed; super-networks of cells for erasing.",
        left_out="presets of single networks, quantisation",
    )
    needs = "task"
    goes = "target"
    small: ClassVar[dict[str, Any]] = {"steps": 6, "batch": 8, "multiple_of": 1, "optimizer": "adamw", "lr": 1e-3}

    def plan(self, model: nn.Module, data: Task | None, work: Work) -> Plan:
        """Return the edits that take out what came to zero, and set the other weights as trained.

        Raises
        ------
        UsageError
            Without a task, where a glob matches nothing, the target is out of reach (what is in reach is told), or the
            stage is too short.
        InputError
            If the network cannot be exported.
        EffaceError
            If the smaller network gave other outputs than the trained one.
        """
        task = needed(data)
        Plan.of(model, ())  # refuses broken weights before the training
        net = copy.deepcopy(model).requires_grad_()
        graph = channel_graph(net, work.example or (task.train.take(np.arange(2))["picture"],))
        self._check_globs(graph)
        found: dict[str, Channels | Erasing] = {}
        if self.mode != "erase":
            found["channels"] = self._channels(graph, self.target, work.seed)
        if self.mode != "prune":
            found["operators"] = Erasing(graph, self.target, cast(Budget, self.budget), self._allows, work.seed)
        for what, choice in found.items():
            work.progress(
                f"{choice.count} groups of {what} may go; at most {choice.reachable:.1%} of the {self.budget}"
            )
        sparse = {
            what: GroupSparse(choice.views(), choice.count, choice, self.stage()) for what, choice in found.items()
        }
        train = Train(
            steps=self.steps, batch=self.batch, seed=work.seed, optimizer=self.optimizer, lr=self.lr,
            schedule=self.schedule, warmup=self.warmup, drops=self.drops, weight_decay=self.weight_decay,
        )  # fmt: skip
        attach = [one.attach for one in sparse.values()]
        tune(net, task, train, device=work.device, attach=attach, progress=work.progress)
        ops, away = self._smaller(graph, found, sparse, work.seed)
        with trial(ops, model):
            ops += edits(model, MaskSet({}), net.state_dict())
        notes = [
            f"{one.forced} of {int(one.zero.sum())} groups of {what} had to be set to zero at the end: raise weight"
            for what, one in sparse.items() if one.forced
        ]  # fmt: skip
        return self.made(
            model, ops, work, notes=notes, difference=away,
            groups={what: choice.count for what, choice in found.items()},
            zero={what: int(one.zero.sum()) for what, one in sparse.items()},
            reachable={what: choice.reachable for what, choice in found.items()},
            frozen={name: group.frozen for name, group in graph.frozen.items()},
        )  # fmt: skip

    def stage(self) -> Stage:
        """Return when and how groups come to zero; raise :class:`UsageError` if there is no time for it."""
        weight, amplify, limit = WEIGHTS[self.optimizer]
        return Stage(
            start=round(self.start * self.steps), stop=round(self.stop * self.steps), rule=cast(Any, self.rule),
            weight=self.weight or weight, amplify=amplify, limit=limit, epsilon=self.epsilon, spare=self.spare,
            periods=self.periods,
        )  # fmt: skip

    def _channels(self, graph: ChannelGraph, target: float, seed: int) -> Channels:
        """Return the choice among the zero-invariant groups of channels."""
        names = invariant(graph, [name for name in graph.groups if self._allows(name)], makers(graph), seed)
        return Channels(graph, names, target, cast(Budget, self.budget), self.multiple_of)

    def _check_globs(self, graph: ChannelGraph) -> None:
        """Raise :class:`UnknownNameError` if a glob matches neither a group of channels nor a segment of operators."""
        names = [*graph.groups, *graph.frozen]
        if self.mode != "prune":
            names += [segment.name for segment in Operators(graph).segments]
        for glob in (*self.include, *self.exclude):
            if glob != "*" and not any(fnmatchcase(name, glob) for name in names):
                raise UnknownNameError("group", glob, set(names))

    def _allows(self, name: str) -> bool:
        return _any(name, self.include) and not _any(name, self.exclude)

    def _smaller(
        self, graph: ChannelGraph, found: dict[str, Channels | Erasing], sparse: dict[str, GroupSparse], seed: int
    ) -> tuple[list[Op], float]:
        """Take out of the trained network what is zero; return how, and by how much the outputs differ."""
        net, whole, ops = graph.model, copy.deepcopy(graph.model), list[Op]()
        if isinstance(erasing := found.get("operators"), Erasing):
            ops += erased(erasing, erasing.gone(sparse["operators"].zero))
            perform(ops, net)
        if isinstance(channels := found.get("channels"), Channels):
            if ops:  # what is left of the network has other groups
                graph = channel_graph(net, graph.args)
                channels = self._channels(graph, 0.0, seed)
            views = GroupViews(net, channels.views(), channels.count)
            drops: list[Op] = list(plan_removal(graph, channels.keep(views.norms(views.values()) == 0)))
            perform(drops, net)
            ops += drops
        if not (away := difference(whole, net, graph)) <= TOLERANCE:
            what = f"the smaller network differs from the trained one by {away:.1e} of the largest output"
            raise EffaceError(what, where=self.name, fix="Exclude groups, and report the network that this happens on")
        return ops, away


def erased(erasing: Erasing, gone: set[int]) -> list[Op]:
    """Return the edits that take the segments ``gone`` out: nothing, or the input, in the place of their modules."""
    erasure = erasing.erasure(gone)
    assert erasure is not None  # the choice is legal
    ops: list[Op] = [Replace.by(path, Erased(join), {"join": join}) for path, join in erasure.erased.items()]
    ops += [Bypass(path) for path in erasure.passed]
    return [*ops, Drop.of(erasure.removal)] if erasure.removal else ops


def _any(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
