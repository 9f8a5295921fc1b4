"""Repair an edited language model with low-rank adapters, and give them as edits of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from efface.core.ops import Delta, Op
from efface.extras import need
from efface.parts.data.language import Corpus
from efface.parts.language.blocks import blocks_of
from efface.seeds import seeded
from efface.training.recipe import Train
from efface.training.tuning import tune


def low_rank_repair(
    net: nn.Module,
    data: Corpus,
    train: Train,
    ranks: Mapping[int, int],
    *,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> list[Op]:
    """Train adapters on all linear layers of the blocks of ``net``, and return what they add to its weights.

    ``ranks`` gives the rank by the number of the block; others get none. An adapter adds up @ down, whatever its rank.
    Afterwards the weights of ``net`` are as they were, and the adapters are left in it.
    """
    peft: Any = need("peft", extra="diffusion", job="repair by low-rank adapters")
    path, blocks = blocks_of(net)
    kinds = {type(module).__name__ for module in blocks.modules()}
    layers = {
        f"{path}.{number}.{name}": ranks[number]
        for number, block in enumerate(blocks)
        if number in ranks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    with seeded(train.seed, "adapters"):
        config = peft.LoraConfig(
            target_modules=list(layers), r=1, lora_alpha=1, rank_pattern=layers, alpha_pattern=layers,
            fan_in_fan_out="Conv1D" in kinds,
        )  # fmt: skip
        adapted = peft.inject_adapter_in_model(config, net)
    tune(adapted, data, train, device=device, every=max(1, train.steps // 4), progress=progress)
    ops: list[Op] = []
    for name in layers:
        layer = adapted.get_submodule(name)
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        if type(layer.base_layer).__name__ == "Conv1D":
            up, down = down.T, up.T
        ops.append(Delta.low_rank(f"{name}.weight", up, down, layer.scaling["default"]))
    return ops
