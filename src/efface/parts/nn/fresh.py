"""Draw the first weights of a network anew."""

from __future__ import annotations

from torch import nn


def redraw(net: nn.Module) -> list[str]:
    """Let every module of ``net`` draw its first weights from torch's generator, in order; its sizes may have changed.

    Returns the names of the parameters whose modules do not tell how theirs are drawn: those keep their values.
    """
    kept = []
    for path, module in net.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        else:
            kept += [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
    return kept
