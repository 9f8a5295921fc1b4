"""Order the data of a training as a pure function of (seed, index), so that resuming needs no cursor.

Batches are numbered over the whole training and over all processes: process ``r`` of ``w`` takes, for its ``i``-th
batch, number ``i * w + r``. One process that accumulates two batches and two processes that take one see the same data.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol

from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from torch import Tensor


class Source(Protocol):
    """What makes batches: a pure function of its three arguments."""

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return batch number ``step`` under ``seed``, with ``count`` samples along the first axis."""
        ...


class Batches(Dataset):
    """The batches of a training, each under its number."""

    def __init__(self, source: Source, seed: int, count: int) -> None:
        self.source, self.seed, self.count = source, seed, count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.source.batch(self.seed, index, self.count)


def batches(
    source: Source, indices: range, *, seed: int, count: int, workers: int = 0, pin: bool = False
) -> Generator[dict[str, Tensor]]:
    """Yield the batches numbered ``indices``, in order; ``workers`` processes make them ahead until this is closed."""
    yield from DataLoader(
        Batches(source, seed, count),
        batch_size=None,  # an item is a batch already
        sampler=indices,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=pin,
    )


def _ignore_signals(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; workers live on until the training process has finished its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
