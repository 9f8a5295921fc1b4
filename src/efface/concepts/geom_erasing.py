"""Erase what nobody writes in captions, such as watermarks: teach the generator where it is, and then steer away.

The name of such an implicit concept does not move it, for no caption ever went with it. So a detector says where it
lies, a word for each touched cell of a grid is added to the captions behind the concept's name, and denoising is
trained on those captions (section 3.2). Places in touched cells count less in the loss, w = T / (K + alpha (T - K)) of
1 on average, and others alpha times as much (eq. 4). What is drawn then without these words is clean, the cleaner if
sampling is guided away from the name and the words of cells: the negative prompt that goes with the plan.

``data`` trains the denoiser and the words together, for one that is tuned on dirty pictures; ``model`` trains the
words alone, for one that is dirty already. Rows of the words stand behind the table of the text encoder, which stays as
it is. A dropped caption leaves name and cells in place, so that the empty prompt stays clean as well.

The folder holds pictures, ``captions.json`` and ``boxes.json`` of any detector; what it misses is learned as clean, so
measure its recall. Where there is none, ``overlay`` puts a thing on pictures that the pipeline draws of the texts to
keep, for trials. It is meant for cleaning what a generator draws, not for stripping marks from others' pictures.

Grid, alpha, rates, steps and the first values of new rows are our own choices.

Left out: SDXL's second text encoder, existence without a place other than a box around the whole picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.func import functional_call

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts, editable
from efface.core.method import Step, Work, param
from efface.core.ops import Delta, Grow, Op
from efface.core.plan import Plan
from efface.errors import UsageError, WeightsError
from efface.parts.concepts.places import Cell, Grid, tokens
from efface.parts.concepts.slots import word_tokens
from efface.parts.concepts.vocabulary import grown
from efface.parts.data.icd import Icd
from efface.parts.data.overlays import make_icd
from efface.parts.diffusion.adapters import Process
from efface.parts.diffusion.latents import encode
from efface.parts.diffusion.pipelines import sample, usual_guidance
from efface.seeds import derive, numpy_generator
from efface.training.descent import descend
from efface.training.recipe import Train

SPREAD = 0.1
"""Deviation of new rows around the concept's mean row, over that of the table."""


