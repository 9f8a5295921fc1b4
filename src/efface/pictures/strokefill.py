"""Erase text by finding its strokes first, and repairing the strokes alone.

What is taken away is the text inside a mask that may be as coarse as a box. Most of a box is background that needs no
repair: knowing which of its pixels are ink is worth more than any better filling of the whole box. So a first U-Net
reads picture and mask and says how surely each pixel is touched by ink; the rest of the box stays. A pull-push pyramid
(Gortler et al. 1996) interpolates across the strokes from what is clean, and a second U-Net, which sees the picture,
the interpolation and the strokes, corrects it: it restores texture and edges, and uses what still shines through
shadows and half-transparent letters.

Strokes before filling follows Tang et al., Stroke-Based Scene Text Erasing Using Synthetic Data for Training
(arXiv:2104.11493); networks, interpolation and losses are the house's own.

Left out: the word-level text cropping and the partial-convolution networks of that paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.core.card import Card
from efface.core.method import Network, Step, param
from efface.parts.fill import pull_push
from efface.parts.nn.unet import UNet

STEP = 0.1
"""Size of a correction per unit of the network's output: a small one, for the first guess is good."""
MIRRORS = (), (3,), (2,), (2, 3)
"""Axes along which the views of a picture are mirrored."""
FLOOR = 2e-3
"""Squared error below which getting better counts for little; else pictures without text would drown the others."""


class StrokeFillNet(nn.Module):
    """Hold the network that finds strokes and the one that repairs them."""

    def __init__(self, find_widths: tuple[int, ...], fill_widths: tuple[int, ...], blocks: tuple[int, int]) -> None:
        super().__init__()
        self.find = UNet(4, 1, find_widths, blocks[0])
        self.fill = UNet(8, 3, fill_widths, blocks[1])
        nn.init.constant_(self.find.exit.bias, -1.0)  # type: ignore[arg-type]  # most of a box is not ink

    def strokes(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the logit (b, 1, h, w) of each pixel being touched by ink."""
        return self.find(torch.cat([x - 0.5, mask], 1)).float()

    def repair(self, x: Tensor, mask: Tensor, ink: Tensor) -> Tensor:
        """Return the picture (b, 3, h, w) without ``ink`` (b, 1, h, w) in [0, 1]; elsewhere it is ``x``.

        Corrections reach 2 px beyond the ink, where halos are.
        """
        guess = pull_push(x, 1 - ink)
        correction = self.fill(torch.cat([x - 0.5, guess - 0.5, ink, mask], 1)).float()
        near = F.max_pool2d(ink, 5, stride=1, padding=2) * mask
        return torch.lerp(x, guess, ink) + near * STEP * correction


@dataclass(frozen=True, kw_only=True)
class StrokeFill(Network):
    """Hyper-parameters of the stroke-first eraser."""

    find_widths: tuple[int, ...] = param((32, 48, 64, 96), "channels of the finder, finest first", low=4, high=512)
    fill_widths: tuple[int, ...] = param((48, 64, 96, 128), "channels of the repairer, finest first", low=4, high=512)
    find_blocks: int = param(1, "residual blocks per level of the stroke finder", low=1, high=8)
    fill_blocks: int = param(1, "residual blocks per level of the repairer", low=1, high=8)
    ink: str = param("found", "what is repaired: the strokes found, or all of the mask", choices=("found", "mask"))
    ink_from: float = param(0.03, "coverage from which a pixel counts as touched by ink", low=0.0, high=1.0)
    teach: float = param(0.5, "part of the training over which true strokes give way to found ones", low=0.0, high=1.0)
    gain: float = param(0.02, "loss per decibel of PSNR in the mask, beside four times the L1", low=0.0, high=1.0)

    card = Card(
        title="StrokeFill: find the strokes, repair the strokes",
        paper="the house's own, after arXiv:2104.11493",
        year=2026,
        task="text from pictures",
        inputs=("picture", "mask"),
        multiple=16,
        tiling="global",
        radius=32,
        smallest=16,
        bytes_per_pixel=250,
        dtypes=("float32", "bfloat16"),
        good_at="Small and quick; boxes are enough as masks. Strokes wider than about 20 px become smooth.",
    )
    small: ClassVar[dict[str, Any]] = {"find_widths": (4, 8, 8, 8), "fill_widths": (4, 8, 8, 8)}

    def build(self) -> StrokeFillNet:
        """Build both networks; before training the first finds nothing and the second changes nothing."""
        net = StrokeFillNet(self.find_widths, self.fill_widths, (self.find_blocks, self.fill_blocks))
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, net: StrokeFillNet, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:  # type: ignore[override]
        """Learn strokes by cross-entropy and the picture in the mask by its L1 and logarithmic squared error.

        ``batch`` holds ``picture``, ``target`` (b, 3, h, w), ``mask`` and ``alpha`` (b, 1, h, w), all in [0, 1].
        """
        x, mask = batch["picture"], batch["mask"]
        ink = ((batch["alpha"] > self.ink_from) & (mask > 0)).float()
        if self.ink == "mask":
            return self._repair_loss(net, batch, mask)
        logits = net.strokes(x, mask)
        entropy = F.binary_cross_entropy_with_logits(logits, ink, reduction="none")
        find = (entropy * mask).sum() / mask.sum().clamp_min(1)

        taught = torch.rand(len(x), 1, 1, 1, generator=step.generator("teach")).to(x)
        trust = step.step / max(1.0, self.teach * step.total)
        found = torch.where(taught < trust, logits.sigmoid(), ink) * mask
        losses = self._repair_loss(net, batch, found)
        return losses | {"total": find + losses["total"], "find": find}

    def run(  # type: ignore[override]
        self, net: StrokeFillNet, x: Tensor, *, mask: Tensor, views: int = 1
    ) -> Tensor:
        """Return ``x`` (b, 3, h, w) without the text in ``mask`` (b, 1, h, w), in [0, 1]; elsewhere ``x`` itself.

        With 2 or 4 ``views`` the picture is also seen mirrored, and the results are averaged: better, and as many times
        slower.
        """

        def erase(x: Tensor, mask: Tensor) -> Tensor:
            ink = net.strokes(x, mask).sigmoid() * mask if self.ink == "found" else mask
            return net.repair(x, mask, ink).clamp(0, 1)

        made = (erase(x.flip(axes), mask.flip(axes)).flip(axes) for axes in MIRRORS[:views])
        return torch.stack(list(made)).mean(0)

    def _repair_loss(self, net: StrokeFillNet, batch: dict[str, Any], ink: Tensor) -> dict[str, Tensor]:
        x, target, mask = batch["picture"], batch["target"], batch["mask"]
        error = (net.repair(x, mask, ink) - target) * mask
        area = mask.mean((1, 2, 3)).clamp_min(1e-4)
        l1 = (error.abs().mean((1, 2, 3)) / area).mean()
        mse = error.square().mean((1, 2, 3)) / area
        decibel = -10 * torch.log10(mse + FLOOR).mean()
        return {"total": 4 * l1 - self.gain * decibel, "l1": l1, "psnr_mask": decibel}
