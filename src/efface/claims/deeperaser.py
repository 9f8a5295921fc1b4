"""Show that refining again and again erases text, and that random masks in training save the text outside the mask.

Crops hold two short words, one above the other, black on bright crops and white on dark ones. Erasers of a quarter of
the full width start from equal weights and see equal pictures for an equal number of steps: with four iterations and
masks of one word or both (as published), with four iterations and masks of all text, and with ``--long``, for what it
brings shows late in training, with one iteration. Masks are wide boxes and the encoder has one block a stage, so that
context has to travel through the recurrent part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.parts.data.photos import Photo, photographs
from efface.parts.masks import Box
from efface.parts.metrics.pixels import decibels
from efface.parts.text import words
from efface.parts.text.fonts import find_fonts
from efface.parts.text.render import as_float, draw
from efface.parts.text.style import Style
from efface.pictures.deeperaser import DeepEraser
from efface.seeds import numpy_generator
from efface.training.recipe import Train
from efface.training.trainer import Trainer, accelerator

WIDTH, HEIGHT = 32, 32
LETTERS = 8.0, 10.0
"""Size of the letters, in pixels per em."""
AMPLE = 2
"""Pixels by which a mask's box is wider than the word."""
STEPS, LONG, BATCH, TESTS = 400, 3000, 8, 64
PUBLISHED = 1_438_512
QUARTER = DeepEraser(
    hidden=16,
    context=16,
    progress=13,
    wide=32,
    stem=16,
    encoder=(16, 24, 32),
    blocks=1,
    out_act="none",
    iterations=4,
    mask_weight=20.0,
    recompute=False,
)

CLAIM = Claim(
    statement="An eraser that refines its result several times removes text, and the last result is the best; masks of "
    "a random part of the text in training leave the text outside the mask alone; the network has the published size",
    baseline="its own first iterate, and the same eraser trained with masks of all text; with --long also the same "
    "eraser trained with one iteration",
    minutes=6,
    data="32 x 32 crops of photographs with two words each, black on bright and white on dark",
)


@dataclass(frozen=True, eq=False)
class TwoWords:
    """Source of crops with two words, of which the mask covers ``one``, or with ``custom`` either or both, or all."""

    photos: Sequence[Photo]
    fonts: Sequence[Path]
    chosen: str

    def sample(self, generator: Generator) -> dict[str, np.ndarray]:
        """Return ``picture``, ``target`` (3, h, w), ``mask`` and ``kept`` (1, h, w): the strokes of words to stay."""
        photo = words.pick(generator, self.photos)
        y, x = generator.integers(np.subtract(photo.shape[:2], (HEIGHT, WIDTH)) + 1)
        clean = as_float(photo[y : y + HEIGHT, x : x + WIDTH])
        colour = float(clean.mean() < 0.5)
        picks = {"one": [[0], [1]], "all": [[0, 1]], "custom": [[0], [1], [0, 1]]}[self.chosen]
        gone = words.pick(generator, picks)
        picture, mask, kept = clean, *np.zeros((2, 1, HEIGHT, WIDTH), np.float32)
        for i, row in enumerate((0.25, 0.75)):
            style = Style(size=generator.uniform(*LETTERS), colour=(colour, colour, colour))
            font = words.pick(generator, self.fonts) if self.fonts else None
            text = words.word(generator)[: int(generator.integers(3, 6))]
            drawn = draw(picture, [text], style, font=font, at=(WIDTH / 2, row * HEIGHT))
            if drawn is None:
                continue  # the word has the colour of the photograph
            picture = drawn.picture
            if i in gone:
                mask[:, *_box(drawn.box).slices] = 1
            else:
                kept[:, drawn.strokes] = 1
        picture, clean = picture.transpose(2, 0, 1), clean.transpose(2, 0, 1)
        return {"picture": picture, "target": np.where(mask > 0, clean, picture), "mask": mask, "kept": kept}

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``count`` samples stacked: a pure function of ``seed`` and ``step``."""
        samples = [self.sample(numpy_generator(seed, step, "two words", i)) for i in range(count)]
        return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}


@dataclass(frozen=True)
class Arm:
    """What one training reached, over the test crops."""

    psnr: list[float]
    """In masks of one word: of the input and of each iterate, in dB."""
    damage: float
    """Mean absolute change of the other word's strokes, without compositing."""


