"""Hold a method's evidence: what its paper claims, what was measured beside a baseline, and whether it showed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efface.core.catalogue import entry
from efface.core.run import versions
from efface.errors import UsageError


@dataclass(frozen=True)
class Claim:
    """Statement of what ``efface check`` will show, beside which baseline, in about how many minutes on two cores."""

    statement: str
    baseline: str
    minutes: float
    data: str
    """What it is measured on, in words."""


@dataclass(frozen=True)
class Effect:
    """One measured effect. ``measured`` holds a list with one number per seed for each arm of the comparison."""

    name: str
    rule: str
    """When it counts as shown, in words with the numbers in it; fixed before measuring."""
    measured: dict[str, list[float]]
    shown: bool
    unit: str = ""
    note: str = ""


@dataclass
class Context:
    """What a claim's ``check`` is given."""

    seeds: Sequence[int] = (0, 1, 2)
    data: Path | None = None
    """Folder of real data, or None for data that the package makes."""
    long: bool = False
    """Spend more time for a stronger form of the claim."""
    quick: bool = False
    """Run every line with almost no work, to see that it runs; what it measures means nothing."""
    device: str = "cpu"
    progress: Callable[[str], None] = print


@dataclass
class Result:
    """A claim as measured, ready to be stored under ``results/``."""

    method: str
    claim: Claim
    effects: list[Effect]
    seeds: list[int]
    data: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""

    @property
    def shown(self) -> bool:
        """Whether every effect showed."""
        return all(effect.shown for effect in self.effects)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return {**asdict(self), "shown": self.shown}


def claim_module(name: str) -> Any:
    """Import the claim of the method called ``name``."""
    method = entry(name)
    module = f"efface.claims.{method.stem}"
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"{method.name} has no claim", where=module, fix="Add claims/<method>.py with CLAIM and check")
    return importlib.import_module(module)


def measure(name: str, context: Context) -> Result:
    """Run the claim of ``name`` and return what was measured, with the versions and seeds that made it."""
    module, start = claim_module(name), time.perf_counter()
    effects = list(module.check(context))
    return Result(
        method=entry(name).name,
        claim=module.CLAIM,
        effects=effects,
        seeds=list(context.seeds),
        data="quick run, figures mean nothing" if context.quick else _data_in_words(module.CLAIM, context),
        seconds=round(time.perf_counter() - start, 1),
        versions=versions(),
        machine=f"{platform.machine()}, Python {platform.python_version()}, {context.device}",
    )


def paired(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Return what the first arm has over the second, seed by seed."""
    return [a - b for a, b in zip(first, second, strict=True)]


def spread(differences: Sequence[float], unit: str = "dB") -> str:
    """Say how large the differences are, and how much they differ between seeds."""
    mean, deviation = statistics.fmean(differences), statistics.pstdev(differences)
    return f"difference {mean:+.2f} {unit}, standard deviation over seeds {deviation:.2f}"


def load_result(path: Path) -> Result:
    """Read a stored result."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("shown", None)
    values["claim"] = Claim(**values["claim"])
    values["effects"] = [Effect(**e) for e in values["effects"]]
    return Result(**values)


def _data_in_words(claim: Claim, context: Context) -> str:
    real = "" if context.data is None else f"; real data: {context.data.name}"
    return claim.data + real + ("; the long form" if context.long else "")
