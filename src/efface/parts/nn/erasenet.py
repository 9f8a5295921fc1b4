"""Erase text from coarse to fine: a U-Net, a branch that marks the text, and a network that refines the result.

Source: EraseNet (Liu et al. 2020, IEEE TIP 29) in the form that arXiv:2204.12743 trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.parts.nn import spectral

STRIDE = 32
"""Height and width must be multiples of this."""


class Encoded(NamedTuple):
    """What the encoder saw, for a network of width w."""

    skips: tuple[Tensor, Tensor, Tensor, Tensor]
    """(b, w, h/2, .), (b, 2w, h/4, .), (b, 4w, h/8, .), (b, 8w, h/16, .)"""
    feature: Tensor
    """(b, 8w, h/16, w/16): what marks text."""


class Erased(NamedTuple):
    """Every output of the network."""

    refined: Tensor
    """(b, 3, h, w): the result."""
    coarse: Tensor
    """(b, 3, h, w): what was refined."""
    half: Tensor
    """(b, 3, h/2, w/2)"""
    quarter: Tensor
    """(b, 3, h/4, w/4)"""
    mask: Tensor
    """(b, 3, h, w): logits of the text, three estimates of it."""
    feature: Tensor
    """(b, 8w, h/16, w/16): what the encoder saw."""


class EraseNet(nn.Module):
    """Coarse-to-fine eraser of (b, 3, h, w) pictures in [0, 1]; 19,737,615 parameters at ``width`` 32."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(spectral.conv(3, w, 4, stride=2), spectral.conv(w, w))
        self.down2 = nn.Sequential(spectral.conv(w, 2 * w, 4, stride=2), Residual(2 * w, 2 * w))
        self.down3 = nn.Sequential(Residual(2 * w, 2 * w), Residual(2 * w, 4 * w, stride=2))
        self.down4 = nn.Sequential(Residual(4 * w, 4 * w), Residual(4 * w, 8 * w, stride=2))
        self.seen = Residual(8 * w, 8 * w)
        self.down5 = nn.Sequential(
            Residual(8 * w, 16 * w, stride=2), Residual(16 * w, 16 * w), spectral.conv(16 * w, 16 * w, 1)
        )
        outputs = (8 * w, 4 * w, 2 * w, w, 3)
        self.up = nn.ModuleList(map(spectral.up, (16 * w, *(2 * o for o in outputs[:-1])), outputs))
        self.lateral = nn.ModuleList(lateral(c) for c in (8 * w, 4 * w, 2 * w, w))
        self.side4, self.side2 = nn.Conv2d(2 * w, 3, 1), nn.Conv2d(w, 3, 1)
        self.mark = MaskDecoder(w, joined=True)
        self.refine = Refiner(w)
        for plain in (self.side4, self.side2):
            spectral.start(plain)

    def encode(self, x: Tensor) -> Encoded:
        """Return the skips and the feature that marks text."""
        first = self.stem(x)
        second = self.down2(first)
        third = self.down3(second)
        fourth = self.down4(third)
        return Encoded((first, second, third, fourth), self.seen(fourth))

    def forward(self, x: Tensor) -> Erased:
        """Return every output for ``x`` (b, 3, h, w); h and w are multiples of 32."""
        skips, feature = self.encode(x)
        maps, y = [], self.down5(feature)
        for i, up in enumerate(self.up):
            y = up(y) if i == 0 else up(torch.cat([self.lateral[i - 1](skips[-i]), y], 1))
            maps.append(y)
        return Erased(
            refined=self.refine(y, skips[0], skips[1]),
            coarse=y,
            half=self.side2(maps[3]),
            quarter=self.side4(maps[2]),
            mask=self.mark(feature, skips),
            feature=feature,
        )


class Residual(nn.Module):
    """Two convolutions beside a shortcut, then batch norm and ReLU; ``stride`` 2 halves the map."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
        self.norm = nn.BatchNorm2d(outputs)
        self.apply(spectral.start)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        return F.relu(self.norm(self.conv2(F.relu(self.conv1(x))) + self.short(x)))


class MaskDecoder(nn.Module):
    """Bring the encoder's feature (b, 8w, h/16, w/16) up to logits (b, 3, h, w) of a text mask.

    With ``joined`` each step up also reads the encoder's skip of its size.
    """

    def __init__(self, width: int, *, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        widths = (8 * width, 4 * width, 2 * width, width)
        self.up = nn.ModuleList(spectral.up(2 * w if joined else w, w) for w in widths)
        self.mix = nn.ModuleList([*(spectral.conv(w, w // 2) for w in widths[:-1]), nn.Conv2d(width, 3, 1)])
        spectral.start(self.mix[-1])

    def forward(self, feature: Tensor, skips: Sequence[Tensor] = ()) -> Tensor:
        """Return the logits; ``skips`` are read where the decoder is joined, the coarsest last."""
        x = feature
        for i, (up, mix) in enumerate(zip(self.up, self.mix, strict=True)):
            x = mix(up(torch.cat([x, skips[-1 - i]], 1) if self.joined else x))
        return x


class Refiner(nn.Module):
    """Repair a coarse picture (b, 3, h, w) with dilated convolutions and the encoder's two finest skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.first = nn.Sequential(
            spectral.conv(3, w, 5), spectral.conv(w, 2 * w, 4, stride=2), spectral.conv(2 * w, 2 * w)
        )
        self.second = nn.Sequential(
            spectral.conv(2 * w, 4 * w, 4, stride=2), spectral.conv(4 * w, 4 * w), spectral.conv(4 * w, 4 * w)
        )
        self.wide = nn.Sequential(*(spectral.conv(4 * w, 4 * w, dilation=d) for d in (2, 4, 8, 16, 1, 1)))
        self.up1 = nn.Sequential(spectral.up(12 * w, 2 * w), spectral.conv(2 * w, 2 * w))
        self.up2 = nn.Sequential(
            spectral.up(6 * w, w), spectral.conv(w, w // 2), spectral.conv(w // 2, 3, activation=False)
        )
        self.skip1, self.skip2 = nn.Conv2d(w, 2 * w, 1), nn.Conv2d(2 * w, 4 * w, 1)
        for plain in (self.skip1, self.skip2):
            spectral.start(plain)

    def forward(self, coarse: Tensor, skip1: Tensor, skip2: Tensor) -> Tensor:
        """Return the refined picture (b, 3, h, w), not clamped."""
        first = self.first(coarse)
        second = self.second(first)
        x = self.up1(torch.cat([self.wide(second), second, self.skip2(skip2)], 1))
        return self.up2(torch.cat([x, first, self.skip1(skip1)], 1))


def lateral(channels: int) -> nn.Sequential:
    """Return the linear bottleneck that carries a skip of ``channels`` across."""
    shape = ((1, 1, 1), (1, 2, 3), (2, 2, 3), (2, 1, 1))  # inputs and outputs in channels, kernel
    layers = (nn.Conv2d(i * channels, o * channels, kernel, padding=kernel // 2) for i, o, kernel in shape)
    return nn.Sequential(*layers).apply(spectral.start)
