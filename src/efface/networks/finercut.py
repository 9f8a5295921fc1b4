"""Take attention and feed-forward layers out of a language model, one by one, those that its output misses least.

What is taken away are residual branches: an attention or a feed-forward layer of a block adds nothing any more, and its
norm and its place in the cache of keys and values go with it. In every step each layer that is left is left out for a
moment, the logits of a few short texts are compared with those of the whole model, and the layer goes whose absence,
after all that is gone already, moves them least (Zhang et al., FinerCut: Finer-grained Interpretable Layer Pruning for
Large Language Models, algorithm 1). Nothing is trained. A trial starts from the block that changes, on states that are
kept, which is exact and halves the work.

The distance is the Jensen-Shannon divergence; the released code exchanges the arguments of its two divergences and
divides by the vocabulary, which is the metric ``released``. Layers of the first blocks are protected until a share of
all layers is gone. Of a mixture of experts the whole mixture is one layer.

Left out: tuning of what is left.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from efface.core.card import Card
from efface.core.method import Editor, Work, param
from efface.core.ops import Op, Replace, Silence
from efface.errors import UnknownNameError, UsageError
from efface.parts.language.blocks import Sublayer, blocks_of, context_of, idle, sublayers
from efface.parts.language.distances import compare
from efface.parts.language.passes import block_outputs, logits_from
from efface.parts.language.silence import without
from efface.parts.nn.modes import mode

if TYPE_CHECKING:
    from efface.core.plan import Plan
    from efface.parts.data.language import Corpus

Candidate = tuple[Sublayer, ...]
"""What goes in one step: one layer, or both of a block."""


@dataclass(frozen=True)
class Step:
    """One removal, and where the model stands after it."""

    gone: Candidate
    distance: float
    """Between the logits of the whole model and of what is left."""
    perplexity: float
    """Of what is left, on the texts of the search."""

    @property
    def label(self) -> str:
        """Short names of what went: ``A6``, or ``A6+M6`` for a block."""
        return "+".join(sublayer.label for sublayer in self.gone)


@dataclass(frozen=True, kw_only=True)
class FinerCut(Editor):
    """Hyper-parameters of the search."""

    ratio: float = param(0.25, "share of the candidates to take out", low=0.0, high=1.0)
    count: int = param(0, "candidates to take out; 0 goes by ratio", low=0)
    ppl_budget: float = param(0.0, "stop before perplexity is this many times the whole model's; 0: never", low=0.0)
    mode: str = param(
        "greedy",
        "score what is left anew in every step, all once, nothing, or follow an order",
        choices=("greedy", "one_shot", "random", "from_scores"),
    )
    order: tuple[str, ...] = param((), "candidates from the first to go, as A6 M5 (decoder: A6+M6), for from_scores")
    level: str = param(
        "am", "candidates: attention and feed-forward layers, one kind, or blocks", choices=("am", "a", "m", "decoder")
    )
    metric: str = param(
        "js", "distance between logits", choices=("js", "released", "angular", "norm", "kl", "ppl")
    )  # fmt: skip
    exclude: float = param(0.4, "share of blocks that is spared until such a share is gone", low=0.0, high=1.0)
    rows: int = param(10, "texts to compare logits on, from the beginning of the data", low=1)
    length: int = param(256, "tokens of each; no more than the model's context", low=2)
    batch: int = param(10, "texts that are run at once", low=1)

    card = Card(
        title="FinerCut: Finer-grained Interpretable Layer Pruning for Large Language Models",
        paper="arXiv:2405.18218",
        year=2024,
        task="layers from networks",
        inputs=("model", "text"),
        good_at="Decoders of transformers, without training: a shorter dense model with a smaller cache. "
        "Where more than a third of the layers goes, train what is left.",
    )
    needs = "text"
    goes = "ratio"
    small: ClassVar[dict[str, Any]] = {"rows": 2, "length": 8, "count": 1}

    def plan(self, model: nn.Module, data: Corpus | None, work: Work) -> Plan:
        """Return the removals; facts: the order with distances and perplexities, and a map of kinds and blocks.

        Raises
        ------
        UsageError
            If there is no text, the model is no decoder whose layers are known, or more is to go than there is.
        DataError
            If the text is too short.
        """
        if data is None:
            raise UsageError("logits are compared on text", where="data", fix="Give a text (--data FILE)")
        data.check(model)
        rows = data.train.rows(self.rows, min(self.length, context_of(model)))
        before, steps = self.search(model, rows, work)
        gone = [sublayer for step in steps for sublayer in step.gone]
        ranking = [{"gone": s.label, "distance": s.distance, "perplexity": s.perplexity} for s in steps]
        notes = [f"Went, in this order: {' '.join(s.label for s in steps) or 'nothing'}"]
        if steps:
            notes.append(f"Perplexity of the texts searched on: {before:.4g} before, {steps[-1].perplexity:.4g} after")
        facts: dict[str, Any] = {"ranking": ranking, "perplexity": before, "map": removal_map(model, gone)}
        return self.made(model, removals(model, gone), work, notes=notes, **facts)

    def search(self, model: nn.Module, rows: Tensor, work: Work) -> tuple[float, list[Step]]:
        """Return the perplexity of the whole ``model`` on ``rows`` (n, t) of tokens, and what goes, step by step."""
        candidates = self.candidates(model)
        target = self.count or round(self.ratio * len(candidates))
        if target > len(candidates):
            what = f"{target} are to go, and there are {len(candidates)}"
            raise UsageError(what, where="count", fix="Ask for fewer")
        home = next(model.parameters()).device
        with contextlib.ExitStack() as undo, mode(model, training=False):
            undo.callback(model.to, home)
            trial = Trial(model.to(work.device), rows.to(work.device).split(self.batch), self.metric)
            priority = self._priority(candidates, trial, work)
            steps: list[Step] = []
            while len(steps) < target:
                left = [c for c in candidates if c not in [step.gone for step in steps]]
                open_ = self._open(left, candidates, len(blocks_of(model)[1]))
                if priority is None:
                    scores = {c: trial.without(c) for c in open_}
                    best = min(open_, key=lambda c: (scores[c][0], -c[0].block))
                else:
                    best = next(c for c in priority if c in open_)
                    scores = {best: trial.without(best)}
                step = Step(best, *scores[best])
                if self.ppl_budget and step.perplexity > self.ppl_budget * trial.perplexity:
                    break
                undo.enter_context(without(model, best))
                trial.begin()
                steps.append(step)
                work.progress(f"{len(steps)} of {target}: {step.label}, perplexity {step.perplexity:.4g}")
        return trial.perplexity, steps

    def candidates(self, model: nn.Module) -> list[Candidate]:
        """Return what may go in one step, by blocks."""
        found = sublayers(model)
        if self.level == "decoder":
            return [tuple(s for s in found if s.block == block) for block in dict.fromkeys(s.block for s in found)]
        kinds = {"am": ("attention", "ffn"), "a": ("attention",), "m": ("ffn",)}[self.level]
        return [(sublayer,) for sublayer in found if sublayer.kind in kinds]

    def _open(self, left: list[Candidate], candidates: list[Candidate], blocks: int) -> list[Candidate]:
        """Return those of ``left`` that may go now: the first blocks are spared until enough of all is gone."""
        gone = len(candidates) - len(left)
        if not self.exclude or gone > int(self.exclude * len(candidates)):
            return left
        return [c for c in left if c[0].block > int(self.exclude * blocks)] or left

    def _priority(self, candidates: list[Candidate], trial: Trial, work: Work) -> list[Candidate] | None:
        """Return the order in which candidates go, None where each step finds out anew."""
        if self.mode == "one_shot":
            scores = {c: trial.without(c)[0] for c in candidates}
            return sorted(candidates, key=lambda c: (scores[c], -c[0].block))
        if self.mode == "random":
            order = torch.randperm(len(candidates), generator=work.generator("order"))
            return [candidates[i] for i in order.tolist()]
        if self.mode == "from_scores":
            known = {"+".join(s.label for s in c): c for c in candidates}
            if strange := [label for label in self.order if label not in known]:
                raise UnknownNameError("candidate", strange[0], known)
            first = [known[label] for label in self.order]
            return first + [c for c in candidates if c not in first]
        return None


class Trial:
    """A model, texts, and what the whole model makes of them."""

    def __init__(self, model: nn.Module, rows: Sequence[Tensor], metric: str) -> None:
        self.model, self.rows, self.metric = model, rows, metric
        self.whole = self.begin()
        self.perplexity = self._compare(self.whole)[1]

    def begin(self) -> list[Tensor]:
        """Keep what every block gives, of the model as it is now, and return its logits."""
        passes = [block_outputs(self.model, ids) for ids in self.rows]
        self.outputs = [outputs for _, outputs in passes]
        return [logits for logits, _ in passes]

    def without(self, candidate: Candidate) -> tuple[float, float]:
        """Return the distance from the whole model, and the perplexity, were the candidate gone as well."""
        start = candidate[0].block
        with without(self.model, candidate):
            runs = zip(self.rows, self.outputs, strict=True)
            return self._compare(logits_from(self.model, ids, outputs, start) for ids, outputs in runs)

    def _compare(self, edited: Any) -> tuple[float, float]:
        distance, perplexity = compare(self.metric, zip(self.whole, edited, self.rows, strict=True))
        return (math.inf if math.isnan(distance) else distance), perplexity


def removals(model: nn.Module, gone: Sequence[Sublayer]) -> list[Op]:
    """Return the edits that take the layers ``gone`` out of ``model``, and norms once nothing needs them."""
    every, dropped = sublayers(model), set[str]()
    ops: list[Op] = []
    for number, sublayer in enumerate(gone, 1):
        unused = [name for name in idle(every, gone[:number]) if name not in dropped]
        ops += [Silence(sublayer.branch), *(Replace.by(name, nn.Identity(), {}) for name in unused)]
        dropped.update(unused)
    return ops


def removal_map(model: nn.Module, gone: Collection[Sublayer]) -> dict[str, list[int]]:
    """Return for each kind of layer, block by block, in which step it went, counted from 1; 0 where it stays."""
    order = {(s.kind, s.block): step for step, s in enumerate(gone, 1)}
    blocks = range(len(blocks_of(model)[1]))
    return {kind: [order.get((kind, block), 0) for block in blocks] for kind in ("attention", "ffn")}  # type: ignore[arg-type]
