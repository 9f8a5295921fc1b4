"""Estimate the running statistics of batch normalisation anew, after the weights have changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from efface.errors import DataError
from efface.parts.nn.modes import mode


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
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
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