@dataclass(frozen=True, kw_only=True)
class GeomErasing(Eraser):
    """Hyper-parameters of geometry-driven removal of implicit concepts."""

    folder: str = param("", "folder of pictures with captions.json and boxes.json")
    overlay: str = param(
        "",
        "what to put on the pipeline's own pictures where no folder is",
        choices=("", "qr", "watermark", "text", "logo"),
    )
    pictures: int = param(200, "number of own pictures", low=2)
    mode: str = param("data", "what trains: denoiser and words, or words alone", choices=("data", "model"))
    rows: int = param(8, "rows of the grid", low=1, high=64)
    columns: int = param(8, "columns of the grid", low=1, high=64)
    fresh: bool = param(False, "give the concept itself a new word too")
    alpha: float = param(2.0, "weight of what is outside of touched cells, over that inside", low=1e-3)
    steps: int = param(2000, "steps of training", low=1)
    batch: int = param(8, "pictures of a step", low=1)
    optimizer: str = param("adamw", "rule that moves denoiser and words", choices=("adamw", "muon"))
    lr: float = param(1e-5, "learning rate of the denoiser", low=1e-9)
    lr_words: float = param(5e-4, "learning rate of the words", low=1e-9)
    dropout: float = param(0.1, "share of captions that are dropped", low=0.0, high=1.0)
    flip: bool = param(False, "mirror pictures with their boxes; not for captions that say left and right")
    negative: str = param("frequent", "cells to steer away from", choices=("frequent", "all"))

    card = Card(
        title="Implicit Concept Removal of Diffusion Models",
        paper="arXiv:2310.05873",
        year=2024,
        task="concepts from generators",
        inputs=("pipeline", "concepts", "pictures"),
        good_at="Watermarks, codes and captions that a generator learned without a word for them. Needs pictures and "
        "the boxes of a detector; the negative prompt comes with the edit.",
        left_out="SDXL's second text encoder",
    )
    trains: ClassVar[bool] = True
    small: ClassVar[dict[str, Any]] = {
        "overlay": "logo", "pictures": 4, "rows": 2, "columns": 2, "steps": 2, "batch": 2, "lr": 1e-3,
    }  # fmt: skip

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return the trained denoiser, and the rows of the new words.

        Facts: ``words``, which the tokenizer is to be taught in this order; ``negative``, the prompt to steer away
        from; ``cells``, how often training saw each cell; ``dirty``, the share of pictures with boxes; ``notes``.

        Raises
        ------
        UsageError
            If it is not one concept, the pipeline is not of the Stable Diffusion 1 or 2 kind or cannot be told the
            concept, or there are no pictures to train on.
        DataError
            If the folder does not have the expected form.
        """
        check_concepts(pipe, concepts)
        if len(concepts.remove) > 1:
            raise UsageError("takes one concept at a time", where=self.name, fix="Make an edit for each")
        icd = self._icd(pipe, concepts, work)
        trained = self.train(pipe, icd, concepts.remove[0], work)
        return self.planned(pipe, concepts, work, trained.ops, dirty=icd.rate, **trained.facts)

    def train(self, pipe: Any, icd: Icd, name: str, work: Work) -> Trained:
        """Train on ``icd``, whose boxes are around what is called ``name``."""
        grid = Grid(self.rows, self.columns, name, self.fresh)
        reader, notes = _Reader(pipe, grid, work), list[str]()
        if self.alpha < 1:
            notes.append(f"alpha {self.alpha:g} is under 1: places of the concept count more than others")
        rate = self.lr_words if self.mode == "model" else self.lr
        reader.pace = self.lr_words / rate
        weights = dict(pipe.unet.named_parameters()) if self.mode == "data" else {}
        train = Train(
            steps=self.steps, optimizer=self.optimizer, lr=rate, schedule="cosine", weight_decay=1e-2, seed=work.seed
        )  # fmt: skip
        moving, loss = {**weights, "words": reader.moved}, self._loss(pipe, icd, reader)
        reached = descend(editable(pipe), moving, loss, train, work, name=self.name).values
        ops: list[Op] = [Delta.set(f"unet.{key}", reached[key]) for key in weights]
        ops.append(Grow.of(f"text_encoder.{reader.table}", reader.start, reader.rows(reached["words"])))
        if reader.dropped:
            notes.append(f"prompts had no room for {reader.dropped} of the cells told: take a coarser grid")
        if not reader.counts:
            notes.append("no picture has a box, so no word was learned")
        for note in notes:
            work.progress(note)
        room = pipe.tokenizer.model_max_length - 2 - (1 if self.fresh else len(word_tokens(pipe, name)))
        negative = grid.negative(reader.counts, room, self.negative)  # type: ignore[arg-type]
        told = {grid.word(cell): count for cell, count in sorted(reader.counts.items())}
        return Trained(ops, {"words": list(grid.words), "negative": negative, "cells": told, "notes": notes})

    def _icd(self, pipe: Any, concepts: Concepts, work: Work) -> Icd:
        if self.folder:
            return Icd.read(self.folder)
        if not self.overlay:
            fix = "Give folder, with captions.json and boxes.json in it; for a trial, overlay"
            raise UsageError("has no pictures to learn from", where=self.name, fix=fix)
        texts = concepts.keep or ("",)
        prompts = [texts[i % len(texts)] for i in range(self.pictures)]
        seeds = [derive(work.seed, "pictures", i) for i in range(self.pictures)]
        drawn = sample(pipe, prompts, seeds, guidance=usual_guidance(pipe))
        if not drawn.isfinite().all():
            raise WeightsError("draws nothing but NaN", where=type(pipe).__name__, fix="Take an earlier checkpoint")
        photos = (drawn.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        return make_icd(photos, prompts, self.overlay, rate=0.6, seed=work.seed)  # type: ignore[arg-type]

    def _loss(self, pipe: Any, icd: Icd, reader: _Reader) -> Callable[[Step], dict[str, Tensor]]:
        net, process = pipe.unet, Process.of(pipe.scheduler)
        side = net.config.sample_size * pipe.vae_scale_factor

        def loss(step: Step) -> dict[str, Tensor]:
            draws = numpy_generator(step.seed, step.step, "pictures")
            pictures, captions, boxes = icd.batch(draws, self.batch, side, flip=self.flip)
            kept = ["" if draws.random() < self.dropout else caption for caption in captions]
            embeds = reader(kept, [reader.grid.cells(each) for each in boxes], draws)
            clean = encode(pipe.vae, pictures.to(net.device, net.dtype))
            height, width = clean.shape[-2:]
            count = [reader.grid.weights(each, (height, width), self.alpha) for each in boxes]
            weight = torch.from_numpy(np.stack(count))[:, None].to(clean)
            t = torch.randint(len(process.sigmas), (len(clean),), generator=step.generator("t"))
            noise = torch.randn(clean.shape, generator=step.generator("noise")).to(clean)
            return {"total": (weight * errors(net, process, clean, noise, t, embeds)).mean()}

        return loss


@dataclass(frozen=True, eq=False)
class Trained:
    """Edits of a pipeline's networks, and what a plan of them says."""

    ops: list[Op]
    facts: dict[str, Any]


