"""Erase concepts by drawing what they make of a picture into the domain of an anchor, whatever the prompt.

Pictures of the anchor, drawn by the original or given, are noised to x_t. From them the trained denoiser predicts clean
latents under captions of the target, and the original under captions of the anchor. A discriminator, trained alone at
first, tells the domains apart, and the denoiser learns to be taken for the anchor. Prompts that were never trained with
follow, since the domain is matched as a whole.

Meanwhile the denoiser must denoise pictures of the anchor as before. Of each tensor's gradient the part that would make
that worse is taken out: where <g_u, g_p> < 0, g_u becomes g_u - lambda <g_u, g_p> / |g_p|^2 g_p.

Two mistakes of the official code are not made: the denoiser's loss leaves no gradient in the discriminator, and what is
taken out has the factor |g_u|. Both domains pass in one batch, whose statistics would tell them apart otherwise.

Left out: mirrored and rescaled pictures; captions by a language model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts
from efface.core.method import Step, Work, param
from efface.core.plan import Plan
from efface.errors import UsageError
from efface.parts.concepts.attention import backbone
from efface.parts.concepts.phrases import SENTENCES
from efface.parts.concepts.rollout import noise_prediction, noised, predict_x0
from efface.parts.concepts.slots import encode
from efface.parts.concepts.surgery import clipped, cosines, linear_loss, project_conflicting
from efface.parts.concepts.trainable import trainable
from efface.parts.data.captioned import captioned, drawn
from efface.parts.diffusion.inversion import encoded
from efface.parts.nn.discriminator import PatchDiscriminator
from efface.seeds import derive, seeded
from efface.training.baselines import deltas
from efface.training.descent import LossOf, Rival, copies, descend, load, swapped
from efface.training.recipe import Train

DROPPED, BETAS = 0.2, (0.5, 0.999)
"""Largest share of captions that may fail to name the anchor; decay rates of the discriminator's Adam."""


class Anchored(NamedTuple):
    """Latents (n, c, h, w) of pictures of the anchor, captions for it and for the target; how many were unusable."""

    latents: Tensor
    captions: list[str]
    asking: list[str]
    dropped: int


class States(NamedTuple):
    """States (b, c, h, w) of such pictures at the time steps ``t`` (b,), the noise in them, and their captions."""

    x: Tensor
    t: Tensor
    noise: Tensor
    captions: list[str]
    asking: list[str]


Weights = Mapping[str, nn.Parameter]
Domains = Callable[[Step], tuple[Tensor, Tensor]]
"""Noise (2b, c, h, w) found under captions of the target, then of the anchor, and the clean latents that it means."""


