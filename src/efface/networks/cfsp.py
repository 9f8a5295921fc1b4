"""Make the feed-forward layers of a language model narrower, each as much as its block can bear.

What is taken away are channels of the feed-forward layers, so that what is left is a smaller dense model. One pass over
a few texts tells how much each block turns the states that pass through it (coarse): that decides how many channels it
keeps. The same pass tells how strongly each channel is active (fine), and with the weights around it that decides which
(Wang et al., CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information). A
low-rank adapter may then repair what is left, with higher ranks where blocks matter more, and is merged.

Budgets are u_l = sigmoid(a * 13.1 * (c_l - mean c)), c_l the mean angle in [0, 1]: what the released code computes on
131 072 tokens, where it divides the sum over tokens by 10 000; here budgets do not change with the number of tokens.
Scores relate a weight to those of the other channels (``row``). The released code divides each column of the weights by
its own sum, so that their average says nothing and activity alone decides: ``released``. It runs every block twice.

Left out: a target for the latency; attention heads, which the paper leaves alone.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.ops import Drop, Op
from efface.core.trial import perform
from efface.errors import UsageError
from efface.parts.language.blocks import context_of
from efface.parts.language.ffn import Ffn, down_columns, ffns, removal, up_rows
from efface.parts.language.influence import influence_of
from efface.parts.language.passes import block_by_block
from efface.parts.nn.modes import mode
from efface.parts.sparsity.densities import exact_counts
from efface.training.recipe import Train
from efface.training.repair import low_rank_repair

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.language import Corpus

STEEP = 131_072 / 10_000
"""Steepness of the sigmoid, for angles over pi averaged over tokens."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one pass over the texts tells of a block."""

    influence: float
    """How much the block turns the states, the mean over tokens."""
    activity: Tensor
    """Norm (channels,) of what the last layer of the feed-forward is given, over all tokens."""


