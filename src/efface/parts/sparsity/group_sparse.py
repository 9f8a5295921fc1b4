"""Bring groups of parameters exactly to zero while any optimiser of torch trains them.

The optimiser takes its own step; what it did is read off the parameters (momentum, decay and adaptive rates with it),
and what group sparsity adds follows in a hook. So there is one form for SGD, Adam and all others, their state is their
own, and where no group is redundant not a bit differs from the bare optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from efface.errors import PlanError, UsageError
from efface.parts.sparsity.groups import (
    TINY,
    GroupViews,
    Reading,
    View,
    dhspg_importance,
    dual_half_space,
    half_space,
    hesso_importance,
)
from efface.parts.sparsity.masks import Attached, unwrapped


class Choice(Protocol):
    """Which groups may go, and how many should."""

    def choose(self, importance: Tensor, part: float = 1.0, spare: float = 0.0) -> Tensor:
        """Return the groups (bool) that go for ``part`` of the target and the share ``spare`` beyond it."""
        ...

    def enough(self, zero: Tensor) -> bool:
        """Say whether the target is reached where the groups ``zero`` (bool) are gone."""
        ...


@dataclass(frozen=True)
class Stage:
    """From which step to which groups come to zero, and how.

    ``dhspg`` penalises redundant groups and projects those that leave their half-space (Chen et al., arXiv:2303.06862);
    ``hesso`` shrinks them to zero in a line, in ``periods`` rounds that each choose anew.
    """

    start: int
    stop: int
    """Steps, counted from 0; the target is reached after step ``stop - 1`` at the latest."""
    rule: Literal["dhspg", "hesso"] = "dhspg"
    weight: float = 1e-3
    """Weight of the norm of a redundant group (lambda)."""
    amplify: float = 2.0
    limit: float = 10.0
    """How far the weight rises where the step would grow a group; see :func:`.groups.dual_half_space`."""
    epsilon: float = 0.0
    """Width of the projection in [0, 1)."""
    spare: float = 0.05
    """Share of the groups that is penalised beyond the target; the first to arrive go."""
    periods: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop - self.periods or self.periods < 1:
            what = f"{self.periods} rounds do not fit between the steps {self.start} and {self.stop}"
            raise UsageError(what, where="start, stop, periods", fix="Train for longer, or with fewer rounds")


class GroupSparse:
    """Groups that come to zero, and stay there, in the steps of an optimiser; :meth:`attach` begins."""

    def __init__(self, views: Sequence[View], count: int, choice: Choice, stage: Stage) -> None:
        self.choice, self.stage = choice, stage
        self.step, self.forced = 0, 0
        """``forced``: groups that had not come to zero by themselves when the stage ended."""
        self.zero = torch.zeros(count, dtype=torch.bool)
        self.redundant = torch.zeros(count, dtype=torch.bool)
        self._views, self._before = list(views), dict[str, Tensor]()

    def attach(self, model: nn.Module, optimizer: Any) -> Attached:
        """Act on ``model`` after every step of ``optimizer``, which trains it; undo with ``.remove()``."""
        optimizer, groups = unwrapped(optimizer), GroupViews(model, self._views, len(self.zero))
        self.zero, self.redundant = self.zero.to(groups.device), self.redundant.to(groups.device)
        self._hold(optimizer, groups)

        @torch.no_grad()
        def remember(*_: object) -> None:
            if self._reads:
                self._before = {name: value.clone() for name, value in groups.values().items()}

        @torch.no_grad()
        def act(*_: object) -> None:
            if self._acts:
                getattr(self, f"_{self.stage.rule}")(optimizer, groups)
            self._before = {}
            self._hold(optimizer, groups)
            self.step += 1

        return Attached([optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(act)])

    @property
    def _acts(self) -> bool:
        began = self.step == self.stage.start or bool(self.redundant.any())
        return began and self.stage.start <= self.step < self.stage.stop

    @property
    def _reads(self) -> bool:
        return self._acts and (self.stage.rule == "dhspg" or self._place[1] == 0)

    @property
    def _place(self) -> tuple[int, int, int]:
        """The round that the step is in, its place there, and the length of the round."""
        stage, past = self.stage, self.step - self.stage.start
        length = (stage.stop - stage.start) // stage.periods
        number = min(past // length, stage.periods - 1)
        last = stage.stop - stage.start - number * length
        return number, past - number * length, last if number == stage.periods - 1 else length

    def _dhspg(self, optimizer: torch.optim.Optimizer, groups: GroupViews) -> None:
        """Penalise redundant groups in the dual half-space; set those to zero that leave their own."""
        stage, now, rates = self.stage, groups.values(), _rates(optimizer, groups)
        reading = Reading.of(groups, self._before, now, rates)
        if self.step == stage.start:
            self.redundant = self._chosen(dhspg_importance(reading), spare=stage.spare)
        weight = dual_half_space(reading, stage.weight, stage.amplify, stage.limit) * self.redundant
        groups.add_(now, self._before, -weight / reading.norm.clamp_min(TINY), rates)
        left = half_space(reading.norm, groups.dots(now, self._before), stage.epsilon) & self.redundant
        self._settle(left, groups.norms(now))
        if self.step == stage.stop - 1 and bool(self.redundant.any()):
            self._finish(groups.norms(now))

    def _settle(self, left: Tensor, norms: Tensor) -> None:
        """Set ``left`` to zero, smallest first, as far as the target asks for; at the target, let the others go."""
        if not bool(left.any()):
            return
        order = torch.argsort(norms.masked_fill(~left, torch.inf), stable=True)[: int(left.count_nonzero())]

        def after(count: int) -> Tensor:
            return self.zero.index_fill(0, order[:count], True)

        low, high = 0, len(order)
        reached = self.choice.enough(after(high))
        while reached and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.choice.enough(after(middle)) else (middle, high)
        self.zero = after(high)
        self.redundant = torch.zeros_like(self.zero) if reached else self.redundant & ~self.zero

    def _finish(self, norms: Tensor) -> None:
        """Set what is missing to the target to zero: redundant groups, small ones first."""
        norms = torch.where(self.redundant, norms, norms + norms.max() * len(norms))
        missing = self._chosen(norms) & ~self.zero
        self.forced = int(missing.count_nonzero())
        self.zero = self.zero | missing
        self.redundant = torch.zeros_like(self.zero)

    def _hesso(self, optimizer: torch.optim.Optimizer, groups: GroupViews) -> None:
        """Shrink redundant groups so that they come to zero in a line at the end of the round."""
        number, place, length = self._place
        if place == 0:
            reading = Reading.of(groups, self._before, groups.values(), _rates(optimizer, groups))
            self.redundant = self._chosen(hesso_importance(reading), part=(number + 1) / self.stage.periods)
        left = torch.full_like(self.zero, (length - place - 1) / (length - place), dtype=torch.float32)
        groups.scale_(groups.values(), torch.where(self.redundant, left, 1.0))
        if place == length - 1:
            self.zero = self.zero | self.redundant

    def _chosen(self, importance: Tensor, part: float = 1.0, spare: float = 0.0) -> Tensor:
        """Choose on the CPU; groups that are zero already count among the least important."""
        importance = importance.masked_fill(self.zero, -torch.inf).cpu()
        return self.choice.choose(importance, part, spare).to(self.zero.device)

    def _hold(self, optimizer: torch.optim.Optimizer, groups: GroupViews) -> None:
        """Keep groups at zero, and all that the optimiser remembers of them, which would revive them."""
        if not bool(self.zero.any()):
            return
        groups.zero_(groups.values(), self.zero)
        states = {name: optimizer.state.get(p, {}) for name, p in groups.parameters.items()}
        for key in {key for state in states.values() for key in state}:
            found = {name: state[key] for name, state in states.items() if isinstance(state.get(key), Tensor)}
            alike = {name: v for name, v in found.items() if v.ndim and v.shape == groups.parameters[name].shape}
            groups.zero_(alike, self.zero)

    def state_dict(self) -> dict[str, Any]:
        """Return the state beside that of model and optimiser: tensors and numbers alone."""
        return {
            "step": self.step,
            "forced": self.forced,
            "zero": self.zero.cpu().clone(),
            "redundant": self.redundant.cpu().clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a :meth:`state_dict`, before attaching; raise :class:`PlanError` if it is of other groups."""
        if state["zero"].shape != self.zero.shape:
            what = f"the state is of {len(state['zero'])} groups, and there are {len(self.zero)}"
            raise PlanError(what, fix="Build the network that was trained")
        self.step, self.forced = state["step"], state["forced"]
        self.zero, self.redundant = state["zero"].clone(), state["redundant"].clone()


def _rates(optimizer: torch.optim.Optimizer, groups: GroupViews) -> dict[str, float]:
    """Return the learning rate of each parameter, 0 for those that the optimiser does not train."""
    rates = {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: rates.get(p, 0.0) for name, p in groups.parameters.items()}
