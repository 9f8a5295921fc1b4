"""Tie the weights of a layer to their neighbours: a Markov field on a grid, its messages, samples and clusters.

The grid of a layer has a row for each input and a column for each neuron (:func:`to_grid`). Along each column and row
runs a Markov chain over which weights live, so that live ones come in clusters (Xia, Tsang and Lau, Turbo-VBI,
arXiv:2302.10483). What neighbours say of a weight is found by loopy belief propagation, all messages at once.

Clusters follow the order in which a layer keeps its inputs and neurons. Hidden channels have no order of their own, so
a cluster there says nothing of the data: it makes indices cheap, and blocks full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from efface.errors import UsageError

LIMIT = 30.0
"""Largest log-odds: beyond it float32 knows no difference from certainty."""
ORDER = 2 * math.log(1 + math.sqrt(2))
"""Coupling from which on a square grid without evidence orders as a whole (Onsager's critical point), 1.76."""


class SupportPrior(Protocol):
    """What is known of the places of live weights before any is looked at."""

    def extrinsic(self, evidence: Tensor) -> Tensor:
        """Return, for log-odds ``evidence`` (rows, columns) of each weight alone, those that all others give it."""
        ...

    def refit(self, evidence: Tensor) -> SupportPrior:
        """Return the prior that explains the ``evidence`` better (one step of expectation maximisation)."""
        ...


@dataclass(frozen=True)
class Independent:
    """Every weight lives with probability ``density``, whatever its neighbours do."""

    density: float = 0.5

    def extrinsic(self, evidence: Tensor) -> Tensor:
        """Return the log-odds of the density everywhere."""
        return torch.full_like(evidence, math.log(self.density / (1 - self.density)))

    def refit(self, evidence: Tensor) -> Independent:
        """Return the density expected under the ``evidence``."""
        share = float(torch.sigmoid(evidence + self.extrinsic(evidence)).mean())
        return Independent(min(max(share, 1e-3), 1 - 1e-3))


@dataclass(frozen=True)
class Chain:
    """A stationary Markov chain over dead (0) and live (1): the probability of 1 after 0 (``p01``) and 1 (``p11``)."""

    p01: float
    p11: float

    def __post_init__(self) -> None:
        for name in ("p01", "p11"):
            if not 0 < getattr(self, name) < 1:
                what = f"{getattr(self, name):g} is no probability of a chain"
                raise UsageError(what, where=name, fix="Take one between 0 and 1")

    @property
    def density(self) -> float:
        """Share of live weights."""
        return self.p01 / (1 - self.p11 + self.p01)

    @property
    def length(self) -> float:
        """Mean length of a cluster of live weights."""
        return 1 / (1 - self.p11)

    @property
    def coupling(self) -> float:
        """Log-odds of a weight behind a live one less those behind a dead one; 0 is independent, below 0 repels."""
        return math.log(self.p11 / (1 - self.p11)) - math.log(self.p01 / (1 - self.p01))

    def onward(self, q: Tensor) -> Tensor:
        """Return the log-odds of a weight whose predecessor lives with probability ``q``."""
        return torch.logit(self.p01 + (self.p11 - self.p01) * q)

    def back(self, q: Tensor) -> Tensor:
        """Return what a successor that lives with probability ``q`` adds to the log-odds of a weight."""
        one = (1 - self.p11) + (2 * self.p11 - 1) * q
        return one.log() - ((1 - self.p01) + (2 * self.p01 - 1) * q).log()

    def expected(self, before: Tensor, after: Tensor) -> Chain:
        """Return the transitions expected between pairs, given what all but the other say of each (probabilities)."""
        stay, come = before * after * self.p11, (1 - before) * after * self.p01
        go, none = before * (1 - after) * (1 - self.p11), (1 - before) * (1 - after) * (1 - self.p01)
        total = stay + come + go + none
        sums = [float((part / total).sum(dtype=torch.float64)) for part in (come, none, stay, go)]
        shares = [sums[0] / max(sums[0] + sums[1], 1e-12), sums[2] / max(sums[2] + sums[3], 1e-12)]
        return Chain(*(min(max(share, 1e-3), 1 - 1e-3) for share in shares))


@dataclass(frozen=True)
class GridMarkov:
    """A chain ``down`` each column, from input to input, and one ``across`` each row, from neuron to neuron.

    Beliefs are exact on a single row or column and close to it on grids, where loops are counted in. All messages are
    sent at once, ``sweeps`` times, and ``damping`` of each old one is kept, since strong couplings would oscillate.
    Where both couplings exceed :data:`ORDER`, a grid is as a whole live or dead, whatever most of its weights say.
    """

    down: Chain
    across: Chain
    sweeps: int = 15
    damping: float = 0.5

    def extrinsic(self, evidence: Tensor) -> Tensor:
        """Return the sum of the four messages that reach each weight; see :class:`SupportPrior`."""
        above, below, left, right = self._messages(evidence)
        return above + below + left + right

    def refit(self, evidence: Tensor) -> GridMarkov:
        """Return both chains with the transitions expected under the ``evidence``; a lone line says nothing."""
        above, below, left, right = self._messages(evidence)
        total = evidence + above + below + left + right
        down, across = self.down, self.across
        if len(evidence) > 1:
            down = down.expected((total - below)[:-1].sigmoid(), (total - above)[1:].sigmoid())
        if evidence.shape[1] > 1:
            across = across.expected((total - right)[:, :-1].sigmoid(), (total - left)[:, 1:].sigmoid())
        return GridMarkov(down, across, self.sweeps, self.damping)

    def sample(self, shape: tuple[int, int], generator: torch.Generator, sweeps: int = 100) -> Tensor:
        """Draw a bool grid of ``shape`` by Gibbs sampling: all even places, then all odd ones, ``sweeps`` times."""
        live = torch.rand(shape, generator=generator) < self.down.density
        even = (torch.arange(shape[0])[:, None] + torch.arange(shape[1])) % 2 == 0
        for place in (even, ~even) * sweeps:
            drawn = (
                torch.rand(shape, generator=generator) < torch.stack(self._sent(*[live.float()] * 4)).sum(0).sigmoid()
            )
            live = torch.where(place, drawn, live)
        return live

    def _messages(self, evidence: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what each weight is told from above, from below, from the left and from the right (log-odds)."""
        told = tuple(torch.zeros_like(evidence) for _ in range(4))
        for _ in range(self.sweeps):
            above, below, left, right = told
            total = evidence + above + below + left + right
            sent = self._sent(*((total - back).sigmoid() for back in (below, above, right, left)))
            told = tuple(new.lerp_(old, self.damping) for new, old in zip(sent, told, strict=True))
        return told  # type: ignore[return-value]

    def _sent(self, down: Tensor, up: Tensor, on: Tensor, back: Tensor) -> tuple[Tensor, ...]:
        """Return the messages that arrive where weights live with the given probabilities; chains start stationary."""
        above, below, left, right = (torch.zeros_like(q) for q in (down, up, on, back))
        above[0], left[:, 0] = (math.log(c.density / (1 - c.density)) for c in (self.down, self.across))
        above[1:], below[:-1] = self.down.onward(down[:-1]), self.down.back(up[1:])
        left[:, 1:], right[:, :-1] = self.across.onward(on[:, :-1]), self.across.back(back[:, 1:])
        return above, below, left, right


def to_grid(weight: Tensor) -> Tensor:
    """Return a weight (out, in) as (in, out), and a kernel (out, in, h, w) as (h in, w out)."""
    if weight.ndim == 2:
        return weight.t()
    outputs, inputs, height, width = weight.shape
    return weight.permute(2, 1, 3, 0).reshape(height * inputs, width * outputs)


def from_grid(grid: Tensor, shape: torch.Size) -> Tensor:
    """Return what :func:`to_grid` made of a weight of ``shape``."""
    if len(shape) == 2:
        return grid.t()
    outputs, inputs, height, width = shape
    return grid.reshape(height, inputs, width, outputs).permute(3, 1, 0, 2)


@dataclass(frozen=True)
class Clusters:
    """How the live weights of a grid lie: in runs down its columns."""

    count: int
    """Number of runs."""
    length: float
    """Mean length of a run, 0 without any."""
    empty_rows: int
    empty_columns: int
    index_bits: int
    """Bits that tell which weights live: runs of dead and live ones, column after column, in Elias gamma code."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values."""
        return dict(vars(self))


def clusters(grid: Tensor) -> Clusters:
    """Describe the clusters of a bool ``grid`` (rows, columns)."""
    begins = grid & ~torch.nn.functional.pad(grid[:-1], (0, 0, 1, 0))
    count, live = int(begins.sum()), int(grid.sum())
    _, runs = torch.unique_consecutive(grid.t().flatten(), return_counts=True)
    bits = int((2 * torch.floor(torch.log2(runs.double())) + 1).sum()) + 1  # one says which kind comes first
    rows, columns = (int((~grid.any(dim)).sum()) for dim in (1, 0))
    return Clusters(count, live / count if count else 0.0, rows, columns, bits)
