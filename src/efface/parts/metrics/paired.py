"""Compare two arms of an experiment that share their seeds, and read curves of learning.

Two arms that start from one seed see the same weights and data, so their difference varies far less than each of them:
what counts is the interval that the mean difference lies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efface.errors import InputError
from efface.seeds import numpy_generator

ENOUGH = 10
"""Pairs from which on resampling them says more than assuming that their differences are normal."""
RESAMPLES = 20_000


@dataclass(frozen=True)
class Interval:
    """The mean difference of two arms, and the bounds between which it lies with the confidence asked for."""

    mean: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Verdict:
    """What a comparison of two arms says: whether they differ, by how much, and in words."""

    differ: bool
    interval: Interval
    words: str


def bootstrap(differences: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean of ``differences`` (one per pair) with its two-sided studentised bootstrap interval.

    Resampled means are measured in their own standard errors (Efron and Tibshirani, An Introduction to the Bootstrap,
    12.5). Fewer than ten values are too few to resample: percentiles of their means would miss the truth up to a
    quarter of the time; there the draws come from a normal distribution, which gives Student's interval.

    Raises
    ------
    InputError
        If there are fewer than two values, or one is not finite.
    """
    values = np.asarray(differences, np.float64)
    if values.size < 2 or not np.isfinite(values).all():
        raise InputError(
            f"{values.size} finite differences are needed, two at least, and {np.isfinite(values).sum()} are there",
            where="bootstrap",
            fix="Repeat the experiment with more seeds",
        )
    n, mean = values.size, float(values.mean())
    generator = numpy_generator(seed, "bootstrap")
    if n < ENOUGH:
        draws = generator.standard_normal((RESAMPLES, n))
    else:
        draws = (values - mean)[generator.integers(0, n, (RESAMPLES, n))]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of equal values has no spread
        t = np.nan_to_num(draws.mean(1) / (draws.std(1, ddof=1) / np.sqrt(n)))
    error = values.std(ddof=1) / np.sqrt(n)
    below, above = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(mean - above * error), float(mean - below * error))


def verdict(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95, seed: int = 0, unit: str = ""
) -> Verdict:
    """Say whether the ``first`` arm differs from the ``second``, pair by pair: whether the interval leaves out 0."""
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} results are no pairs", where="verdict")
    interval = bootstrap(np.subtract(first, second).tolist(), confidence=confidence, seed=seed)
    differ = 0 not in interval
    found = ("the first is better" if interval.mean > 0 else "the second is better") if differ else "no difference"
    return Verdict(differ, interval, f"{found}: {interval} {unit}".rstrip() + f", {len(first)} pairs")


def steps_to_threshold(steps: Sequence[int], values: Sequence[float], threshold: float) -> int | None:
    """Return the first of ``steps`` at which the curve ``values`` is at ``threshold`` or above; None if it never is."""
    return next((step for step, value in zip(steps, values, strict=True) if value >= threshold), None)


def early_stop(steps: Sequence[int], losses: Sequence[float]) -> int:
    """Return the first of ``steps`` with the least validation loss: the usual measure of the speed of learning."""
    if len(steps) != len(losses) or not len(steps):
        raise InputError(f"{len(steps)} steps and {len(losses)} losses are no curve", where="early_stop")
    return steps[int(np.argmin(losses))]


def area(steps: Sequence[int], values: Sequence[float]) -> float:
    """Return the mean height of a curve between its first and last step, in the unit of ``values`` (trapezia)."""
    if len(steps) != len(values) or len(steps) < 2:
        raise InputError(f"{len(steps)} steps and {len(values)} values have no area", where="area")
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))
