"""See parameters in groups that come to zero together, and reckon with all groups at once.

A group is what one channel has in all layers that make it, or all that an operator has. Groups are views: for a
dimension of a parameter, the number of the group that each of its indices belongs to. Norms and inner products of all
groups come from one pass over the parameters, by sums over rows and ``index_add_``; no element has an index of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
TINY = 1e-12
"""Smallest norm that is divided by."""


@dataclass(frozen=True, eq=False)
class View:
    """The group (int64, -1 for none) of each index of a dimension of the parameter ``name``."""

    name: str
    dim: int
    groups: Tensor


class GroupViews:
    """Groups 0 to ``count - 1`` of the parameters of ``model``, as ``views`` tell. Views of one tensor may overlap."""

    def __init__(self, model: nn.Module, views: Sequence[View], count: int) -> None:
        self.parameters = {view.name: model.get_parameter(view.name) for view in views}
        self.device = next((p.device for p in self.parameters.values()), torch.device("cpu"))
        self.count = count
        self._views = []  # the group -1 is the last one, which is cut off
        for view in views:
            groups = torch.where(view.groups < 0, count, view.groups)
            self._views.append((view.name, view.dim, groups.to(self.parameters[view.name].device)))
        self.sizes = self.dots(ones := {n: torch.ones_like(p) for n, p in self.values().items()}, ones)

    def values(self) -> dict[str, Tensor]:
        """Return the parameters as they are, without gradients, not copied."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def dots(self, a: Tensors, b: Tensors) -> Tensor:
        """Return the inner product (count,) of each group in ``a`` with the same in ``b``, in float32 at least."""
        sums = torch.zeros(self.count + 1, device=self.device)
        for name, dim, groups in self._views:
            wide = torch.promote_types(a[name].dtype, torch.float32)
            rows = (a[name].to(wide) * b[name].to(wide)).movedim(dim, 0).reshape(len(groups), -1)
            found = rows.sum(1).to(self.device)
            sums = sums.to(torch.promote_types(sums.dtype, found.dtype)).index_add_(0, groups.to(self.device), found)
        return sums[:-1]

    def norms(self, tensors: Tensors) -> Tensor:
        """Return the L2 norm (count,) of each group."""
        return self.dots(tensors, tensors).sqrt()

    @torch.no_grad()
    def scale_(self, tensors: Tensors, factors: Tensor) -> None:
        """Multiply each group of ``tensors`` by its factor (count,), in place."""
        factors = torch.cat([factors, factors.new_ones(1)])
        for name, dim, groups in self._views:
            if (tensor := tensors.get(name)) is not None:
                tensor.mul_(_along(factors.to(tensor.device)[groups], tensor, dim).to(tensor.dtype))

    @torch.no_grad()
    def add_(self, tensors: Tensors, others: Tensors, factors: Tensor, rates: Mapping[str, float]) -> None:
        """Add ``rate * factor`` times each group of ``others`` to ``tensors``, rates by parameter, in place."""
        factors = torch.cat([factors, factors.new_zeros(1)])
        for name, dim, groups in self._views:
            tensor = tensors[name]
            scale = _along(rates[name] * factors.to(tensor.device)[groups], tensor, dim)
            tensor.add_(others[name] * scale.to(tensor.dtype))

    @torch.no_grad()
    def zero_(self, tensors: Tensors, which: Tensor) -> None:
        """Set the groups ``which`` (bool, (count,)) of ``tensors`` to +0, in place; those missing are left out."""
        which = torch.cat([which, which.new_zeros(1)])
        for name, dim, groups in self._views:
            if (tensor := tensors.get(name)) is not None:
                tensor.masked_fill_(_along(which.to(tensor.device)[groups], tensor, dim), 0)


@dataclass(frozen=True, eq=False)
class Reading:
    """Groups x in a step x - rate * g of an optimiser, each number (count,)."""

    size: Tensor
    norm: Tensor
    """Of x."""
    dot: Tensor
    """Of x with g."""
    slope: Tensor
    """Norm of g."""

    @classmethod
    def of(cls, views: GroupViews, before: Tensors, after: Tensors, rates: Mapping[str, float]) -> Reading:
        """Read the step that led from ``before`` to ``after``; g holds momentum, decay and all else."""
        g = {name: (before[name] - after[name]) / rates[name] if rates[name] else 0 * after[name] for name in before}
        return cls(views.sizes, views.norms(before), views.dots(before, g), views.norms(g))

    @property
    def cosine(self) -> Tensor:
        """Cosine of x and g in [-1, 1]: where it is high, the step shrinks the group."""
        return (self.dot / (self.norm * self.slope).clamp_min(TINY)).clamp(-1, 1)


def dhspg_importance(reading: Reading) -> Tensor:
    """Return how much each group matters to DHSPG: little where the step shrinks it and its mean size is small.

    The negative of the mean of cos(x, g) and size / |x|, each a vector of norm 1 over all groups (arXiv:2303.06862).
    """
    small = reading.size / reading.norm.clamp_min(TINY)
    return -(_unit(reading.cosine) + _unit(small)) / 2


def hesso_importance(reading: Reading) -> Tensor:
    """Return the mean of five scores, each a vector of norm 1 over all groups: |x|, |x| / size, x.g once and squared.

    The cosine counts as in DHSPG: a group that the step shrinks matters less. (The official code adds it the other way
    round.)
    """
    r = reading
    scores = (r.norm, r.norm / r.size, 1 - r.cosine, r.dot.abs(), r.dot.square() / 2)
    return torch.stack([_unit(score) for score in scores]).mean(0)


def dual_half_space(reading: Reading, weight: float, amplify: float, limit: float) -> Tensor:
    """Return the weight of |x| in each group with which the step lessens both |x| and the loss, to first order.

    The direction is -g - w x / |x|. It has a negative product with x for w > low = -x.g / |x|, and with g for
    w < high = |g|^2 |x| / -x.g where x.g < 0; low < high unless x and g are parallel. w is ``weight`` where x.g >= 0;
    else ``amplify * low`` within [weight, limit * weight], or half way between the bounds if that is outside of them.
    """
    against = (-reading.dot).clamp_min(TINY)
    low = against / reading.norm.clamp_min(TINY)
    high = reading.slope.square() * reading.norm / against
    found = (amplify * low).clamp(weight, limit * weight)
    found = torch.where((found <= low) | (found >= high), (low + high) / 2, found)
    return torch.where(reading.dot < 0, found, weight)


def half_space(norm: Tensor, moved: Tensor, epsilon: float) -> Tensor:
    """Return which groups x leave the half-space {y: x.y >= epsilon |x|^2} in a step, by ``moved`` = x . new x."""
    return moved < epsilon * norm.square()


def _unit(scores: Tensor) -> Tensor:
    return scores / torch.linalg.vector_norm(scores).clamp_min(TINY)


def _along(values: Tensor, tensor: Tensor, dim: int) -> Tensor:
    """Return ``values``, one for each index of ``dim`` of ``tensor``, in a shape that goes with it."""
    return values.view([-1 if i == dim else 1 for i in range(tensor.ndim)])
