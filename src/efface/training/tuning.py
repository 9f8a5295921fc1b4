"""Train a given network on a task, from any step of a course of training to any other.

Learning rate, data and draws are functions of the step. So training from step k on sees exactly what a training from
the start sees from there on, which is what rewinding a network to an earlier state asks for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from efface.core.method import Phase, Step
from efface.errors import UsageError
from efface.parts.data.language import Corpus
from efface.parts.data.tasks import Task
from efface.parts.nn.modes import mode
from efface.training.recipe import Train
from efface.training.trainer import Batch, Trainer, accelerator, own_randomness


class Handle(Protocol):
    """What an attached callable gives back."""

    def remove(self) -> None:
        """Detach it."""
        ...


Attach = Callable[[nn.Module, torch.optim.Optimizer], Handle]


@dataclass(frozen=True)
class Point:
    """Where a training stood after ``step`` steps."""

    step: int
    loss: float
    """Training loss, averaged over the steps since the point before."""
    val_accuracy: float
    val_loss: float


@dataclass(frozen=True)
class Tuned:
    """What a training leaves behind beside the trained network."""

    history: tuple[Point, ...]
    snapshots: dict[int, dict[str, Tensor]]
    """Copies of the network's ``state_dict`` by step, on the CPU."""
    moments: dict[int, dict[str, Tensor]]
    """What the optimiser remembered at the same steps."""


@dataclass(frozen=True, eq=False)
class _Given:
    """A given network and its task, in the form in which a trainer takes a method."""

    net: nn.Module
    task: Task | Corpus

    @property
    def name(self) -> str:
        return f"training on {self.task.name}"

    def build(self) -> nn.Module:
        return self.net

    def prepare(self, net: nn.Module, batch: Batch, step: Step) -> Batch:
        return batch

    def phases(self) -> dict[str, Phase]:
        return {"main": Phase(lambda net: list(net.parameters()), self._loss)}

    def _loss(self, net: nn.Module, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        return {"total": self.task.loss(net, batch)}


def tune(
    net: nn.Module,
    task: Task | Corpus,
    train: Train,
    *,
    device: str = "cpu",
    start: int = 0,
    stop: int | None = None,
    attach: Sequence[Attach] = (),
    snapshots: Collection[int] = (),
    every: int = 0,
    moments: Mapping[str, Tensor] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Tuned:
    """Train ``net`` in place from step ``start`` to ``stop`` (default: the last) of the training that ``train`` tells.

    The optimiser is new, its averages zero, unless ``moments`` of an earlier training are given. Each of ``attach`` is
    called once, before the first step, with the network and the optimiser, and its handle is removed after the last.
    Before step ``k`` for each k of ``snapshots`` (``stop`` included) the weights and the optimiser's memory are copied.
    Every ``every`` steps and at the end the network is scored on the validation part; 0 never scores.

    Afterwards the network is on its former device, its modules in their former modes, without gradients; torch's
    random generators are as they were. When an error or an interrupt ends the training early, the weights stay as the
    last whole step left them.

    Raises
    ------
    UsageError
        Steps out of order, a network without trainable weights, or settings that a given network has no use for.
    EffaceError
        The gradient was not finite in :data:`~efface.training.trainer.PATIENCE` steps in a row.
    """
    stop = train.steps if stop is None else stop
    _check(net, train, start, stop, snapshots)
    home = next(net.parameters()).device
    history, states, memory = [], {}, {}
    loss, taken = torch.zeros(()), 0
    with contextlib.ExitStack() as undo:
        undo.enter_context(_own_accelerate())
        undo.enter_context(mode(net, training=True))
        undo.callback(net.to, home)
        trainer = Trainer(_Given(net, task), train, accelerator(train, device))
        undo.enter_context(own_randomness(trainer.device))
        undo.callback(net.zero_grad)
        trainer.step = start
        if moments is not None:
            trainer.load_moments(moments)
        for hook in attach:
            undo.callback(hook(net, trainer.optimizers["main"]).remove)
        batches = undo.enter_context(contextlib.closing(trainer.batches(task.train)))
        while True:
            if trainer.step in snapshots:
                states[trainer.step] = _copy(net.state_dict())
                memory[trainer.step] = _copy(trainer.moments())
            if trainer.step == stop:
                break
            logged = trainer.advance([next(batches) for _ in range(train.accumulate)])
            if trainer.headline in logged:  # else the step was skipped
                loss, taken = loss + logged[trainer.headline], taken + 1
            if every and (trainer.step % every == 0 or trainer.step == stop):
                score = task.score(net, "val")
                point = Point(trainer.step, float(loss) / max(taken, 1), score.accuracy, score.loss)
                loss, taken = torch.zeros(()), 0
                history.append(point)
                if progress is not None:
                    progress(
                        f"step {point.step} of {train.steps}: loss {point.loss:.4g}, validation {point.val_loss:.4g}, "
                        f"{100 * point.val_accuracy:.1f} % right"
                    )
    return Tuned(tuple(history), states, memory)


def _check(net: nn.Module, train: Train, start: int, stop: int, snapshots: Collection[int]) -> None:
    if not 0 <= start <= stop <= train.steps:
        raise UsageError(f"steps {start} to {stop} are not among {train.steps}", where="start, stop")
    if outside := [step for step in snapshots if not start <= step <= stop]:
        raise UsageError(f"{outside} are not among the steps {start} to {stop}", where="snapshots")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError("no weight of the network may change", fix="Call net.requires_grad_() before")
    for name in ("ema", "init"):
        if getattr(train, name):
            raise UsageError("a given network is trained without it", where=f"train.{name}", fix="Leave it out")


@contextlib.contextmanager
def _own_accelerate() -> Iterator[None]:
    """Leave accelerate's state as it was; it is the same one for all trainings of a process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    try:
        yield
    finally:
        for state, was in zip(shared, before, strict=True):
            state.clear()
            state.update(was)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
