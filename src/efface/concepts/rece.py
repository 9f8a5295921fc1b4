"""Erase concepts from cross-attention in closed form, again and again, until no embedding brings them back.

A first edit, that of UCE, makes every key and value layer W give for the concept what it gave for its guide. But the
concept is still within reach: a derived embedding c' minimises sum_j |W_j c' - W0_j c|^2 + lam |c'|^2, and the edited
layers make of it what the untouched W0 made of the concept c. So c' is derived, erased in its turn, and so on for a few
rounds (algorithm 1). lam is not free to choose: as it nears the layers' own size, c' grows short, and moving a short
embedding onto a guide of full length needs a huge gain, which hurts everything (eq. 8 bounds it from the other side).

All layers read the same text, so W_j = W0_j M with one M for all of them: each step is a solve of the text's width, and
costs the same for ten prompts to keep as for thousands. The plan holds M as one map of low rank, which fits every model
with the same text encoder. Several concepts are derived from the same weights and erased together. An embedding that
nobody can type was never the only way back: probes that begin at a picture go around cross-attention.

Settings of the paper, whose lam is not relative: nudity 0.1 and 3 rounds; unsafe words 0.1 and 2; styles 1e-3, 1 round
and the guide "art"; objects 1e-3 or, if easy, 0.1, and 1 round.

Left out: choosing the round by looking at pictures, which is choosing by the test.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts
from efface.core.method import Work, param
from efface.core.ops import Map
from efface.core.plan import Plan
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.maps import (
    LARGE,
    CrossAttnEdit,
    derive,
    drift,
    factor,
    gram,
    residual,
    spectral_norm,
    weight_distance,
)
from efface.parts.concepts.slots import TEMPLATES, Rows, aligned, encode

HIGH = 1e-2
"""lam from which on derived embeddings are too short."""


@dataclass(frozen=True, kw_only=True)
class Rece(Eraser):
    """Hyper-parameters of reliable and efficient concept erasure."""

    rounds: int = param(3, "rounds of deriving and erasing after the first edit; 0 is UCE", low=0, high=100)
    lam: float = param(2e-4, "weight of the length of derived embeddings, over the layers' mean square", low=1e-9)
    pull: str = param("zero", "what derived embeddings are drawn to", choices=("zero", "guide", "concept"))
    rescale: bool = param(False, "give derived embeddings the length of the concept's")
    slots: str = param("all", "slots that rounds erase: with the start, or without", choices=("all", "content"))
    kept: float = param(1.0, "weight of what is kept, beside 1 of what is erased", low=0.0)
    ridge: float = param(1e-2, "pull of the first edit towards none, over the mean square of rows", low=1e-9)
    round_ridge: float = param(1e-3, "the same, in the rounds", low=1e-9)

    card = Card(
        title="Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models",
        paper="arXiv:2407.12383",
        year=2024,
        task="concepts from generators",
        inputs=("pipeline", "concepts"),
        good_at="An edit in seconds, without data or gradients, that also withstands embeddings made to undo it. "
        "Name what must stay: the more texts to keep, the better neighbours fare, at no cost.",
        left_out="choosing the number of rounds by the pictures drawn after each",
    )
    small: ClassVar[dict[str, Any]] = {"rounds": 2}

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return one map for all key and value layers.

        Facts: ``rho``, how far derived embeddings are from bringing the concepts back after the first edit and after
        each round, as a share; ``kept_drift``, how far kept rows moved; ``weight_distance`` and ``spectral_norm`` of
        the edit; ``notes``, what is to be watched.

        Raises
        ------
        UsageError
            If the pipeline cannot be told the concepts or has no cross-attention of its own.
        """
        check_concepts(pipe, concepts)
        name, net = backbone(pipe)
        layers = cross_attention(net)
        gram0 = gram(layer.weight for layer in layers.values())
        kept = encode(pipe, ["", *concepts.keep]).embeds.flatten(0, 1)
        stay = CrossAttnEdit(kept.shape[1]).keep(kept, self.kept)

        first = copy.deepcopy(stay)
        for concept, guide in concepts.pairs:
            first.replace(*aligned(pipe, concept, guide, TEMPLATES))
        edit, rho = first.solve(self.ridge), list[float]()
        whole = [aligned(pipe, *pair, rows=cast("Rows", self.slots)) for pair in concepts.pairs]
        for number in range(self.rounds + 1):
            derived = [derive(gram0, edit, c, self.lam, self._towards(c, g), rescale=self.rescale) for c, g in whole]
            found = [residual(gram0, edit, c, d) for (c, _), d in zip(whole, derived, strict=True)]
            rho.append(sum(found) / len(found))
            work.progress(f"round {number}: derived embeddings miss {rho[-1]:.1%} of the concepts")
            if number == self.rounds:
                break
            again = copy.deepcopy(stay)
            for (_, guide_rows), rows in zip(whole, derived, strict=True):
                again.replace(rows, guide_rows.cpu().double())
            edit = edit @ again.solve(self.round_ridge)

        norm = spectral_norm(edit)
        for note in (notes := self._notes(norm)):
            work.progress(note)
        return self.planned(
            pipe, concepts, work, [Map(name, tuple(layers), *factor(edit))], notes=notes, rho=rho, spectral_norm=norm,
            kept_drift=drift(gram0, edit, kept), weight_distance=weight_distance(gram0, edit),
        )  # fmt: skip

    def _towards(self, concept: Tensor, guide: Tensor) -> Tensor | None:
        """Return what derived rows are drawn to: regzero, standardreg and surrogatereg of the official code."""
        return {"zero": None, "guide": guide, "concept": concept}[self.pull]

    def _notes(self, norm: float) -> list[str]:
        notes = []
        if self.lam > HIGH and not self.rescale:
            notes.append(f"lam {self.lam:g} is above {HIGH:g}: derived embeddings are short, and the edit large")
        if norm > LARGE:
            notes.append(f"the map lengthens some texts {norm:.1f} times: name more to keep, or lower lam")
        return notes
