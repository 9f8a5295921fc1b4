"""Estimate the running statistics of batch normalisation anew, after the weights have changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from efface.errors import DataError
from efface.parts.nn.modes import mode

Merge = Literal["pooled", "plain"]


def normalised(net: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers of ``net`` that keep running statistics, by name."""
    return {name: m for name, m in net.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


def merged(
    means: Sequence[Tensor], variances: Sequence[Tensor], counts: Sequence[int], how: Merge = "pooled"
) -> tuple[Tensor, Tensor]:
    """Return mean and variance over all data of several sources, of which each has ``counts`` examples.

    By the law of total variance: the mean of the variances and the variance of the means. ``plain`` leaves out the
    second, which tells how the sources differ. Variances divide by the number of values. Computed in float64.
    """
    share = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    mean = torch.tensordot(share, (stacked := torch.stack(list(means)).double()), 1)
    within = torch.tensordot(share, torch.stack(list(variances)).double(), 1)
    between = torch.tensordot(share, (stacked - mean).square(), 1)
    both = within if how == "plain" else within + between
    return mean.to(means[0].dtype), both.to(variances[0].dtype)


@torch.no_grad()
def reestimate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running means and variances of ``net`` by their averages over ``batches`` of its input.

    Every batch counts the same. All else runs as in evaluation (no dropout); weights, modes and momenta stay as they
    were. Without batch normalisation nothing happens. If anything fails, the old statistics come back.

    Raises
    ------
    DataError
        If there is no batch.
    """
    norms = list(normalised(net).values())
    if not norms:
        return
    before = [(norm, norm.momentum, {k: v.clone() for k, v in norm.named_buffers(recurse=False)}) for norm in norms]
    seen = 0
    try:
        with mode(net, training=False):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # averages cumulatively
            for batch in batches:
                net(batch)
                seen += 1
        if not seen:
            raise DataError("statistics cannot be estimated from no batches", fix="Give at least one batch")
    except BaseException:
        for norm, _, buffers in before:
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum


def statistics(net: nn.Module) -> Tensor:
    """Return running means and variances (2, channels) of all norms of ``net``, one behind the other."""
    norms = normalised(net).values()
    return torch.stack([torch.cat([n.get_buffer(f"running_{kind}") for n in norms]) for kind in ("mean", "var")])


def load_statistics(net: nn.Module, given: Tensor) -> None:
    """Give the norms of ``net`` the means and variances (2, channels) that :func:`statistics` returned."""
    start = 0
    for norm in normalised(net).values():
        for kind, values in zip(("mean", "var"), given, strict=True):
            norm.get_buffer(f"running_{kind}").copy_(values[start : start + norm.num_features])
        start += norm.num_features