@dataclass(frozen=True, kw_only=True)
class Doco(Eraser):
    """Hyper-parameters of domain correction with concept-preserving gradients."""

    kind: str = param(
        "object", "how captions of the anchor become the target's: its word is exchanged, or the style is added; "
        "memorised: the target is the caption", choices=("object", "style", "memorised"),
    )  # fmt: skip
    captions: tuple[str, ...] = param((), "captions that name the anchor; none: sentences around it")
    pictures: str = param("", "folder of pictures of the anchor, each with its caption in a .txt; empty: drawn")
    count: int = param(1000, "pictures of the anchor that the original draws", low=1)
    guidance: float = param(6.0, "guidance of these pictures", low=0.0)
    sampling_steps: int = param(25, "steps in which they are drawn", low=2)
    steps: int = param(2000, "steps of both networks, after those of the discriminator alone", low=1)
    warm_up: int = param(1000, "steps of the discriminator alone", low=0)
    batch: int = param(8, "pictures of a step, for the target and as many for the anchor", low=1)
    lr: float = param(4.8e-5, "learning rate of the denoiser", low=0.0)
    rival_lr: float = param(1e-4, "learning rate of the discriminator; 5e-4 for styles", low=0.0)
    match: str = param("domain", "match the anchor's domain, or its noise by squares", choices=("domain", "noise"))
    surgery: bool = param(True, "take out what harms the anchor; otherwise its loss is added")
    strength: float = param(1.0, "how much of the conflicting part is taken out (lambda)", low=0.0)
    official_scale: bool = param(False, "take out as much as the official code does")
    preserve: float = param(0.1, "weight of the anchor's own loss where there is no surgery", low=0.0)
    weights: str = param("cross-kv", "weights that train: cross-kv, cross, full, or a pattern of their names")
    t_range: tuple[int, ...] = param((0, 999), "first and last time step; x0 is mostly error at the last ones", low=0)
    widths: tuple[int, ...] = param((64, 128, 256, 512), "channels of the discriminator, as far as they fit", low=1)
    norm: str = param("batch", "normalisation in the discriminator", choices=("batch", "group", "none"))

    card = Card(
        title="Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept Preserving Gradient",
        paper="arXiv:2405.15304",
        year=2025,
        task="concepts from generators",
        inputs=("pipeline", "concepts"),
        good_at="Prompts that it was not trained with are corrected too. No defence against attacks.",
        left_out="mirrored and rescaled pictures; captions by a language model",
    )
    trains: ClassVar[bool] = True
    small: ClassVar[dict[str, Any]] = {
        "count": 4, "sampling_steps": 2, "steps": 3, "warm_up": 1, "batch": 2, "lr": 1e-2, "widths": (4, 8),
    }  # fmt: skip

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return new values of the weights that train.

        Facts: ``loss``, the terms and the agreement of their gradients in the mean of the last tenth; ``dropped``, the
        captions that did not name the anchor.

        Raises
        ------
        UsageError
            If the pipeline cannot be told the concepts, one lacks an anchor or captions of it, or nothing can train.
        DataError
            If the folder of pictures lacks pictures or captions.
        """
        check_concepts(pipe, concepts)
        if nameless := [concept for concept, anchor in concepts.pairs if not anchor]:
            raise UsageError("has no anchor", where=nameless[0], fix="Say what takes its place, with instead")
        if len(self.t_range) != 2 or self.t_range[0] > self.t_range[1]:
            raise UsageError(f"{self.t_range} is no range", where="doco.t_range", fix="Give the first and the last")
        name, net = backbone(pipe)
        weights = trainable(net, self.weights)
        data = [self._anchored(pipe, *pair, work) for pair in concepts.pairs]
        domains = self._domains(pipe, data, weights)
        rival = self._rival(net, domains, work) if self.match == "domain" else None
        loss = self._loss(pipe, data, weights, domains, rival)
        train = Train(steps=self.steps, lr=self.lr, weight_decay=1e-2, seed=work.seed, batch=self.batch)
        reached = descend(net, weights, loss, train, work, name=self.name, rival=rival)
        dropped = sum(part.dropped for part in data)
        return self.planned(pipe, concepts, work, deltas(name, reached), loss=reached.ending(), dropped=dropped)

    def asking(self, caption: str, concept: str, anchor: str, number: int = 0) -> str | None:
        """Return the caption of an anchor's picture as one that asks for the concept, or None if it cannot be one."""
        if self.kind == "memorised":
            return concept
        if self.kind == "style":
            return f"in {concept}'s style, {caption}" if number % 2 else f"{caption}, in the style of {concept}"
        changed, count = re.subn(rf"\b{re.escape(anchor)}\b", lambda _: concept, caption, flags=re.IGNORECASE)
        return changed if count else None

    def _anchored(self, pipe: Any, concept: str, anchor: str, work: Work) -> Anchored:
        """Return the pictures of the anchor, drawn or given, with both captions of each."""
        captions = list(self.captions or [sentence.replace("{}", anchor) for sentence in SENTENCES])
        if self.pictures:
            pictures, captions = captioned(self.pictures, pipe.unet.config.sample_size * pipe.vae_scale_factor)
        asking = {i: text for i, own in enumerate(captions) if (text := self.asking(own, concept, anchor, i))}
        if (dropped := len(captions) - len(asking)) > DROPPED * len(captions):
            fix = "Give captions that name the anchor, or another kind"
            raise UsageError(f"{dropped} of {len(captions)} captions do not name it", where=anchor, fix=fix)
        rows = list(asking) if self.pictures else list(islice(cycle(asking), self.count))
        own = [captions[i] for i in rows]
        if self.pictures:
            latents = encoded(pipe, pictures[rows])
        else:
            latents = drawn(pipe, own, derive(work.seed, anchor), self.sampling_steps, self.guidance)
        return Anchored(latents, own, [asking[i] for i in rows], dropped)

    def _states(self, pipe: Any, part: Anchored, generator: Generator) -> States:
        rows = torch.randint(len(part.latents), (self.batch,), generator=generator)
        t = torch.randint(self.t_range[0], self.t_range[1] + 1, (self.batch,), generator=generator)
        noise = torch.randn(self.batch, *part.latents.shape[1:], generator=generator).to(part.latents)
        x = noised(pipe, part.latents[rows], noise, t)
        return States(x, t, noise, [part.captions[i] for i in rows], [part.asking[i] for i in rows])

    def _domains(self, pipe: Any, data: Sequence[Anchored], weights: Weights) -> Domains:
        original = copies(weights)

        @lru_cache(maxsize=1)  # a step asks twice, for the discriminator and for the denoiser
        def domains(step: Step) -> tuple[Tensor, Tensor]:
            states = self._states(pipe, data[step.step % len(data)], step.generator("domains"))
            target = _noise(pipe, states, states.asking)
            with torch.no_grad(), swapped(weights, original):
                anchor = _noise(pipe, states, states.captions)
            both = torch.cat([target, anchor])
            return both, predict_x0(pipe, states.x.repeat(2, 1, 1, 1), both, states.t.repeat(2))

        return domains

    def _rival(self, net: Any, domains: Domains, work: Work) -> Rival:
        """Return the discriminator, after the steps that it takes alone."""
        size = net.config.sample_size
        widths = [width for blocks, width in enumerate(self.widths, 1) if PatchDiscriminator.fits(blocks, size)]
        if not widths:
            raise UsageError(f"latents of {size} are too small for its discriminator", where=self.name)
        with seeded(work.seed, "discriminator"):
            judge = PatchDiscriminator(net.config.in_channels, widths, self.norm).to(net.device)

        def told_apart(step: Step) -> dict[str, Tensor]:
            target, anchor = judge(domains(step)[1].detach()).chunk(2)
            return {"total": taken_for_target(target) + taken_for_anchor(anchor)}

        if self.warm_up:
            seed, own = derive(work.seed, "warm-up"), dict(judge.named_parameters())
            train = Train(steps=self.warm_up, lr=self.rival_lr, betas=BETAS, seed=seed, batch=self.batch)
            load(own, descend(net, own, told_apart, train, work, name="discriminator").values)
        return Rival(judge, told_apart, {"lr": self.rival_lr, "betas": BETAS, "weight_decay": 0.0})

    def _loss(
        self, pipe: Any, data: Sequence[Anchored], weights: Weights, domains: Domains, rival: Rival | None
    ) -> LossOf:
        own = list(weights.values())

        def loss(step: Step) -> dict[str, Tensor]:
            noise, x0 = domains(step)
            found = noise.chunk(2) if rival is None else rival.net(x0).chunk(2)
            correction = F.mse_loss(found[0], found[1]) if rival is None else taken_for_anchor(found[0])
            towards = torch.autograd.grad(correction, own)
            prior = self._states(pipe, data[step.step % len(data)], step.generator("preservation"))
            preservation = F.mse_loss(_noise(pipe, prior, prior.captions), prior.noise)
            against = torch.autograd.grad(preservation, own)
            agreement = cosines(towards, against)
            if self.surgery:
                made = project_conflicting(clipped(towards), clipped(against), self.strength, self.official_scale)
            else:
                made = clipped([u + self.preserve * p for u, p in zip(towards, against, strict=True)])
            told = {"cosine": agreement.mean(), "conflicts": (agreement < 0).float().mean()}
            return {"total": linear_loss(own, made), "correction": correction, "preservation": preservation, **told}

        return loss


def taken_for_anchor(logits: Tensor) -> Tensor:
    """Return the cross-entropy of patches with the verdict that they are of the anchor: 0, as in the paper."""
    return F.softplus(logits).mean()


def taken_for_target(logits: Tensor) -> Tensor:
    """Return the cross-entropy of patches with the verdict that they are of the target: 1."""
    return F.softplus(-logits).mean()


def _noise(pipe: Any, states: States, captions: list[str]) -> Tensor:
    text = encode(pipe, captions)
    return noise_prediction(pipe, states.x, states.t, text.embeds, text.pooled)
