"""Infer which precisions of Gaussian weights are large, under a prior that mixes two Gamma distributions.

A weight w is N(0, 1 / rho); rho is Gamma(a, b) where its support s is 1, and another Gamma, of larger mean, where it is
0 (Xia, Tsang and Lau, Turbo-VBI, arXiv:2302.10483, section III). Of q(w) only the second moment ``mu^2 + sigma^2`` is
needed. Probabilities are log-odds throughout: b^a overflows, its logarithm does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efface.parts.sparsity.grid import LIMIT


class Gamma(NamedTuple):
    """A Gamma distribution over precisions: mean ``a / b``."""

    a: float
    b: float


def apart(
    moment: Tensor, prior: Tensor, support: Tensor, active: Gamma, inactive: Gamma, half: float
) -> tuple[Tensor, Tensor]:
    """Return log-odds of supports and mean precisions after one step of each, q(rho) q(s) (paper, section IV-B).

    ``moment`` is mu^2 + sigma^2, ``prior`` and ``support`` are log-odds, ``half`` is 1/2 for real weights and 1 for
    complex ones.
    """
    q = support.sigmoid()
    shape = q * active.a + (1 - q) * inactive.a + half
    rate = q * active.b + (1 - q) * inactive.b + half * moment
    mean, log_mean = shape / rate, torch.digamma(shape) - rate.log()

    def expected(gamma: Gamma) -> Tensor:  # log of the density, up to what both have
        a, b = (torch.tensor(value, dtype=torch.float64) for value in gamma)
        return (a * b.log() - torch.lgamma(a)).to(mean) + (gamma.a - 1) * log_mean - gamma.b * mean

    return (prior + expected(active) - expected(inactive)).clamp(-LIMIT, LIMIT), mean


def together(
    moment: Tensor, prior: Tensor, support: Tensor, active: Gamma, inactive: Gamma, half: float
) -> tuple[Tensor, Tensor]:
    """Return the same as :func:`apart` at the optimum of q(rho | s) q(s): the support sees rho integrated out."""
    evidence, means = [], []
    for gamma in (active, inactive):
        a, b = (torch.tensor(value, dtype=torch.float64) for value in gamma)
        rate = gamma.b + half * moment
        known = a * b.log() - torch.lgamma(a) + torch.lgamma(a + half)
        evidence.append(known.to(moment) - (gamma.a + half) * rate.log())
        means.append((gamma.a + half) / rate)
    found = (prior + evidence[0] - evidence[1]).clamp(-LIMIT, LIMIT)
    return found, torch.lerp(means[1], means[0], found.sigmoid())
