"""Erase masked text by refining the picture again and again with one small recurrent network.

What is taken away is the text inside the mask. DeepEraser (Feng et al. 2024) encodes picture and mask once into a
hidden state ``h_0`` and a context ``c``. Each of K iterations looks at the running picture ``I_{k-1}``, updates the
hidden state with a separable convolutional GRU, and adds a new residual to the *original* picture:
``I_k = I_0 + d(h_k)``. The loss is the L1 distance of every ``I_k`` to the picture without that text, later iterates
weighing more. Training masks cover a random part of the text, so that text outside the mask survives.

One iteration looks only ten cells far. ``run`` therefore refines windows around the masked places, which shrink from
iteration to iteration and hold the same values as the whole picture would; outside of them the input is returned.

Beyond the paper, ``stride`` works on a pixel-unshuffled grid, ``mask_weight`` weighs the loss inside the mask, ``ramp``
begins the training with one iteration, and ``out_act="none"`` drops the last LeakyReLU, which slows darkening residuals
five times.

Left out: nothing of the network; its weights are trained on made-up text instead of the paper's data sets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from efface.core.card import Card
from efface.core.method import Network, Step, param
from efface.parts.masks import Box
from efface.parts.nn.recurrent import SepConvGRU, sequence_loss
from efface.parts.nn.residual import ResidualEncoder
from efface.parts.windows import crop, windows

EDGE = 8  # pixels around the mask that ``run`` refines too, for callers who feather
OFFICIAL = {
    "module.": "",
    "fnet.": "encoder.",
    "update_block.encoder.convf1.": "progress.0.",
    "update_block.encoder.convf2.": "progress.2.",
    "update_block.gru.": "gru.",
    "update_block.pre_head.conv1.": "head.0.",
    "update_block.pre_head.conv2.": "head.2.",
    "downsample.0.": "skip.",
}


class Eraser(nn.Module):
    """Hold ``encoder``, ``progress``, ``gru`` and ``head``, which all work on the grid of ``stride``."""

    reach = 10
    """Cells around a cell that one iteration looks at: 4 in the progress encoder, 4 in the GRU, 2 in the head."""

    def __init__(self, method: DeepEraser) -> None:
        super().__init__()
        m, colours = method, 3 * method.stride**2
        self.method = method
        self.encoder = ResidualEncoder(colours // 3 * 4, m.stem, m.encoder, m.blocks, m.hidden + m.context)
        self.progress = nn.Sequential(
            nn.Conv2d(colours, m.wide, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(m.wide, m.progress, 3, padding=1),
            nn.ReLU(),
        )
        self.gru = SepConvGRU(m.hidden, m.context, m.progress + colours)
        self.head = nn.Sequential(
            nn.Conv2d(m.hidden, m.wide, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(m.wide, colours, 3, padding=1),
            nn.LeakyReLU(0.2) if m.out_act == "lrelu0.2" else nn.Identity(),
        )

    def forward(self, picture: Tensor, mask: Tensor, iterations: int) -> list[Tensor]:
        """Return every iterate of the whole picture, (b, 3, h, w) each, unclamped so that gradients live."""
        grid, hidden, context = self.begin(picture, mask)
        whole = Box(0, 0, grid.shape[3], grid.shape[2])
        iterates = self.refine(grid, hidden, context, iterations, whole)
        return [F.pixel_shuffle(iterate, self.method.stride) for iterate in iterates]

    def begin(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the picture on the grid in float32, the first hidden state and the context."""
        x = F.pixel_unshuffle(torch.cat([picture, mask], 1).float(), self.method.stride)
        x = x.contiguous(memory_format=torch.channels_last)
        features = self.encoder(x)
        hidden, context = features.split([self.method.hidden, self.method.context], 1)
        return x[:, : 3 * self.method.stride**2], hidden.tanh(), context.relu()

    def refine(self, grid: Tensor, hidden: Tensor, context: Tensor, iterations: int, box: Box) -> Iterator[Tensor]:
        """Yield every iterate inside ``box``, each exactly as if the whole grid were refined.

        What lies beyond the reach of the iterations still to come is dropped after each of them.
        """
        step = self._recomputed_step if self.method.recompute and torch.is_grad_enabled() else self._step
        size = grid.shape[2:]
        region = box.around(self.reach * iterations, size)
        first, hidden, context = (crop(t, region) for t in (grid, hidden, context))
        current, terms = first, self.gru.static_terms(context)
        for remaining in reversed(range(iterations)):
            hidden, current = step(first, current, hidden, terms)
            needed = box.around(self.reach * remaining, size)
            first, current, hidden, terms = (crop(t, needed, region) for t in (first, current, hidden, terms))
            region = needed
            yield crop(current, box, region)

    def _step(self, first: Tensor, current: Tensor, hidden: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.progress(current)
        hidden = self.gru(hidden, torch.cat([seen, current.to(seen.dtype)], 1), terms)
        return hidden, first + self.head(hidden)

    def _recomputed_step(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(self._step, *given, use_reentrant=False)


@dataclass(frozen=True, kw_only=True)
class DeepEraser(Network):
    """DeepEraser; the defaults are the published network of 1,438,512 parameters."""

    card = Card(
        title="DeepEraser: Deep Iterative Context Mining for Generic Text Eraser",
        paper="arXiv:2402.19108",
        year=2024,
        task="text from pictures",
        inputs=("picture", "mask"),
        multiple=4,
        tiling="global",
        radius=64,
        smallest=32,
        dtypes=("float32", "bfloat16"),
        good_at="Erases the masked text and leaves other text alone; small weights, and every iterate can be shown. "
        "Slow at stride 1 without a GPU.",
        left_out="The paper's training data; weights are trained on made-up text.",
    )
    small: ClassVar[dict[str, Any]] = {
        "hidden": 8,
        "context": 8,
        "progress": 5,
        "wide": 8,
        "stem": 8,
        "encoder": (8, 16),
        "blocks": 1,
        "iterations": 2,
    }

    hidden: int = param(64, "channels of the hidden state", low=1)
    context: int = param(64, "channels of the context that all iterations share", low=1)
    progress: int = param(61, "features of the running picture, to which the picture itself is appended", low=1)
    wide: int = param(128, "channels between the two convolutions of the progress encoder and of the head", low=1)
    stem: int = param(16, "channels of the encoder's first convolution", low=1)
    encoder: tuple[int, ...] = param((16, 32, 32, 64, 64, 128), "channels of the encoder's stages", low=1)
    blocks: int = param(2, "residual blocks in each stage", low=1)
    stride: int = param(1, "pixels of one cell of the grid: 1 as published, 4 for a CPU", choices=(1, 2, 4))
    out_act: str = param("lrelu0.2", "activation of the residual", choices=("lrelu0.2", "none"))
    iterations: int = param(8, "refinements in training, and in use where not told otherwise", low=1)
    ramp: float = param(
        0.0, "part of the training over which refinements rise from 1 to all, to save time", low=0, high=1
    )
    loss_decay: float = param(0.85, "weight of an iterate's loss relative to the next one's", low=0, high=1)
    mask_weight: float = param(0.0, "extra weight of a masked pixel's loss; 20 makes it count 21 times", low=0)
    recompute: bool = param(True, "compute each iteration anew in the backward pass: a third slower, far less memory")

    def build(self) -> Eraser:
        """Build the untrained network."""
        return Eraser(self)

    def loss(self, net: nn.Module, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the sequence loss of ``picture`` and ``mask`` against ``target``, and the first and last L1 of it."""
        weight = 1 + self.mask_weight * batch["mask"]
        weight = weight / weight.mean()
        progress = (step.step + 1) / max(1.0, self.ramp * step.total)
        iterates = net(batch["picture"], batch["mask"], math.ceil(self.iterations * min(1.0, progress)))
        errors = [(weight * (iterate - batch["target"]).abs()).mean() for iterate in iterates]
        total = sequence_loss(errors, self.loss_decay)
        return {"total": total, "first": errors[0].detach(), "last": errors[-1].detach()}

    @torch.no_grad()
    def run(  # type: ignore[override]
        self,
        net: Eraser,
        x: Tensor,
        *,
        mask: Tensor,
        iterations: int | None = None,
        return_all: bool = False,
        stop_when: float = 1 / 255,
    ) -> Tensor:
        """Return ``x`` (b, 3, h, w) without what ``mask`` (b, 1, h, w) covers; sizes are multiples of ``stride``.

        With ``return_all``, every iterate: (iterations, b, 3, h, w). A window whose values all changed by less than
        ``stop_when`` is finished early (0 never stops) and later iterates repeat it. Under autocast the picture stays
        float32. The caller composites: near the mask, unmasked pixels change too.
        """
        count = iterations or self.iterations
        grid, hidden, context = net.begin(x, mask)
        result = grid.repeat(count if return_all else 1, 1, 1, 1, 1)  # (k, b, c, h, w)
        cells = F.max_pool2d(mask, self.stride)[:, 0].cpu().numpy() > 0
        for i, marked in enumerate(cells):
            for box in windows(marked, edge=EDGE // self.stride, reach=net.reach, iterations=count):
                one = slice(i, i + 1)
                before = crop(grid[one], box)
                for k, current in enumerate(net.refine(grid[one], hidden[one], context[one], count, box)):
                    crop(result[k if return_all else 0 :, one], box).copy_(current)
                    if (current - before).abs().amax() < stop_when:
                        break
                    before = current
        result = F.pixel_shuffle(result, self.stride).clamp(0, 1)
        return result if return_all else result[0]

    def rename(self, key: str) -> str | None:
        """Map a key of the official checkpoint: layers 1 to 6 are our stages 0 to 5, other modules by a table."""
        key = re.sub(r"\blayer(\d+)\.", lambda found: f"stages.{int(found[1]) - 1}.", key)
        for official, ours in OFFICIAL.items():
            key = key.replace(official, ours)
        return key
