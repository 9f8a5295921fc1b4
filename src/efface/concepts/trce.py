"""Erase concepts in the text by closed form, then steer the first steps of sampling away from them.

Stage one, textual semantic erasure: the end slot of a prompt sums it up, so that slot alone is mapped. With e^m the end
rows of sentences that name the concept, e^s those of the same sentences with what takes its place, and k the rows of
captions that must stay, every key and value layer W becomes W [mean e^s e^mT + eta mean k k^T] [mean e^m e^mT + eta
mean k k^T]^(-1) (section 3.2). Words keep their rows, and with them the context.

Stage two, trajectory steering: at the states of the first half of samplings that the untouched denoiser e0 was led
through by the concept, what it would do under enhanced guidance, f(c) = e0(c) + g (e0(c) - e0("")), is a safe target
for c^s and an unsafe one for c^m. Both the prediction under the concept and the one under no prompt shall be nearer to
the safe one, by a margin; at states of free samplings it shall stay that of stage one. Only self-attention and the
queries of cross-attention learn, so the text's edit stays as it is (section 3.3).

The first end is found by its token, for any split into pieces. Where the official code lets gradients pile up over
steps, stores states beside the time step before theirs, and redraws the time of free states, the text of the paper is
followed. Without as many captions as the text is wide the solve is open, so a relative ridge closes it.

Left out: weights that mix several kinds of slots.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts
from efface.core.knowledge import Knowledge
from efface.core.method import Step, Work, param
from efface.core.ops import Delta, Map, Op
from efface.core.plan import Plan
from efface.errors import UsageError
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.maps import LARGE, CrossAttnEdit, drift, factor, gram, mapped, spectral_norm
from efface.parts.concepts.phrases import SENTENCES, everyday, filled, names, read_pairs
from efface.parts.concepts.rollout import predictions, trajectories
from efface.parts.concepts.slots import Encoded, encode, word_tokens
from efface.parts.diffusion.adapters import latent_shape
from efface.training.descent import copies, descend, swapped
from efface.training.recipe import Train

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Trce(Eraser):
    """Hyper-parameters of the two stages."""

    stages: str = param(
        "both", "the text's edit, the steering of samplings, or both", choices=("both", "text", "steer")
    )
    phrases: str = param("", "JSON file of further pairs of phrases, [[harmful, safe], ...]")
    templates: tuple[str, ...] = param(
        (), "sentences around phrases in the text's edit; none stands for fifteen of our own"
    )
    slots: str = param(
        "eos",
        "slots that are mapped: the first end, the words, the last, all, the ends",
        choices=("eos", "word", "last", "all", "eos+pad"),
    )
    eta: float = param(0.01, "weight of captions that must stay, beside 1 of what is erased", low=0.0)
    ridge: float = param(1e-4, "pull of the text's edit towards none, over the mean square of rows", low=1e-12)
    knowledge: str = param("", "folder of summed-up captions; without one, the texts to keep are taken")
    common: bool = param(True, "let captions of everyday things stay beside the texts to keep")
    steps: int = param(300, "steps of the steering", low=1)
    lr: float = param(1e-6, "learning rate of the steering", low=0.0)
    template: str = param("a photo of {}", "sentence around phrases in the steering")
    runs: int = param(5, "samplings of each phrase", low=1)
    free_runs: int = param(200, "samplings without a prompt", low=1)
    run_steps: int = param(50, "steps of a sampling", low=2)
    run_guidance: float = param(3.0, "guidance of samplings", low=1.0)
    early: float = param(0.5, "share of a sampling's steps, from the first, that is steered", low=0.0, high=0.99)
    guidance: float = param(15.0, "enhanced guidance of the targets", low=0.0)
    margin: float = param(0.01, "how much nearer to the safe target, in mean squares", low=0.0)
    kept: float = param(100.0, "weight of the states of free samplings", low=0.0)
    batch: int = param(4, "free states of a step", low=1)

    card = Card(
        title="TRCE: Towards Reliable Malicious Concept Erasure in Text-to-Image Diffusion Models",
        paper="arXiv:2503.07389",
        year=2025,
        task="concepts from generators",
        inputs=("pipeline", "concepts"),
        good_at="Concepts that prompts hint at without their name: what the end of a prompt sums up goes, and "
        "samplings are led away early. Say what is to stand in its place, in several phrases.",
        left_out="weights that mix several kinds of slots",
    )
    trains: ClassVar[bool] = True
    small: ClassVar[dict[str, Any]] = {"steps": 3, "runs": 1, "free_runs": 2, "run_steps": 4, "batch": 2, "lr": 1e-3}

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return one map for all key and value layers, and new values of the layers that steer.

        Facts: ``spectral_norm`` and ``kept_drift`` of the text's edit, how far rows of captions moved; ``loss``, the
        two losses of steering at its end; ``notes``.

        Raises
        ------
        UsageError
            If the pipeline cannot be told the concepts or has no cross-attention of its own, what takes a phrase's
            place contains it, no sentence fits the slots, or the denoiser cannot be steered.
        WeightsError
            If the knowledge comes from another text encoder.
        """
        every = self._pairs(concepts)
        check_concepts(pipe, every)
        name, net = backbone(pipe)
        layers = cross_attention(net)
        gram0, ops = gram(layer.weight for layer in layers.values()), list[Op]()
        edit, facts, notes = torch.eye(len(gram0), dtype=torch.float64), dict[str, Any](), list[str]()
        if self.stages != "steer":
            edit = self._text(pipe, every)
            ops.append(Map(name, tuple(layers), *factor(edit)))
            kept = encode(pipe, ["", *concepts.keep]).embeds.flatten(0, 1)
            facts |= {"spectral_norm": spectral_norm(edit), "kept_drift": drift(gram0, edit, kept)}
            if facts["spectral_norm"] > LARGE:
                notes.append(f"the map lengthens some texts {facts['spectral_norm']:.1f} times: raise eta or ridge")
        if self.stages != "text":
            weights = steering(net)
            train = Train(steps=self.steps, lr=self.lr, weight_decay=1e-2, seed=work.seed)
            reached = descend(net, weights, self._loss(pipe, every.pairs, edit, work), train, work, name=self.name)
            ops += [Delta.set(f"{name}.{key}", value) for key, value in reached.values.items()]
            facts["loss"] = reached.ending()
            if facts["loss"]["erase"] > self.margin:
                notes.append("predictions end nearer to what goes: steer for more steps, or with another lr")
        for note in notes:
            work.progress(note)
        return self.planned(pipe, concepts, work, ops, notes=notes, **facts)

    def _pairs(self, concepts: Concepts) -> Concepts:
        """Return the concepts and the phrases of the file."""
        more = read_pairs(self.phrases) if self.phrases else []
        every = Concepts.of(
            [*concepts.remove, *(c for c, _ in more)], [*concepts.instead, *(g for _, g in more)], concepts.keep
        )
        for concept, safe in every.pairs:
            if names(safe, concept):
                fix = "Give a phrase without it"
                raise UsageError(f"{safe!r} would take the place of {concept!r} and holds it", where="instead", fix=fix)
        return every

    def _text(self, pipe: Any, concepts: Concepts) -> Tensor:
        """Return the map (width, width) of stage one."""
        if self.knowledge:
            known = Knowledge.load(self.knowledge)
            known.check(pipe)
        else:
            texts = everyday(concepts.remove) if self.common else []
            known = Knowledge.of(pipe, ["", *concepts.keep, *texts])
        old, new = paired(pipe, concepts.pairs, self.templates or SENTENCES, self.slots)
        edit = CrossAttnEdit(old.shape[1]).replace(old, new)
        edit.gram.add_(known.gram, alpha=self.eta)
        return edit.solve(self.ridge)

    def _loss(self, pipe: Any, pairs: Pairs, edit: Tensor, work: Work) -> Callable[[Step], dict[str, Tensor]]:
        """Return the loss of stage two, with all states that it is asked for at."""
        net = backbone(pipe)[1]
        weights, count = steering(net), len(pairs)
        original = copies(weights)
        phrases = filled(pairs, [self.template])
        text = encode(pipe, ["", *(safe for _, safe in phrases), *(harmful for harmful, _ in phrases)])
        edited = dataclasses.replace(text, embeds=mapped(text.embeds, edit))
        nothing = edited.picked([0])
        work.progress(f"{count} phrases are sampled {self.runs} times, and no phrase {self.free_runs} times")
        runs = [1 + count + number for number in range(count) for _ in range(self.runs)]
        early = range(int(self.early * self.run_steps) + 1)
        led, times = self._states(pipe, text.picked(runs), self.run_guidance, early, work.generator("led"))
        none = text.picked([0] * self.free_runs)
        free, free_times = self._states(pipe, none, 1.0, range(self.run_steps), work.generator("free"))

        def loss(step: Step) -> dict[str, Tensor]:
            generator = step.generator("state")
            epoch, turn = divmod(step.step, len(runs))
            run = int(torch.randperm(len(runs), generator=work.generator(f"epoch {epoch}"))[turn])
            s = int(torch.randint(len(led), (), generator=generator))
            x, t = led[s, run : run + 1].to(net.device), times[s]
            at = torch.randint(len(free), (self.batch,), generator=generator)
            others = free[at, torch.randint(self.free_runs, (self.batch,), generator=generator)].to(net.device)
            with torch.no_grad(), swapped(weights, original):
                null, *both = predictions(pipe, x, t, text.picked([0, runs[run] - count, runs[run]]))
                before = predictions(pipe, others, free_times[at], nothing)
            safe, harmful = (found + self.guidance * (found - null) for found in both)
            erase = hinge(predictions(pipe, x, t, edited.picked([0, runs[run]])), safe, harmful, self.margin)
            preserve = (predictions(pipe, others, free_times[at], nothing) - before).square().mean()
            return {"total": erase + self.kept * preserve, "erase": erase, "preserve": preserve}

        return loss

    def _states(
        self, pipe: Any, text: Encoded, guidance: float, keep: range, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return states (k, n, c, h, w) of a sampling under each prompt of ``text``, and their times (k,)."""
        net, empty, found = backbone(pipe)[1], encode(pipe, [""]), []
        for at in torch.arange(len(text.embeds)).split(self.runs):
            noise = torch.randn(len(at), *latent_shape(net.config), generator=generator).to(net.device)
            asked = text.picked(at.tolist())
            found.append(trajectories(pipe, asked, empty, noise, steps=self.run_steps, guidance=guidance, keep=keep))
        return torch.cat([states.cpu() for states, _ in found], dim=1), found[0][1]


def paired(pipe: Any, pairs: Pairs, templates: Sequence[str], slots: str) -> tuple[Tensor, Tensor]:
    """Return rows (n, width) of every phrase in every template, and those of the safe phrase in the same template.

    Slots before the phrase meet their own, others are counted from the first end; where there are fewer, the nearest
    serves. The last slots of all meet. Sentences that are cut off are left out.

    Raises :class:`UsageError` if none is left.
    """
    given = encode(pipe, [text for both in filled(pairs, templates) for text in both])
    slot, old, new = torch.arange(given.ids.shape[1]), list[Tensor](), list[Tensor]()
    for number, (pair, template) in enumerate(itertools.product(pairs, templates)):
        before, after, *lengths = (len(word_tokens(pipe, text.strip())) for text in (*template.split("{}"), *pair))
        start = int(given.start[0].any())
        first = start + before
        end, other = (first + length + after for length in lengths)
        if max(end, other) >= len(slot):
            continue
        chosen = {
            "eos": slot == end, "word": (slot >= first) & (slot < first + lengths[0]), "last": slot == slot[-1],
            "all": slot >= start, "eos+pad": slot >= end,
        }[slots]  # fmt: skip
        meets = torch.where(slot < first, slot, (slot - end + other).clamp(first, len(slot) - 1))
        old.append(given.embeds[2 * number, chosen])
        new.append(given.embeds[2 * number + 1, (slot if slots == "last" else meets)[chosen]])
    if not old:
        raise UsageError("no sentence fits the slots of a prompt", where="templates", fix="Give shorter ones")
    return torch.cat(old), torch.cat(new)


def hinge(found: Tensor, safe: Tensor, harmful: Tensor, margin: float) -> Tensor:
    """Return by how much predictions ``found`` (n, ...) are not nearer to ``safe`` than to ``harmful`` (...)."""
    away = [(found - target).square().flatten(1).mean(1) for target in (safe, harmful)]
    return (away[0] - away[1] + margin).clamp(min=0).mean()


def steering(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that stage two moves: all of self-attention, and the queries of cross-attention."""
    return {key: weight for key, weight in net.named_parameters() if ".attn1." in key or ".attn2.to_q." in key}