def check(context: Context) -> list[Effect]:
    """Train three erasers per seed and compare them."""
    ways = {"four": (QUARTER, "custom"), "all text": (QUARTER, "all")}
    if beside_one := context.long or context.quick:  # what it brings to train with iterations shows late
        ways["one"] = dataclasses.replace(QUARTER, iterations=1), "custom"
    arms: dict[str, list[Arm]] = {name: [] for name in ways}
    for seed in context.seeds:
        for name, (method, chosen) in ways.items():
            arms[name].append(_train(context, seed, method, chosen))
            psnr = " ".join(f"{value:.2f}" for value in arms[name][-1].psnr)
            context.progress(f"seed {seed}, {name}: {psnr} dB, damage {arms[name][-1].damage:.4f}")
    four, last = arms["four"], [arm.psnr[-1] for arm in arms["four"]]
    before, first = [arm.psnr[0] for arm in four], [arm.psnr[1] for arm in four]
    damage = {name: [arm.damage for arm in arms[way]] for name, way in (("random part", "four"), ("all", "all text"))}
    with torch.device("meta"):
        size = sum(p.numel() for p in DeepEraser().build().parameters())
    effects = [
        Effect(
            "masked text is erased",
            "PSNR in the mask at least 6 dB above that of the input, in every seed",
            {"erased": last, "input": before},
            min(paired(last, before)) >= 6,
            unit="dB",
            note=spread(paired(last, before)),
        ),
        Effect(
            "each set of weights gains by iterating",
            "PSNR in the mask of the last iterate above that of the first, in every seed",
            {"last": last, "first": first},
            min(paired(last, first)) > 0,
            unit="dB",
            note=spread(paired(last, first)),
        ),
        Effect(
            "text outside the mask stays",
            "mean absolute change of the strokes outside the mask at most half of what masks of all text lead to",
            damage,
            float(np.mean(damage["random part"])) <= 0.5 * float(np.mean(damage["all"])),
        ),
        Effect(
            "the full network has the published size",
            f"exactly {PUBLISHED:,} parameters",
            {"built": [float(size)], "published": [float(PUBLISHED)]},
            size == PUBLISHED,
        ),
    ]
    if beside_one:
        single = [arm.psnr[-1] for arm in arms["one"]]
        effects.append(
            Effect(
                "four iterations beat one",
                "PSNR in the mask at least 0.5 dB above that of the eraser with one iteration, in the mean over seeds",
                {"four": last, "one": single},
                float(np.mean(paired(last, single))) >= 0.5,
                unit="dB",
                note=spread(paired(last, single)),
            )
        )
    return effects


def _train(context: Context, seed: int, method: DeepEraser, chosen: str) -> Arm:
    steps = 2 if context.quick else LONG if context.long else STEPS
    train = Train(
        steps=steps, batch=BATCH, seed=seed, lr=5e-3, schedule="cosine", warmup=0.05, clip=1.0, weight_decay=1e-4
    )
    trainer = Trainer(method, train, accelerator(train, context.device))
    fonts = find_fonts()
    batches = trainer.batches(TwoWords(photographs(context.data, "train"), fonts, chosen))
    for _ in range(steps):
        trainer.advance([next(batches)])
    tests = TwoWords(photographs(context.data, "test"), fonts, "one").batch(0, 0, 4 if context.quick else TESTS)
    batch = {name: tensor.to(context.device) for name, tensor in tests.items()}
    with torch.inference_mode():
        iterates = [x.clamp(0, 1) for x in trainer.net.eval()(batch["picture"], batch["mask"], method.iterations)]
    psnr = [_psnr(x, batch["target"], batch["mask"]) for x in (batch["picture"], *iterates)]
    changes = (iterates[-1] - batch["picture"]).abs() * batch["kept"]
    return Arm(psnr, float(changes.sum() / (3 * batch["kept"].sum())))


def _box(corners: np.ndarray) -> Box:
    (left, top), (right, bottom) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    return Box(left, top, right - left, bottom - top).around(AMPLE, (HEIGHT, WIDTH))


def _psnr(x: Tensor, target: Tensor, mask: Tensor) -> float:
    """Return the PSNR in the mask, mean over the pictures in which a word could be drawn."""
    area = 3 * mask.sum((1, 2, 3))
    errors = ((x - target).square() * mask).sum((1, 2, 3))[area > 0] / area[area > 0]
    return float(np.mean([decibels(error) for error in errors.tolist()]))
