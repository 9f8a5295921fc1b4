"""Descend a loss of a few weights of a given network, and hand back where they went: the loop of erasers that train.

It is the trainer's step with nothing but a loss: erasers make their own states and have no data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from efface.core.method import Phase, Step, Work
from efface.errors import EffaceError, UsageError
from efface.parts.nn.modes import mode
from efface.training.recipe import Train
from efface.training.trainer import Batch, Trainer, accelerator, own_randomness
from efface.training.tuning import _own_accelerate

LossOf = Callable[[Step], dict[str, Tensor]]
"""Returns named scalars, of which ``total`` is minimised; draws by the step's generators."""


@dataclass(frozen=True, eq=False)
class Descended:
    """Where a descent went."""

    values: dict[str, Tensor]
    """Copies of the weights after the last step, by their names."""
    history: tuple[dict[str, float], ...]
    """What the loss returned at each step; nothing for one that was skipped, since it was not finite."""

    def ending(self) -> dict[str, float]:
        """Return the parts of the loss in the mean of the last tenth of the steps."""
        last = [line for line in self.history if line][-max(1, len(self.history) // 10) :]
        return {key: sum(line[key] for line in last) / len(last) for key in _terms(last[0]) if key != "total"}


@dataclass(frozen=True, eq=False)
class Rival:
    """A network that learns against the weights that descend: it takes its own step before each of theirs.

    It stays where its training leaves it. Gradients of the weights' loss that reach it are thrown away.
    """

    net: nn.Module
    loss: LossOf
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of its optimiser that differ, as of a :class:`~efface.core.method.Phase`."""


@dataclass(frozen=True, eq=False)
class _Loss:
    """A loss and its weights, and those of a rival, in the form in which a trainer takes a method."""

    name: str
    weights: nn.ParameterList
    loss: LossOf
    rival: Rival | None

    def build(self) -> nn.Module:
        return self.weights if self.rival is None else nn.ModuleList([self.weights, self.rival.net])

    def prepare(self, net: nn.Module, batch: Batch, step: Step) -> Batch:
        return batch

    def phases(self) -> dict[str, Phase]:
        main = Phase(lambda net: list(self.weights), lambda net, batch, step: self.loss(step))
        if (rival := self.rival) is None:
            return {"main": main}
        against = Phase(
            lambda net: list(rival.net.parameters()), lambda net, batch, step: rival.loss(step), options=rival.options
        )
        return {"rival": against, "main": main}


def descend(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    loss: LossOf,
    train: Train,
    work: Work,
    *,
    name: str = "descent",
    rival: Rival | None = None,
) -> Descended:
    """Take ``train.steps`` steps down ``loss`` by ``weights``, which are then as they were, bit by bit.

    ``model`` is what the loss runs through, on its device already: it is frozen but for ``weights``, which may be its
    own or those of adapters beside it, and in evaluation mode. Afterwards, also after an error, modes, values,
    gradients and what asks for them are as before, and torch's random generators too. The same seed gives the same
    values.

    Raises
    ------
    UsageError
        If no weight is given, or one is not float32: small steps would be rounded away.
    EffaceError
        The gradient was not finite in :data:`~efface.training.trainer.PATIENCE` steps in a row, or in every step.
    """
    if not weights:
        raise UsageError("no weights are given", where=name)
    if other := next((key for key, weight in weights.items() if weight.dtype != torch.float32), None):
        fix = "Load the pipeline with torch_dtype=torch.float32"
        raise UsageError(f"is {weights[other].dtype}, in which small steps are rounded away", where=other, fix=fix)
    device = str(next(iter(weights.values())).device)
    history: list[dict[str, float]] = []
    with contextlib.ExitStack() as undo:
        undo.enter_context(_own_accelerate())
        undo.enter_context(mode(model, training=False))
        undo.enter_context(_only(model, weights))
        undo.enter_context(swapped(weights, copies(weights)))  # steps move the copies
        both = _Loss(name, nn.ParameterList(weights.values()), loss, rival)
        trainer = Trainer(both, train, accelerator(train, device))
        undo.enter_context(own_randomness(trainer.device))
        while trainer.step < train.steps:
            logged = trainer.advance([{}] * train.accumulate)
            losses = {key.removeprefix("loss/").removeprefix("main/"): float(value) for key, value in logged.items()}
            history.append(losses)
            if trainer.step % train.log_every == 0 or trainer.step == train.steps:
                told = ", ".join(f"{key} {value:.3g}" for key, value in _terms(losses).items())
                work.progress(f"step {trainer.step} of {train.steps}: {told}")
        values = copies(weights)
    if not any(history):
        what = "its loss or gradient was not finite in any step"
        raise EffaceError(what, where=name, fix="Lower the learning rate, and see that all weights are finite")
    return Descended(values, tuple(history))


def _terms(logged: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in logged.items() if key.partition("/")[0] not in ("lr", "grad_norm")}


def copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of ``weights``, where they lie."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


@contextlib.contextmanager
def swapped(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``weights`` hold ``values`` for the length of a block; a frozen model is a dict of what differs in it.

    Nothing is copied: in-place changes inside the block go to ``values``.
    """
    before = {name: weights[name].data for name in values}
    try:
        for name, value in values.items():
            weights[name].data = value
        yield
    finally:
        for name, data in before.items():
            weights[name].data = data


def load(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into ``weights``."""
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(value)


@contextlib.contextmanager
def _only(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let gradients go to ``weights`` alone."""
    every = dict.fromkeys([*model.parameters(), *weights.values()])
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in every]
    try:
        model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_()
            weight.grad = None
        yield
    finally:
        for parameter, asked, gradient in before:
            parameter.requires_grad_(asked)
            parameter.grad = gradient
