"""Erase a concept with its neighbourhood, so that words which are close to it do not bring it back.

Neighbours of the concept's rows e are mined: e + eta, accepted within a cone, cos(e, e + eta) in [S1, S2], and a
distance D1. Samples beyond, farther away and outside the cone, are held where they are. Both serve twice.

First in closed form: every key and value layer W becomes W M, which gives for the concept and its neighbours what W
gave for the guide, and for samples beyond and kept texts what it gave for them. Then at states x_t, where adapters of
low rank in cross-attention learn: the noise under a neighbour shall be that of the untouched denoiser e0 under the
guide, or without one e0(x) - eta_s (e0(x, concept) - e0(x)), and that under a sample beyond, or a kept text, that of e0
under the same. Samples are drawn anew for each step. The adapters learn on texts that M has mapped, so the edit is
(W + B A) M.

In hundreds of dimensions isotropic noise makes angle and distance one and the same, so cosines are drawn first. And
random directions leave the manifold of text, where real neighbours lie in few of them: ``words`` mines the tokenizer
for words within the cone instead, and ``mixed`` does both. What is nearer to a kept text is no neighbour. Thresholds
and weights are ours, since the paper's are not known; distances are shares of a row's length.

Left out: a merge of one adapter for each concept; all share one and take turns. And the choice between the stages by
pictures drawn after each, which takes a judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts
from efface.core.method import Step, Work, param
from efface.core.ops import Delta, Map, Op
from efface.core.plan import Plan
from efface.errors import UsageError
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.lora import Adapter, attached, hosts, new_adapters, parameters
from efface.parts.concepts.maps import LARGE, CrossAttnEdit, drift, factor, gram, mapped, spectral_norm
from efface.parts.concepts.neighbours import alike, sample_beyond, sample_neighbours
from efface.parts.concepts.phrases import names
from efface.parts.concepts.rollout import noise_prediction, trajectories
from efface.parts.concepts.slots import TEMPLATES, Encoded, aligned, encode, last_words
from efface.parts.diffusion.adapters import latent_shape
from efface.training.descent import descend, load
from efface.training.recipe import Train


class Text(NamedTuple):
    """Prompts as a denoiser is given them."""

    embeds: Tensor
    """(b, slots, width)"""
    pooled: Tensor | None


@dataclass(frozen=True, kw_only=True)
class RealEra(Eraser):
    """Hyper-parameters of erasing by neighbour-concept mining."""

    stages: str = param("both", "the map, the adapters, or both", choices=("both", "map", "adapters"))
    mine: str = param(
        "random", "neighbours: random samples, words of the tokenizer, or both", choices=("random", "words", "mixed")
    )
    neighbours: int = param(64, "neighbours of a concept, and at most as many words", low=0)
    beyond: int = param(64, "samples beyond", low=0)
    cos: tuple[float, ...] = param((0.8, 0.98), "cosines of neighbours (S1, S2)", low=0.0, high=1.0)
    near: float = param(0.6, "largest distance of a neighbour, as a share of its concept's length (D1)", low=0.0)
    far: float = param(1.2, "largest distance of a sample beyond (D2)", low=0.0)
    reach: float = param(1.0, "weight of neighbours in the map, beside 1 of the concept", low=0.0)
    held: float = param(1.0, "weight of samples beyond in the map", low=0.0)
    kept: float = param(0.1, "weight of texts to keep in the map", low=0.0)
    ridge: float = param(1e-2, "pull of the map towards none, over the mean square of rows", low=1e-9)
    rank: int = param(4, "dimensions of an adapter", low=1)
    steps: int = param(300, "steps of the adapters", low=1)
    lr: float = param(1e-4, "learning rate of the adapters", low=0.0)
    mu: float = param(10.0, "weight of samples beyond and kept texts, beside 1 of neighbours", low=0.0)
    eta: float = param(1.0, "how far a concept without a guide is turned around (eta_s)", low=0.0)
    batch: int = param(4, "states of a step, each with a neighbour and a sample beyond", low=1)
    rollouts: int = param(16, "samplings that give states, half of them under the guide", low=2)
    rollout_steps: int = param(30, "steps of these samplings", low=2)
    rollout_guidance: float = param(3.0, "guidance of these samplings", low=0.0)
    layers: str = param("attn2", "regular expression that names of adapted layers must contain")

    card = Card(
        title="RealEra: Semantic-level Concept Erasure via Neighbor-Concept Mining",
        paper="arXiv:2410.09140",
        year=2024,
        task="concepts from generators",
        inputs=("pipeline", "concepts"),
        good_at="Concepts that related words still bring back after their name is erased. Say what must stay, for what "
        "lies close to the concept goes with it.",
        left_out="a merge of one adapter for each concept, the choice between stages by pictures",
    )
    trains: ClassVar[bool] = True
    small: ClassVar[dict[str, Any]] = {
        "neighbours": 4, "beyond": 4, "steps": 3, "rollouts": 2, "rollout_steps": 3, "batch": 2, "lr": 1e-2,
    }  # fmt: skip

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return adapters of the layers that attend to text, and one map for all key and value layers.

        Facts: ``nearby``, words that were mined for each concept; ``spectral_norm`` and ``kept_drift`` of the map, how
        far kept rows moved; ``neigh`` and ``beyond``, means of the adapters' two losses over the first and the last
        tenth of the steps; ``notes``, what is to be watched.

        Raises
        ------
        UsageError
            If the pipeline cannot be told the concepts, the denoiser is none that adapters can be trained for, or no
            sample can keep the limits of cosine and distance.
        """
        check_concepts(pipe, concepts)
        if len(self.cos) != 2 or not self.near < self.far:
            fix = "Give two cosines, and far above near"
            raise UsageError(f"{self.cos}, {self.near} and {self.far} are no limits", where=self.name, fix=fix)
        name, net = backbone(pipe)
        layers = cross_attention(net)
        gram0 = gram(layer.weight for layer in layers.values())
        kept = encode(pipe, ["", *concepts.keep])
        words = [self._words(pipe, concept, concepts, kept) for concept in concepts.remove]
        edit, ops, facts, notes = torch.eye(len(gram0), dtype=torch.float64), list[Op](), dict[str, Any](), list[str]()
        if self.stages != "adapters":
            edit = self._map(pipe, concepts, words, kept, work.generator("map"))
            ops.append(Map(name, tuple(layers), *factor(edit)))
            rows = kept.embeds.flatten(0, 1)
            facts |= {"spectral_norm": spectral_norm(edit), "kept_drift": drift(gram0, edit, rows)}
            if facts["spectral_norm"] > LARGE:
                notes.append(f"the map lengthens some texts {facts['spectral_norm']:.1f} times: raise held, kept or S1")
        if self.stages != "map":
            adapters, losses = self._adapters(pipe, concepts, words, edit, work)
            low_rank = [Delta.low_rank(f"{name}.{host}.weight", *own.factors()) for host, own in adapters.items()]
            ops = [*low_rank, *ops]
            facts |= losses
            if losses["neigh"][1] >= losses["neigh"][0]:
                notes.append("the loss at neighbours does not fall: lower lr, or mu")
        for note in notes:
            work.progress(note)
        return self.planned(pipe, concepts, work, ops, nearby=words, notes=notes, **facts)

    def _words(self, pipe: Any, concept: str, concepts: Concepts, kept: Encoded) -> list[str]:
        """Return words within the cone around ``concept``, the nearest first; none that others claim."""
        if self.mine == "random":
            return []
        others = (*concepts.remove, *concepts.instead, *concepts.keep)
        words = [word for word in alike(pipe, concept) if not any(names(text, word) for text in others)]
        text = encode(pipe, [concept, *words])
        own, *rows = text.embeds[text.first_end]
        if not rows:
            return []
        found = torch.stack(rows)
        cosine = torch.cosine_similarity(found, own, dim=-1)
        cosine[(cosine < self.cos[0]) | claimed(found, own, kept)] = -1
        nearest = cosine.argsort(descending=True)[: self.neighbours].tolist()
        return [words[i] for i in nearest if cosine[i] >= 0]

    def _neighbours(self, text: Text, first: int, kept: Encoded, n: int, generator: Generator) -> Text:
        """Return neighbours of one prompt from the slot ``first`` on; one that a kept text claims is the prompt."""
        low, high = self.cos
        near = around(
            text, first, lambda e: sample_neighbours(e, cos=(low, high), max_dist=self.near, n=n, generator=generator)
        )
        end = min(first + 1, text.embeds.shape[1] - 1)  # behind the last word is the end, which sums the prompt up
        back = claimed(near.embeds[:, end], text.embeds[0, end], kept)
        embeds = torch.where(back[:, None, None], text.embeds, near.embeds)
        if text.pooled is None or near.pooled is None:
            return Text(embeds, None)
        return Text(embeds, torch.where(back[:, None], text.pooled, near.pooled))

    def _beyond(self, text: Text, first: int, n: int, generator: Generator) -> Text:
        """Return samples beyond one prompt from the slot ``first`` on."""
        dist, cos = (self.near, self.far), self.cos[0]
        return around(text, first, lambda e: sample_beyond(e, dist=dist, max_cos=cos, n=n, generator=generator))

    def _map(
        self, pipe: Any, concepts: Concepts, words: Sequence[Sequence[str]], kept: Encoded, generator: Generator
    ) -> Tensor:
        """Return M (width, width) of the first stage; without neighbours and samples beyond it is UCE's."""
        edit = CrossAttnEdit(kept.embeds.shape[2]).keep(kept.embeds, self.kept)
        for (concept, guide), nearby in zip(concepts.pairs, words, strict=True):
            edit.replace(*aligned(pipe, concept, guide, TEMPLATES))
            (first,), text = last_words(pipe, [concept]), given(encode(pipe, [concept]))
            pairs = [aligned(pipe, word, guide, TEMPLATES) for word in nearby]
            if self.mine != "words":
                near = self._neighbours(text, first, kept, self.neighbours, generator).embeds[:, first:]
                pairs.append((near.flatten(0, 1), aligned(pipe, concept, guide)[1].repeat(len(near), 1)))
            if pairs:
                edit.replace(torch.cat([old for old, _ in pairs]), torch.cat([new for _, new in pairs]), self.reach)
            edit.keep(self._beyond(text, first, self.beyond, generator).embeds[:, first:], self.held)
        return edit.solve(self.ridge)

    def _adapters(
        self, pipe: Any, concepts: Concepts, words: Sequence[Sequence[str]], edit: Tensor, work: Work
    ) -> tuple[dict[str, Adapter], dict[str, list[float]]]:
        """Return the adapters of the second stage, and its losses at first and at last."""
        net = backbone(pipe)[1]
        adapters = new_adapters(hosts(net, match=self.layers), self.rank, work.generator("adapters"))
        for adapter in adapters.values():
            adapter.to(net.device)
        loss = self._loss(pipe, concepts, words, edit, adapters, work)
        train = Train(steps=self.steps, lr=self.lr, seed=work.seed, batch=self.batch)
        reached = descend(net, parameters(adapters), loss, train, work, name=self.name)
        load(parameters(adapters), reached.values)
        lines = [line for line in reached.history if line]  # a step that is not finite leaves none
        tenth = max(1, len(lines) // 10)
        means = {
            key: [sum(line[key] for line in part) / tenth for part in (lines[:tenth], lines[-tenth:])]
            for key in ("neigh", "beyond")
        }
        return adapters, means

    def _loss(
        self, pipe: Any, concepts: Concepts, words: Sequence[Sequence[str]], edit: Tensor,
        adapters: dict[str, Adapter], work: Work,
    ) -> Callable[[Step], dict[str, Tensor]]:  # fmt: skip
        net = backbone(pipe)[1]
        kept = encode(pipe, ["", *concepts.keep])
        texts = [
            [given(encode(pipe, [text])) for text in (concept, guide, *nearby)]
            for (concept, guide), nearby in zip(concepts.pairs, words, strict=True)
        ]
        first = [last_words(pipe, [concept, *nearby]) for concept, nearby in zip(concepts.remove, words, strict=True)]
        pools = [self._states(pipe, pair, work) for pair in concepts.pairs]

        def loss(step: Step) -> dict[str, Tensor]:
            generator, turn = step.generator("state"), step.step % len(texts)
            (states, times), (concept, guide, *nearby) = pools[turn], texts[turn]
            rows = torch.randint(len(states), (self.batch,), generator=generator)
            x, t = states[rows].to(net.device), times[rows]
            which = int(torch.randint(1 + len(nearby), (), generator=generator))
            near = base = [concept, *nearby][which]
            if self.mine != "words":
                near = self._neighbours(base, first[turn][which], kept, self.batch, generator)
            if concepts.keep and step.step // len(texts) % 2:  # every concept meets both
                far = given(kept.picked(1 + torch.randint(len(concepts.keep), (self.batch,), generator=generator)))
            else:
                far = self._beyond(concept, first[turn][0], self.batch, generator)
            with torch.no_grad():
                target = noise_prediction(pipe, x, t, *guide)
                if not concepts.instead[turn]:
                    target -= self.eta * (noise_prediction(pipe, x, t, *concept) - target)
                stays = noise_prediction(pipe, x, t, *far)
            with attached(net, adapters):
                neigh = (noise_prediction(pipe, x, t, mapped(near.embeds, edit), near.pooled) - target).square().mean()
                beyond = (noise_prediction(pipe, x, t, mapped(far.embeds, edit), far.pooled) - stays).square().mean()
            return {"total": neigh + self.mu * beyond, "neigh": neigh, "beyond": beyond}

        return loss

    def _states(self, pipe: Any, pair: tuple[str, str], work: Work) -> tuple[Tensor, Tensor]:
        """Return states (n, c, h, w) of samplings of the original, and the time step of each."""
        net = backbone(pipe)[1]
        noise = torch.randn(self.rollouts, *latent_shape(net.config), generator=work.generator(f"noise {pair}"))
        prompts = [pair[i % 2] for i in range(self.rollouts)]
        states, times = trajectories(
            pipe, encode(pipe, prompts), encode(pipe, [""]), noise.to(net.device),
            steps=self.rollout_steps, guidance=self.rollout_guidance,
        )  # fmt: skip
        return states.flatten(0, 1).cpu(), times.repeat_interleave(self.rollouts)


def claimed(near: Tensor, own: Tensor, kept: Encoded) -> Tensor:
    """Return which of the end rows ``near`` (n, width) are nearer to that of a kept text than to ``own`` (width,)."""
    ends = torch.nn.functional.normalize(kept.embeds[kept.first_end][1:], dim=-1)  # the first is of the empty prompt
    others = torch.nn.functional.normalize(near, dim=-1) @ ends.T
    return (others > torch.cosine_similarity(near, own, dim=-1)[:, None]).any(1)


def around(text: Text, first: int, sample: Callable[[Tensor], Tensor]) -> Text:
    """Return one prompt with samples for its slots from ``first`` on, and for its pooled embedding where it has one."""
    rows = sample(text.embeds[0, first:])
    embeds = torch.cat([text.embeds[:, :first].expand(len(rows), -1, -1), rows], dim=1)
    return Text(embeds, None if text.pooled is None else sample(text.pooled)[:, 0])


def given(text: Encoded) -> Text:
    """Return what a denoiser is given of ``text``."""
    return Text(text.embeds, text.pooled)
