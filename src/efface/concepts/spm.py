"""Erase concepts by adapters of one dimension, which leave alone what they were not made for.

Beside every layer of the denoiser's transformers lies a rank-1 adapter, the semi-permeable membrane: y = W x + u (d x).
It learns at states x_t that the pipeline with its adapters comes to under the concept: there, its noise under the
concept shall be e(x_t, other) - eta * (e(x_t, concept) - e(x_t, other)), with e the untouched denoiser and the other
the surrogate or the empty prompt (eq. 2). Latent Anchoring holds it to e everywhere else: at random embeddings that are
the less likely the nearer to the concept, its noise shall be that of e, lambda times as strongly (eq. 3 and 4).

Adapters know the architecture alone, so one that was made for a pipeline fits its siblings, and several act together
with no further training. Facilitated Transport scales each of them, prompt by prompt, by how much the prompt has to do
with its concept (section 3.4): the plan is marked with ``gate`` for that. Several concepts of one request share an
adapter and take turns.

Where the official code counts 0.5 % of the UNet's weights, it is 0.05 %: 424 thousand for Stable Diffusion 1.

Left out: restarts of the learning rate and 8-bit moments; the rate falls along one cosine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from efface.core.card import Card
from efface.core.eraser import Concepts, Eraser, check_concepts
from efface.core.method import Step, Work, param
from efface.core.ops import Delta, Op
from efface.core.plan import Plan
from efface.parts.concepts.attention import backbone
from efface.parts.concepts.lora import Adapter, attached, hosts, new_adapters, parameters
from efface.parts.concepts.neighbours import anchors
from efface.parts.concepts.rollout import noise_prediction, partial_denoise, predictions
from efface.parts.concepts.slots import Encoded, encode
from efface.parts.diffusion.adapters import latent_shape
from efface.training.descent import descend, load
from efface.training.recipe import Train


@dataclass(frozen=True, kw_only=True)
class Spm(Eraser):
    """Hyper-parameters of concept semi-permeable membranes."""

    steps: int = param(3000, "steps of training", low=1)
    lr: float = param(1e-4, "highest learning rate", low=0.0)
    warmup: float = param(0.17, "share of the steps over which the rate rises", low=0.0, high=1.0)
    rank: int = param(1, "dimensions of an adapter", low=1)
    eta: float = param(1.0, "strength with which the concept is turned around", low=0.0)
    anchoring: float = param(1000.0, "weight of Latent Anchoring (lambda)", low=0.0)
    anchors: int = param(4, "anchors of a step", low=1)
    batch: int = param(1, "states of a step", low=1)
    rollout_steps: int = param(30, "steps of the samplings that give states", low=2)
    rollout_guidance: float = param(3.0, "guidance of these samplings", low=1.0)
    dynamic: bool = param(True, "let height and width of states vary below the pipeline's own")
    layers: str = param("", "regular expression that names of the layers must contain")

    card = Card(
        title="One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications",
        paper="arXiv:2312.16145",
        year=2024,
        task="concepts from generators",
        inputs=("pipeline", "concepts"),
        good_at="A file of 1.7 MB for each concept of Stable Diffusion 1, that stacks with others, fits sibling models "
        "and is scaled by prompt. Training takes minutes on a GPU.",
        left_out="restarts of the learning rate, 8-bit moments",
    )
    trains: ClassVar[bool] = True
    small: ClassVar[dict[str, Any]] = {"steps": 3, "rollout_steps": 3, "anchors": 2, "lr": 1e-2}

    def plan(self, pipe: Any, concepts: Concepts, work: Work) -> Plan:
        """Return an edit of low rank for each layer. Facts: ``gate``, and ``loss``, the two losses at the end.

        Raises
        ------
        UsageError
            If the pipeline cannot be told the concepts, or its denoiser is no UNet without built-in guidance.
        """
        check_concepts(pipe, concepts)
        name, net = backbone(pipe)
        adapters = new_adapters(hosts(net, match=self.layers), self.rank, work.generator("adapters"))
        train = Train(
            steps=self.steps, lr=self.lr, warmup=self.warmup, schedule="cosine", weight_decay=1e-2, seed=work.seed,
            batch=self.batch,
        )  # fmt: skip
        for adapter in adapters.values():
            adapter.to(net.device)
        reached = descend(net, parameters(adapters), self._loss(pipe, concepts, adapters), train, work, name=self.name)
        load(parameters(adapters), reached.values)
        ops: list[Op] = [Delta.low_rank(f"{name}.{host}.weight", *own.factors()) for host, own in adapters.items()]
        last = {key: reached.history[-1][key] for key in ("erase", "anchor") if key in reached.history[-1]}
        return self.planned(pipe, concepts, work, ops, gate=True, loss=last)

    def _loss(self, pipe: Any, concepts: Concepts, adapters: dict[str, Adapter]) -> Callable[[Step], dict[str, Tensor]]:
        net = backbone(pipe)[1]
        texts = [encode(pipe, [other, concept]) for concept, other in concepts.pairs]
        asked = [encode(pipe, [concept]) for concept in concepts.remove]
        empty = encode(pipe, [""])

        def loss(step: Step) -> dict[str, Tensor]:
            generator = step.generator("state")
            turn = int(torch.randint(len(texts), (), generator=generator))
            noise = torch.randn(self._shape(net.config, generator), generator=generator).to(net.device)
            stop = int(torch.randint(1, self.rollout_steps, (), generator=generator))
            concept, rows = asked[turn], asked[turn].picked([0] * self.batch)
            with attached(net, adapters):
                x, t = partial_denoise(
                    pipe, rows, empty, noise, steps=self.rollout_steps, stop=stop, guidance=self.rollout_guidance
                )
            around = anchored(concept, self.anchors, generator)
            with torch.no_grad():
                neutral, positive = predictions(pipe, x, t, texts[turn])
                at_anchors = predictions(pipe, x, t, around)
            with attached(net, adapters):
                found = noise_prediction(pipe, x, t, concept.embeds, concept.pooled)
                found_at_anchors = predictions(pipe, x, t, around)
            erase = (found - (neutral - self.eta * (positive - neutral))).square().mean()
            anchor = (found_at_anchors - at_anchors).square().mean()
            return {"total": erase + self.anchoring * anchor, "erase": erase, "anchor": anchor}

        return loss

    def _shape(self, config: Any, generator: Generator) -> tuple[int, ...]:
        """Return the shape of a step's states; sides are multiples of 8, from half the pipeline's own up."""
        channels, *own = latent_shape(config)
        sides = list(own)
        if self.dynamic:
            for axis, side in enumerate(own):
                if allowed := range(-(-side // 16) * 8, side, 8):
                    sides[axis] = allowed[int(torch.randint(len(allowed), (), generator=generator))]
        return (self.batch, channels, *sides)


def anchored(text: Encoded, count: int, generator: Generator) -> Encoded:
    """Return ``count`` anchors of one prompt; its pooled embedding, where there is one, gets anchors of its own."""
    around = text.picked([0] * count)
    pooled = None
    if text.pooled is not None:
        pooled = anchors(text.pooled, count, generator)[:, 0]
    return dataclasses.replace(around, embeds=anchors(text.embeds[0], count, generator), pooled=pooled)
