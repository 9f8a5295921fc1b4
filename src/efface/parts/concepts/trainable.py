"""Choose the weights of a denoiser that an eraser trains."""

from __future__ import annotations

import re

from torch import nn

from efface.errors import UsageError

GROUPS = {"cross": r"\.attn2\.", "cross-kv": r"\.attn2\.to_[kv]\.", "full": ""}
"""Groups that have names: cross-attention, its keys and values, everything."""


def trainable(net: nn.Module, which: str) -> dict[str, nn.Parameter]:
    """Return the weights of ``net`` in a group of :data:`GROUPS`, or whose names contain the pattern ``which``.

    Raises
    ------
    UsageError
        If ``which`` is neither a group nor a regular expression, or no weight is left.
    """
    try:
        pattern = re.compile(GROUPS.get(which, which))
    except re.error as error:
        fix = f"Use {', '.join(GROUPS)}, or a pattern that parts of the names match"
        raise UsageError(f"{which!r} is no regular expression: {error}", where="weights", fix=fix) from None
    if not (found := {name: weight for name, weight in net.named_parameters() if pattern.search(name)}):
        some = ", ".join(name for name, _ in list(net.named_parameters())[:2])
        what = f"no weight has {which!r} in its name"
        raise UsageError(what, where=type(net).__name__, fix=f"Use {', '.join(GROUPS)}, or a part of names like {some}")
    return found
