"""Count how many weights stay after each level of iterative pruning, and pick them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from efface.errors import UnknownNameError, UsageError
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.topk import keep_global, keep_layerwise

SCOPES = ("global", "layer")
Keep = int | dict[str, int]
"""How many weights stay: of all, or of each layer."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A share ``rate`` of the weights that are left goes at each level.

    Weights compete with all others (``global``), or with those of their own ``layer``; in the second case ``rates``
    holds the shares of layers that differ, by the name of the weight. Counts are rounded from the initial ones, so that
    no error builds up over levels.
    """

    rate: float = 0.2
    scope: str = "global"
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rate in {"rate": self.rate, **self.rates}.items():
            if not 0 < rate < 1:
                raise UsageError(f"a share of {rate:g} cannot go at each level", where=name, fix="Take 0.2, say")
        if self.scope not in SCOPES:
            raise UsageError(f"{self.scope!r} is not one of {', '.join(SCOPES)}", where="scope")
        if self.rates and self.scope == "global":
            what = "single layers have no share of their own where all weights compete"
            raise UsageError(what, where=next(iter(self.rates)), fix="Prune by layer, or exclude these layers")

    def keep(self, masks: MaskSet, level: int) -> Keep:
        """Return how many weights of all that ``masks`` covers stay after ``level`` levels.

        Raises :class:`UsageError` if nothing of a layer would be left.
        """
        shares = self._shares(masks)
        counts = {name: round(mask.numel() * (1 - shares[name]) ** level) for name, mask in masks.items()}
        if self.scope == "global":
            return round(masks.total * (1 - self.rate) ** level)
        if empty := [name for name, count in counts.items() if not count]:
            raise UsageError(f"level {level} would leave nothing of it", where=empty[0], fix="Prune less often or less")
        return counts

    def reaching(self, masks: MaskSet, sparsity: float) -> tuple[Budget, int]:
        """Return the least number of levels that reach ``sparsity``, and the budget lowered so that they just do."""
        if not 0 < sparsity < 1:
            raise UsageError(f"{sparsity:g} is outside (0, 1)", where="sparsity", fix="0.9 takes nine of ten weights")
        shares, goal = self._shares(masks), 1 - sparsity

        def density(scale: float, levels: int) -> float:
            return sum(m.numel() * (1 - scale * shares[n]) ** levels for n, m in masks.items()) / masks.total

        levels = 1
        while density(1.0, levels) > goal * (1 + 1e-9):
            levels += 1
        low, high = 0.0, 1.0
        for _ in range(60):  # halves the interval down to the precision of a float
            middle = (low + high) / 2
            low, high = (middle, high) if density(middle, levels) > goal else (low, middle)
        rates = {name: high * rate for name, rate in self.rates.items()}
        return dataclasses.replace(self, rate=high * self.rate, rates=rates), levels

    def _shares(self, masks: MaskSet) -> dict[str, float]:
        if unknown := [name for name in self.rates if name not in masks]:
            raise UnknownNameError("weight to be pruned", unknown[0], masks)
        return {name: self.rates.get(name, self.rate) for name in masks}


def best(scores: Mapping[str, Tensor], masks: MaskSet, keep: Keep) -> MaskSet:
    """Return the weights of highest score among those that ``masks`` keeps, ``keep`` of them."""
    alive = {name: scores[name].masked_fill(~mask.to(scores[name].device), -math.inf) for name, mask in masks.items()}
    kept = keep_global(alive, keep) if isinstance(keep, int) else keep_layerwise(alive, keep)
    return MaskSet(kept, masks.aliases)
