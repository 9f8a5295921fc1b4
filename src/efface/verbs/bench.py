"""Measure what a plan gains: time of each layer and of the whole, bytes on disk, accuracy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.core.cost import Cost
from efface.core.plan import Plan
from efface.core.run import versions
from efface.errors import UsageError
from efface.parts.data.tasks import Score, Task
from efface.parts.nn.modes import mode
from efface.parts.timing import Stopwatch, Timing, interleave, using
from efface.verbs.subject import Progress, Subject, quiet, subject

GAIN = 1.05
"""Speed-up from which a model counts as faster; less may be noise."""
NO_GAIN = "There is no speed-up: zeros in a dense tensor do not make it faster"
ADVICE = "For a CPU, export with --export column-blocks"


@dataclass(frozen=True)
class LayerTime:
    """How long a layer took, all its calls in one of the model's together."""

    name: str
    kind: str
    """Class of the layer as the plan leaves it."""
    density: float
    """Weights that are not zero afterwards, over all that it had."""
    before: Timing
    after: Timing

    @property
    def speedup(self) -> float:
        """How many times as quick it is afterwards."""
        return self.before.seconds / self.after.seconds


@dataclass(frozen=True)
class Bench:
    """A model before and after a plan, as measured."""

    model: str
    plan: str
    before: Timing
    after: Timing
    layers: tuple[LayerTime, ...]
    """Layers with weights, in the order in which they are called; those that the plan takes out whole are not there."""
    cost: Cost
    data: str | None
    score_before: Score | None
    score_after: Score | None
    shapes: list[list[int]]
    """Shapes of the inputs."""
    dtype: str
    device: str
    threads: int
    notes: tuple[str, ...]
    versions: dict[str, str]

    @property
    def speedup(self) -> float:
        """How many times as quick the whole model is afterwards, by the medians."""
        return self.before.seconds / self.after.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values."""
        return {**dataclasses.asdict(self), "speedup": self.speedup}


def bench(
    model: nn.Module | str | Path,
    plan: Plan | str | Path,
    *,
    weights: str | Path | None = None,
    data: Task | str | Path | None = None,
    example: Tensor | tuple[Any, ...] = (),
    shape: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 3.0,
    progress: Progress = quiet,
) -> Bench:
    """Time ``model`` before and after ``plan``, in turns and warm, and return the medians with their spread.

    Parameters
    ----------
    model, weights
        As in :func:`efface.shrink`; a module that is given stays as it is.
    plan
        A plan, the folder of one, or what ``efface shrink`` wrote.
    data
        A task, ``"shapes"``, ``"digits"`` or a folder of labelled pictures, to score the accuracy.
    example, shape
        Positional inputs of the model, or the shape of its first one. Known by themselves with ``data`` and for most
        folders of transformers and diffusers.
    threads
        How many the CPU uses; by default as torch has it.
    seconds
        How long the whole is timed, and again its layers.

    Raises
    ------
    UsageError
        If no inputs are known, or the model does not take them.
    PlanError
        If the plan is for another model.
    """
    what = subject(model, plan, weights=weights, data=data, example=example, shape=shape, seed=seed, device=device)
    with using(threads):
        return measure(what, seconds=seconds, progress=progress)


def measure(what: Subject, *, seconds: float = 3.0, progress: Progress = quiet) -> Bench:
    """Time the model of a subject before and after its plan, and count what else there is to count."""
    if what.plan is None:
        raise UsageError("there is no plan to measure", fix="Give one: efface bench MODEL PLAN")
    before, after = what.net, what.plan.apply(copy.deepcopy(what.net))
    calls = {"before": partial(before, *what.example), "after": partial(after, *what.example)}
    with torch.inference_mode(), mode(before, training=False), mode(after, training=False):
        whole = interleave(calls, seconds=seconds, done=lambda share: progress(0.4 * share, "timing the model"))
        with Stopwatch(before, _layers(before)) as old, Stopwatch(after, _layers(after)) as new:
            interleave(calls, seconds=seconds, done=lambda share: progress(0.4 + 0.4 * share, "timing its layers"))
    progress(0.8, "counting" if what.task is None else "scoring")
    times, others = old.timings(), new.timings()
    return Bench(
        model=what.opened.name,
        plan=what.plan.name,
        before=whole["before"],
        after=whole["after"],
        layers=tuple(_layer(name, before, after, times[name], others[name]) for name in times if name in others),
        cost=what.plan.cost(before, what.example),
        data=None if what.task is None else what.task.name,
        score_before=what.score(before),
        score_after=what.score(after),
        shapes=what.shapes,
        dtype=str(next(before.parameters()).dtype).removeprefix("torch."),
        device=what.device,
        threads=torch.get_num_threads(),
        notes=_notes(what.plan, whole["before"], whole["after"]),
        versions=versions(),
    )


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in net.named_modules() if _weights(layer)}


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in layer.parameters(recurse=False) if weight.ndim > 1]


def _layer(name: str, old: nn.Module, new: nn.Module, before: Timing, after: Timing) -> LayerTime:
    total = sum(weight.numel() for weight in _weights(old.get_submodule(name)))
    layer = new.get_submodule(name)
    live = sum(int(weight.count_nonzero()) for weight in _weights(layer))
    return LayerTime(name, type(layer).__name__, live / total, before, after)


def _notes(plan: Plan, before: Timing, after: Timing) -> tuple[str, ...]:
    if before.seconds >= GAIN * after.seconds:
        return ()
    if any(op.kind not in ("mask", "delta") for op in plan.ops):
        return ("There is no speed-up",)
    return (NO_GAIN if "block" in plan.made_by else f"{NO_GAIN}. {ADVICE}",)  # which was tried already, or was not
