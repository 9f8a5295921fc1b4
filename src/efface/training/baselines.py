"""Erase by the two methods that every eraser is measured beside: UCE in closed form, ESD by training."""

from __future__ import annotations

from typing import Any

import torch

from efface.core.eraser import Concepts
from efface.core.method import Step, Work
from efface.core.ops import Delta, Map, Op
from efface.parts.concepts.attention import backbone, cross_attention
from efface.parts.concepts.maps import RIDGE, CrossAttnEdit, factor
from efface.parts.concepts.rollout import noise_prediction, partial_denoise, predictions
from efface.parts.concepts.slots import TEMPLATES, aligned, encode
from efface.parts.diffusion.adapters import latent_shape
from efface.training.descent import Descended, copies, descend, swapped
from efface.training.recipe import Train


def uce(pipe: Any, concepts: Concepts, *, ridge: float = RIDGE, kept: float = 1.0) -> list[Op]:
    """Return the edit of unified concept editing (Gandikota et al., arXiv:2308.14761): one map of the text.

    Rows of each concept, in sentences around it, become those of what takes its place; the empty prompt and those to
    keep stay, with the weight ``kept`` in all.
    """
    edit: CrossAttnEdit | None = None
    for concept, guide in concepts.pairs:
        old, new = aligned(pipe, concept, guide, TEMPLATES)
        edit = CrossAttnEdit(old.shape[1]) if edit is None else edit
        edit.replace(old, new)
    assert edit is not None
    edit.keep(encode(pipe, ["", *concepts.keep]).embeds, kept)
    name, net = backbone(pipe)
    return [Map(name, tuple(cross_attention(net)), *factor(edit.solve(ridge)))]


def esd(
    pipe: Any,
    concepts: Concepts,
    work: Work,
    *,
    steps: int = 1000,
    lr: float = 1e-5,
    eta: float = 1.0,
    rollout_steps: int = 50,
    rollout_guidance: float = 3.0,
    batch: int = 1,
) -> list[Op]:
    """Return the edit of ESD-x (Gandikota et al., arXiv:2303.07345): cross-attention trained away from each concept.

    At states that the edited model itself comes to, its noise under the concept shall be that of the original under
    what takes its place, less ``eta`` times what the concept adds there (eq. 7). Concepts take turns.
    """
    name, net = backbone(pipe)
    weights = {key: weight for key, weight in net.named_parameters() if ".attn2." in key}
    original = copies(weights)
    texts = [encode(pipe, [other, concept]) for concept, other in concepts.pairs]
    asked = [encode(pipe, [concept] * batch) for concept, _ in concepts.pairs]
    empty = encode(pipe, [""])
    shape = (batch, *latent_shape(net.config))

    def loss(step: Step) -> dict[str, torch.Tensor]:
        turn = step.step % len(texts)
        text, generator = texts[turn], step.generator("state")
        stop = int(torch.randint(rollout_steps, (), generator=generator))
        noise = torch.randn(shape, generator=generator).to(net.device)
        x, t = partial_denoise(
            pipe, asked[turn], empty, noise, steps=rollout_steps, stop=stop, guidance=rollout_guidance
        )
        with torch.no_grad(), swapped(weights, original):
            neutral, positive = predictions(pipe, x, t, text)
        found = noise_prediction(pipe, x, t, asked[turn].embeds, asked[turn].pooled)
        return {"total": (found - (neutral - eta * (positive - neutral))).square().mean()}

    train = Train(steps=steps, lr=lr, seed=work.seed, batch=batch)
    return deltas(name, descend(net, weights, loss, train, work, name="esd"))


def deltas(target: str, descended: Descended) -> list[Op]:
    """Return the edits that set what a descent reached, for weights named inside the network ``target``."""
    return [Delta.set(f"{target}.{name}", value) for name, value in descended.values.items()]
