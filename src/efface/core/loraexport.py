"""Write edits of low rank as a LoRA file that diffusers loads, with no need of efface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.core.eraser import check_edits, editable
from efface.core.ops import Delta, Map, Op, tensor_at
from efface.core.plan import Plan
from efface.core.run import versions
from efface.errors import UsageError
from efface.io.weights import CARD, save_weights
from efface.parts.concepts.lora import Factors, to_peft

FILES = ("pytorch_lora_weights.safetensors", CARD)


def save_lora(pipe: Any, plans: Sequence[Plan], folder: Path | str, *, overwrite: bool = False) -> None:
    """Write what ``plans`` do together to ``pipe`` as the file that ``pipe.load_lora_weights(folder)`` reads.

    Raises :class:`UsageError` if an edit is not of low rank, or not of the weight of a layer.
    """
    about = {"edits": [plan.made_by for plan in plans], "versions": versions()}
    save_weights(folder, to_peft(factors(pipe, plans)), about, overwrite=overwrite, files=FILES)


@torch.no_grad()
def factors(pipe: Any, plans: Sequence[Plan]) -> dict[str, Factors]:
    """Return up (out, r), down (r, in) and the scale 1 for each layer, by name; r is the same for all.

    A map adds W up @ down to a weight W as the edits before it leave it. Layers of lower rank are filled with zeros,
    since readers of such files scale by the rank that most of them have.
    """
    box = editable(pipe)
    check_edits(box, plans)
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for plan in plans:
        for op in plan.ops:
            for name in op.touches:
                weight = tensor_at(box, name).detach().float().cpu()
                up, down = parts.get(name, (weight.new_zeros(len(weight), 0), weight.new_zeros(0, *weight.shape[1:])))
                more_up, more_down = _factors(op, weight, up, down)
                parts[name] = torch.cat([up, more_up], 1), torch.cat([down, more_down])
    rank = max(up.shape[1] for up, _ in parts.values())
    return {name.removesuffix(".weight"): _filled(*pair, rank) for name, pair in parts.items()}


def _factors(op: Op, weight: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``op`` adds to ``weight + up @ down``."""
    if isinstance(op, Map):
        double = op.up.double()
        return (weight.double() @ double + up.double() @ (down.double() @ double)).float(), op.down.float()
    if isinstance(op, Delta) and op.form == "low-rank" and op.target.endswith(".weight"):
        kernel = weight.shape[2:]
        return op.scale * op.given["up"].float().flatten(1), op.given["down"].float().view(-1, weight.shape[1], *kernel)
    what = "is no edit of low rank of a layer's weight"
    raise UsageError(what, where=op.target, fix="Export the edit as a pipeline")


def _filled(up: Tensor, down: Tensor, rank: int) -> Factors:
    more = rank - up.shape[1]
    up = torch.cat([up, up.new_zeros(len(up), more)], 1)
    down = torch.cat([down, down.new_zeros(more, *down.shape[1:])])
    return up.view(*up.shape, *[1] * (down.ndim - 2)), down, 1.0
