"""Open what is measured: a model on its device, inputs that it takes, and perhaps a plan and a task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efface.core.models import Opened, open_model
from efface.core.plan import Plan
from efface.core.trained import pick_device
from efface.errors import UsageError
from efface.parts.counting import positional
from efface.parts.data.tasks import Score, Task
from efface.parts.data.tasks import task as find_task
from efface.verbs.inputs import check_inputs, drawn, require_network

Progress = Callable[[float, str], None]
"""Is told the share of the work that is done, and what comes next."""


def quiet(share: float, what: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    opened: Opened
    net: nn.Module
    """The model on its device; it is edited for moments only."""
    plan: Plan | None
    task: Task | None
    example: tuple[Any, ...]
    device: str

    @property
    def shapes(self) -> list[list[int]]:
        """Shapes of the inputs that are tensors."""
        return [list(value.shape) for value in self.example if isinstance(value, Tensor)]

    def score(self, net: nn.Module | None = None) -> Score | None:
        """Score the model, or ``net`` in its place, on the task; None where there is none."""
        return None if self.task is None else self.task.score(net or self.net)


def subject(
    model: nn.Module | str | Path,
    plan: Plan | str | Path | None = None,
    *,
    weights: str | Path | None = None,
    data: Task | str | Path | None = None,
    example: Tensor | tuple[Any, ...] = (),
    shape: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Subject:
    """Open ``model``, ``plan`` and ``data``, and make sure that they belong together.

    ``example`` are the positional inputs, or ``shape`` is that of the first, which is then drawn at random. Without
    either they are a picture of the task, or what the model's folder tells. A module that is given stays as it is.

    Raises
    ------
    UsageError
        If no inputs are known, or the model does not take them.
    PlanError
        If the plan is for another model.
    """
    device, opened = pick_device(device), open_model(model, weights, seed=seed)
    require_network(opened)
    task = find_task(data) if isinstance(data, str | Path) else data
    net = (copy.deepcopy(opened.model) if opened.form == "module" else opened.model).to(device)
    plan = Plan.load(plan) if isinstance(plan, str | Path) else plan
    if plan is not None:
        plan.check(net)
    inputs = positional(example) or drawn(opened, task, shape, seed)
    if not inputs:
        fix = "Give the shape of one, --input 1x3x224x224, or data"
        raise UsageError("what the model takes is not known", where=opened.name, fix=fix)
    inputs = tuple(value.to(device) if isinstance(value, Tensor) else value for value in inputs)
    check_inputs(net, inputs, where=opened.name)
    if task is not None:
        task.check(net)
    return Subject(opened, net, plan, task, inputs, device)
