"""Turn the share of weights that each layer should keep into whole numbers of channels that meet a budget.

The share that a layer keeps is the product, over its dimensions, of the shares of its indices that are kept; so the
logarithms of the widths of the groups are found by least squares, and then shifted together until the whole network,
in whole channels, meets the budget. Any method that says how dense layers should be becomes a structured one by this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efface.errors import UsageError
from efface.parts.graph.groups import ChannelGraph, Group

Floats = NDArray[np.float64]
Widths = Mapping[str, int]
"""Number of classes of each free group; those that are missing keep all they have."""
Cell = tuple[int, tuple[str, ...]]
"""A number of indices of a dimension, and the groups that they all belong to."""
ROUNDS = 30
"""Times that equations are made linear anew."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """Shapes of the parameters of a network, as functions of the widths of its free groups; see :func:`sizes_of`."""

    groups: Mapping[str, Group]
    cells: Mapping[str, Sequence[Sequence[Cell]]]
    """The cells of each dimension of each parameter."""

    @cached_property
    def full(self) -> dict[str, int]:
        """How many numbers each parameter has where all groups keep all they have."""
        return {name: self.numel(name, {}) for name in self.cells}

    def shape(self, name: str, widths: Widths) -> tuple[int, ...]:
        """Return the shape that a parameter has where groups have other ``widths``."""
        ratios = {group: width / self.groups[group].size for group, width in widths.items()}
        return tuple(round(sum(_left(cell, ratios) for cell in dim)) for dim in self.cells[name])

    def numel(self, name: str, widths: Widths) -> int:
        """Return how many numbers a parameter then has."""
        return math.prod(self.shape(name, widths))

    def parameters(self, widths: Widths) -> int:
        """Return how many numbers all parameters then have."""
        return sum(self.numel(name, widths) for name in self.cells)

    def slopes(self, name: str, ratios: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return log(share) of a parameter where groups have ``ratios`` of their classes, and its slope in each log."""
        logarithm, slopes = 0.0, dict[str, float]()
        for dim in self.cells[name]:
            left = [_left(cell, ratios) for cell in dim]
            logarithm += math.log(sum(left) / sum(count for count, _ in dim))
            for part, (_, groups) in zip(left, dim, strict=True):
                for group in groups:
                    slopes[group] = slopes.get(group, 0.0) + part / sum(left)
        return logarithm, slopes


@dataclass(frozen=True)
class Budget:
    """The most that something may cost: ``costs`` are those of the parameters of the whole network, by name."""

    what: str
    costs: Mapping[str, float]
    most: float


@dataclass(frozen=True, eq=False)
class Fit:
    """Widths that meet the budgets, and how near each layer came to the density that was asked for."""

    sizes: Sizes
    widths: dict[str, int]
    asked: Mapping[str, float]
    residuals: dict[str, float]
    """What each layer lacks of the logarithm of its density in the least squares, before all widths shift together."""

    @property
    def reached(self) -> dict[str, float]:
        """Share of its weights that each layer keeps; above 1 where it grows."""
        return {name: self.sizes.numel(name, self.widths) / self.sizes.full[name] for name in self.asked}

    @property
    def narrower(self) -> dict[str, int]:
        """The groups that lose channels."""
        return {name: width for name, width in self.widths.items() if width < self.sizes.groups[name].size}

    @property
    def wider(self) -> dict[str, int]:
        """The groups that grow."""
        return {name: width for name, width in self.widths.items() if width > self.sizes.groups[name].size}

    def as_dict(self) -> dict[str, Any]:
        """Return widths before and after, densities asked for and reached, and residuals, as JSON-ready values."""
        return {
            "widths": {name: [self.sizes.groups[name].size, width] for name, width in self.widths.items()},
            "densities": {name: [asked, self.reached[name]] for name, asked in self.asked.items()},
            "residuals": self.residuals,
        }

    def bottleneck(self) -> str:
        """Say in a sentence which layer came least near to its density."""
        reached = self.reached
        name = max(reached, key=lambda name: abs(math.log(reached[name] / self.asked[name])))
        return f"{name} is furthest from its density: {reached[name]:.3g} of its weights, not {self.asked[name]:.3g}"


def sizes_of(graph: ChannelGraph) -> Sizes:
    """Return the shapes of the parameters of the network of ``graph`` as functions of the widths of its groups."""
    parameters = dict(graph.model.named_parameters())
    members: dict[tuple[str, int], dict[str, NDArray[np.int64]]] = {}
    for group in graph.groups.values():
        for member in group.members:
            members.setdefault((member.name, member.dim), {})[group.name] = member.classes
    return Sizes(
        graph.groups,
        {
            name: [_cells(size, members.get((name, dim), {})) for dim, size in enumerate(parameter.shape)]
            for name, parameter in parameters.items()
        },
    )


def check_budgets(sizes: Sizes, budgets: Sequence[Budget], multiple_of: int) -> None:
    """Raise :class:`UsageError` if the smallest network that is possible costs more than a budget, saying how much."""
    smallest = {name: _Limit.of(group, multiple_of, 1.0).step for name, group in sizes.groups.items()}
    for budget in budgets:
        if (least := _cost(sizes, budget, smallest)) > budget.most:
            what = f"the smallest network, with {multiple_of} channels in each group, has {least:,.0f} {budget.what}"
            fix = f"The budget is {budget.most:,.0f}: raise it, or round to less than {multiple_of}"
            raise UsageError(what, where="budget", fix=fix)


