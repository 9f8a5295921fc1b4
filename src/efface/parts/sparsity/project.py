"""Project scores or a mask of single weights on blocks of rows that each keep a set of columns of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from efface.errors import UsageError

BLOCK = 256
"""Most rows of a block: enough for matrix products at full speed, and far finer than leaving out whole inputs."""

LANES = 16
"""Products run at full speed where the columns kept are a multiple of this."""


def columns_near(columns: int, share: float) -> int:
    """Return how many of ``columns`` to keep for a ``share`` of them: the nearest multiple of 16, or less than 16."""
    exact = share * columns
    aligned = LANES * round(exact / LANES)
    return columns if share >= 1 else min(columns, aligned or max(1, round(exact)))


def blocks_of(rows: int, block: int = BLOCK) -> tuple[int, int]:
    """Return into how many blocks ``rows`` are cut, and how many rows a block has; the last one may have fewer."""
    if block < 1:
        raise UsageError(f"a block of {block} rows holds nothing", fix="Give at least 1; 128 to 256 are quickest")
    count = -(-rows // block)
    return count, -(-rows // count)


def project(scores: Tensor, kept: int, block: int = BLOCK) -> Tensor:
    """Return the columns (blocks, kept) that hold most of ``scores`` (out, in, ...), ascending in each block.

    The score of a column is the sum of its entries inside the block, kernel taps included; to keep the most energy,
    give squared weights, zero where a mask takes them out. Among equal scores the first column stays.

    Raises
    ------
    UsageError
        If ``kept`` is not within 1 and the number of columns, or a score is negative or not a number.
    """
    rows, columns = scores.shape[:2]
    if not 1 <= kept <= columns:
        raise UsageError(f"{kept} of {columns} columns cannot be kept", fix=f"Keep 1 to {columns}")
    if not bool((scores >= 0).all()):
        raise UsageError("the scores hold negative values or NaN", fix="Give squares of weights")
    count, size = blocks_of(rows, block)
    by_row = scores.reshape(rows, columns, -1).sum(2, dtype=torch.float64)
    by_row = torch.nn.functional.pad(by_row, (0, 0, 0, count * size - rows))
    by_block = by_row.view(count, size, columns).sum(1)
    order = by_block.sort(dim=1, descending=True, stable=True).indices
    return order[:, :kept].sort(dim=1).values


def pattern_mask(columns: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the bool mask of a weight of ``shape`` (out, in, ...) that keeps the ``columns`` (blocks, kept)."""
    rows, inputs = shape[:2]
    by_block = torch.zeros(len(columns), inputs, dtype=torch.bool, device=columns.device).scatter(
        1, columns.long(), True
    )
    by_row = by_block.repeat_interleave(-(-rows // len(columns)), 0)[:rows]
    return by_row.view(rows, inputs, *[1] * (len(shape) - 2)).expand(shape)


def coverage(mask: Tensor, columns: Tensor) -> float:
    """Return the share of the weights kept by ``mask`` that the ``columns`` keep as well; 1 if it keeps none."""
    kept = int(mask.sum())
    return int((mask & pattern_mask(columns, tuple(mask.shape))).sum()) / kept if kept else 1.0
