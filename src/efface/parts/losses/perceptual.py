"""Compare pictures by what a fixed network sees in them: features, and correlations of features.

The network can be VGG-16 with weights of the user's, or one of its shape and smaller with seeded random weights, whose
features carry texture well enough for a style loss (Ustyuzhaninov et al., arXiv:1606.00021).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import WeightsError
from efface.seeds import torch_generator

DEPTHS = (2, 2, 3)
"""Convolutions of VGG-16 before each of its first three poolings."""
WIDTHS = (64, 128, 256)


class Features(nn.Module):
    """First three stages of a VGG-16 of the given widths: (b, 3, h, w) in [0, 1] to maps at strides 2, 4 and 8."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        channels = [3, *(width for depth, width in zip(DEPTHS, widths, strict=True) for _ in range(depth))]
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the map after each pooling."""
        maps, layers = [], iter(self.layers)
        for depth in DEPTHS:
            for _ in range(depth):
                x = F.relu(next(layers)(x))
            x = F.max_pool2d(x, 2)
            maps.append(x)
        return maps


def random_features(seed: int = 0, widths: Sequence[int] = (16, 32, 64)) -> Features:
    """Return a frozen network whose weights are drawn from ``seed`` (He et al. 2015), its biases 0."""
    generator = torch_generator(seed, "features")
    net = Features(widths).requires_grad_(False)
    for layer in net.layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return net


def vgg16_features(path: Path) -> Features:
    """Return the frozen network with the weights of a safetensors file, under the usual names ``features.0.weight`` ...

    Raises :class:`WeightsError` where the file cannot be read, lacks a layer or is of another network.
    """
    names = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14)]
    try:
        found = load_file(path)
        state = {f"layers.{i}.{k}": found[f"{name}.{k}"] for i, name in enumerate(names) for k in ("weight", "bias")}
        net = Features()
        net.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"not the weights of a VGG-16: {error}", where=path, fix="Give a safetensors file"
        ) from error
    return net.requires_grad_(False)


@cache
def features(weights: str, device: str) -> Features:
    """Return the network of the file ``weights``, or the random one where it is empty, kept once per device."""
    return (vgg16_features(Path(weights)) if weights else random_features()).to(device)


def gram(maps: Tensor) -> Tensor:
    """Return the correlations (b, c, c) of feature maps (b, c, h, w) divided by c h w, in float32 (half underflows)."""
    flat = maps.flatten(2).float()
    with torch.autocast(maps.device.type, enabled=False):
        return flat @ flat.transpose(1, 2) / flat[0].numel()


def perceptual(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean absolute difference of feature maps, summed over the maps (Johnson et al. 2016)."""
    return torch.stack([F.l1_loss(a.float(), b.float()) for a, b in zip(found, wanted, strict=True)]).sum()


def style(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean absolute difference of Gram matrices, summed over the maps (Gatys et al. 2016)."""
    return torch.stack([F.l1_loss(gram(a), gram(b)) for a, b in zip(found, wanted, strict=True)]).sum()
