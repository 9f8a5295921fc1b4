"""Take one training many times: by a network as a whole, by parts of it, from its first step or from a later one.

Comparisons of subnetworks are fair where everything but the subnetwork is equal: steps, learning rates, batches.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from efface.core.method import Work
from efface.core.trained import pick_device
from efface.errors import UsageError
from efface.parts.data.tasks import Score, Task
from efface.parts.metrics.paired import early_stop
from efface.parts.nn.fresh import redraw
from efface.parts.sparsity.masks import MaskSet
from efface.seeds import seeded
from efface.training.recipe import Train
from efface.training.tuning import tune

State = Mapping[str, Tensor]
POINTS = 20
"""Points of the validation curve of each training of a method."""


@dataclass(frozen=True)
class Outcome:
    """How well a training went: its curve on the part ``val``, and scores after the last step."""

    steps: tuple[int, ...]
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]
    test: Score
    train: Score

    @property
    def early_stop(self) -> int | None:
        """Step of the least validation loss, the usual measure of how fast a network learns; None without a curve."""
        return early_stop(self.steps, self.losses) if self.steps else None

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready values; :meth:`from_dict` reads them back."""
        curves = {"steps": list(self.steps), "accuracies": list(self.accuracies), "losses": list(self.losses)}
        return curves | {"test": vars(self.test), "train": vars(self.train), "early_stop": self.early_stop}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcome:
        """Build an outcome from the values of :meth:`as_dict`."""
        steps, accuracies, losses = (tuple(values[name]) for name in ("steps", "accuracies", "losses"))
        return cls(steps, accuracies, losses, Score(**values["test"]), Score(**values["train"]))


@dataclass(frozen=True)
class Trained:
    """The weights after a training, those at the steps that were asked for, and the outcome."""

    weights: State
    snapshots: Mapping[int, State]
    outcome: Outcome


@dataclass(frozen=True)
class Course:
    """A training that many take. The weights of ``net`` are the initial ones; it is a pattern and never changed.

    ``every`` is the number of steps between two points of the curve on ``val``; 0 draws none.
    """

    net: nn.Module
    task: Task
    train: Train
    device: str = "cpu"
    every: int = 0
    progress: Callable[[str], None] = field(default=lambda line: None, repr=False)

    @classmethod
    def of(cls, method: Any, model: nn.Module, data: Task | None, work: Work) -> Course:
        """Return the course that a method's hyper-parameters tell, from ``steps`` to ``weight_decay``, for ``model``.

        Raises :class:`UsageError` where there is no task.
        """
        train = Train(
            steps=method.steps, batch=method.batch, seed=work.seed, optimizer=method.optimizer, lr=method.lr,
            schedule=method.schedule, warmup=method.warmup, drops=method.drops, weight_decay=method.weight_decay,
        )  # fmt: skip
        return cls(model, needed(data), train, work.device, -(-method.steps // POINTS), work.progress)

    @property
    def initial(self) -> State:
        """The weights and buffers that ``net`` has."""
        return stored(self.net.state_dict())

    def check_step(self, step: int) -> None:
        """Raise :class:`UsageError` unless the training can be taken from ``step`` on."""
        if not 0 <= step < self.train.steps:
            what = f"step {step} is not one of the {self.train.steps} steps of the training"
            raise UsageError(what, where="rewind", fix="Rewind to an earlier step, or train for longer")

    def run(
        self,
        start: State,
        masks: MaskSet | None = None,
        *,
        step: int = 0,
        seed: int | None = None,
        snapshots: Sequence[int] = (),
    ) -> Trained:
        """Train from the weights ``start``, at ``step``, to the end; weights outside ``masks`` are and stay zero.

        Learning rates and batches are those of the steps from ``step`` on, momenta begin at zero. Another ``seed`` than
        the recipe's gives another order of the data.
        """
        self.check_step(step)
        net = copy.deepcopy(self.net).requires_grad_().to(pick_device(self.device))
        net.load_state_dict(start)
        train = self.train if seed is None else dataclasses.replace(self.train, seed=seed)
        attach = []
        if masks is not None:  # attached masks move to the device, so it is a copy that does
            attach = [partial(MaskSet(masks, masks.aliases).attach, freeze_grad=train.clip > 0)]
        tuned = tune(
            net, self.task, train,
            device=self.device, start=step, attach=attach, snapshots=snapshots, every=self.every,
        )  # fmt: skip
        return Trained(
            weights=stored(net.state_dict()),
            snapshots={k: stored(state) for k, state in tuned.snapshots.items()},
            outcome=Outcome(
                steps=tuple(point.step for point in tuned.history),
                accuracies=tuple(point.val_accuracy for point in tuned.history),
                losses=tuple(point.val_loss for point in tuned.history),
                test=self.task.score(net, "test"),
                train=self.task.score(net, "train", limit=len(self.task.test)),
            ),
        )

    def redrawn(self, fresh: Callable[[], nn.Module] | None = None) -> State:
        """Return new initial weights, drawn from the seed: by every module's ``reset_parameters``, or by ``fresh()``.

        Raises :class:`UsageError` if a module with weights cannot draw them, or if ``fresh`` builds another network or
        another one each time.
        """
        if fresh is None:
            return stored(self._seeded(self._reset))
        first, second = (stored(self._seeded(fresh)) for _ in range(2))
        if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in self.initial.items()}:
            raise UsageError("builds a network of another form", where="fresh", fix="Build the network that is pruned")
        if not all(torch.equal(first[name], second[name]) for name in first):
            what = "builds other weights each time, though torch's generator is seeded alike"
            raise UsageError(what, where="fresh", fix="Draw initial weights from torch's global generator alone")
        return first

    def _seeded(self, build: Callable[[], nn.Module]) -> State:
        with seeded(self.train.seed, "redrawn"):
            return build().state_dict()

    def _reset(self) -> nn.Module:
        net = copy.deepcopy(self.net).cpu()
        if kept := redraw(net):
            path = kept[0].rpartition(".")[0]
            what = f"{type(net.get_submodule(path)).__name__} has weights but no reset_parameters"
            raise UsageError(what, where=path, fix="Give `fresh`, a function that builds the network anew")
        return net


def needed(task: Task | None) -> Task:
    """Return ``task``, or raise :class:`UsageError` where an editor was given none."""
    if task is None:
        what = "the network has to be trained, and there is no data to train it on"
        raise UsageError(what, where="data", fix='Give a task: "digits", or a folder of labelled pictures')
    return task


def stored(state: State) -> State:
    """Return a copy of ``state`` on the CPU, free of the network it came from."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def masked(state: State, masks: MaskSet) -> State:
    """Return ``state`` with the weights outside ``masks`` at zero, the tied ones under all of their names."""
    names = {**{name: name for name in masks}, **masks.aliases}
    zeroed = {name: state[name].masked_fill(~masks[name].to(state[name].device), 0) for name in names}
    return {**state, **zeroed}