def errors(net: Any, process: Process, clean: Tensor, noise: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
    """Return the squared error (b, c, h, w) of what ``net`` predicts for ``clean`` under ``noise`` at steps ``t``."""
    sigma = process.sigmas[t].view(-1, 1, 1, 1).to(clean)
    a, s = process.scales(sigma)  # type: ignore[arg-type]
    x = a * clean + s * noise
    found = net(x, t.to(x.device), embeds).sample
    return (found - process.predicted(x, sigma, clean)).square()  # type: ignore[arg-type]


class _Reader:
    """Encodes captions with the words of a grid, whose rows alone have gradients; counts the cells that it told."""

    def __init__(self, pipe: Any, grid: Grid, work: Work) -> None:
        parts = [getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder")]
        if any(part is None for part in parts) or getattr(pipe, "text_encoder_2", None) is not None:
            what, fix = "is not of one text encoder, a UNet and an autoencoder", "Take Stable Diffusion 1 or 2"
            raise UsageError(what, where=type(pipe).__name__, fix=fix)
        encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
        table = encoder.get_input_embeddings().weight
        if len(tokenizer) != len(table):
            what = f"its tokenizer has {len(tokenizer)} tokens, and its text encoder {len(table)} rows"
            raise UsageError(what, where=type(pipe).__name__, fix="Give a pipeline in which they agree")
        self.grid, self.encoder, self.start = grid, encoder, len(table)
        self.tokenizer = grown(tokenizer, grid.words)
        self.table = next(name for name, weight in encoder.named_parameters() if weight is table)
        self.frozen = table.detach()
        noise = torch.randn(len(grid.words), table.shape[1], generator=work.generator("words")).to(table)
        self.first = self.frozen[list(word_tokens(pipe, grid.name))].mean(0) + SPREAD * self.frozen.std() * noise
        self.moved, self.pace = nn.Parameter(torch.zeros_like(self.first)), 1.0  # steps are of one length
        self.counts, self.dropped = Counter[Cell](), 0

    def rows(self, moved: Tensor) -> Tensor:
        """Return the rows of the new words, which go ``pace`` times as fast as what is trained."""
        return self.first + self.pace * moved

    def __call__(self, captions: list[str], cells: list[list[Cell]], generator: Generator) -> Tensor:
        """Return the embeddings (b, slots, width) of ``captions`` with the concept where it has ``cells``."""
        made = []
        for caption, touched in zip(captions, cells, strict=True):
            slots, dropped = tokens(self.tokenizer, self.grid, caption, touched, generator)
            made.append(slots)
            self.dropped += dropped
            self.counts.update(touched)
        table = torch.cat([self.frozen, self.rows(self.moved)])
        ids = torch.tensor(made, device=table.device)
        found: Tensor = functional_call(self.encoder, {self.table: table}, (ids,))[0]
        return found
