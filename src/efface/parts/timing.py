"""Time calls against each other so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import nn

from efface.errors import UsageError
from efface.seeds import numpy_generator

WARM = 2
"""Rounds that do not count."""


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
    """Time ``calls`` in turns, warm.

    Each round has a random order: whoever always followed the same call would find the same caches.
    After :data:`WARM` rounds there are ``least`` that count, and more up to ``most`` while ``seconds`` have not passed.
    ``done`` is told the share of the work after each. Work on a GPU is waited for.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for number in range(-WARM, most):
        if number == 0:
            start = time.perf_counter()
        for place in numpy_generator(0, number, "turns").permutation(len(names)):
            wait()
            begin = time.perf_counter()
            calls[names[place]]()
            wait()
            samples[names[place]].append(time.perf_counter() - begin)
        passed = time.perf_counter() - start
        done(min(1.0, max(0, number + 1) / least, passed / seconds if seconds else 1.0))
        if number + 1 >= least and passed >= seconds:
            break
    return {name: Timing.of(taken[WARM:]) for name, taken in samples.items()}


def wait() -> None:
    """Wait until a GPU has done what it was given; a CPU has always."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Stopwatch:
    """Take the time of some layers of ``net`` in every call of it, for as long as the context lasts."""

    def __init__(self, net: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self.net, self.names = net, {layer: name for name, layer in layers.items()}
        self.samples: dict[str, list[float]] = defaultdict(list)
        self.started: dict[nn.Module, float] = {}
        self.passed: dict[str, float] = defaultdict(float)

    def __enter__(self) -> Stopwatch:
        self.handles = [self.net.register_forward_hook(self._note)]
        for layer in self.names:
            self.handles.append(layer.register_forward_pre_hook(self._start))
            self.handles.append(layer.register_forward_hook(self._stop))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def timings(self) -> dict[str, Timing]:
        """Return how long each layer that was called took, all its calls in one of ``net`` together, warm."""
        return {name: Timing.of(taken[WARM:]) for name, taken in self.samples.items()}

    def _start(self, layer: nn.Module, args: object) -> None:
        wait()
        self.started[layer] = time.perf_counter()

    def _stop(self, layer: nn.Module, args: object, output: object) -> None:
        wait()
        self.passed[self.names[layer]] += time.perf_counter() - self.started[layer]

    def _note(self, net: nn.Module, args: object, output: object) -> None:
        for name, passed in self.passed.items():
            self.samples[name].append(passed)
        self.passed.clear()


@contextlib.contextmanager
def using(threads: int | None) -> Iterator[None]:
    """Let torch use ``threads`` of the CPU for a while; None leaves it as it is."""
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads compute nothing", where="threads", fix="Give at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
