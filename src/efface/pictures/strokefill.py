"""Erase text by finding its strokes first, and repairing the strokes alone.

What is taken away is the text inside a mask that may be as coarse as a box. Most of a box is background that needs no
repair: knowing which of its pixels are ink is worth more than any better filling of the whole box. So a first U-Net
reads picture and mask and says how surely each pixel is touched by ink, and how much of it the ink covers; the rest of
the box stays.

Much of what is touched is not lost either. The rims of letters, their shadows and all of a half-transparent text still
show the picture: ``x = (1 - a) y + a c`` with coverage ``a`` and colour ``c`` of the ink gives ``y`` back. A second
U-Net sharpens both and says where the outcome is to be trusted. A pull-push pyramid (Gortler et al. 1996) carries what
is trusted across what is not, and the same U-Net adds texture and edges.

Strokes before filling follows Tang et al., Stroke-Based Scene Text Erasing Using Synthetic Data for Training
(arXiv:2104.11493); that coverage and colour give back what is under a mark follows Dekel et al., On the Effectiveness
of Visible Watermarks (CVPR 2017); networks, interpolation and losses are the house's own.

Left out: the word-level text cropping and the partial-convolution networks of the first paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

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
FLOOR = 1e-3
"""Squared error below which getting better counts for little; else pictures without text would drown the others."""
SURE = 9.0
"""Greatest logit of being touched or covered: what is under ink that covers more of a pixel is rounding noise."""
CLEAR = 1e-3
"""How far true strokes and coverage stay from 0 and 1 when they stand in for found ones, as logits."""
THIN = 0.1
"""Coverage below which the colour of ink is not told from the picture by dividing by less."""


class Repaired(NamedTuple):
    """What a repair comes to."""

    picture: Tensor
    """(b, 3, h, w): without the ink."""
    through: Tensor
    """(b, 3, h, w): what shows through the ink, to be trusted or not."""
    covered: Tensor
    """(b, 1, h, w): logit of the share that ink covers, as the second network sees it."""


class StrokeFillNet(nn.Module):
    """Hold the network that finds strokes and the one that repairs them."""

    def __init__(self, find_widths: tuple[int, ...], fill_widths: tuple[int, ...], blocks: tuple[int, int]) -> None:
        super().__init__()
        self.find = UNet(7, 2, find_widths, blocks[0])
        self.fill = UNet(12, 8, fill_widths, blocks[1])
        nn.init.constant_(self.find.exit.bias, -2.0)  # type: ignore[arg-type]  # most of a box is not ink

    def strokes(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (b, 1, h, w) of each pixel being touched by ink, and of the share that ink covers."""
        around = pull_push(x, 1 - mask)  # what ink stands out from, where the picture is smooth
        told = torch.cat([x - 0.5, mask, around - 0.5], 1)
        touched, covered = self.find(told).float().clamp(-SURE, SURE).split(1, 1)
        return touched, covered

    def repair(self, x: Tensor, mask: Tensor, touched: Tensor, covered: Tensor) -> Repaired:
        """Return the picture (b, 3, h, w) without the ink.

        ``touched`` and ``covered`` are logits (b, 1, h, w). Corrections reach 2 px beyond the ink, where halos are;
        elsewhere the picture is ``x``.
        """
        ink = touched.sigmoid() * mask
        alpha = covered.sigmoid() * ink
        guess = pull_push(x, 1 - ink)
        colour = pull_push((guess + (x - guess) / alpha.clamp_min(THIN)).clamp(0, 1), alpha.square())
        told = torch.cat([x - 0.5, guess - 0.5, ink, mask, alpha, colour - 0.5], 1)
        correction, tint, cover, trust = self.fill(told).float().split([3, 3, 1, 1], 1)

        near = F.max_pool2d(ink, 5, stride=1, padding=2) * mask
        covered = (covered + cover).clamp(-SURE, SURE)
        odds = covered.clamp_max(SURE / 3).exp() * near  # a / (1 - a)
        through = x + odds * (x - colour - STEP * tint)
        doubt = (touched - trust).sigmoid() * near
        picture = pull_push(through.clamp(0, 1), 1 - doubt) + near * STEP * correction
        return Repaired(picture, through, covered)


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
        bytes_per_pixel=300,
        dtypes=("float32", "bfloat16"),
        good_at="Small and quick; boxes are enough as masks. Strokes wider than about 20 px become smooth.",
    )
    small: ClassVar[dict[str, Any]] = {"find_widths": (4, 8, 8, 8), "fill_widths": (4, 8, 8, 8)}

    def build(self) -> StrokeFillNet:
        """Build both networks; before training the first finds nothing and the second changes nothing."""
        net = StrokeFillNet(self.find_widths, self.fill_widths, (self.find_blocks, self.fill_blocks))
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, net: StrokeFillNet, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:  # type: ignore[override]
        """Learn strokes and coverage by cross-entropy, the picture in the mask by its L1 and logarithmic squared error.

        ``batch`` holds ``picture``, ``target`` (b, 3, h, w), ``mask`` and ``alpha`` (b, 1, h, w), all in [0, 1].
        """
        x, mask, alpha = batch["picture"], batch["mask"], batch["alpha"]
        if self.ink == "mask":
            return self._repair_losses(batch, net.repair(x, mask, *_everywhere(mask)))

        def wrong(logit: Tensor, truth: Tensor) -> Tensor:
            entropy = F.binary_cross_entropy_with_logits(logit, truth, reduction="none")
            return (entropy * mask).sum() / mask.sum().clamp_min(1)

        found = net.strokes(x, mask)
        true = ((alpha > self.ink_from) & (mask > 0)).float(), alpha
        taught = torch.rand(len(x), 1, 1, 1, generator=step.generator("teach")).to(x)
        trust = step.step / max(1.0, self.teach * step.total)
        given = [torch.where(taught < trust, f, t.logit(CLEAR).to(f)) for f, t in zip(found, true, strict=True)]
        repaired = net.repair(x, mask, *given)
        losses = self._repair_losses(batch, repaired)
        find = wrong(found[0], true[0]) + wrong(found[1], alpha) + wrong(repaired.covered, alpha)
        return losses | {"total": find + losses["total"], "find": find}

    def run(  # type: ignore[override]
        self, net: StrokeFillNet, x: Tensor, *, mask: Tensor, views: int = 1
    ) -> Tensor:
        """Return ``x`` (b, 3, h, w) without the text in ``mask`` (b, 1, h, w), in [0, 1]; elsewhere ``x`` itself.

        With 2 or 4 ``views`` the picture is also seen mirrored, and the results are averaged: better, and as many times
        slower.
        """

        def erase(x: Tensor, mask: Tensor) -> Tensor:
            logits = net.strokes(x, mask) if self.ink == "found" else _everywhere(mask)
            return net.repair(x, mask, *logits).picture.clamp(0, 1)

        made = (erase(x.flip(axes), mask.flip(axes)).flip(axes) for axes in MIRRORS[:views])
        return torch.stack(list(made)).mean(0)

    def _repair_losses(self, batch: dict[str, Any], repaired: Repaired) -> dict[str, Tensor]:
        target, mask, alpha = batch["target"], batch["mask"], batch["alpha"]
        area = mask.mean((1, 2, 3)).clamp_min(1e-4)
        error = (repaired.picture - target) * mask
        l1 = (error.abs().mean((1, 2, 3)) / area).mean()
        mse = error.square().mean((1, 2, 3)) / area
        decibel = -10 * torch.log10(mse + FLOOR).mean()
        shown = (1 - alpha) * (alpha > self.ink_from) * mask  # what is covered whole shows nothing
        seen = (((repaired.through - target) * shown).abs().mean((1, 2, 3)) / area).mean()
        return {"total": 4 * l1 + 8 * seen - self.gain * decibel, "l1": l1, "seen": seen, "psnr_mask": decibel}


def _everywhere(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of all of ``mask`` being touched by ink that covers nothing."""
    return torch.full_like(mask, SURE), torch.full_like(mask, -SURE)