def fit_widths(
    sizes: Sizes,
    densities: Mapping[str, float],
    budgets: Sequence[Budget],
    *,
    multiple_of: int = 8,
    grow: Mapping[str, float] | None = None,
) -> Fit:
    """Return the widths by which layers come nearest to ``densities`` (by name of the weight) within all ``budgets``.

    Channels of each group are a multiple of ``multiple_of``, unless the group keeps all it has. ``grow`` says how many
    times as wide as it was a group may get at most; by default none grows.

    Raises
    ------
    UsageError
        If a budget is too small: see :func:`check_budgets`.
    """
    limits = {name: _Limit.of(group, multiple_of, (grow or {}).get(name, 1.0)) for name, group in sizes.groups.items()}
    check_budgets(sizes, budgets, multiple_of)
    most = {name: math.log(max(1.0, (grow or {}).get(name, 1.0))) for name in limits}
    targets, residuals = _least_squares(sizes, densities, most)

    def fits(widths: Widths) -> bool:
        return all(_cost(sizes, budget, widths) <= budget.most for budget in budgets)

    def shifted(shift: float) -> dict[str, int]:
        return {name: limit.rounded(limit.size * math.exp(targets[name] + shift)) for name, limit in limits.items()}

    spans = [abs(targets[name]) + math.log(limit.high) for name, limit in limits.items()]
    reach = 1 + max(spans, default=0.0)  # a shift by as much takes every group to its bound
    low, high = -reach, reach
    for _ in range(40):  # down to a billionth
        middle = (low + high) / 2
        low, high = (middle, high) if fits(shifted(middle)) else (low, middle)
    widths = shifted(low)
    missing = {n: targets[n] + low - math.log(widths[n] / limit.size) for n, limit in limits.items()}
    waiting = sorted(missing, key=lambda name: -missing[name])
    while waiting:  # what rounding leaves over goes round, first to where most is missing, until no channel fits
        for name in list(waiting):
            more = {**widths, name: limits[name].next(widths[name])}
            if more != widths and fits(more):
                widths = more
            else:
                waiting.remove(name)
    return Fit(sizes, widths, densities, residuals)


@dataclass(frozen=True)
class _Limit:
    """The widths that a group may have: multiples of ``step`` from ``step`` to ``high``, and ``high`` itself."""

    size: int
    step: int
    high: int

    @classmethod
    def of(cls, group: Group, multiple_of: int, grow: float) -> _Limit:
        step = min(group.step(multiple_of), group.size)
        return cls(group.size, step, max(group.size, int(group.size * grow + 1e-9) // step * step))

    def rounded(self, width: float) -> int:
        return min(max(round(width / self.step) * self.step, self.step), self.high)

    def next(self, width: int) -> int:
        return min((width // self.step + 1) * self.step, self.high)


def _cells(size: int, groups: Mapping[str, NDArray[np.int64]]) -> list[Cell]:
    """Return how many of the indices of a dimension belong to which groups together."""
    inside = np.array([classes >= 0 for classes in groups.values()], dtype=bool).reshape(len(groups), size)
    kinds, counts = np.unique(inside, axis=1, return_counts=True)
    names = list(groups)
    return [
        (int(count), tuple(names[i] for i in np.flatnonzero(kind))) for kind, count in zip(kinds.T, counts, strict=True)
    ]


def _left(cell: Cell, ratios: Mapping[str, float]) -> float:
    count, groups = cell
    return count * math.prod(ratios.get(group, 1.0) for group in groups)


def _cost(sizes: Sizes, budget: Budget, widths: Widths) -> float:
    return sum(cost * sizes.numel(name, widths) / sizes.full[name] for name, cost in budget.costs.items())


def _least_squares(
    sizes: Sizes, densities: Mapping[str, float], most: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the logarithms of the ratios of all groups, each up to ``most``, and what is missing to each density.

    Layers weigh as many as the weights that they keep. Where a dimension is one group's, the equations are linear;
    where several share it (concatenation), they are linear in the neighbourhood of the last solution.
    """
    names, columns = list(most), {name: i for i, name in enumerate(most)}
    bound = np.array([most[name] for name in names])
    weights = np.sqrt([max(1.0, density * sizes.full[name]) for name, density in densities.items()])
    x, misses = np.zeros(len(names)), np.zeros(len(densities))
    for _ in range(ROUNDS):
        matrix = np.zeros((len(densities), len(names)))
        ratios = {name: math.exp(value) for name, value in zip(names, x, strict=True)}
        for row, (layer, density) in enumerate(densities.items()):
            logarithm, slopes = sizes.slopes(layer, ratios)
            for group, slope in slopes.items():
                matrix[row, columns[group]] = slope
            misses[row] = math.log(density) - logarithm
        wanted = misses + matrix @ x
        before, x = x, bound - _nnls(weights[:, None] * matrix, weights * (matrix @ bound - wanted))
        if np.abs(x - before).max(initial=0.0) < 1e-9:
            break
    return dict(zip(names, x.tolist(), strict=True)), dict(zip(densities, misses.tolist(), strict=True))


def _nnls(a: Floats, b: Floats) -> Floats:
    """Return the x >= 0 at which |a x - b| is least: the active-set algorithm of Lawson and Hanson (1974)."""
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.abs(a.T @ b).max(initial=0.0)))
    for _ in range(3 * len(x)):
        gain = np.where(free, -np.inf, a.T @ (b - a @ x))
        if gain.max(initial=-np.inf) <= tolerance:
            break
        free[gain.argmax()] = True
        while True:
            best = np.zeros(len(x))
            best[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if not (low := free & (best <= 0)).any():
                x = best
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                step = np.where(low, x / (x - best), np.inf).min()
            x = x + step * (best - x)
            free &= x > 1e-12
            x[~free] = 0
    return x
