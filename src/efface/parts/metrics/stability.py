"""Measure how far apart two trainings of one network end: distance, angle, and the barrier between them.

Two copies that reach the same valley are close, and every network on the line between them is as good as they are
(Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, arXiv:1912.05671).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.errors import InputError
from efface.parts.nn.batchnorm import reestimate

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Distance:
    """Euclidean distance and angle in degrees between two vectors of weights."""

    l2: float
    angle: float


@dataclass(frozen=True)
class Barrier:
    """The error along the line between two networks; ``height`` is what it rises above the mean of its ends."""

    height: float
    alphas: tuple[float, ...]
    """Share of the first network at each point."""
    errors: tuple[float, ...]


def distance(first: State, second: State, masks: Mapping[str, Tensor]) -> Distance:
    """Return the distance of two networks over the live weights alone, all masked layers as one vector.

    ``masks`` gives a boolean tensor, True where a weight lives, for each name to be compared. The angle of a vector of
    zeros is 90 degrees. Raises :class:`InputError` if a name is missing or no weight is live.
    """
    return _distance([_live(first, second, name, mask) for name, mask in masks.items()])


def distance_per_layer(first: State, second: State, masks: Mapping[str, Tensor]) -> dict[str, Distance]:
    """Return :func:`distance` for each layer that has live weights."""
    return {name: _distance([_live(first, second, name, mask)]) for name, mask in masks.items() if mask.any()}


def _live(first: State, second: State, name: str, mask: Tensor) -> tuple[Tensor, Tensor]:
    if missing := [side for side, state in (("first", first), ("second", second)) if name not in state]:
        raise InputError(f"the {' and the '.join(missing)} network has no such weight", where=name)
    keep = mask.to(first[name].device)
    return first[name][keep].double(), second[name].to(keep.device)[keep].double()


def _distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> Distance:
    if not sum(a.numel() for a, _ in pairs):
        raise InputError("there are no live weights to compare", where="distance")
    l2 = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    norms = [sum(float(side.square().sum()) for side in sides) ** 0.5 for sides in zip(*pairs, strict=True)]
    if not all(norms):
        return Distance(l2, 90.0)
    # From the unit vectors' difference and sum: the cosine would lose every angle below a millionth of a degree.
    ends = [(a / norms[0], b / norms[1]) for a, b in pairs]
    apart = sum(float((a - b).square().sum()) for a, b in ends) ** 0.5
    along = sum(float((a + b).square().sum()) for a, b in ends) ** 0.5
    return Distance(l2, 2 * torch.tensor(apart, dtype=torch.float64).atan2(torch.tensor(along)).rad2deg().item())


@torch.no_grad()
def barrier(
    net: nn.Module,
    first: State,
    second: State,
    error: Callable[[nn.Module], float],
    *,
    points: int = 11,
    batches: Sequence[Tensor] = (),
) -> Barrier:
    """Return how much worse than its ends the worst network on the line between two states of ``net`` is.

    max over alpha of error(alpha first + (1 - alpha) second), less the mean of the errors of both ends, at ``points``
    values of alpha from 0 to 1. Running statistics of batch normalisation mean nothing between two networks: with
    ``batches`` they are estimated anew at every point, the ends included. ``net`` gives the architecture and stays as
    it is; counters and other whole numbers are those of ``first``.
    """
    if points < 2:
        raise InputError(f"{points} points make no line", where="barrier", fix="Take 11 or more")
    between = copy.deepcopy(net)
    alphas = torch.linspace(0, 1, points, dtype=torch.float64).tolist()
    errors = []
    for alpha in alphas:
        between.load_state_dict(
            {k: torch.lerp(second[k], v, alpha) if v.is_floating_point() else v for k, v in first.items()}
        )
        if batches:
            reestimate(between, batches)
        errors.append(float(error(between)))
    return Barrier(max(errors) - (errors[0] + errors[-1]) / 2, tuple(alphas), tuple(errors))
