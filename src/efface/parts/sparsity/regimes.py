"""Say how the connections of a network change while it trains: static, gmp, set, rigl, itop and granet are settings.

Two things can happen at an update: the density falls (connections of smallest magnitude go for good), and connections
are exchanged (as many grow as go). The methods differ in which of the two happens, when, and by what is grown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from efface.errors import UnknownNameError, UsageError
from efface.parts.sparsity.schedules import cosine, cubic

Growth = Literal["gradient", "momentum", "random", "none"]
Scope = Literal["global", "uniform"]
SHORT = 5000
"""Steps below which a training is short: exchanges end at 70 % of it, to leave time to heal."""
HEALING = 200
"""Steps that a connection should have to heal, at an exchange of all: sets the share that may be exchanged."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What changes at which step. Steps are optimiser steps done; updates come after every ``every`` of them.

    The density follows :func:`cubic` from ``init_density`` after step ``start`` to exactly ``density`` after step
    ``stop``; weights compete with all others (``global``), or layers have equal densities (``uniform``). From ``start``
    on and before ``end``, each layer exchanges a share of its live weights, along :func:`cosine` from ``drop`` to
    ``drop_last`` at step ``horizon`` (0 is ``end``). Initial masks are random with layer densities by ``rule``
    (``uniform`` scope: equal ones).
    """

    density: float
    init_density: float
    every: int
    start: int = 0
    stop: int = 0
    end: int = 0
    horizon: int = 0
    drop: float = 0.0
    drop_last: float = 0.0
    growth: Growth = "none"
    unfired: bool = False
    """Grow first where no weight has ever lived."""
    scope: Scope = "global"
    rule: str = "erk"
    min_keep: int = 1
    """Fewest weights that pruning leaves of a layer."""

    def __post_init__(self) -> None:
        if not 0 < self.density <= self.init_density <= 1:
            what = f"the density cannot go from {self.init_density:g} to {self.density:g}"
            raise UsageError(what, where="init_density, density", fix="Take 0 < density <= init_density <= 1")
        if self.every < 1 or not 0 <= self.start <= self.stop or self.stop < (self.density < self.init_density):
            what = f"no updates come every {self.every} steps from step {self.start} to step {self.stop}"
            raise UsageError(what, where="every, start, stop", fix="Take every >= 1 and 0 <= start <= stop")
        for name in ("drop", "drop_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{getattr(self, name):g} is no share", where=name, fix="Take one from 0 to 1")

    def density_at(self, step: int) -> float:
        """Return the density from ``step`` on."""
        return cubic(step, self.init_density, self.density, self.start, self.stop)

    def prunes(self, step: int) -> bool:
        """Return whether the density falls after ``step``; the last time is ``stop`` itself, whatever ``every`` is."""
        falling = self.density < self.init_density and self.start <= step <= self.stop
        return falling and (step % self.every == 0 or step == self.stop)

    def exchanged(self, step: int) -> float:
        """Return the share of live weights that is exchanged after ``step``; 0 between updates."""
        due = self.growth != "none" and step % self.every == 0 and self.start <= step < self.end
        return cosine(step, self.drop, self.drop_last, self.horizon or self.end) if due else 0.0


PRESETS: dict[str, dict[str, Any]] = {
    "static": {},
    "gmp": {"init_density": 1.0},
    "set": {"growth": "random", "drop": 0.3, "drop_last": 0.3},
    "rigl": {"growth": "gradient", "drop": 0.3, "end": 0.75},
    "itop": {"growth": "gradient", "drop": 0.5, "drop_last": 0.005, "unfired": True},
    "granet": {"growth": "gradient", "drop": 0.5, "drop_last": 0.005, "init_density": 0.5},
}
"""What each method sets; ``end`` as a share of the steps. See :func:`preset`."""


def preset(
    name: str,
    *,
    density: float,
    steps: int,
    init_density: float | None = None,
    every: int | None = None,
    stop: float = 0.5,
    end: float | None = None,
    drop: float | None = None,
    growth: Growth | None = None,
    scope: Scope = "global",
    min_keep: int = 1,
) -> Regime:
    """Return the regime of the method ``name`` for a training of ``steps`` steps that ends at ``density``.

    ``static`` never changes its masks; ``gmp`` prunes gradually (arXiv:1710.01878), ``set`` exchanges at random
    (arXiv:1707.04780), ``rigl`` by gradient (arXiv:1911.11134), ``itop`` where no weight has been (arXiv:2102.02887);
    ``granet`` prunes and exchanges (arXiv:2106.10404). ``stop`` (the density's end) and ``end`` (of exchanges) are
    shares of the steps; ``growth`` is heeded where the method exchanges. What is not given is the method's own, with an
    update every 1 % of the steps and two rules for short trainings: exchanges take at most ``every / HEALING`` of the
    live weights, and none comes in the last 30 % of less than ``SHORT`` steps.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    own: dict[str, Any] = {"init_density": density, "growth": "none", "drop": 0.0, "drop_last": 0.0, "end": 1.0}
    own |= PRESETS[name]
    every = max(1, steps // 100) if every is None else every
    drop = min(own["drop"], every / HEALING) if drop is None else drop
    end = min(own["end"], 0.7 if steps < SHORT else 1.0) if end is None else end
    return Regime(
        density=density,
        init_density=max(density, own["init_density"]) if init_density is None else init_density,
        every=every,
        stop=max(1, round(stop * steps)),
        end=round(end * steps),
        horizon=0 if name == "rigl" else steps,
        drop=drop,
        drop_last=min(own["drop_last"], drop),
        growth=own["growth"] if growth is None or own["growth"] == "none" else growth,
        unfired=own.get("unfired", False),
        scope=scope,
        min_keep=min_keep,
    )
