"""Tell true pictures from erased ones, as a whole and inside the mask, in patches.

Source: SN-PatchGAN (Yu et al. 2019, ICCV) with the two towers of EraseNet (Liu et al. 2020, IEEE TIP 29).
"""

from __future__ import annotations

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


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of the scores of ``real`` and ``fake`` pictures."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _tower(width: int) -> nn.Sequential:
    outputs = [width * m for m in (2, 4, 8, 8, 8, 8)]
    return nn.Sequential(*(spectral.conv(i, o, 4, stride=2) for i, o in zip([3, *outputs], outputs, strict=False)))


def _at_least(x: Tensor, size: int) -> Tensor:
    short = [max(0, size - n) for n in x.shape[-2:]]
    return F.pad(x, (0, short[1], 0, short[0]), mode="replicate") if any(short) else x
