"""Show that attention and feed-forward layers chosen one by one are missed less than whole blocks or random layers.

The tiny language model that comes with the package, eight blocks, loses 4, 6 and 8 of its 16 layers by each rule, and
the loss of the next character is measured on text that no rule saw.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from efface.core.claim import Claim, Context, Effect
from efface.core.method import Work
from efface.core.models import open_model
from efface.networks.finercut import FinerCut
from efface.parts.data.language import Corpus
from efface.parts.language.blocks import Sublayer, sublayers
from efface.parts.language.influence import block_influence
from efface.parts.language.silence import remove, without
from efface.parts.language.tiny import SHIPPED, tiny_corpus
from efface.parts.timing import interleave

COUNTS, DRAWS, ROWS = (4, 6, 8), 5, 20

CLAIM = Claim(
    statement="Taking out the attention and feed-forward layers whose absence moves the output least, one after the "
    "other, costs less than taking out whole blocks, and far less than taking out layers at random",
    baseline="whole blocks of least influence (ShortGPT); layers scored once; layers drawn at random",
    minutes=3,
    data="text that the bundled language model writes itself, or a folder of text",
)


def check(context: Context) -> list[Effect]:
    """Remove layers by each rule per seed; compare how much the loss of the next character rises, in nats."""
    model: Any = open_model(SHIPPED).model
    rises: dict[str, dict[int, list[float]]] = {
        rule: {count: [] for count in COUNTS} for rule in ("finercut", "one shot", "blocks", "random")
    }
    speed: dict[str, list[float]] = {"whole": [], "8 layers out": []}
    for seed in context.seeds:
        corpus = tiny_corpus(model, context.data, seed, windows=16 if context.quick else 64)
        rows, work = corpus.train.rows(2 if context.quick else ROWS, corpus.train.length), Work(seed=seed)
        draws = [Work(seed=1000 * seed + i) for i in range(1 if context.quick else DRAWS)]
        orders = {
            "finercut": [order(model, rows, work, "greedy")],
            "one shot": [order(model, rows, work, "one_shot")],
            "blocks": [by_influence(model, rows)],
            "random": [order(model, rows, drawn, "random") for drawn in draws],
        }
        whole = corpus.score(model).loss
        for rule, found in orders.items():
            for count in COUNTS:
                rises[rule][count].append(fmean(loss_without(model, corpus, gone[:count]) - whole for gone in found))
        names = " ".join(sublayer.label for sublayer in orders["finercut"][0])
        told = ", ".join(f"{rule} {'/'.join(f'{rises[rule][c][-1]:.3f}' for c in COUNTS)}" for rule in rises)
        context.progress(f"seed {seed}: loss {whole:.3f}, rises by {told}; order {names}")
        for name, rate in written_per_second(model, orders["finercut"][0]).items():
            speed[name].append(rate)
    few, many = COUNTS[0], COUNTS[-1]
    return [
        Effect(
            f"{share} % of the layers",
            f"the mean rise of the loss at most {bound} of that by {told}",
            {"finercut": rises["finercut"][count], rule: rises[rule][count], "one shot": rises["one shot"][count]},
            fmean(rises["finercut"][count]) <= bound * fmean(rises[rule][count]),
            unit="nats",
            note=f"ratio {fmean(rises['finercut'][count]) / max(fmean(rises[rule][count]), 1e-9):.2f}",
        )
        for share, count, rule, bound, told in (
            (25, few, "blocks", 0.8, "whole blocks of least influence"),
            (50, many, "blocks", 0.6, "whole blocks of least influence"),
            (50, many, "random", 0.35, "random layers"),
        )
    ] + [
        Effect(
            "what is left is faster",
            "more characters written in a second without 8 of the 16 layers, in the mean over seeds",
            speed,
            fmean(speed["8 layers out"]) > fmean(speed["whole"]),
            unit="characters/s",
            note=size_note(model, orders["finercut"][0]),
        )
    ]


def order(model: Any, rows: torch.Tensor, work: Work, mode: str) -> list[Sublayer]:
    """Return the layers to go, the first one first."""
    method = FinerCut(count=COUNTS[-1], exclude=0.0, mode=mode, length=rows.shape[1])
    return [sublayer for step in method.search(model, rows, work)[1] for sublayer in step.gone]


def by_influence(model: Any, rows: torch.Tensor) -> list[Sublayer]:
    """Return the layers of whole blocks, those of the blocks first that change the states least."""
    influence = block_influence(model, [rows], "cosine")
    return sorted(sublayers(model), key=lambda sublayer: influence[sublayer.block])


def loss_without(model: Any, corpus: Corpus, gone: Sequence[Sublayer]) -> float:
    """Return the loss of the model without some layers."""
    with without(model, gone):
        return corpus.score(model).loss


def written_per_second(model: Any, gone: Sequence[Sublayer], texts: int = 16, length: int = 32) -> dict[str, float]:
    """Return how many characters the model writes in a second, several texts at once, whole and without layers."""
    small, given = copy.deepcopy(model), torch.full((texts, 4), 50)
    remove(small, gone)

    def write(net: Any) -> None:
        net.generate(given, max_new_tokens=length, do_sample=False)

    times = interleave({"whole": lambda: write(model), "8 layers out": lambda: write(small)})
    return {name: texts * length / timing.seconds for name, timing in times.items()}


def size_note(model: Any, gone: Sequence[Sublayer]) -> str:
    """Say how many parameters and slots of the cache the removal leaves."""
    before, slots = sum(p.numel() for p in model.parameters()), sum(s.kind == "attention" for s in sublayers(model))
    lost = sum(sublayer.kind == "attention" for sublayer in gone)
    with without(model, gone):
        after = sum(p.numel() for p in model.parameters())
    return f"{after:,} of {before:,} parameters and {slots - lost} of {slots} layers of the cache are left"
