"""Time calls against each other so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of a warm call: the median of ``runs``, and the quartiles around it."""

    seconds: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        """Sum up ``samples``, of which there are at least two."""
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), low, high, len(samples))


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    least: int = 5,
    most: int = 500,
    done: Callable[[float], None] = lambda share: None,
) -> dict[str, Timing]:
    """Time ``calls`` in turns, each round in another order, after two rounds that do not count.

    There are ``least`` rounds, and more up to ``most`` while ``seconds`` have not passed; ``done`` is told the share
    of the work after each. Work on a GPU is waited for.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for number in range(-2, most):
        if number == 0:
            start = time.perf_counter()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            wait()
            begin = time.perf_counter()
            calls[name]()
            wait()
            samples[name].append(time.perf_counter() - begin)
        passed = time.perf_counter() - start
        done(min(1.0, max(0, number + 1) / least, passed / seconds if seconds else 1.0))
        if number + 1 >= least and passed >= seconds:
            break
    return {name: Timing.of(taken[2:]) for name, taken in samples.items()}


def wait() -> None:
    """Wait until a GPU has done what it was given; a CPU has always."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
