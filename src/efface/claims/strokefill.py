"""Show that knowing the strokes helps: the same repairer, told which pixels are ink, or only where the boxes are.

Two erasers of a third of the shipped width start from equal weights and see equal crops, masked by boxes, for an equal
number of steps. One finds the strokes and repairs them alone; for the other all of the mask is ink.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.parts.data.erase_text import EraseText
from efface.parts.data.photos import photographs
from efface.parts.fill import telea
from efface.parts.metrics.erasing import psnr_m
from efface.parts.text.fonts import find_fonts, split_fonts
from efface.pictures.strokefill import StrokeFill
from efface.training.recipe import Train
from efface.training.trainer import Trainer, accelerator

SIZE, BATCH, STEPS, LONG, TESTS = 64, 8, 500, 4000, 96
THIRD = StrokeFill(find_widths=(16, 24, 32), fill_widths=(16, 24, 32), teach=0.3)

CLAIM = Claim(
    statement="An eraser that first finds the strokes in a box and repairs them alone leaves a better picture than the "
    "same repairer that has to make up the whole box",
    baseline="the same eraser with all of the mask as ink; OpenCV's Telea with boxes",
    minutes=4,
    data="64 x 64 crops of photographs with one or two texts; test crops have other photographs, fonts and words",
)


def check(context: Context) -> list[Effect]:
    """Train both erasers per seed and compare them, and Telea's inpainting, on the same test crops."""
    train_fonts, test_fonts = split_fonts(find_fonts())
    train = EraseText(photos=photographs(context.data, "train"), fonts=tuple(train_fonts), size=SIZE, words=(1, 2))
    tests = EraseText(
        photos=photographs(context.data, "test"), fonts=tuple(test_fonts), size=SIZE, words=(1, 2), split="test"
    ).batch(0, 0, 4 if context.quick else TESTS)
    crops = {name: values.permute(0, 2, 3, 1).numpy() for name, values in tests.items()}
    masks = crops["mask"][..., 0] > 0

    def score(results: np.ndarray) -> float:
        return float(np.mean([psnr_m(*case) for case in zip(results, crops["target"], masks, strict=True)]))

    levels = np.round(crops["picture"] * 255).astype(np.uint8)
    filled = np.stack([telea(picture, mask) for picture, mask in zip(levels, masks, strict=True)])
    baseline = score(filled / np.float32(255))
    reached: dict[str, list[float]] = {"found": [], "mask": []}
    for seed in context.seeds:
        for ink, values in reached.items():
            method = dataclasses.replace(THIRD, ink=ink)
            steps = 2 if context.quick else LONG if context.long else STEPS
            recipe = Train(steps=steps, batch=BATCH, seed=seed, lr=2e-3, schedule="cosine", warmup=0.05, clip=1.0)
            trainer = Trainer(method, recipe, accelerator(recipe, context.device))
            batches = trainer.batches(train)
            for _ in range(steps):
                trainer.advance([next(batches)])
            with torch.inference_mode():
                given = {name: tests[name].to(trainer.device) for name in ("picture", "mask")}
                net = trainer.net.eval()
                result = method.run(net, given["picture"], mask=given["mask"])  # type: ignore[arg-type]
            values.append(score(result.permute(0, 2, 3, 1).float().cpu().numpy()))
            context.progress(f"seed {seed}, ink {ink}: {values[-1]:.2f} dB in the mask, Telea {baseline:.2f} dB")
    gain = paired(reached["found"], reached["mask"])
    return [
        Effect(
            "strokes first",
            "PSNR in the mask at least 0.5 dB above that without strokes, in the mean over seeds",
            {"strokes found": reached["found"], "whole mask": reached["mask"]},
            float(np.mean(gain)) >= 0.5,
            unit="dB",
            note=spread(gain),
        ),
        Effect(
            "beyond inpainting",
            "PSNR in the mask above that of Telea's inpainting of the boxes, in every seed",
            {"strokes found": reached["found"], "Telea, boxes": [baseline] * len(reached["found"])},
            min(reached["found"]) > baseline,
            unit="dB",
        ),
    ]
