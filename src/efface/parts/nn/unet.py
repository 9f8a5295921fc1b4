"""Build a U-Net of residual blocks on a pixel-unshuffled grid: full detail, few positions, fat matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class PixelNorm(nn.LayerNorm):
    """Normalise the channels of (b, c, h, w) at each pixel by itself, which keeps it independent of far ones."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c, h, w); in channels_last the transpositions are views."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Add two 3x3 convolutions to the input; the second starts at zero, so that a new block is the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c, h, w)."""
        return x + self.second(F.relu(self.first(self.norm(x))))


class UNet(nn.Module):
    """Map (b, inputs, h, w) to (b, outputs, h, w); h and w are multiples of ``grid * 2 ** (len(widths) - 1)``.

    ``grid`` pixels square become channels at the door and pixels again at the exit. The last layer starts at zero.
    """

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], blocks: int, grid: int = 2) -> None:
        super().__init__()
        self.grid = grid
        self.door = nn.Conv2d(inputs * grid**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.encode = nn.ModuleList(nn.Sequential(*(Block(c) for _ in range(blocks))) for c in widths)
        self.decode = nn.ModuleList(nn.Sequential(*(Block(c) for _ in range(blocks))) for c in widths[:-1])
        self.norm = PixelNorm(widths[0])  # and no activation behind it, which might die
        self.exit = nn.Conv2d(widths[0], outputs * grid**2, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, h, w)."""
        x = self.door(F.pixel_unshuffle(x, self.grid))
        skips = []
        for encode, down in zip(self.encode, self.down, strict=False):
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.encode[-1](x)
        for decode, up in zip(reversed(self.decode), reversed(self.up), strict=True):
            x = decode(skips.pop() + F.interpolate(up(x), scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.exit(self.norm(x)), self.grid)