@dataclass(frozen=True, kw_only=True)
class CFSP(Editor):
    """Hyper-parameters of the two scores and of the repair."""

    keep: float = param(0.5, "share that stays", low=0.01, high=1.0)
    of: str = param("ffn", "what keep is a share of: channels, or all parameters", choices=("ffn", "model"))
    coarse: str = param(
        "angular",
        "influence that budgets follow; constant keeps the same of every block",
        choices=("angular", "cosine", "mse", "mae", "constant"),
    )
    a: float = param(1.0, "how strongly budgets follow it", low=0.0)
    score: str = param(
        "three_w_one_wa",
        "how channels are ranked: three weights, the last one or all times activity; wanda; magnitude",
        choices=("three_w_one_wa", "three_w_one_a", "wanda", "magnitude"),
    )
    norm: str = param("row", "what weights are relative to", choices=("row", "released"))
    multiple: int = param(128, "widths are multiples of this", low=1)
    rows: int = param(128, "texts to run, from random places of the data", low=1)
    length: int = param(1024, "tokens of each; no more than the model's context", low=2)
    batch: int = param(8, "texts that are run at once", low=1)
    steps: int = param(0, "steps of the repair by low-rank adapters; 0 leaves it out", low=0)
    rank: int = param(8, "mean rank of the adapters", low=1)
    rank_mode: str = param(
        "importance", "blocks that get higher ranks", choices=("importance", "inverse", "uniform")
    )  # fmt: skip
    lr: float = param(2e-4, "highest learning rate of the repair", low=0.0)
    repair_batch: int = param(64, "texts for each step of the repair", low=1)

    card = Card(
        title="CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information",
        paper="arXiv:2409.13199",
        year=2025,
        task="channels from networks",
        inputs=("model", "text"),
        good_at="Decoders of transformers: a smaller dense model after one pass over 128 texts, faster on any machine.",
        left_out="latency as a target",
    )
    needs = "text"
    stays = "keep"
    small: ClassVar[dict[str, Any]] = {"rows": 2, "length": 8, "multiple": 4, "steps": 2, "rank": 2, "repair_batch": 2}

    def plan(self, model: nn.Module, data: Corpus | None, work: Work) -> Plan:
        """Return the channels that go, and the merged repair; facts: influence, width and rank of every block.

        Raises
        ------
        UsageError
            If there is no text, feed-forward layers have an unknown form (mixtures of experts), or ``keep`` leaves
            less than one ``multiple`` for a block.
        """
        if data is None:
            raise UsageError("activity is measured on text", where="data", fix="Give a text (--data FILE)")
        data.check(model)
        length = min(self.length, context_of(model), len(data.train.ids))
        rows = data.train.at(length).batch(work.seed, 0, self.rows)["tokens"].split(self.batch)
        found = ffns(model)
        statistics = self.measure(model, found, rows, work)
        budgets = self.budgets([s.influence for s in statistics])
        counts = self.widths(model, found, budgets)
        ops: list[Op] = []
        for ffn, count, told in zip(found, counts, statistics, strict=True):
            if count < ffn.width:
                keep = self.scores(model, ffn, told.activity).topk(count).indices.sort().values
                ops.append(Drop.of(removal(model, ffn, keep.numpy())))
        ranks = self.ranks(budgets)
        if self.steps:
            ops += self._repaired(model, ops, data, found, ranks, work)
        blocks = [
            {"block": f.block, "influence": s.influence, "width": count, "of": f.width, "rank": rank}
            for f, s, count, rank in zip(found, statistics, counts, ranks, strict=True)
        ]
        kept = sum(counts) / sum(ffn.width for ffn in found)
        notes = [f"Widths: {' '.join(map(str, counts))}, {kept:.1%} of all channels"]
        return self.made(model, ops, work, blocks=blocks, notes=notes)

    def measure(self, model: nn.Module, found: Sequence[Ffn], rows: Sequence[Tensor], work: Work) -> list[Statistics]:
        """Return what a pass over ``rows`` of (b, t) tokens tells of each block with a feed-forward layer."""
        by_block = {ffn.block: ffn for ffn in found}
        told: list[Statistics] = []
        metric = "angular" if self.coarse == "constant" else self.coarse

        @contextlib.contextmanager
        def watch(number: int, block: nn.Module) -> Iterator[None]:
            if number not in by_block:
                yield
                return
            squares = torch.zeros(by_block[number].width, dtype=torch.float64)

            def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                squares.add_(inputs[0].detach().flatten(0, -2).float().square().sum(0).double().cpu())

            hook = model.get_submodule(by_block[number].down).register_forward_pre_hook(add)
            try:
                with influence_of(block, metric) as sums:
                    yield
            finally:
                hook.remove()
            told.append(Statistics(math.fsum(sums) / sum(ids.numel() for ids in rows), squares.sqrt().float()))
            work.progress(f"Block {number}: influence {told[-1].influence:.4g}")

        with mode(model, training=False):
            block_by_block(model, rows, watch, work.device)
        return told

    def budgets(self, influence: Sequence[float]) -> Tensor:
        """Return u_l, how much each block matters: its sigmoid, or ones where all keep the same."""
        c = torch.tensor(influence, dtype=torch.float64)
        return torch.sigmoid(self.a * STEEP * (c - c.mean())) if self.coarse != "constant" else torch.ones_like(c)

    def widths(self, model: nn.Module, found: Sequence[Ffn], u: Tensor) -> list[int]:
        """Return how many channels each layer keeps: multiples that add up to the one nearest to what is asked for."""
        shares = keep_shares(u, self._share(model, found))
        if float(shares.min()) == 1:
            return [ffn.width for ffn in found]
        units = {ffn.down: ffn.width // self.multiple for ffn in found}
        if not all(units.values()):
            what = f"a layer has fewer than {self.multiple} channels"
            raise UsageError(what, where="multiple", fix="Ask for smaller multiples, as 8")
        pairs = zip(found, shares.tolist(), strict=True)
        densities = {f.down: min(1.0, share * f.width / self.multiple / units[f.down]) for f, share in pairs}
        counts = exact_counts(densities, units)
        return [self.multiple * counts[ffn.down] for ffn in found]

    def scores(self, model: nn.Module, ffn: Ffn, activity: Tensor) -> Tensor:
        """Return I (channels,): what the weights around a channel are relative to others, times its activity."""
        down, ups = down_columns(model, ffn).float().abs().cpu(), [w.float().abs().T.cpu() for w in up_rows(model, ffn)]
        if self.score == "magnitude":
            return sum((w.sum(0) for w in ups), down.sum(0))
        if self.score == "wanda":
            return down.mean(0) * activity
        terms = [down * activity if self.score == "three_w_one_wa" else down, *ups]  # all (d, channels)
        over = 1 if self.norm == "row" else 0
        relative = [term / term.sum(over, keepdim=True).clamp_min(1e-12) for term in terms]
        return torch.stack([term.mean(0) for term in relative]).sum(0) * activity

    def ranks(self, u: Tensor) -> list[int]:
        """Return the rank of the adapters in each block; they add up to the same whatever the mode."""
        weights = {"importance": u, "inverse": 1 / u, "uniform": torch.ones_like(u)}[self.rank_mode]
        total = self.rank * len(u)
        sizes = {str(i): total for i in range(len(u))}
        counts = exact_counts({str(i): float(w / weights.sum()) for i, w in enumerate(weights)}, sizes)
        return list(counts.values())

    def _share(self, model: nn.Module, found: Sequence[Ffn]) -> float:
        """Return the share of the channels that stays."""
        if self.of == "ffn":
            return self.keep
        whole = sum(p.numel() for p in model.parameters())
        names = [name for ffn in found for name in (*ffn.ups, ffn.down)]
        inside = sum(model.get_parameter(f"{name}.weight").numel() for name in names)
        share = 1 - (1 - self.keep) * whole / inside
        if share <= 0:
            fix = f"Keep more than {1 - inside / whole:.2f}"
            raise UsageError(f"feed-forward layers are {inside / whole:.0%} of the model", where="keep", fix=fix)
        return share

    def _repaired(
        self, model: nn.Module, ops: Sequence[Op], data: Corpus, found: Sequence[Ffn], ranks: Sequence[int], work: Work
    ) -> list[Op]:
        """Return the merged adapters of a copy of ``model`` that was pruned by ``ops`` and trained on."""
        net = copy.deepcopy(model)
        perform(ops, net)
        train = Train(
            steps=self.steps, batch=self.repair_batch, seed=work.seed, lr=self.lr, schedule="cosine", warmup=0.03
        )
        rank_of = {ffn.block: rank for ffn, rank in zip(found, ranks, strict=True)}
        return low_rank_repair(net, data, train, rank_of, device=work.device, progress=work.progress)


def keep_shares(u: Tensor, keep: float) -> Tensor:
    """Return the share of the channels that each block keeps, in proportion to ``u``, with the mean ``keep``.

    Where a block would keep more than all, deviations from the mean shrink until none does (a margin of 5 % included).
    """
    mean = u.mean()
    if keep < 1 <= float(u.max() / mean * keep):
        u = mean + (u - mean) * (mean * (1 / keep - 1)) / (u.max() - mean) / 1.05
    return (u / mean * keep).clamp_max(1) if keep < 1 else torch.ones_like(u)
