"""Tell true pictures from erased ones, as a whole and inside the mask, and one domain of latents from another.

All of them judge patches. Sources: SN-PatchGAN (Yu et al. 2019, ICCV) with the two towers of EraseNet (Liu et al. 2020,
IEEE TIP 29); PatchGAN (Isola et al. 2017, CVPR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.parts.nn import spectral

KERNEL = 4


class TwoTowers(nn.Module):
    """Score patches of (b, 3, h, w) from a tower on the picture and one on its masked part.

    7,618,945 parameters at ``width`` 32. Any size is taken: what is smaller than the towers need is padded, alike for
    true and erased pictures.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.whole, self.part = _tower(width), _tower(width)
        self.join = nn.Conv2d(16 * width, 1, KERNEL)

    def forward(self, picture: Tensor, mask: Tensor) -> Tensor:
        """Return one score per picture (b,), the mean over its patches; ``mask`` is (b, 1, h, w)."""
        pair = self.whole(_at_least(picture, 64)), self.part(_at_least(picture * mask, 64))
        return self.join(_at_least(torch.cat(pair, 1), KERNEL)).mean((1, 2, 3))


class PatchDiscriminator(nn.Module):
    """Give patches of (b, inputs, h, w) a logit each, after a convolution of stride 2 for each of ``widths``.

    2,767,553 parameters for 4 channels and the widths 64, 128, 256, 512. Statistics of a batch norm are those of the
    batch: give both domains in one, or their means alone tell them apart. ``norm`` is batch, group or none;
    :meth:`fits` says which sizes are taken.
    """

    def __init__(self, inputs: int, widths: Sequence[int] = (64, 128, 256, 512), norm: str = "batch") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (i, o) in enumerate(pairwise([inputs, *widths])):
            layers.append(nn.Conv2d(i, o, KERNEL, stride=2, padding=1))
            if number and norm != "none":
                layers.append(nn.BatchNorm2d(o) if norm == "batch" else nn.GroupNorm(math.gcd(8, o), o))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, KERNEL, padding=1))

    @staticmethod
    def fits(blocks: int, size: int) -> bool:
        """Return whether so many blocks leave patches of inputs whose shorter side is ``size``."""
        return size >> blocks >= KERNEL - 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, 1, h', w')."""
        return self.layers(x)  # type: ignore[no-any-return]


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of the scores of ``real`` and ``fake`` pictures."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _tower(width: int) -> nn.Sequential:
    outputs = [width * m for m in (2, 4, 8, 8, 8, 8)]
    return nn.Sequential(*(spectral.conv(i, o, 4, stride=2) for i, o in zip([3, *outputs], outputs, strict=False)))


def _at_least(x: Tensor, size: int) -> Tensor:
    short = [max(0, size - n) for n in x.shape[-2:]]
    return F.pad(x, (0, short[1], 0, short[0]), mode="replicate") if any(short) else x
