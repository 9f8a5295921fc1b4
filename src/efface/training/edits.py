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

    Of a masked weight only what is kept is stored; what training did not change is not stored at all.
    """
    if state is None:
        return [Mask(name, mask) for name, mask in masks.items()]
    others, before = tied(model), model.state_dict()
    changed = {
        name: values.cpu()
        for name, values in state.items()
        if name not in others and (name in masks or not torch.equal(values.cpu(), before[name].cpu()))
    }
    return [Delta.set(name, values, masks.get(name)) for name, values in changed.items()]
