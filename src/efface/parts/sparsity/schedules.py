"""Say what is due at a step: densities on their way down, and the share of weights that is exchanged.

All are pure functions of the step, a whole number of optimiser steps (or of rounds, or levels) that counts from 0. So
the schedule of a training that was stopped needs no state. Endpoints are exact: they are returned, not computed.
"""

from __future__ import annotations

import math


def linear(step: int, first: float, last: float, start: int, stop: int) -> float:
    """Return the value on the line from ``first`` at ``start`` to ``last`` at ``stop``; constant before and after."""
    return _between(first, last, 1 - _left(step, start, stop), step >= stop)


def cubic(step: int, first: float, last: float, start: int, stop: int) -> float:
    """Return the density at ``step``: it falls fast at ``start``, when much is redundant, and slowly near ``stop``.

    Zhu and Gupta (arXiv:1710.01878), eq. 1, as d_t = d_f + (d_i - d_f) (1 - (t - t_0) / (t_f - t_0))^3.
    """
    return _between(first, last, 1 - _left(step, start, stop) ** 3, step >= stop)


def geometric(level: int, rate: float = 0.2) -> float:
    """Return the density after ``level`` levels that each take ``rate`` of what is left (iterative pruning)."""
    return (1 - rate) ** level


def exponential(step: int, last: float, steps: int) -> float:
    """Return the density after ``step`` of ``steps`` equal factors that lead from 1 to ``last`` (SynFlow's rounds)."""
    return last if step >= steps else last ** (max(step, 0) / steps)


def cosine(step: int, first: float, last: float, total: int) -> float:
    """Return the value on the half cosine from ``first`` at step 0 to ``last`` at ``total`` (drop fractions)."""
    return _between(first, last, (1 - math.cos(math.pi * min(max(step / total, 0), 1))) / 2, step >= total)


def _left(step: int, start: int, stop: int) -> float:
    """Return the share of the way from ``start`` to ``stop`` that is still to go at ``step``, in [0, 1]."""
    return 1.0 if step <= start else 0.0 if step >= stop else (stop - step) / (stop - start)


def _between(first: float, last: float, share: float, over: bool) -> float:
    return last if over else first + (last - first) * share
