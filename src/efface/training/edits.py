"""Turn what a training did to a model into the edits of a plan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from efface.core.ops import Delta, Mask, Op
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import tied


def edits(model: nn.Module, masks: MaskSet, state: Mapping[str, Tensor] | None = None) -> list[Op]:
    """Return the edits that leave ``model`` with ``masks``, and with the trained ``state`` where one is given.

    Of a masked weight only what is kept is stored, and of what training did not change nothing beyond the mask.
    """
    if state is None:
        return [Mask(name, mask) for name, mask in masks.items()]
    others, found = tied(model), list[Op]()
    for name, old in model.state_dict().items():
        if name in others:
            continue
        old, new, mask = old.cpu(), state[name].cpu(), masks[name].cpu() if name in masks else None
        if mask is None and not torch.equal(new, old):
            found.append(Delta.set(name, new))
        elif mask is not None:
            same = torch.equal(new[mask], old[mask])
            found.append(Mask(name, mask) if same else Delta.set(name, new, mask))
    return found
