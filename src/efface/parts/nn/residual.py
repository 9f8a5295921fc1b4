"""Encode pictures with residual blocks and instance normalisation, at one resolution."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel of every picture to mean 0 and variance 1; channels-last stays channels-last."""
    if x.dtype != torch.float32:
        return F.group_norm(x, x.shape[1])  # quickest, but its sums lose float32's last three digits on large pictures
    x = x - x.mean((2, 3), keepdim=True)
    return x * (x.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()


class ResidualBlock(nn.Module):
    """Add two 3x3 convolutions to their input, each normalised per picture and channel (no learned scale).

    Where the number of channels changes, the input passes a normalised 1x1 convolution ``skip`` first.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = None if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, channels_in, h, w) to (b, channels, h, w)."""
        y = F.relu(instance_norm(self.conv1(x)))
        y = F.relu(instance_norm(self.conv2(y)))
        return F.relu(y + (x if self.skip is None else instance_norm(self.skip(x))))


class ResidualEncoder(nn.Module):
    """Turn (b, channels_in, h, w) into (b, channels_out, h, w) features.

    A 7x7 convolution to ``stem`` channels, for each of ``widths`` a stage of ``blocks`` residual blocks, and a 1x1
    convolution. Instance normalisation makes every output depend on the whole picture. Weights start as He et al.
    2015 (fan out, ReLU).
    """

    def __init__(self, channels_in: int, stem: int, widths: Sequence[int], blocks: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, stem, 7, padding=3)
        widths = (stem, *widths)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(*(ResidualBlock(a if i == 0 else b, b) for i in range(blocks)))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.conv2 = nn.Conv2d(widths[-1], channels_out, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of ``x`` at its own resolution."""
        return self.conv2(self.stages(F.relu(instance_norm(self.conv1(x)))))
