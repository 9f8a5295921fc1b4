"""Set a network to training or evaluation for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def mode(net: nn.Module, *, training: bool) -> Iterator[None]:
    """Set ``net`` to training or evaluation, and afterwards give every module the mode that it had by itself."""
    before = {module: module.training for module in net.modules()}
    net.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was
